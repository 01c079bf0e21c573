"""Figures of notebook 07: surprise along a way and by room, learning curves beside Go-Explore's."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mzlib.demos import Demo
from mzlib.runs import read_curve
from mzlib.viz.clips import Clip, render_demo
from mzlib.viz.style import OKABE_ITO

GRAPH_HEIGHT = 48  # pixels under the screen


def beside_figure(metrics: Sequence[dict] = ()) -> Figure:
    """Best score over steps: Go-Explore's three searches with domain cells, the stored PPO + RND, and rows of a
    run."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    searches = [row for row in read_curve("five_million") if row["cells_kind"] == "domain"]
    for seed, rows in groupby(searches, key=lambda row: row["seed"]):
        rows = list(rows)
        label = "Go-Explore, best way found (deterministic emulator)" if seed == "0" else None
        axes.step(*_columns(rows, "step", "score"), where="post", color=OKABE_ITO[0], linewidth=1, label=label)
    stored = [row for row in read_curve("rnd") if row["score"]]
    label = "PPO + RND, best training episode (sticky actions)"
    axes.step(*_columns(stored, "step", "best_score"), where="post", color=OKABE_ITO[1], label=label)
    axes.plot(*_columns(stored, "step", "score"), color=OKABE_ITO[5], label="PPO + RND, mean of the last 100")
    own = [row for row in metrics if "score" in row]
    if own:
        axes.plot(*_columns(own, "environment_steps", "best_score"), "--", color=OKABE_ITO[2], label="your run")
    axes.set(xscale="log", xlabel="environment steps", ylabel="points")
    axes.legend(fontsize=8)
    return figure


def _columns(rows: Sequence[Mapping], *names: str) -> list[np.ndarray]:
    return [np.array([float(row[name]) for row in rows]) for name in names]


def learning_figure(metrics: Sequence[dict]) -> Figure:
    """The prediction error on what is played, and the policy's entropy, over the steps of a run."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
    for one, name, label in zip(
        axes, ("prediction_error", "entropy"), ("prediction error", "policy's entropy, nats"), strict=True
    ):
        one.plot(*_columns(metrics, "environment_steps", name), color=OKABE_ITO[0])
        one.set(xlabel="environment steps", ylabel=label)
    axes[0].set_yscale("log")
    return figure


def rooms_figure(errors: Mapping[str, Mapping[int, float]], visited: Sequence[int]) -> Figure:
    """The prediction error by room at several moments: name of the moment → room → error; visited rooms in bold."""
    rooms = sorted(next(iter(errors.values())), key=lambda room: (room not in visited, room))
    figure, axes = plt.subplots(figsize=(9, 3))
    for (name, by_room), colour in zip(errors.items(), OKABE_ITO, strict=False):
        axes.plot(range(len(rooms)), [by_room[room] for room in rooms], "o", color=colour, label=name)
    axes.set_xticks(range(len(rooms)), [str(room) for room in rooms])
    for label, room in zip(axes.get_xticklabels(), rooms, strict=True):
        label.set_fontweight("bold" if room in visited else "normal")
    axes.set(yscale="log", xlabel="room (bold: visited)", ylabel="prediction error")
    axes.legend(fontsize=9)
    return figure


def way_figure(errors: np.ndarray, rooms: np.ndarray) -> Figure:
    """The prediction error at each step of a way; a line wherever a room is entered for the first time."""
    figure, axes = plt.subplots(figsize=(9, 3))
    axes.plot(errors, color=OKABE_ITO[0], linewidth=0.8)
    for step in first_entries(rooms):
        axes.axvline(step, color=OKABE_ITO[5], linewidth=0.8)
        axes.text(step, 1.01, str(rooms[step]), transform=axes.get_xaxis_transform(), fontsize=8, ha="center")
    axes.set(yscale="log", xlabel="step (above: a room entered for the first time)", ylabel="prediction error")
    return figure


def first_entries(rooms: np.ndarray) -> list[int]:
    """The steps at which a room is entered for the first time, the first step's own left out."""
    return sorted(np.unique(rooms, return_index=True)[1].tolist())[1:]


def surprise_clip(demo: Demo, errors: np.ndarray, every: int = 1) -> Clip:
    """A replay with the surprise so far under the screen, on a logarithmic scale. errors: (T,), one a step."""
    clip = render_demo(demo, every)
    width = clip.frames.shape[2]
    logs = np.log(np.maximum(errors, 1e-12))
    heights = (logs - logs.min()) / max(np.ptp(logs), 1e-9) * (GRAPH_HEIGHT - 2)
    columns = np.minimum(np.arange(len(errors)) * width // len(errors), width - 1)
    bars = np.zeros(width, int)
    np.maximum.at(bars, columns, heights.astype(int) + 1)
    colour = np.array([int(OKABE_ITO[1][i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    graph = np.where((np.arange(GRAPH_HEIGHT)[::-1, None] < bars)[..., None], colour, np.uint8(24))
    graphs = np.full((len(clip), GRAPH_HEIGHT, width, 3), 24, np.uint8)
    for picture, step in enumerate(clip.steps):
        shown = columns[step] + 1
        graphs[picture, :, :shown] = graph[:, :shown]
    frames = np.concatenate([clip.frames, graphs.astype(np.uint8)], 1)
    return Clip(frames, clip.captions, clip.fps, clip.scale, clip.steps, clip.rewards, clip.facts)


def stored_rooms() -> tuple[dict[str, dict[int, float]], list[int]]:
    """What `rooms_figure` takes, of the stored training: its first and last milestone, and the rooms visited."""
    rows = read_curve("rnd_rooms")
    steps = sorted({int(row["step"]) for row in rows})
    errors = {
        f"after {at:,} steps": {int(row["room"]): float(row["error"]) for row in rows if int(row["step"]) == at}
        for at in dict.fromkeys((steps[0], steps[-1]))
    }
    return errors, sorted({int(row["room"]) for row in rows if row["visited"] == "1"})


def stored_way() -> tuple[np.ndarray, np.ndarray]:
    """(errors, rooms) at each step of the shipped way, by the stored training's last predictor."""
    errors, rooms = _columns(read_curve("rnd_way"), "error", "room")
    return errors, rooms.astype(int)
