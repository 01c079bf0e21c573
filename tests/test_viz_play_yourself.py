"""The game in the notebook: recorded games are demos that replay; keys, pad and buttons in JupyterLab."""

import time
from dataclasses import replace

import pytest

from bench.browser import CHROMIUM, Browser, jupyterlab, run_all_cells
from mzlib import demos, runs
from mzlib.dataset import training_demos
from mzlib.emulator import ACTIONS
from mzlib.viz.play_yourself import PlayPanel, PlayYourself

RIGHT, UP = ACTIONS.index("RIGHT"), ACTIONS.index("UP")


def test_a_game_is_played_as_a_demo_replays(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="play one in notebook 01"):
        training_demos("shipped", "quick", source="mine")
    way = demos.load(runs.data_dir("demos", "first_key.npz"))[0]
    panel = PlayPanel()
    panel.emulator.wait(way.noops)
    for action in way.actions.tolist():
        panel.held.value = action
        panel.step()
    played = replace(panel.demo, seed=way.seed, noops=way.noops)
    demos.verify(played)
    assert (played.score, played.actions.tolist()) == (way.score, way.actions.tolist())
    panel.held.value = 99
    panel.step()
    assert panel.said.value.endswith("NOOP"), "no action of the game: none is taken"


def test_two_games_are_two_files_with_a_seed_each(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    panel, seen = PlayPanel(sticky=0.25), []
    panel.observe(lambda change: seen.append(change["new"].name), "saved")
    assert panel.save() is None
    for held in (RIGHT, UP):
        panel.held.value = held
        for _ in range(30):
            panel.step()
        assert panel.save() is not None
        assert "verified" in panel.said.value
        assert len(panel.actions) == 0
    assert seen == ["0001.npz", "0002.npz"]
    kept = training_demos("shipped", "quick", source="mine")
    assert [demo.actions.tolist() for demo in kept] == [[RIGHT] * 30, [UP] * 30]
    assert len({demo.seed for demo in kept}) == 2
    for demo in kept:
        demos.verify(demo)
    assert PlayPanel().number == 3


def test_a_game_that_does_not_replay_is_not_kept(tmp_path):
    panel = PlayPanel(folder=tmp_path)
    for _ in range(5):
        panel.step()
    panel.rewards[2] = 100
    with pytest.raises(ValueError, match="your game: replay differs at step 2"):
        panel.save()
    assert list(tmp_path.iterdir()) == []


def test_time_runs_as_fast_as_asked_and_stops(tmp_path):
    panel = PlayPanel(folder=tmp_path)
    panel.speed.value = 0.5
    panel.toggle()
    time.sleep(1.0)
    panel.pause()
    steps = len(panel.actions)
    assert 3 <= steps <= 8  # 7.5 at 30 frames a second, fewer on a busy machine
    time.sleep(0.2)
    assert len(panel.actions) == steps
    assert not panel.playing
    demos.verify(panel.demo)


CELL = """
from mzlib.viz.play_yourself import PlayYourself

PlayYourself()
"""


@pytest.mark.browser
@pytest.mark.slow
def test_in_jupyterlab_keys_and_pad_play_and_the_game_is_kept(tmp_path, monkeypatch):
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome here to run JupyterLab in")
    shots = runs.runs_root() / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("MZ_RUNS", str(tmp_path / "runs"))
    pad, said = "document.querySelector('.mz-pad')", "document.querySelector('.mz-play .mz-said')?.textContent"

    def click(words):
        find = f"[...document.querySelectorAll('.mz-play button')].find(b=>b.textContent==='{words}')"
        browser.wait(find, 20)
        browser.run(find + ".click()")

    with jupyterlab(tmp_path, CELL) as address, Browser(1200, 1100) as browser:
        run_all_cells(browser, address)
        browser.wait(f"{pad}?.dataset.ready && {said}?.startsWith('Play begins')", 120)
        first = browser.run("return document.querySelector('.mz-play img').src")
        click("Play")
        browser.wait(f"document.activeElement === {pad}", 20)
        for key, down, action in (("ArrowRight", 39, "RIGHT"), ("ArrowUp", 38, "UPRIGHT"), (" ", 32, "UPRIGHTFIRE")):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=down)
            browser.wait(f"{pad}.dataset.action === '{action}' && {said}.endsWith(' {action}')", 20)
        browser.screenshot(shots / "lab_play.png")
        for key, up in (("ArrowUp", 38), (" ", 32), ("ArrowRight", 39)):
            browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=up)
        browser.wait(f"{said}.endsWith('NOOP')", 20)
        assert browser.run("return document.querySelector('.mz-play img').src") != first
        box = browser.run(
            f"const left={pad}.querySelector('[data-name=LEFT]');left.scrollIntoView();"
            "const box=left.getBoundingClientRect();return [box.x+9,box.y+9]"
        )
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        browser.call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **place)
        browser.wait(f"{said}.endsWith(' LEFT')", 20)
        browser.call("Input.dispatchMouseEvent", type="mouseReleased", **place)
        browser.wait(f"{said}.endsWith('NOOP')", 20)
        click("Pause")
        click("Keep this game")
        browser.wait(f"{said}.startsWith('kept as 0001.npz, verified')", 60)
    [demo] = demos.recorded()
    demos.verify(demo)
    assert {ACTIONS.index(name) for name in ("RIGHT", "UPRIGHT", "LEFT", "NOOP")} <= set(demo.actions.tolist())


def test_the_pad_has_every_direction_and_names_them():
    made = PlayYourself().to_html()
    assert made.count("<button") == made.count("aria-label=") - 1 == 9
