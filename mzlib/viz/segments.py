"""What the switch makes of trajectories: segments, their codes in clusters and in the plane, and figures of these.

A segment begins where β reaches a threshold; its code is the mean of z over its steps (after a sharp switch z stays as
it is until the next).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from mzlib.backbone.residuals import Sequences
from mzlib.discovery import Played
from mzlib.emulator import Emulator
from mzlib.segments import clusters, k_means
from mzlib.steering import CodeControl
from mzlib.viz.clips import Clip, play_caption, render_steps
from mzlib.viz.rooms import RoomMap
from mzlib.viz.style import OKABE_ITO

THRESHOLD = 0.5


@dataclass(frozen=True)
class SwitchTrace:
    """A trajectory of T steps and what the metacontroller made of it; index t is all that belongs to choosing action t.

    Raises ValueError, naming the field, for a wrong shape, a β outside [0, 1] or a code that is not finite.
    """

    frames: np.ndarray  # (T, H, W, 3) or, gray, (T, H, W), uint8: what was seen before action t
    beta: np.ndarray  # (T,) β_t
    codes: np.ndarray  # (T, n_z) z_t
    positions: np.ndarray  # (T, 3) int: room, x, y in RAM coordinates before action t
    actions: np.ndarray  # (T,) 0..17
    goals: np.ndarray | None = None  # (T,) int: index of the place aimed at, -1 for none; only to compare with
    name: str = "trajectory"

    def __post_init__(self):
        steps = len(self.beta)
        if steps == 0:
            raise ValueError(f"{self.name}: beta is empty; a trajectory has at least one step")
        shapes = {"beta": (steps,), "positions": (steps, 3), "actions": (steps,), "goals": (steps,)}
        for field, shape in shapes.items():
            found = getattr(self, field)
            if found is not None and np.shape(found) != shape:
                raise ValueError(f"{self.name}: {field} is {np.shape(found)}; {shape} is needed")
        if np.ndim(self.codes) != 2 or len(self.codes) != steps or not np.isfinite(self.codes).all():
            raise ValueError(f"{self.name}: codes is {np.shape(self.codes)}; finite ({steps}, n_z) is needed")
        if not ((self.beta >= 0) & (self.beta <= 1)).all():
            raise ValueError(f"{self.name}: beta leaves [0, 1]; the switch's output is needed, not its logit")
        frames = np.asarray(self.frames)
        gray, colour = frames.ndim == 3, frames.ndim == 4 and frames.shape[3] == 3
        if frames.dtype != np.uint8 or not (gray or colour) or len(frames) != steps:
            wanted = f"uint8 ({steps}, H, W, 3) or ({steps}, H, W)"
            raise ValueError(f"{self.name}: frames is {frames.dtype} {frames.shape}; {wanted} is needed")

    def __len__(self) -> int:
        return len(self.beta)

    @property
    def rgb(self) -> np.ndarray:
        """(T, H, W, 3) uint8."""
        return self.frames if self.frames.ndim == 4 else np.repeat(self.frames[..., None], 3, axis=3)

    @property
    def goal_changes(self) -> np.ndarray:
        """The steps at which the true goal is another than before; none where goals are not known."""
        return np.zeros(0, int) if self.goals is None else np.flatnonzero(np.diff(self.goals)) + 1


def traces_of(played: Played, sequences: Sequences, names: Sequence[str] = ()) -> list[SwitchTrace]:
    """What a metacontroller made of sequences, as traces; names: of each, in order."""
    cache, traces = sequences.windows.cache, []
    for i, row in enumerate(played.rows):
        steps, demo = sequences.steps([row])[0][0], sequences.ranges[row, 0]
        own = slice(len(steps))
        goals = played.goals[i][own]
        traces.append(
            SwitchTrace(
                cache.frames[steps + demo],
                np.clip(played.switch[i][own], 0, 1),
                played.code[i][own],
                cache.positions[np.maximum(steps - 1, cache.offsets[demo])].astype(int),
                played.actions[i][own],
                goals if (goals >= 0).any() else None,
                names[i] if names else f"demo {demo}, steps {steps[0] - cache.offsets[demo]} on",
            )
        )
    return traces


def segment_starts(beta: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """(S,) int, ascending: step 0, and every step with β ≥ threshold. Compared as float32 values, as a page does."""
    open_ = np.asarray(beta, np.float32).astype(np.float64) >= threshold
    open_[0] = True
    return np.flatnonzero(open_)


def segment_of_steps(beta: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """(T,) int: the number of the segment that each step lies in, from 0."""
    starts = segment_starts(beta, threshold)
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=len(beta)))


def segment_codes(trace: SwitchTrace, threshold: float = THRESHOLD) -> np.ndarray:
    """(S, n_z): the mean code of each segment."""
    starts = segment_starts(trace.beta, threshold)
    sums = np.add.reduceat(np.asarray(trace.codes, np.float64), starts)
    return sums / np.diff(starts, append=len(trace))[:, None]


class Clusters(NamedTuple):
    """Clusters of codes, the largest first, and the plane in which codes are drawn."""

    centres: np.ndarray  # (k, n_z)
    examples: np.ndarray  # (k, n_z): of each cluster the segment's code nearest to its centre, a code that was lived
    origin: np.ndarray  # (n_z,)
    axes: np.ndarray  # (2, n_z): the first two principal components

    def nearest(self, codes: np.ndarray) -> np.ndarray:
        """(n,) int: the cluster of each code."""
        return np.square(codes[:, None] - self.centres).sum(2).argmin(1)

    def plane(self, codes: np.ndarray) -> np.ndarray:
        """(n, 2): codes in the plane."""
        return (codes - self.origin) @ self.axes.T

    @property
    def colours(self) -> list[str]:
        """A colour each, colour-blind safe up to seven; beyond, lighter ones of the same, told apart by number."""
        seven = (OKABE_ITO[1], OKABE_ITO[4], OKABE_ITO[2], OKABE_ITO[3], OKABE_ITO[6], OKABE_ITO[5], OKABE_ITO[0])
        lighter = (0.0, 0.5, 0.75)
        return [
            to_hex(np.array(to_rgb(seven[i % 7])) * (1 - white) + white)
            for i in range(len(self.centres))
            for white in [lighter[i // 7 % 3]]
        ]


def cluster_codes(traces: Sequence[SwitchTrace], k: int = 7, threshold: float = THRESHOLD, seed: int = 0) -> Clusters:
    """Clusters and plane of the segments' codes of all the traces at one threshold. The same seed gives the same."""
    codes = np.concatenate([segment_codes(trace, threshold) for trace in traces])
    centres = k_means(codes, k, seed)
    examples = codes[np.square(codes[:, None] - centres).sum(2).argmin(0)]
    origin = codes.mean(0)
    axes = np.linalg.svd(np.vstack([codes - origin, np.zeros((2, codes.shape[1]))]))[2][:2]
    axes = np.pad(axes, ((0, 2 - len(axes)), (0, 0)))  # codes of one dimension have no second axis
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    return Clusters(centres, examples, origin, axes * np.where(largest < 0, -1, 1))


