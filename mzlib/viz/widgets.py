"""Widgets: scrub through a replay, or through the time of a search. No kernel is needed: they also work on a web page.

    ReplayScrubber(render_demo(demo), alt="The first key, step by step.")
    TimeSlider(room_map, x, y, found, value, series={"best score": (steps, scores)}, alt="The archive grows.")

Layers: the pictures are rendered once, here, into PNG sheets; a page's own script copies the chosen one onto a canvas;
beside the widget stands a static PNG for viewers that run no script. An ipywidget would show nothing in a committed
notebook whose kernel is gone, and would send every picture through the kernel; so there is none. The state can be
observed and set from a page: the widget's outermost element has `data-step` (or `data-time`) and fires `mz:change`, and
its slider takes values as a reader's hand would set them.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from mzlib.viz.clips import Clip, data_uri, filmstrip, png_bytes, strip_frames

FRAMES_PER_SHEET = 64  # sheets are one frame wide: 64 of 210 rows stay below every browser's limit on image height
PATH_COLOUR, DOT_COLOUR = "#56b4e9", "#f0e442"  # Okabe and Ito 2008: sky blue, yellow
NEW_COLOUR = "#ffffff"
CURVE_COLOURS = ("#e69f00", "#56b4e9", "#009e73")
VALUE_COLOURS = 32  # shades in which points show their value

STYLE = """
.mz{font:14px/1.4 system-ui,sans-serif;max-width:60rem;margin:0 0 8px}
.mz *{box-sizing:border-box}
.mz-panels{display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start}
.mz-panel{position:relative;flex:1 1 280px;min-width:0;margin:0;max-width:100%}
.mz canvas{display:block;width:100%;height:auto;background:#000}
.mz-sharp{image-rendering:pixelated}
.mz-panel>canvas+canvas{position:absolute;left:0;top:0;background:none}
.mz-bar{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin-top:6px}
.mz-bar input{flex:1 1 140px;min-width:0;height:28px;margin:0}
.mz-bar button,.mz-bar select{font:inherit;color:inherit;background:transparent;border:1px solid currentColor;
border-radius:4px;min-height:32px;padding:0 8px;cursor:pointer}
.mz-bar button{min-width:5rem}
.mz-bar select option{color:#000;background:#fff}
.mz :focus-visible{outline:3px solid #0072b2;outline-offset:1px}
.mz-says{display:block;font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;min-height:1.5em;margin-top:2px}
.mz-key{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;margin-top:4px;align-items:center}
.mz-key i{display:inline-block;width:11px;height:11px;margin-right:4px;border:1px solid #888}
.mz-key i.mz-ramp{width:80px;margin:0 4px}
"""

# What the widgets share: a slider with play and pause. `draw(i)` shows position i and returns the words for it and the
# state to publish. The button and the space bar play; the arrow keys, Home, End and the page keys are the slider's own.
# Returns `show`, which draws the slider's position again.
PLAYER = """
const player=(root,rate,draw)=>{
 const slider=root.querySelector('input'),button=root.querySelector('button'),pace=root.querySelector('select');
 const says=root.querySelector('.mz-says');let timer=0,at=0;
 const show=()=>{
  const [words,state]=draw(+slider.value);
  says.textContent=words;slider.setAttribute('aria-valuetext',words);Object.assign(root.dataset,state);
  root.dispatchEvent(new CustomEvent('mz:change',{detail:state,bubbles:true}))};
 const stop=()=>{clearInterval(timer);timer=0;button.textContent='\\u25b6 Play';root.dataset.playing='no'};
 const tick=()=>{
  if(!root.isConnected)return stop();
  const speed=rate*+pace.value/1000,gone=Math.floor((performance.now()-at)*speed);
  if(gone>0){
   at+=gone/speed;slider.value=+slider.value+gone;show();
   if(+slider.value>=+slider.max)stop()}};
 const play=()=>{
  if(+slider.value>=+slider.max){slider.value=0;show()}
  at=performance.now();button.textContent='\\u275a\\u275a Pause';root.dataset.playing='yes';timer=setInterval(tick,16)};
 button.onclick=()=>timer?stop():play();
 slider.oninput=()=>{stop();show()};
 slider.onkeydown=e=>{e.stopPropagation();if(e.key===' '){e.preventDefault();button.click()}};
 stop();show();root.dataset.ready='yes';
 return show;
};
const bytes=text=>Uint8Array.from(atob(text),c=>c.charCodeAt(0)).buffer;
const picture=uri=>new Promise((good,bad)=>{
 const image=new Image();image.src=uri;
 image.onload=()=>good(image);image.onerror=()=>bad(Error('a picture cannot be read'))});
"""

SCRUBBER = """
const sheets=await Promise.all(D.sheets.map(picture)),map=D.map&&await picture(D.map);
const [screen,back,over]=root.querySelectorAll('canvas'),pen=screen.getContext('2d');
const [w,h]=D.size,path=D.path&&new Float32Array(bytes(D.path));
if(map)back.getContext('2d').drawImage(map,0,0);
const trace=i=>{
 const c=over.getContext('2d'),s=D.dot,known=k=>!isNaN(path[2*k]+path[2*k+1]);
 c.clearRect(0,0,over.width,over.height);c.lineWidth=s/3;c.lineJoin='round';c.strokeStyle=D.colours[0];c.beginPath();
 for(let k=0,down=false;k<=i;k++){
  if(known(k))down?c.lineTo(path[2*k],path[2*k+1]):c.moveTo(path[2*k],path[2*k+1]);
  down=known(k)}
 c.stroke();
 if(!known(i))return;
 c.beginPath();c.arc(path[2*i],path[2*i+1],s,0,7);c.fillStyle=D.colours[1];c.fill();c.strokeStyle='#000';c.stroke()};
player(root,D.fps,i=>{
 pen.drawImage(sheets[Math.floor(i/D.rows)],0,(i%D.rows)*h,w,h,0,0,w,h);
 if(map)trace(i);
 return [D.captions[i]||'step '+D.steps[i],{step:D.steps[i],frame:i}]});
"""

TIMELINE = """
const map=await picture(D.map),[back,over,chart]=root.querySelectorAll('canvas');
const base=back.getContext('2d'),c=over.getContext('2d'),n=D.count,P=bytes(D.points);
const found=new Float32Array(P,0,n),x=new Uint16Array(P,4*n,n),y=new Uint16Array(P,6*n,n),shade=new Uint8Array(P,8*n,n);
base.globalAlpha=D.dim;base.drawImage(map,0,0);
const upto=(list,t)=>{
 let low=0,high=list.length;
 while(low<high){const middle=low+high>>1;if(list[middle]<=t)low=middle+1;else high=middle}
 return low};
const floats=text=>new Float32Array(bytes(text));
const series=D.series.map(s=>({name:s.name,at:floats(s.at),values:floats(s.values)}));
const count=v=>v.toLocaleString('en-US',{maximumFractionDigits:1}),last=D.ticks-1,end=D.end;
const curves=t=>{
 const p=chart.getContext('2d'),dense=window.devicePixelRatio||1;
 const W=chart.width=(chart.clientWidth||600)*dense,H=chart.height=(chart.clientHeight||56)*dense;
 series.forEach((s,k)=>{
  const top=s.values.reduce((a,b)=>Math.max(a,b),1e-9),X=a=>W*a/end,Y=v=>H-3-(H-8)*v/top;
  p.strokeStyle=D.curves[k%D.curves.length];p.lineWidth=2*dense;p.beginPath();p.moveTo(0,Y(0));
  let now=0;
  s.at.forEach((a,j)=>{p.lineTo(X(a),Y(now));now=s.values[j];p.lineTo(X(a),Y(now))});
  p.lineTo(W,Y(now));p.stroke()});
 p.fillStyle='rgba(128,128,128,.35)';p.fillRect(W*t/end,0,W,H)};
player(root,last/12,i=>{
 const t=i==last?end:D.log?(i?D.first*Math.pow(end/D.first,i/last):0):end*i/last;
 const k=upto(found,t),fresh=i<last?upto(found,D.log?t*.8:t-.04*end):k;
 c.clearRect(0,0,over.width,over.height);
 for(let j=0;j<k;j++){
  const size=j<fresh?D.dot:D.dot+2;
  c.fillStyle=j<fresh?D.shades[shade[j]]:D.fresh;c.fillRect(x[j]-size/2,y[j]-size/2,size,size)}
 if(chart)curves(t);
 const words=series.map(s=>{const m=upto(s.at,t);return s.name+' '+count(m?s.values[m-1]:0)});
 return [[D.unit+' '+count(Math.round(t)),D.noun+' '+count(k),...words].join('   '),{time:Math.round(t),points:k}]});
"""


class Widget:
    """A piece of HTML with its script, and a static picture with the words for it."""

    alt: str

    def to_html(self) -> str:
        """The widget as HTML that needs nothing else, to be put in any page."""
        raise NotImplementedError

    def still(self) -> np.ndarray:
        """(height, width, 3) uint8: the static picture that stands beside the widget."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self.to_html()

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, Image, display

        display(HTML(self.to_html()))
        display(Image(png_bytes(self.still(), 64), alt=self.alt))


def page(
    kind: str, alt: str, panels: str, control: str, top: int, start: int, below: str, script: str, data: Mapping
) -> str:
    """One widget's HTML. The id comes from the content, so that a notebook run again is the same file."""
    payload = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    key = "mz" + hashlib.sha256((payload + alt + str(start)).encode()).hexdigest()[:12]
    label = html.escape(alt, quote=True)
    speeds = "".join(f'<option value="{s}"{" selected" * (s == 1)}>{s}×</option>' for s in (0.25, 0.5, 1, 2, 4))
    return (
        f'<div class="mz" data-mz="{key}" data-kind="{kind}" role="group" aria-label="{label}"'
        f" data-lm-suppress-shortcuts><style>{STYLE}</style>{panels}"  # JupyterLab leaves the arrow keys to the slider
        f'<div class="mz-bar"><button type="button">▶ Play</button>'
        f'<input type="range" min="0" max="{top}" step="1" value="{start}" aria-label="{control}">'
        f'<select aria-label="speed">{speeds}</select></div><output class="mz-says"></output>{below}'
        "<noscript>This widget needs JavaScript; the picture beneath shows the same.</noscript></div>"
        f"<script>(()=>{{{PLAYER}const D={payload};"
        f"document.querySelectorAll('[data-mz=\"{key}\"]:not([data-begun])').forEach(async root=>{{"
        f"root.dataset.begun='yes';{script}}})}})()</script>"
    )


def canvas(width: int, height: int, label: str = "", sharp: bool = True, style: str = "") -> str:
    described = f'role="img" aria-label="{html.escape(label, quote=True)}"' if label else 'aria-hidden="true"'
    kind = ' class="mz-sharp"' if sharp else ""
    return f'<canvas{kind} width="{width}" height="{height}" {described} style="{style}"></canvas>'


def layers(width: int, height: int, label: str) -> str:
    """A panel of two canvases: the picture that stays, and over it what changes."""
    return f'<div class="mz-panel">{canvas(width, height, label, False)}{canvas(width, height, sharp=False)}</div>'


def packed(*arrays: np.ndarray) -> str:
    return base64.b64encode(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).decode()


class ReplayScrubber(Widget):
    """A replay under a slider: drag it, play it, or use the arrow keys; beside it, if given, a map with the way so far.

    clip: its frames and captions (a caption is shown as text, not as pixels). alt: what the replay shows, in words.
    map_picture: (H, W, 3) uint8. path: (T, 2) x and y in pixels of the map for each frame of the clip; NaN where the
    player is not on the map, which also breaks the line. start: the environment step shown first. n, at: which frames
    the static filmstrip has.
    Raises ValueError for a path without its map, or of another length than the clip.
    """

    def __init__(
        self,
        clip: Clip,
        alt: str,
        map_picture: np.ndarray | None = None,
        path: np.ndarray | None = None,
        start: int = 0,
        n: int = 8,
        at: Sequence[int] | None = None,
    ):
        if (map_picture is None) != (path is None):
            raise ValueError("map_picture and path belong together: give both or neither")
        if path is not None and np.shape(path) != (len(clip), 2):
            raise ValueError(f"path is {np.shape(path)}; one x and y for each frame, ({len(clip)}, 2), is needed")
        self.clip, self.alt, self.map_picture = clip, alt, map_picture
        self.path = None if path is None else np.asarray(path, np.float32)
        self.start, self.n, self.at = start, n, at

    def to_html(self) -> str:
        clip = self.clip
        count, height, width, _ = clip.frames.shape
        sheets = [
            data_uri(png_bytes(clip.frames[i : i + FRAMES_PER_SHEET].reshape(-1, width, 3)), "image/png")
            for i in range(0, count, FRAMES_PER_SHEET)
        ]
        data = {
            "sheets": sheets,
            "rows": FRAMES_PER_SHEET,
            "size": [width, height],
            "steps": clip.steps.tolist(),
            "captions": list(clip.captions),
            "fps": clip.fps,
            "colours": [PATH_COLOUR, DOT_COLOUR],
        }
        ratio = f"aspect-ratio:{width * clip.scale[0]}/{height * clip.scale[1]}"
        panels = f'<div class="mz-panel">{canvas(width, height, self.alt, style=ratio)}</div>'
        if self.map_picture is not None:
            rows, columns = self.map_picture.shape[:2]
            data |= {
                "map": data_uri(png_bytes(self.map_picture), "image/png"),
                "path": packed(self.path),
                "dot": max(3.0, columns / 110),
            }
            panels += layers(columns, rows, "Map with the player's way up to the step shown")
        first = int(np.abs(clip.steps - self.start).argmin())
        panels = f'<div class="mz-panels">{panels}</div>'
        return page("replay", self.alt, panels, "replay position", count - 1, first, "", SCRUBBER, data)

    def still(self) -> np.ndarray:
        """The clip's filmstrip."""
        return filmstrip(self.clip, self.n, self.at)

    @property
    def still_steps(self) -> list[int]:
        """The environment steps that the filmstrip shows."""
        return [int(self.clip.steps[i]) for i in strip_frames(self.clip, self.n, self.at)]


class TimeSlider(Widget):
    """Points appearing on a map as time goes on, such as the cells of a search's archive over the rooms.

    map_picture: (H, W, 3) uint8. x, y: (N,) pixels of the map. found: (N,) when each point appears, in `unit`s.
    value: (N,) shown as the point's shade, or None. series: name -> (times, values), step functions that change at the
    given times; their current values are told in words, their course is drawn above the slider, each to its own height.
    end: the last time; by default the last in `found` and `series`. log: the slider moves through time logarithmically.
    Raises ValueError for lengths that differ, or a point outside the map.
    """

    def __init__(
        self,
        map_picture: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        found: np.ndarray,
        value: np.ndarray | None = None,
        series: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        *,
        alt: str,
        value_name: str = "value",
        noun: str = "cells",
        unit: str = "step",
        end: float | None = None,
        log: bool = False,
        dot: int = 5,
        dim: float = 0.55,
        ticks: int = 241,
    ):
        lengths = {len(x), len(y), len(found)} | ({len(value)} if value is not None else set())
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"x, y, found and value have lengths {sorted(lengths)}; one length above 0 is needed")
        rows, columns = map_picture.shape[:2]
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        outside = (x < 0) | (x > columns) | (y < 0) | (y > rows) | ~np.isfinite(x + y)
        if outside.any():
            i = int(np.argmax(outside))
            raise ValueError(f"point {i} at ({x[i]:g}, {y[i]:g}) lies outside the map of {columns} x {rows} pixels")
        order = np.argsort(found, kind="stable")
        self.map_picture, self.alt, self.dot, self.dim, self.log, self.ticks = map_picture, alt, dot, dim, log, ticks
        self.x, self.y, self.found = x[order], y[order], np.asarray(found, np.float64)[order]
        self.value = None if value is None else np.asarray(value, np.float64)[order]
        self.series = {name: _changes(*curve) for name, curve in (series or {}).items()}
        self.value_name, self.noun, self.unit = value_name, noun, unit
        latest = [self.found[-1], *(at[-1] for at, _ in self.series.values())]
        self.end = float(max(latest) if end is None else end) or 1.0

    def _shades(self) -> tuple[np.ndarray, list[str]]:
        """(N,) uint8 index of each point's shade, and the shades as colours; not the darkest ones: the map is dark."""
        colours = matplotlib.colormaps["viridis"](np.linspace(0.3, 1, VALUE_COLOURS))
        if self.value is None:
            return np.zeros(len(self.x), np.uint8), [PATH_COLOUR]
        low, high = self.value.min(), self.value.max()
        index = (self.value - low) / ((high - low) or 1) * (VALUE_COLOURS - 1)
        return index.round().astype(np.uint8), [matplotlib.colors.to_hex(colour) for colour in colours]

    def to_html(self) -> str:
        shade, shades = self._shades()
        x, y = self.x.round().astype(np.uint16), self.y.round().astype(np.uint16)
        later = self.found[self.found > 0]
        data = {
            "map": data_uri(png_bytes(self.map_picture), "image/png"),
            "count": len(self.x),
            "points": packed(self.found.astype(np.float32), x, y, shade),
            "shades": shades,
            "series": [
                {"name": name, "at": packed(at.astype(np.float32)), "values": packed(values.astype(np.float32))}
                for name, (at, values) in self.series.items()
            ],
            "curves": CURVE_COLOURS,
            "fresh": NEW_COLOUR,
            "end": self.end,
            "first": float(min(later[0], self.end) if len(later) else self.end),
            "log": self.log,
            "ticks": self.ticks,
            "dot": self.dot,
            "dim": self.dim,
            "unit": self.unit,
            "noun": self.noun,
        }
        rows, columns = self.map_picture.shape[:2]
        panels = layers(columns, rows, self.alt)
        key = f'<span><i style="background:{NEW_COLOUR}"></i>just found</span>'
        if self.value is not None:
            low, high = (f"{v:,.6g}" for v in (self.value.min(), self.value.max()))
            ramp = ",".join(shades)
            key += (
                f"<span>{html.escape(self.value_name)} {low}"
                f'<i class="mz-ramp" style="background:linear-gradient(90deg,{ramp})"></i>{high}</span>'
            )
        if self.series:
            label = "Course of " + ", ".join(self.series)
            panels += f"<div>{canvas(600, 56, label, False, 'height:56px;margin-top:6px;background:none')}</div>"
            for name, colour in zip(self.series, CURVE_COLOURS * len(self.series), strict=False):
                key += f'<span><i style="background:{colour}"></i>{html.escape(name)} over time</span>'
        below, last = f'<div class="mz-key">{key}</div>', self.ticks - 1
        return page("time", self.alt, panels, "search time", last, last, below, TIMELINE, data)

    def still(self, moments: Sequence[float] = (0.1, 0.4, 1.0)) -> np.ndarray:
        """The map at some fractions of the whole time, side by side."""
        shade, shades = self._shades()
        colours = np.array([matplotlib.colors.to_rgb(colour) for colour in shades]) * 255
        gap = np.full((len(self.map_picture), 6, 3), 255, np.uint8)
        panels = []
        for moment in moments:
            picture = (self.map_picture * self.dim).astype(np.uint8)
            for i in np.flatnonzero(self.found <= moment * self.end):
                left, top = (max(0, int(round(v - self.dot / 2))) for v in (self.x[i], self.y[i]))
                picture[top : top + self.dot, left : left + self.dot] = colours[shade[i]]
            panels += [gap, picture]
        return np.concatenate(panels[1:], axis=1)


def _changes(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a step function at which its value changes; of many, about a thousand, the last among them."""
    at, values = np.asarray(at, np.float64), np.asarray(values, np.float64)
    if at.ndim != 1 or at.shape != values.shape or len(at) == 0 or (np.diff(at) < 0).any():
        raise ValueError(f"a series needs ascending times and as many values; it has {at.shape} and {values.shape}")
    kept = np.flatnonzero(np.append(True, np.diff(values) != 0))
    if len(kept) > 1000:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, 1000).round().astype(int))]
    return at[kept], values[kept]
