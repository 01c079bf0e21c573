"""Play a game in the notebook and keep it as a demonstration: `source: mine` trains on it.

    PlayYourself()

The game runs in the kernel, in the real emulator at 60 frames a second (or slowed); an action is held for four frames,
as the models do. The keyboard and the pad are a piece of the page that writes the action held into a field of the
panel. What is saved has been replayed first.
"""

import html
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets
import numpy as np
import traitlets

from mzlib.agc.files import encode
from mzlib.demos import Demo, save, verify
from mzlib.emulator import ACTIONS, FRAMES_PER_ACTION, NOOP, Emulator
from mzlib.runs import runs_root
from mzlib.viz.clips import FRAME_RATE, png_bytes

FIRST_SEED = 49_000  # of recorded games: a training seed, one a game, so that whole games are held out
SPEEDS = {"60 frames a second": 1.0, "half as fast": 0.5, "a quarter as fast": 0.25}
PAD = ("UPLEFT", "UP", "UPRIGHT", "LEFT", "FIRE", "RIGHT", "DOWNLEFT", "DOWN", "DOWNRIGHT")
ARROWS = dict(zip(PAD, "↖↑↗←●→↙↓↘", strict=True))
STYLE = """
.mz-pad{display:inline-grid;grid-template-columns:repeat(3,52px);gap:4px;padding:8px;border:1px solid #888;
border-radius:6px;font:14px system-ui,sans-serif;touch-action:none;user-select:none}
.mz-pad button{height:44px;font-size:20px;color:inherit;background:transparent;border:1px solid currentColor;
border-radius:4px;cursor:pointer;touch-action:none}
.mz-pad .mz-held{background:#0072b2;color:#fff}
.mz-pad:focus,.mz-pad :focus-visible{outline:3px solid #0072b2;outline-offset:1px}
.mz-pad p{grid-column:1/4;margin:0;font-size:12px}
"""
SCRIPT = """
const keys={ArrowUp:'UP',ArrowDown:'DOWN',ArrowLeft:'LEFT',ArrowRight:'RIGHT',w:'UP',s:'DOWN',a:'LEFT',d:'RIGHT',
 ' ':'FIRE'},held=new Map();
const tell=()=>{
 const on=new Set([...held.values()].flatMap(name=>['UP','DOWN','LEFT','RIGHT','FIRE'].filter(k=>name.includes(k))));
 const one=(a,b)=>on.has(a)===on.has(b)?'':on.has(a)?a:b;
 const name=one('UP','DOWN')+one('RIGHT','LEFT')+(on.has('FIRE')?'FIRE':'')||'NOOP',action=ACTIONS.indexOf(name);
 root.querySelectorAll('button').forEach(b=>b.classList.toggle('mz-held',[...held.values()].includes(b.dataset.name)));
 if(root.dataset.action===name)return;
 root.dataset.action=name;
 document.querySelectorAll('.'+LINK+' input[type=number]').forEach(field=>{
  field.value=action;field.dispatchEvent(new Event('change',{bubbles:true}))})};
const press=(id,name)=>{held.set(id,name);tell()},release=id=>{if(held.delete(id))tell()};
const key=e=>keys[e.key.length===1?e.key.toLowerCase():e.key];
root.addEventListener('keydown',e=>{
 if(e.ctrlKey||e.metaKey||e.altKey||!key(e))return;
 e.preventDefault();e.stopPropagation();press('key '+key(e),key(e))});
root.addEventListener('keyup',e=>{if(key(e)){e.preventDefault();e.stopPropagation();release('key '+key(e))}});
root.addEventListener('focusout',e=>{if(!root.contains(e.relatedTarget)){held.clear();tell()}});
root.querySelectorAll('button').forEach(b=>{
 b.onpointerdown=e=>{e.preventDefault();root.focus();b.setPointerCapture(e.pointerId);press(e.pointerId,b.dataset.name)};
 b.onpointerup=b.onpointercancel=e=>release(e.pointerId)});
document.addEventListener('click',e=>{if(e.target.closest?.('.'+LINK+' .mz-go'))root.focus({preventScroll:true})});
root.dataset.action='NOOP';root.dataset.ready='yes';
"""


