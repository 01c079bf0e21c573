"""The β viewer: trajectories with the switch's β and the codes z, to watch.

    BetaViewer(traces, cluster_codes(traces), room_map, alt="Three walks and where the switch opens.")

It needs no kernel (see `mzlib.viz.widgets`): a page's own script cuts the segments anew when the threshold moves. Its
state can be observed and set from a page: the outermost element has `data-trajectory`, `data-step`, `data-threshold`,
`data-segments` (their number), `data-segment` and `data-cluster`, and fires `mz:change`. `mzlib.viz.steering` steers.
"""

import hashlib
import html
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from mzlib.emulator import ACTIONS
from mzlib.places import GOALS
from mzlib.trajectory import FRAME_SIZE
from mzlib.viz.clips import ATARI_SCALE, GRAY_SCALE, data_uri, png_bytes
from mzlib.viz.rooms import RoomMap
from mzlib.viz.segments import THRESHOLD, Clusters, SwitchTrace, map_path, map_spots, overview_figure
from mzlib.viz.widgets import FRAMES_PER_SHEET, Widget, canvas, layers, packed, page

FPS = 15.0
PLANE = (560, 352)  # width and height of the codes' plane in pixels

# Over the widgets' own style, also where another widget's comes later in the page.
MORE_STYLE = """
.mz .mz-chart{position:relative;margin-top:6px}
.mz .mz-chart canvas{height:112px;touch-action:none;cursor:crosshair;background:#fff}
.mz .mz-chart canvas+canvas{position:absolute;left:0;top:0;background:none}
.mz .mz-column{flex:1 1 0;min-width:min(300px,100%);display:flex;flex-direction:column;gap:8px}
.mz .mz-column .mz-panel{flex:none}
.mz .mz-more label{display:flex;gap:8px;align-items:center;flex:1 1 16rem}
.mz .mz-more select{flex:1 1 12rem;min-width:0}
"""

