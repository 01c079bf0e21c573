import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mzlib.demos import Demo
from mzlib.viz.clips import Clip, png_bytes, render_demo
from mzlib.viz.widgets import FRAMES_PER_SHEET, ReplayScrubber, TimeSlider

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=20000")


def scrubber(count=FRAMES_PER_SHEET + 6, **settings):
    """Frame i has the colour (i, 200 - i, 7); every third environment step was kept."""
    frames = np.empty((count, 21, 16, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = np.arange(count)[:, None, None], 0, 7
    frames[..., 1] = 200 - frames[..., 0]
    captions = tuple(f"at </script> {3 * i}" for i in range(count))
    room = np.zeros((60, 80, 3), np.uint8)
    path = np.stack([np.linspace(5, 75, count), np.full(count, 30.0)], axis=1)
    path[10:14] = np.nan
    clip = Clip(frames, captions, steps=3 * np.arange(count))
    return ReplayScrubber(clip, "A </script> replay", **{"map_picture": room, "path": path, "start": 30, **settings})


def slider(count=4, **settings):
    """Points along a row, found at the times 0, 100, 200, 300 in another order."""
    x, found = 10 + 20 * np.arange(count), (100 * np.arange(count))[::-1]
    scores = {"best score": (np.array([0, 50, 150]), np.array([0, 400, 2500]))}
    room = np.full((40, 20 * count, 3), 90, np.uint8)
    return TimeSlider(room, x, np.full(count, 20), found, found * 2.0, scores, alt="An archive", **settings)


def in_browser(body: str, script: str) -> dict:
    """What `script` (the body of an async function) returns in a page with the widgets, once they are ready."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome here to run the widgets in")
    page = """<!doctype html><meta charset="utf-8"><title>test</title>
<script>const errors=[];onerror=m=>errors.push(m);onunhandledrejection=e=>errors.push(String(e.reason));</script>
%s<script>(async()=>{
 const sleep=ms=>new Promise(r=>setTimeout(r,ms)),roots=[...document.querySelectorAll('.mz')];
 for(let i=0;i<100&&!roots.every(r=>r.dataset.ready);i++)await sleep(50);
 const move=(root,value)=>{const s=root.querySelector('input');s.value=value;s.dispatchEvent(new Event('input'))};
 const pen=(root,canvas)=>root.querySelectorAll('canvas')[canvas].getContext('2d');
 const pixel=(root,canvas,x,y)=>[...pen(root,canvas).getImageData(x,y,1,1).data];
 const says=root=>root.querySelector('output').textContent;
 let result={};
 try{result=await(async()=>{%s})()}catch(e){errors.push(String(e))}
 const out=document.createElement('pre');out.id='result';
 out.textContent=btoa(unescape(encodeURIComponent(JSON.stringify({...result,errors}))));document.body.append(out);
})()</script>"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the browser may still be closing files
        address = Path(folder, "page.html")
        address.write_text(page % (body, script), encoding="utf-8")
        command = [BROWSER, *FLAGS, f"--user-data-dir={folder}/profile", "--dump-dom", address.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="result">([^<]*)</pre>', done.stdout)
    assert found, f"the browser gave no result: {done.stderr[-500:]}"
    return json.loads(base64.b64decode(found[1]))


@pytest.mark.browser
def test_the_scrubber_in_a_browser():
    last = FRAMES_PER_SHEET + 5
    result = in_browser(
        scrubber().to_html() * 2,  # the same widget twice: both must work
        f"""
        const [root,twin]=roots,seen=[];
        root.addEventListener('mz:change',e=>seen.push(e.detail.step));
        const first=[root.dataset.step,pixel(root,0,8,10),says(root)];
        move(root,{last});
        const end=[root.dataset.step,pixel(root,0,8,10),says(root)],dot=pixel(root,2,75,30),trail=pixel(root,2,40,30);
        move(root,5);
        const early=[root.dataset.frame,pixel(root,0,8,10)],ahead=pixel(root,2,40,30);
        const bar=root.querySelector('input'),spoken=bar.getAttribute('aria-valuetext');
        bar.dispatchEvent(new KeyboardEvent('keydown',{{key:' '}}));
        const playing=root.dataset.playing;
        await sleep(1500);
        const moved=+bar.value;
        root.querySelector('button').click();
        return {{first,end,dot,trail,early,ahead,spoken,playing,moved,stopped:root.dataset.playing,seen:seen.slice(0,2),
                 twin:[twin.dataset.ready,twin.dataset.step]}};
        """,
    )
    assert result["errors"] == []
    assert result["first"] == ["30", [10, 190, 7, 255], "at </script> 30"]
    assert result["end"] == [str(3 * last), [last, 200 - last, 7, 255], f"at </script> {3 * last}"]
    assert result["dot"][:3] == [0xF0, 0xE4, 0x42]
    assert result["trail"][3] > 0
    assert result["early"] == ["5", [5, 195, 7, 255]]
    assert result["ahead"] == [0, 0, 0, 0]
    assert result["spoken"] == "at </script> 15"
    assert (result["playing"], result["stopped"]) == ("yes", "no")
    assert 20 <= result["moved"] <= 32  # 1.5 s at 15 frames a second
    assert result["seen"] == [3 * last, 15]
    assert result["twin"] == ["yes", "30"]


@pytest.mark.browser
def test_the_time_slider_in_a_browser():
    result = in_browser(
        slider(ticks=4).to_html(),
        """
        const [root]=roots,look=()=>[root.dataset.time,root.dataset.points,says(root),
            [10,30,50,70].map(x=>pixel(root,1,x,20)[3])];
        const end=look();
        move(root,0);const start=look();
        move(root,1);const second=look();
        const curve=root.querySelectorAll('canvas')[2];
        const row=curve.getContext('2d').getImageData(0,0,curve.width,curve.height);
        return {start,second,end,drawn:row.data.some(v=>v>0),base:pixel(root,0,1,1)[3]};
        """,
    )
    assert result["errors"] == []
    assert result["end"] == ["300", "4", "step 300   cells 4   best score 2,500", [255] * 4]
    assert result["start"] == ["0", "1", "step 0   cells 1   best score 0", [0, 0, 0, 255]]
    assert result["second"] == ["100", "2", "step 100   cells 2   best score 400", [0, 0, 255, 255]]
    assert result["drawn"]
    assert 0 < result["base"] < 255


@pytest.mark.browser
def test_the_widgets_fit_a_phone():
    html = scrubber().to_html() + slider().to_html()
    frame = '<iframe id="phone" style="width:375px;height:900px;border:0" srcdoc="{}"></iframe>'
    quoted = ("<!doctype html><meta charset='utf-8'>" + html).replace("&", "&amp;").replace('"', "&quot;")
    result = in_browser(
        frame.format(quoted),
        """
        const page=document.getElementById('phone');
        for(let i=0;i<100;i++){const m=[...page.contentDocument.querySelectorAll('.mz')];
            if(m.length==2&&m.every(r=>r.dataset.ready))break;await sleep(50)}
        const d=page.contentDocument,all=query=>[...d.querySelectorAll(query)];
        const boxes=all('canvas,input,button,select').map(e=>e.getBoundingClientRect());
        const unnamed=all('input,select,canvas[role]').filter(e=>!e.getAttribute('aria-label')).length;
        return {wide:d.documentElement.scrollWidth,right:Math.max(...boxes.map(b=>b.right)),unnamed,
                ready:[...d.querySelectorAll('.mz')].map(r=>r.dataset.ready)};
        """,
    )
    assert result["errors"] == []
    assert result["ready"] == ["yes", "yes"]
    assert result["wide"] <= 375
    assert result["right"] <= 375
    assert result["unnamed"] == 0


def test_a_replay_of_130_steps_fits_its_budget():
    actions = np.random.default_rng(0).integers(0, 18, 130).astype(np.uint8)
    clip = render_demo(Demo(actions, np.zeros(130, np.int32)))
    path = np.array([(f.x, f.y % 210) for f in clip.facts], float)
    widget = ReplayScrubber(clip, "Random play", clip.frames[0], path)
    assert len(widget.to_html()) + len(png_bytes(widget.still(), 64)) * 4 / 3 < 250_000


def test_5000_points_fit_their_budget():
    rng = np.random.default_rng(0)
    room = np.zeros((300, 1000, 3), np.uint8)
    found = np.sort(rng.integers(0, 1_000_000, 5000))
    curve = {"best score": (found, np.arange(5000)), "rooms": (found, np.arange(5000) // 200)}
    x, y = rng.integers(0, 1000, 5000), rng.integers(0, 300, 5000)
    widget = TimeSlider(room, x, y, found, found, curve, alt="Archive")
    assert len(widget.to_html()) < 300_000


def test_the_same_widget_is_the_same_text_and_another_has_another_id():
    assert scrubber().to_html() == scrubber().to_html()
    key = re.compile(r'data-mz="(\w+)"')
    assert key.search(scrubber().to_html())[1] != key.search(scrubber(start=0).to_html())[1]


def test_a_notebook_gets_the_widget_and_a_still_picture_with_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    slider()._ipython_display_()
    widget, still = shown
    assert widget.data == slider().to_html()
    assert still._repr_png_()[1]["alt"] == "An archive"


def test_the_time_sliders_still_shows_the_points_found_by_then():
    picture = slider().still(moments=(0.0, 0.4, 1.0))
    assert picture.shape == (40, 3 * 80 + 2 * 6, 3)
    background = int(90 * 0.55)
    shown = [[(picture[20, left + x] != background).any() for x in (10, 30, 50, 70)] for left in (0, 86, 172)]
    assert shown == [[False, False, False, True], [False, False, True, True], [True] * 4]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="belong together"):
        scrubber(map_picture=None)
    with pytest.raises(ValueError, match=r"path is \(3, 2\)"):
        scrubber(path=np.zeros((3, 2)))
    room = np.zeros((10, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r"point 1 at \(25, 3\) lies outside the map of 20 x 10"):
        TimeSlider(room, [1, 25], [1, 3], [0, 1], alt="a")
    with pytest.raises(ValueError, match="lengths"):
        TimeSlider(room, [1, 2], [1], [0, 1], alt="a")
    with pytest.raises(ValueError, match="ascending"):
        TimeSlider(room, [1], [1], [0], series={"s": ([2, 1], [0, 1])}, alt="a")