class PlayPanel(ipywidgets.VBox):
    """The game's picture and its buttons: play or pause, keep the game, begin a new one. Needs a running kernel.

    sticky: probability that an emulator frame repeats the action before. folder: where games are kept, `runs/mine` by
    default. `held` is the action in force, `saved` the file last written; both can be observed.
    """

    saved = traitlets.Instance(Path, allow_none=True)

    def __init__(self, sticky: float = 0.0, folder: Path | None = None):
        self.sticky, self.folder = sticky, Path(folder or runs_root() / "mine")
        self._thread, self._go = None, threading.Event()
        self.picture = ipywidgets.Image(format="png", layout={"width": "480px", "height": "315px"})
        self.held = ipywidgets.IntText(NOOP, layout={"display": "none"})
        self.speed = ipywidgets.Dropdown(options=SPEEDS, layout={"width": "12em"})
        self.said = ipywidgets.Label()
        self.go, self.keep, self.fresh = (ipywidgets.Button(description=t) for t in ("Play", "Keep this game", "New"))
        self.go.add_class("mz-go")
        self.said.add_class("mz-said")
        for button, clicked in ((self.go, self.toggle), (self.keep, self.save), (self.fresh, self.restart)):
            button.on_click(lambda _, clicked=clicked: clicked())
        bar = ipywidgets.HBox([self.go, self.keep, self.fresh, self.speed], layout={"flex_flow": "row wrap"})
        super().__init__([self.picture, bar, self.said, self.held])
        self.add_class("mz-play")
        self.restart()

    def __repr__(self) -> str:  # what a page without a kernel shows
        return "PlayPanel: open the notebook in JupyterLab and run it to play"

    @property
    def playing(self) -> bool:
        """Whether the game is running now."""
        return self._go.is_set()

    @property
    def demo(self) -> Demo:
        """The game so far, as a demonstration."""
        settings = {"seed": self.emulator.seed, "sticky": self.sticky, "frames_per_action": FRAMES_PER_ACTION}
        return Demo(np.array(self.actions, np.uint8), np.array(self.rewards, np.int32), source="your game", **settings)

    def restart(self) -> None:
        """A new game, paused; what was not kept is gone."""
        self.pause()
        self.number = 1 + max((int(path.stem) for path in self.folder.glob("[0-9]*.npz")), default=0)
        self.emulator = Emulator(seed=FIRST_SEED + self.number % 1_000, sticky=self.sticky, frames_per_action=1)
        self.actions, self.rewards = [], []
        self._show("Play begins it; arrow keys or W A S D, space jumps")

    def step(self, wait: Callable[[], bool] = lambda: True) -> None:
        """Hold the action in force for four frames; `wait` says after each whether there is time to draw it."""
        action, reward = self.held.value if 0 <= self.held.value < len(ACTIONS) else NOOP, 0
        for _ in range(FRAMES_PER_ACTION):
            reward += self.emulator.step(action)
            if wait():
                self.picture.value = encode(self.emulator.rgb())
        self.actions.append(action)
        self.rewards.append(reward)
        self.said.value = f"step {len(self.actions)}   score {sum(self.rewards)}   {ACTIONS[action]}"

    def toggle(self) -> None:
        """Play, or pause."""
        if self.playing:
            self.pause()
        elif not self.emulator.game_over:
            self._go.set()
            self.go.description = "Pause"
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stop the game where it is."""
        self._go.clear()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.go.description = "Play"

    def _run(self) -> None:
        due = time.perf_counter()

        def wait() -> bool:
            nonlocal due
            due += 1 / (FRAME_RATE * self.speed.value)
            late = time.perf_counter() - due
            if late > 0.1:  # the machine is too slow: rather slower than in jerks
                due += late
            time.sleep(max(0.0, -late))
            return late < 1 / FRAME_RATE

        while self.playing and not self.emulator.game_over:
            self.step(wait=wait)
        if self.emulator.game_over:
            self._go.clear()
            self.go.description = "Play"
            self.said.value = f"the game is over with {sum(self.rewards)} points; keep it, or begin a new one"

    def save(self) -> Path | None:
        """Replay the game so far, write it, begin a new one; its file, or None for a game without a step."""
        self.pause()
        if not self.actions:
            self.said.value = "there is nothing to keep yet"
            return None
        demo, path = self.demo, self.folder / f"{self.number:04d}.npz"
        verify(demo)
        save(path, [demo])
        self.restart()
        self._show(f"kept as {path.name}, verified by replay: {len(demo)} actions, {demo.score} points")
        self.saved = path
        return path

    def _show(self, words: str) -> None:
        self.picture.value, self.said.value = encode(self.emulator.rgb()), words


class PlayYourself:
    """The panel with its keyboard and on-screen pad; see `PlayPanel`. A still picture stands beside it."""

    alt = "The first room as the game begins; in JupyterLab it can be played here."

    def __init__(self, sticky: float = 0.0, folder: Path | None = None):
        self.panel = PlayPanel(sticky, folder)

    def to_html(self) -> str:
        """The pad, which takes the keyboard while it has the focus; its state is `data-action`."""
        buttons = "".join(
            f'<button type="button" tabindex="-1" data-name="{name}" aria-label="{name.lower()}">{arrow}</button>'
            for name, arrow in ARROWS.items()
        )
        words = html.escape("Click here, then: arrow keys or W A S D, space bar to jump.")
        return (
            f'<div class="mz-pad" tabindex="0" role="group" aria-label="Game pad" data-lm-suppress-shortcuts>'
            f"<style>{STYLE}</style>{buttons}<p>{words}</p></div><script>(()=>{{const LINK='mz-play',"
            f"ACTIONS={list(ACTIONS)};document.querySelectorAll('.mz-pad:not([data-begun])').forEach(root=>{{"
            f"root.dataset.begun='yes';{SCRIPT}}})}})()</script>"
        )

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, Image, display

        display(self.panel)
        display(HTML(self.to_html()))
        display(Image(png_bytes(self.panel.emulator.rgb(), 64), alt=self.alt, width=160))
