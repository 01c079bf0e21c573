"""How fast the β viewer redraws in headless Chromium, on shipped walks with a made-up switch."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.browser import CHROMIUM, Browser
from mzlib import demos, runs
from mzlib.emulator import ACTIONS
from mzlib.places import GOALS
from mzlib.viz.beta_viewer import BetaViewer
from mzlib.viz.rooms import RoomMap, pictures_of_demos
from mzlib.viz.segments import SwitchTrace, cluster_codes
from mzlib.viz.steering import Branch, Steer

WALKS = (3, 5, 7)  # of the places data: 159 to 181 steps, five goals each
CODE_DIM = 8


def made_up_trace(demo: demos.Demo, rng: np.random.Generator, name: str) -> SwitchTrace:
    """A shipped walk as a switch that knows the goals would see it: β near 1 where the goal changes, otherwise small
    with some half-open moments; a code for each goal, with noise."""
    emulator = demos.start(demo)
    frames, positions = [], []
    for action in demo.actions.tolist():
        frames.append(emulator.rgb().copy())
        positions.append(emulator.facts[:3])
        emulator.step(action)
    steps, changed = len(demo), np.diff(demo.goals, prepend=-9) != 0
    beta = np.where(changed, rng.uniform(0.8, 1, steps), rng.beta(0.6, 14, steps))
    beta[rng.choice(steps, 4, replace=False)] = (0.3, 0.4, 0.5, 0.6)
    own = np.random.default_rng(1).standard_normal((len(GOALS) + 1, CODE_DIM))  # the same for all walks
    proposals = own[demo.goals] + 0.25 * rng.standard_normal((steps, CODE_DIM))
    codes = np.zeros((steps, CODE_DIM))
    for t in range(steps):
        codes[t] = beta[t] * proposals[t] + (1 - beta[t]) * codes[t - 1]
    return SwitchTrace(np.array(frames), beta, codes, np.array(positions), demo.actions, demo.goals, name)


def made_up_viewer(walks: Sequence[int] = WALKS) -> BetaViewer:
    """A viewer of some of the shipped walks between places."""
    shipped = demos.load(runs.data_dir("demos") / "places" / "plain.npz")
    chosen, rng = [shipped[i] for i in walks], np.random.default_rng(0)
    traces = [made_up_trace(demo, rng, f"walk {i}") for i, demo in zip(walks, chosen, strict=True)]
    room_map = RoomMap(pictures_of_demos(chosen))
    return BetaViewer(traces, cluster_codes(traces), room_map, "Walks between places with a made-up switch.", start=60)


def held_direction(walks: Sequence[int] = WALKS) -> Steer:
    """A branch without a model: the emulator goes on from the walk's step, right or left by the code's sign."""
    shipped = demos.load(runs.data_dir("demos") / "places" / "plain.npz")

    def branch(trajectory: int, step: int, code: np.ndarray, steps: int) -> Branch:
        demo = shipped[walks[trajectory]]
        emulator = demos.start(demo)
        for action in demo.actions[:step].tolist():
            emulator.step(action)
        frames, positions = [], []
        for _ in range(steps):
            emulator.step(ACTIONS.index("RIGHT" if code[0] > 0 else "LEFT"))
            frames.append(emulator.rgb().copy())
            positions.append(emulator.facts[:3])
        return Branch(np.array(frames), np.array(positions))

    return branch


# From the event to after the picture is painted: the reader's wait, the browser's own wait for the next frame included.
MEASURE = """
const root=document.querySelector('.mz'),found=[];
const painted=()=>new Promise(done=>requestAnimationFrame(()=>{
 const line=new MessageChannel();line.port1.onmessage=done;line.port2.postMessage(0)}));
const input=root.querySelector(WHERE);
for(let i=0;i<COUNT;i++){
 await new Promise(done=>setTimeout(done,Math.random()*16));
 const value=+input.min+(+input.max-input.min)*((i*0.618034)%1),since=performance.now();
 input.value=value;input.dispatchEvent(new Event('input'));
 const drawn=performance.now()-since;
 await painted();
 found.push([drawn,performance.now()-since])}
return found;
"""


def redraw(viewer: BetaViewer, seconds: float) -> dict[str, dict]:
    """Milliseconds from a moved slider to the painted picture, the 95th percentile, and the median."""
    page = f"<!doctype html><meta charset='utf-8'><body>{viewer.to_html()}"
    count = max(5, round(seconds * 20))
    with tempfile.TemporaryDirectory(prefix="mz_viewer_") as folder, Browser() as browser:
        address = Path(folder, "page.html")
        address.write_text(page, encoding="utf-8")
        browser.open(address.as_uri())
        browser.wait("document.querySelector('.mz')?.dataset.ready")
        result = {}
        for name, where in (("redraw", "'input'"), ("threshold", "'.mz-limit'")):
            times = browser.run(MEASURE.replace("WHERE", where).replace("COUNT", str(count)))
            script, painted = (sorted(column) for column in zip(*times, strict=True))
            late = painted[int(0.95 * (count - 1))]
            result[f"viewer_{name}_ms"] = {"value": late, "unit": f"ms to the painted picture, 95 % of {count} moves"}
            result[f"viewer_{name}_median_ms"] = {"value": statistics.median(painted), "unit": "ms, the median"}
            result[f"viewer_{name}_script_ms"] = {
                "value": statistics.median(script),
                "unit": "ms of these in the script",
            }
    return result | {"viewer_kb": {"value": len(page) / 1000, "unit": f"kB, {len(viewer.traces)} trajectories"}}


def viewer_redraw(seconds: float) -> dict[str, dict]:
    """`redraw` of the made-up viewer; nothing, and a line saying so, without a Chromium."""
    if CHROMIUM is None:
        print("viewer: no chromium here; apt install chromium to measure it")
        return {}
    return redraw(made_up_viewer(), seconds)
