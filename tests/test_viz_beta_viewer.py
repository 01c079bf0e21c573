"""The β viewer on shipped walks with a made-up switch: in a page, by hand and by keys; and how it is refused."""

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

from bench.browser import CHROMIUM, Browser
from bench.viewer import held_direction, made_up_viewer, redraw
from mzlib import runs
from mzlib.emulator import ACTIONS
from mzlib.viz.beta_viewer import BetaViewer
from mzlib.viz.segments import cluster_codes, segment_codes, segment_of_steps, segment_starts
from mzlib.viz.steering import SteeringPanel

STATE = "const root=document.querySelector('.mz');"
PIXEL = "const pixel=(k,x,y)=>[...root.querySelectorAll('canvas')[k].getContext('2d').getImageData(x,y,1,1).data];"


@pytest.fixture(scope="module")
def viewer():
    return made_up_viewer()


@pytest.fixture(scope="module")
def page(viewer, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome here to run the widget in")
    other = SteeringPanel(viewer, held_direction(), steps=2).steer()  # another widget, and its style, in the same page
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    errors = (
        "<script>window.errors=[];onerror=m=>errors.push(m);onunhandledrejection=e=>errors.push(e.reason+'')</script>"
    )
    path.write_text(
        f"<!doctype html><meta charset='utf-8'>{errors}<body>{viewer.to_html()}{other.to_html()}", encoding="utf-8"
    )
    with Browser() as browser:
        browser.open(path.as_uri())
        browser.wait("document.querySelector('.mz')?.dataset.ready")
        yield browser
        assert browser.run("return errors") == []


def put(page, where, value, event="input"):
    """Set a control as a reader's hand would, and return the published state."""
    return page.run(
        f"{STATE}const e=root.querySelector('{where}');e.value={value};e.dispatchEvent(new Event('{event}'));"
        "return {...root.dataset}"
    )


@pytest.mark.browser
@pytest.mark.parametrize("threshold", [0.04, 0.3, 0.5, 0.9])
def test_the_page_cuts_segments_as_python_does(viewer, page, threshold):
    for number, trace in enumerate(viewer.traces):
        put(page, ".mz-trace", number, "change")
        state = put(page, ".mz-limit", threshold)
        starts, numbers = segment_starts(trace.beta, threshold), segment_of_steps(trace.beta, threshold)
        labels = viewer.clusters.nearest(segment_codes(trace, threshold))
        assert (state["segments"], state["threshold"]) == (str(len(starts)), str(threshold))
        for step in range(0, len(trace), 7):
            state = put(page, "input", step)
            told = [state[key] for key in ("trajectory", "step", "segment", "cluster")]
            assert told == [str(v) for v in (number, step, numbers[step], labels[numbers[step]])]


@pytest.mark.browser
def test_what_is_drawn_is_the_step(viewer, page):
    put(page, ".mz-trace", 1, "change")
    put(page, ".mz-limit", 0.5)
    trace = viewer.traces[1]
    numbers, labels = segment_of_steps(trace.beta), viewer.clusters.nearest(segment_codes(trace))
    for step in (3, len(trace) // 2, len(trace) - 1):
        put(page, "input", step)
        row, column = 150, int(trace.positions[step, 1]) % 160
        assert page.run(f"{STATE}{PIXEL}return pixel(0,{column},{row})")[:3] == trace.rgb[step, row, column].tolist()
        colour = viewer.clusters.colours[labels[numbers[step]]]
        x, y = viewer.room_map.xy(*trace.positions[step : step + 1].T)[0].astype(int)
        dot = page.run(f"{STATE}{PIXEL}return pixel(4,{x},{y})")
        assert "#" + bytes(dot[:3]).hex() == colour
        words = page.run(f"{STATE}return root.querySelector('.mz-says').textContent")
        assert re.match(rf"step {step}   β {trace.beta[step]:.2f}   segment {numbers[step] + 1} of", words)
        assert ACTIONS[trace.actions[step]] in words
    chart = page.run(
        f"{STATE}const c=root.querySelectorAll('canvas')[5];"
        "return [...c.getContext('2d').getImageData(0,30,c.width,1).data].filter((_,i)=>i%4<3)"
    )
    assert len({tuple(chart[i : i + 3]) for i in range(0, len(chart), 3)}) > len(set(labels))  # a band a cluster


@pytest.mark.browser
def test_keys_pointer_and_play(viewer, page):
    put(page, ".mz-trace", 0, "change")
    put(page, ".mz-limit", 0.5)
    put(page, "input", 10)
    step = f"{STATE}return +root.dataset.step"
    page.run(f"{STATE}root.querySelector('input').focus()")
    starts = segment_starts(viewer.traces[0].beta).tolist()
    reached = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "n", "n", "ArrowRight", "p", "p", "End", "Home", "p"):
        page.press(key)
        reached.append(page.run(step))
    last = len(viewer.traces[0]) - 1
    first, second = [start for start in starts if start > 11][:2]  # n after step 11, and n again
    assert reached == [11, 12, 11, first, second, second + 1, second, first, last, 0, 0]
    box = page.run(
        f"{STATE}const b=root.querySelectorAll('canvas')[6].getBoundingClientRect();return [b.x,b.y,b.width]"
    )
    across, y = box[2] - 42, box[1] + 50
    for kind, part in (("mousePressed", 0.5), ("mouseMoved", 0.7), ("mouseMoved", 0.8), ("mouseReleased", 0.8)):
        place = {"x": box[0] + 34 + across * part, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        page.call("Input.dispatchMouseEvent", type=kind, **place)
        assert abs(page.run(step) - part * (last + 1)) <= 1
    put(page, "input", last // 2)
    page.press(" ")
    page.wait(f"+document.querySelector('.mz').dataset.step > {last // 2 + 5}", 20)
    assert page.run(f"{STATE}return root.dataset.playing") == "yes"
    page.press(" ")
    assert page.run(f"{STATE}return root.dataset.playing") == "no"
    (runs.runs_root() / "screenshots").mkdir(parents=True, exist_ok=True)
    page.screenshot(runs.runs_root() / "screenshots" / "beta_viewer.png")


@pytest.mark.browser
def test_it_fits_a_phone_and_names_its_controls(page):
    page.call("Emulation.setDeviceMetricsOverride", width=375, height=900, deviceScaleFactor=2, mobile=False)
    try:
        wide = page.run(
            f"{STATE}return Math.max(...[...root.querySelectorAll('*')].map(e=>e.getBoundingClientRect().right))"
        )
        unnamed = page.run(
            f"{STATE}return [...root.querySelectorAll('input,select,canvas[role]')]"
            ".filter(e=>!e.getAttribute('aria-label')).length"
        )
        chart = page.run(
            f"{STATE}return [5,6].map(k=>root.querySelectorAll('canvas')[k].getBoundingClientRect().height)"
        )
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
    assert wide <= 375
    assert chart == [112, 112]
    assert unnamed == 0


@pytest.mark.browser
def test_a_redraw_is_measured(viewer):
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome here to measure")
    found = redraw(viewer, 0.5)
    assert {"viewer_redraw_ms", "viewer_threshold_ms"} <= found.keys()
    for name in ("redraw", "threshold"):
        script, late = found[f"viewer_{name}_script_ms"]["value"], found[f"viewer_{name}_ms"]["value"]
        assert 0 < script < late < 2000


def test_three_walks_fit_a_notebook(viewer):
    assert len(viewer.to_html()) < 400_000
    assert viewer.to_html() == viewer.to_html()


def test_the_still_shows_the_trajectory_asked_for(viewer):
    again = BetaViewer(viewer.traces, viewer.clusters, viewer.room_map, "Another.", shown=2, threshold=0.3)
    assert viewer.still().shape == again.still().shape
    assert not np.array_equal(viewer.still(), again.still())


def test_gray_frames_of_a_model_will_do(viewer):
    gray = [replace(trace, frames=np.zeros((len(trace), 84, 84), np.uint8)) for trace in viewer.traces[:1]]
    widget = BetaViewer(gray, viewer.clusters, viewer.room_map, "Gray")
    assert "aspect-ratio:504/336" in widget.to_html()
    packed = re.search(r'"beta":"([^"]+)"', widget.to_html())[1]
    assert np.allclose(np.frombuffer(base64.b64decode(packed), np.float32), gray[0].beta)


def test_what_does_not_fit_is_refused(viewer):
    first, second, _ = viewer.traces
    others = {
        "frames of sizes": [first, replace(second, frames=second.frames[:, :100])],
        "codes of widths": [first, replace(second, codes=second.codes[:, :3])],
    }
    for message, traces in others.items():
        with pytest.raises(ValueError, match=message):
            BetaViewer(traces, viewer.clusters, viewer.room_map, "a")
    with pytest.raises(ValueError, match="sizes"):
        BetaViewer([], viewer.clusters, viewer.room_map, "a")
    with pytest.raises(ValueError, match="start=999"):
        BetaViewer([first], viewer.clusters, viewer.room_map, "a", start=999)
    with pytest.raises(ValueError, match="threshold=1"):
        BetaViewer([first], viewer.clusters, viewer.room_map, "a", threshold=1)
    with pytest.raises(ValueError, match="widths"):
        BetaViewer([first], cluster_codes([replace(first, codes=first.codes[:, :3])]), viewer.room_map, "a")