def map_spots(room_map: RoomMap, positions: np.ndarray) -> np.ndarray:
    """(T, 2) map pixels, NaN where a position's room is not on the map. positions: (T, 3) int: room, x, y."""
    spots = np.full((len(positions), 2), np.nan)
    known = np.isin(positions[:, 0], list(room_map.pictures))
    spots[known] = room_map.xy(*positions[known].T)
    return spots


def map_path(room_map: RoomMap, positions: np.ndarray) -> np.ndarray:
    """(T, 2): `map_spots`, NaN also where the way jumps."""
    points = map_spots(room_map, positions)
    known = np.flatnonzero(np.isfinite(points[:, 0]))
    points[known] = room_map.path(*positions[known].T)
    return points


# ---- figures, which stand beside the widget


def draw_switch(axes: Axes, trace: SwitchTrace, clusters: Clusters, threshold: float = THRESHOLD) -> None:
    """β over time on bands of the segments' clusters; true changes of goal as marks above."""
    starts = segment_starts(trace.beta, threshold)
    labels = clusters.nearest(segment_codes(trace, threshold))
    ends = np.append(starts[1:], len(trace))
    for begin, end, label in zip(starts, ends, labels, strict=True):
        axes.axvspan(begin, end, color=clusters.colours[label], alpha=0.45, lw=0)
        axes.axvline(begin, color="white", lw=1.5)
        if end - begin >= len(trace) / 40:
            axes.annotate(str(label), ((begin + end) / 2, 0.9), ha="center", va="center", fontsize=9)
    axes.step(np.arange(len(trace) + 1), np.append(trace.beta, trace.beta[-1]), where="post", color="black", lw=1)
    axes.axhline(threshold, color="black", lw=0.8, ls="--", label=f"threshold {threshold:.2f}")
    if len(trace.goal_changes):
        heights = np.full(len(trace.goal_changes), 1.07)
        style = {"marker": "v", "s": 30, "color": "black", "clip_on": False, "label": "true change of goal"}
        axes.scatter(trace.goal_changes, heights, **style)
    axes.set(xlabel="step", ylabel="switch β", xlim=(0, len(trace)), ylim=(0, 1.02))
    axes.grid(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2, fontsize=9)


