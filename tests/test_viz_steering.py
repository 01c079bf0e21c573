"""Steering on the real emulator: what a branch becomes, and the panel beside the viewer in JupyterLab."""

import numpy as np
import pytest

from bench.browser import CHROMIUM, Browser, jupyterlab, run_all_cells
from bench.viewer import held_direction, made_up_viewer
from mzlib import runs
from mzlib.viz.beta_viewer import BetaViewer
from mzlib.viz.rooms import RoomMap
from mzlib.viz.steering import PRIOR, Branch, SteeringPanel


@pytest.fixture(scope="module")
def viewer():
    return made_up_viewer()


def test_a_branch_stands_beside_the_original(viewer):
    asked = []

    def branch(*given):
        asked.append(given)
        return held_direction()(*given)

    panel = SteeringPanel(viewer, branch, steps=12)
    seen = []
    panel.observe(lambda change: seen.append(change["new"]), "result")
    right = next(i for i, code in enumerate(viewer.clusters.examples) if code[0] > 0)  # the walk itself goes left here
    panel.trajectory.value, panel.step.value, panel.source.value = 1, 30, right
    scrubber = panel.steer()
    [(trajectory, step, code, steps)] = asked
    assert (trajectory, step, steps) == (1, 30, 12)
    assert np.array_equal(code, viewer.clusters.examples[right])
    assert seen == [scrubber] == [panel.result]
    trace, clip = viewer.traces[1], scrubber.clip
    assert clip.steps.tolist() == list(range(31, 43))
    assert np.array_equal(clip.frames[:, :210], trace.frames[31:43])
    own = held_direction()(1, 30, code, 12)
    assert np.array_equal(clip.frames[:, -210:], own.frames)
    assert not np.array_equal(own.frames[-1], trace.frames[42])
    assert np.allclose(scrubber.path, viewer.room_map.xy(*own.positions.T))
    way = viewer.room_map.xy(*trace.positions[31:42].T).round().astype(int)
    assert all((scrubber.map_picture[y, x] > 128).all() for x, y in way)
    assert clip.captions[4] == f"step 30 + 5   above: as it went   below: cluster {right}"


def test_the_branch_of_the_same_actions_is_the_original(viewer):
    trace = viewer.traces[0]
    same = Branch(trace.frames[21:41], trace.positions[21:41])
    panel = SteeringPanel(viewer, lambda *_: same)
    panel.step.value = 20
    clip = panel.steer().clip
    assert np.array_equal(clip.frames[:, :210], clip.frames[:, -210:])


def test_a_wide_map_has_the_two_side_by_side(viewer):
    wide = RoomMap(dict.fromkeys((0, 1, 2), viewer.room_map.picture))
    panel = SteeringPanel(BetaViewer(viewer.traces, viewer.clusters, wide, "Wide"), held_direction(), steps=2)
    clip = panel.steer().clip
    assert np.array_equal(clip.frames[:, :, :160], viewer.traces[0].frames[1:3])
    assert "left: as it went" in clip.captions[0]
    assert panel.result.map_picture.shape == (210, 480, 3)


def test_past_its_end_the_original_stays(viewer):
    last = len(viewer.traces[0]) - 1
    panel = SteeringPanel(viewer, held_direction(), steps=5)
    panel.step.value = last - 2
    clip = panel.steer().clip
    assert [("(ended)" in caption) for caption in clip.captions] == [False, False, True, True, True]
    assert np.array_equal(clip.frames[4, :210], viewer.traces[0].frames[last])


def test_draws_from_the_prior_differ_and_repeat_with_the_seed(viewer):
    def codes(seed):
        panel = SteeringPanel(viewer, held_direction(), steps=1, seed=seed)
        panel.source.value = PRIOR
        return [panel.steer() and panel.code.tolist() for _ in range(2)]

    assert codes(3) == codes(3)
    assert codes(3)[0] != codes(3)[1]
    assert codes(3) != codes(4)
    given = SteeringPanel(viewer, held_direction(), steps=1, prior=lambda rng, width: np.full(width, 7.0))
    given.source.value = PRIOR
    given.steer()
    assert given.code.tolist() == [7.0] * 8


def test_the_button_shows_the_branch(viewer):
    panel = SteeringPanel(viewer, held_direction(), steps=3)
    panel.button.click()
    [output] = panel.shown.outputs
    assert output["data"]["text/html"] == panel.result.to_html()
    assert "run it to steer" in panel._repr_mimebundle_()["text/plain"]
    assert viewer.link in panel._dom_classes
    assert viewer.link in viewer.to_html()


def test_a_branch_that_does_not_fit_is_refused(viewer):
    frames, positions = np.zeros((3, 84, 84), np.uint8), np.ones((3, 3), int)
    for wrong in (Branch(frames, positions), Branch(viewer.traces[0].frames[:3], positions[:2])):
        with pytest.raises(ValueError, match=r"the branch has frames .*\(N, 210, 160, 3\) and \(N, 3\)"):
            SteeringPanel(viewer, lambda *_, wrong=wrong: wrong).steer()


CELL = """
from bench.viewer import held_direction, made_up_viewer
from mzlib.viz.beta_viewer import BetaViewer
from mzlib.viz.rooms import RoomMap
from mzlib.viz.steering import SteeringPanel

viewer = made_up_viewer()
panel = SteeringPanel(viewer, held_direction(), steps=30)
viewer
"""


@pytest.mark.browser
@pytest.mark.slow
def test_in_jupyterlab_the_panel_follows_the_viewer(viewer, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome here to run JupyterLab in")
    shots = runs.runs_root() / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    fields = f"document.querySelectorAll('.{viewer.link} input[type=number]')"
    with jupyterlab(tmp_path, CELL, "panel") as address, Browser(1400, 1500) as browser:
        run_all_cells(browser, address)
        browser.wait(f"document.querySelector('[data-kind=beta]')?.dataset.ready && {fields}.length === 3", 120)
        browser.run("document.querySelector('[data-kind=beta] input').focus()")
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            browser.press(key)
        assert browser.run("return document.querySelector('[data-kind=beta]').dataset.step") == "61"
        browser.press("n")
        step = int(browser.run("return document.querySelector('[data-kind=beta]').dataset.step"))
        browser.wait(f"+{fields}[1].value === {step}", 20)
        browser.screenshot(shots / "lab_viewer.png")
        browser.run("document.querySelector('.widget-button').scrollIntoView()")
        browser.run("document.querySelector('.widget-button').click()")
        replay = "document.querySelector('[data-kind=replay]')"
        browser.wait(f"{replay}?.dataset.ready", 60)
        assert browser.run(f"return {replay}.dataset.step") == str(step + 1)  # so the kernel had the viewer's step
        browser.run(f"{replay}.querySelector('input').focus({{preventScroll:true}})")
        browser.press("ArrowRight")
        assert browser.run(f"return {replay}.dataset.step") == str(step + 2)
        browser.press("End")
        assert browser.run(f"return {replay}.dataset.step") == str(step + 30)
        browser.screenshot(shots / "lab_steering.png")
        browser.run(
            "document.querySelector('[data-kind=beta] .mz-trace').value='2';"
            "document.querySelector('[data-kind=beta] .mz-trace').dispatchEvent(new Event('change'))"
        )
        browser.wait(f"+{fields}[0].value === 2 && +{fields}[1].value === 0", 20)
        browser.run("document.querySelector('.widget-button').click()")
        browser.wait(f"{replay}?.getAttribute('aria-label').startsWith('walk 7 from step 0:')", 60)