# Two layers a picture: what a trajectory and a threshold fix (`base`), and over it what the step moves (`draw`).
VIEWER = """
const T=await Promise.all(D.traces.map(async t=>({name:t.name,actions:t.actions,goals:t.goals,changes:t.changes,
 sheets:await Promise.all(t.sheets.map(picture)),beta:new Float32Array(bytes(t.beta)),
 codes:new Float32Array(bytes(t.codes)),plane:new Float32Array(bytes(t.plane)),
 path:new Float32Array(bytes(t.path)),spots:new Float32Array(bytes(t.spots))})));
const map=await picture(D.map),[screen,...layers]=root.querySelectorAll('canvas');
const [plane,point,way,dot,chart,cursor]=layers.map(c=>c.getContext('2d')),pen=screen.getContext('2d');
const slider=root.querySelector('input'),choice=root.querySelector('.mz-trace');
const limit=root.querySelector('.mz-limit'),told=root.querySelector('.mz-told'),[w,h]=D.size,n=D.width;
let t,cuts,segments,show,margin,scale;

const cut=(t,threshold)=>{
 const starts=[];
 t.beta.forEach((b,i)=>{if(!i||b>=threshold)starts.push(i)});
 return starts.map((from,s)=>{
  const to=s+1<starts.length?starts[s+1]:t.beta.length,mean=new Float64Array(n);
  for(let i=from;i<to;i++)for(let d=0;d<n;d++)mean[d]+=t.codes[i*n+d]/(to-from);
  const far=D.centres.map(c=>c.reduce((sum,v,d)=>sum+(v-mean[d])**2,0));
  const at=D.axes.map(axis=>axis.reduce((sum,v,d)=>sum+v*(mean[d]-D.origin[d]),0));
  return {from,to,at,cluster:far.indexOf(Math.min(...far))}})};
const segmentOf=i=>{let low=0,high=segments.length-1;
 while(low<high){const middle=low+high+1>>1;if(segments[middle].from<=i)low=middle;else high=middle-1}
 return low};
const disc=(c,x,y,r,fill,edge,width)=>{
 c.beginPath();c.arc(x,y,r,0,7);c.fillStyle=fill;c.fill();
 if(edge){c.lineWidth=width;c.strokeStyle=edge;c.stroke()}};
const word=(c,text,x,y,size,align)=>{
 c.font=size+'px system-ui,sans-serif';c.textAlign=align;c.textBaseline='middle';c.fillStyle='#000';
 c.fillText(text,x,y)};

const box=[0,1].map(d=>{
 let low=Infinity,high=-Infinity;
 for(const one of T)for(let i=d;i<one.plane.length;i+=2){
  low=Math.min(low,one.plane[i]);high=Math.max(high,one.plane[i])}
 const gap=(high-low||1)*.12;return [low-gap,high+gap]});
const [W,H]=D.plane,X=x=>W*(x-box[0][0])/(box[0][1]-box[0][0]),Y=y=>H-H*(y-box[1][0])/(box[1][1]-box[1][0]);

const base=()=>{
 cuts=T.map(one=>cut(one,+limit.value));t=T[+choice.value];segments=cuts[+choice.value];
 told.textContent=(+limit.value).toFixed(2);
 limit.setAttribute('aria-valuetext',told.textContent+', '+segments.length+' segments');
 way.globalAlpha=1;way.fillStyle='#000';way.fillRect(0,0,way.canvas.width,way.canvas.height);
 way.globalAlpha=.5;way.drawImage(map,0,0);way.globalAlpha=1;way.lineWidth=D.dot*.6;way.lineJoin='round';
 segments.forEach(s=>{
  way.strokeStyle=D.colours[s.cluster];way.beginPath();
  for(let k=Math.max(0,s.from-1),down=false;k<s.to;k++){
   const x=t.path[2*k],y=t.path[2*k+1];
   if(x===x)down?way.lineTo(x,y):way.moveTo(x,y);
   down=x===x}
  way.stroke()});
 segments.forEach(s=>{
  const x=t.spots[2*s.from],y=t.spots[2*s.from+1];
  if(x===x)disc(way,x,y,D.dot*.8,D.colours[s.cluster],'#fff',1)});
 plane.fillStyle='#fff';plane.fillRect(0,0,W,H);
 word(plane,'code z: first component \\u2192',W/2,H-14,18,'center');
 plane.save();plane.translate(14,H/2);plane.rotate(-Math.PI/2);word(plane,'second component \\u2192',0,0,18,'center');
 plane.restore();
 plane.globalAlpha=.4;
 cuts.forEach(cut=>cut!==segments&&cut.forEach(s=>disc(plane,X(s.at[0]),Y(s.at[1]),6,D.colours[s.cluster])));
 plane.strokeStyle='#000';plane.lineWidth=1;plane.globalAlpha=.35;plane.beginPath();
 segments.forEach((s,k)=>plane[k?'lineTo':'moveTo'](X(s.at[0]),Y(s.at[1])));plane.stroke();plane.globalAlpha=1;
 segments.forEach(s=>disc(plane,X(s.at[0]),Y(s.at[1]),8,D.colours[s.cluster],'#000',1.5));
 D.marks.forEach(([x,y],k)=>{
  disc(plane,X(x)+22,Y(y)-22,13,'#fff',D.colours[k],3);word(plane,k,X(x)+22,Y(y)-21,17,'center')});
 const dense=window.devicePixelRatio||1,wide=cursor.canvas.clientWidth||900,high=cursor.canvas.clientHeight||112;
 for(const c of [chart,cursor]){
  c.canvas.width=wide*dense;c.canvas.height=high*dense;c.setTransform(dense,0,0,dense,0,0)}
 margin=34;scale=(wide-margin-8)/t.beta.length;
 const top=18,floor=high-18,level=v=>floor-(floor-top)*v;
 chart.fillStyle='#fff';chart.fillRect(0,0,wide,high);
 segments.forEach(s=>{
  const x=margin+scale*s.from,width=scale*(s.to-s.from);
  chart.globalAlpha=.5;chart.fillStyle=D.colours[s.cluster];chart.fillRect(x,top,width,floor-top);chart.globalAlpha=1;
  chart.fillStyle='#fff';chart.fillRect(x-.75,top,1.5,floor-top);
  if(width>16)word(chart,s.cluster,x+width/2,top+10,12,'center')});
 chart.strokeStyle='#000';chart.lineWidth=1.2;chart.beginPath();
 t.beta.forEach((b,i)=>{
  chart[i?'lineTo':'moveTo'](margin+scale*i,level(b));chart.lineTo(margin+scale*(i+1),level(b))});
 chart.stroke();
 chart.setLineDash([5,4]);chart.beginPath();chart.moveTo(margin,level(+limit.value));
 chart.lineTo(wide-8,level(+limit.value));chart.stroke();chart.setLineDash([]);
 t.changes.forEach(i=>{
  const x=margin+scale*i;chart.fillStyle='#000';chart.beginPath();
  chart.moveTo(x-5,4);chart.lineTo(x+5,4);chart.lineTo(x,14);chart.fill()});
 word(chart,'1',margin-6,top,12,'right');word(chart,'0',margin-6,floor,12,'right');
 word(chart,'\\u03b2',margin-6,(top+floor)/2,15,'right');
 const room=[5,10,20,50,100,200,500,1000].find(v=>v*scale>60)||2000;
 for(let i=0;i<t.beta.length;i+=room)word(chart,i,margin+scale*i,high-8,12,i?'center':'left')};

const draw=i=>{
 const sheet=t.sheets[Math.floor(i/D.rows)],k=segmentOf(i),s=segments[k],colour=D.colours[s.cluster];
 pen.drawImage(sheet,0,(i%D.rows)*h,w,h,0,0,w,h);
 dot.clearRect(0,0,dot.canvas.width,dot.canvas.height);
 if(t.spots[2*i]===t.spots[2*i])disc(dot,t.spots[2*i],t.spots[2*i+1],D.dot*1.4,colour,'#fff',2);
 point.clearRect(0,0,W,H);disc(point,X(t.plane[2*i]),Y(t.plane[2*i+1]),13,colour,'#000',4);
 cursor.clearRect(0,0,1e4,1e3);cursor.fillStyle='rgba(0,0,0,.45)';
 cursor.fillRect(margin+scale*i,14,Math.max(2,scale),cursor.canvas.clientHeight-30);
 const goal=t.goals?D.goals[t.goals[i]]||'none':0;
 return [['step '+i,'\\u03b2 '+t.beta[i].toFixed(2),
  'segment '+(k+1)+' of '+segments.length+' (steps '+s.from+' to '+(s.to-1)+')','cluster '+s.cluster,
  D.actions[t.actions[i]],...(goal?['goal: '+goal]:[])].join('   '),
  {trajectory:+choice.value,step:i,threshold:+limit.value,segments:segments.length,segment:k,cluster:s.cluster}]};

const go=i=>{slider.value=i;slider.dispatchEvent(new Event('input'))};
choice.onchange=()=>{base();slider.max=t.beta.length-1;go(0)};
limit.oninput=()=>{base();show()};
let later;
root.addEventListener('mz:change',()=>{
 clearTimeout(later);
 later=setTimeout(()=>document.querySelectorAll('.'+D.link).forEach(panel=>{
  [+choice.value,+slider.value].forEach((value,k)=>{
   const field=panel.querySelectorAll('input[type=number]')[k];
   if(field&&+field.value!==value){
    field.value=value;field.dispatchEvent(new Event('change',{bubbles:true}))}})}),150)});
root.addEventListener('keydown',e=>{
 const k=segmentOf(+slider.value),here=e.target===slider||e.target===cursor.canvas;
 if(!here||e.ctrlKey||e.metaKey||e.altKey)return;
 const to=e.key==='n'?segments[Math.min(k+1,segments.length-1)].from
  :e.key==='p'?segments[Math.max(0,+slider.value>segments[k].from?k:k-1)].from:null;
 if(to!==null){e.preventDefault();e.stopPropagation();go(to)}},true);
const seek=e=>{
 const x=e.clientX-cursor.canvas.getBoundingClientRect().left;
 go(Math.max(0,Math.min(t.beta.length-1,Math.floor((x-margin)/scale))))};
cursor.canvas.onmousedown=e=>e.preventDefault();
cursor.canvas.onpointerdown=e=>{cursor.canvas.setPointerCapture(e.pointerId);seek(e);slider.focus()};
cursor.canvas.onpointermove=e=>{if(e.buttons)seek(e)};
base();show=player(root,D.fps,draw);
new ResizeObserver(()=>{if(Math.abs(cursor.canvas.clientWidth*(window.devicePixelRatio||1)-cursor.canvas.width)>1){
 base();draw(+slider.value)}}).observe(cursor.canvas);
"""