def draw_path(
    axes: Axes, trace: SwitchTrace, clusters: Clusters, room_map: RoomMap, threshold: float = THRESHOLD
) -> None:
    """The way over the room map, each segment in its cluster's colour and a dot where it begins."""
    room_map.draw(axes, dim=0.45)
    points = map_path(room_map, np.asarray(trace.positions))
    starts = segment_starts(trace.beta, threshold)
    labels = clusters.nearest(segment_codes(trace, threshold))
    for begin, end, label in zip(starts, np.append(starts[1:], len(trace)), labels, strict=True):
        way = points[max(begin - 1, 0) : end]
        axes.plot(way[:, 0], way[:, 1], color=clusters.colours[label], lw=2)
        axes.scatter(*points[begin], s=28, color=clusters.colours[label], edgecolors="white", lw=0.8, zorder=3)


def draw_codes(
    axes: Axes, traces: Sequence[SwitchTrace], clusters: Clusters, shown: int = 0, threshold: float = THRESHOLD
) -> None:
    """All segments' codes in the plane, coloured by cluster, numbered at the centres; one trajectory's ringed."""
    for i, trace in enumerate(traces):
        codes = segment_codes(trace, threshold)
        colours = np.array(clusters.colours)[clusters.nearest(codes)]
        ring = (
            {"s": 48, "edgecolors": "black", "lw": 1, "zorder": 3} if i == shown else {"s": 22, "alpha": 0.6, "lw": 0}
        )
        axes.scatter(*clusters.plane(codes).T, c=colours, **ring)
    for label, (x, y) in enumerate(clusters.plane(clusters.centres)):
        box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": clusters.colours[label], "alpha": 0.85}
        axes.annotate(str(label), (x, y), (9, 9), textcoords="offset points", fontsize=8, bbox=box, zorder=4)
    axes.margins(0.12)
    axes.set(xlabel="code z, first component", ylabel="second component")


def switch_figure(trace: SwitchTrace, clusters: Clusters, threshold: float = THRESHOLD) -> Figure:
    """β over time, segments coloured by cluster; see `draw_switch`."""
    figure, axes = plt.subplots(figsize=(9, 2.4), layout="constrained")
    draw_switch(axes, trace, clusters, threshold)
    return figure


def path_figure(
    traces: Sequence[SwitchTrace], clusters: Clusters, room_map: RoomMap, threshold: float = THRESHOLD
) -> Figure:
    """The ways over the room map, a panel each, segments coloured by cluster; see `draw_path`."""
    rows, columns = room_map.picture.shape[:2]
    width = min(4.0, 11 / len(traces))
    figure, axes = plt.subplots(
        1, len(traces), figsize=(width * len(traces), 0.3 + width * rows / columns), squeeze=False, layout="constrained"
    )
    for one, trace in zip(axes[0], traces, strict=True):
        draw_path(one, trace, clusters, room_map, threshold)
        one.set_title(trace.name, fontsize=9)
    return figure


def codes_figure(
    traces: Sequence[SwitchTrace], clusters: Clusters, shown: int = 0, threshold: float = THRESHOLD
) -> Figure:
    """The segments' codes in the plane; see `draw_codes`."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    draw_codes(axes, traces, clusters, shown, threshold)
    return figure


def overview_figure(
    traces: Sequence[SwitchTrace], clusters: Clusters, room_map: RoomMap, shown: int = 0, threshold: float = THRESHOLD
) -> Figure:
    """All three for one trajectory: β over time above, its way and the codes below."""
    mosaic = [["beta", "beta"], ["way", "codes"]]
    figure, axes = plt.subplot_mosaic(mosaic, figsize=(9, 6.4), height_ratios=(1, 2.4), layout="constrained")
    trace = traces[shown]
    draw_switch(axes["beta"], trace, clusters, threshold)
    draw_path(axes["way"], trace, clusters, room_map, threshold)
    axes["way"].set_title(trace.name, fontsize=9)
    draw_codes(axes["codes"], traces, clusters, shown, threshold)
    return figure


def render_codes(played: Iterable[tuple[Emulator, int, int]], control: CodeControl, count: int = 8) -> Clip:
    """A clip of play under codes: the usual caption, β (a star where the switch opens), and z by its cluster, of so
    many in this play. control: of the one episode that is `played`."""
    told, codes = [], []

    def caption(emulator: Emulator, step: int, action: int, score: int) -> str:
        told.append(f"β {float(control.switch[0]):.2f}{'*' if control.opened[0] else ' '}")
        codes.append(control.code[0].cpu().numpy().copy())
        return play_caption(emulator, step, action, score)

    clip = render_steps(played, caption=caption)
    labels = clusters(np.array(codes), count)
    captions = (f"{text:<46} {switch} z {z}" for text, switch, z in zip(clip.captions, told, labels, strict=True))
    return replace(clip, captions=tuple(captions))