class BetaViewer(Widget):
    """Replay of trajectories under a slider, with β and its threshold, segments coloured by cluster, z, and the way.

    traces: all with frames of one size and codes of one width. clusters: see `cluster_codes`. alt: what is shown, in
    words. shown, start, threshold: the trajectory, step and threshold shown first, and by the static picture.
    Keys on the slider: arrows move a step, n and p to the next and previous segment, space plays.
    Raises ValueError for traces that differ in size, or a start beyond them.
    """

    def __init__(
        self,
        traces: Sequence[SwitchTrace],
        clusters: Clusters,
        room_map: RoomMap,
        alt: str,
        shown: int = 0,
        start: int = 0,
        threshold: float = THRESHOLD,
    ):
        sizes = {trace.frames.shape[1:] for trace in traces}
        if len(sizes) != 1:
            raise ValueError(f"traces have frames of sizes {sorted(sizes)}; traces of one size are needed")
        widths = {trace.codes.shape[1] for trace in traces} | {clusters.centres.shape[1]}
        if len(widths) != 1:
            raise ValueError(f"traces and clusters have codes of widths {sorted(widths)}; one width is needed")
        if not (0 <= shown < len(traces) and 0 <= start < len(traces[shown])):
            raise ValueError(f"shown={shown}, start={start}: no such trajectory, or no such step in it")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: a value between 0 and 1 is needed, such as {THRESHOLD}")
        self.traces, self.clusters, self.room_map, self.alt = list(traces), clusters, room_map, alt
        self.shown, self.start, self.threshold = shown, start, threshold
        content = b"".join(np.asarray(trace.beta, np.float32).tobytes() for trace in traces)
        self.link = "mz-link-" + hashlib.sha256(content).hexdigest()[:12]  # a steering panel's class in the page

    @property
    def scale(self) -> tuple[int, int]:
        """Columns and rows that a pixel of a frame becomes, as in a Clip."""
        return GRAY_SCALE if self.traces[0].frames.shape[1:3] == (FRAME_SIZE, FRAME_SIZE) else ATARI_SCALE

    def _trace(self, trace: SwitchTrace) -> dict:
        frames, positions = trace.rgb, np.asarray(trace.positions)
        width = frames.shape[2]
        return {
            "name": trace.name,
            "sheets": [
                data_uri(png_bytes(frames[i : i + FRAMES_PER_SHEET].reshape(-1, width, 3)), "image/png")
                for i in range(0, len(trace), FRAMES_PER_SHEET)
            ],
            "beta": packed(np.asarray(trace.beta, np.float32)),
            "codes": packed(np.asarray(trace.codes, np.float32)),
            "plane": packed(self.clusters.plane(trace.codes).astype(np.float32)),
            "path": packed(map_path(self.room_map, positions).astype(np.float32)),
            "spots": packed(map_spots(self.room_map, positions).astype(np.float32)),
            "actions": np.asarray(trace.actions).tolist(),
            "goals": None if trace.goals is None else np.asarray(trace.goals).tolist(),
            "changes": trace.goal_changes.tolist(),
        }

    def to_html(self) -> str:
        clusters, picture = self.clusters, self.room_map.picture
        height, width = self.traces[0].frames.shape[1:3]
        rows, columns = picture.shape[:2]
        data = {
            "traces": [self._trace(trace) for trace in self.traces],
            "map": data_uri(png_bytes(picture), "image/png"),
            "size": [width, height],
            "rows": FRAMES_PER_SHEET,
            "width": clusters.centres.shape[1],
            "centres": clusters.centres.tolist(),
            "axes": clusters.axes.tolist(),
            "origin": clusters.origin.tolist(),
            "marks": clusters.plane(clusters.centres).tolist(),
            "colours": clusters.colours,
            "actions": ACTIONS,
            "goals": [place.name for place in GOALS],
            "dot": max(4.0, columns / 90),
            "plane": PLANE,
            "fps": FPS,
            "link": self.link,
        }
        ratio = f"aspect-ratio:{width * self.scale[0]}/{height * self.scale[1]}"
        screen = f'<div class="mz-panel">{canvas(width, height, self.alt, style=ratio)}</div>'
        plane = layers(*PLANE, "Codes of the segments in their plane, and the code now")
        way = layers(columns, rows, "Map with the way, coloured by cluster, and where the player is")
        height_of_column = height * self.scale[1] / (width * self.scale[0]) + PLANE[1] / PLANE[0]  # for a width of 1
        panels = (
            f'<style>{MORE_STYLE}</style><div class="mz-panels">'
            f'<div class="mz-column" style="flex-grow:1">{screen}{plane}</div>'
            f'<div class="mz-column" style="flex-grow:{height_of_column * columns / rows:.3f}">{way}</div></div>'
            f'<div class="mz-chart">{canvas(900, 112, "The switch over time, with its segments", False)}'
            f"{canvas(900, 112, sharp=False)}</div>"
        )
        options = "".join(
            f'<option value="{i}"{" selected" * (i == self.shown)}>{html.escape(trace.name)}</option>'
            for i, trace in enumerate(self.traces)
        )
        key = "".join(
            f'<span><i style="background:{colour}"></i>cluster {i}</span>' for i, colour in enumerate(clusters.colours)
        )
        known = any(trace.goals is not None for trace in self.traces)
        below = (
            f'<div class="mz-bar mz-more"><select class="mz-trace" aria-label="trajectory">{options}</select>'
            '<label>threshold <input class="mz-limit" type="range" min="0.01" max="0.99" step="0.01" '
            f'value="{self.threshold}" aria-label="threshold of the switch"><b class="mz-told"></b></label></div>'
            f'<div class="mz-key">{key}{"<span>▼ true change of goal</span>" * known}'
            "<span>keys on the slider: ← → step, n p next and previous segment, space plays</span></div>"
        )
        last = len(self.traces[self.shown]) - 1
        return page("beta", self.alt, panels, "step of the trajectory", last, self.start, below, VIEWER, data)

    def still(self) -> np.ndarray:
        """The shown trajectory's `overview_figure` as a picture."""
        figure = overview_figure(self.traces, self.clusters, self.room_map, self.shown, self.threshold)
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
        plt.close(figure)
        return picture
