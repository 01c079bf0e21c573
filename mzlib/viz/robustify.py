"""Figures of notebook 06: where episodes begin on the demos, how that moves back, and what is clipped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from mzlib.demos import Demo, start
from mzlib.evaluate import EvaluationProtocol, watch
from mzlib.policies import ActorCriticPolicy
from mzlib.ppo import clipped_loss
from mzlib.runs import Run, data_dir, read_curve, torch_threads
from mzlib.viz.clips import Clip, render_steps
from mzlib.viz.demonstrations import way
from mzlib.viz.rooms import RoomMap, pictures_of_demos
from mzlib.viz.style import OKABE_ITO

DEMO_COLUMNS = "earliest_"


class Curve(NamedTuple):
    """How one training went, n rows."""

    steps: np.ndarray  # (n,) of the environments
    earliest: np.ndarray  # (n, demos) steps from a demo's beginning to its earliest start
    success: np.ndarray  # (n,) share of the remembered episodes, from wherever they began
    reset_success: np.ndarray  # (n,) share of a rollout's episodes from reset; NaN where there were none

    @classmethod
    def of_metrics(cls, metrics: Sequence[Mapping]) -> "Curve":
        """A run's own, from its metrics."""
        resets = [row["reset_succeeded"] / row["resets"] if row["resets"] else np.nan for row in metrics]
        steps, earliest, success = (
            [row[key] for row in metrics] for key in ("environment_steps", "earliest", "success")
        )
        return cls(np.array(steps), np.array(earliest), np.array(success, float), np.array(resets, float))

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, str]]) -> "Curve":
        """A stored one: rows of text with the columns step, success, reset_success, earliest_0, earliest_1, …, empty
        where there is no value."""
        columns = [name for name in rows[0] if name.startswith(DEMO_COLUMNS) and rows[0][name] != ""]
        earliest = [[int(row[name]) for name in columns] for row in rows]
        numbers = ([float(row[name] or "nan") for row in rows] for name in ("success", "reset_success"))
        return cls(np.array([int(row["step"]) for row in rows]), np.array(earliest), *map(np.array, numbers))


def stored_curves(name: str = "robustify") -> dict[tuple[str, int], Curve]:
    """(agent, seed) → curve, of data/results/<name>.curve.csv; empty if nothing is stored."""
    if not data_dir("results", f"{name}.curve.csv").exists():
        return {}
    grouped: dict[tuple[str, int], list] = {}
    for row in read_curve(name):
        grouped.setdefault((row["agent"], int(row["seed"])), []).append(row)
    return {key: Curve.of_rows(rows) for key, rows in grouped.items()}


def episode_clip(weights: Path, protocol: EvaluationProtocol, greedy: bool = False) -> Clip:
    """The protocol's first episode, actions drawn or the likeliest; torch's threads, which a policy sets to one, are
    set back."""
    with torch_threads():
        return render_steps(watch(ActorCriticPolicy(weights, greedy=greedy), protocol.first_seed, protocol))


def curriculum_figure(curve: Curve) -> Figure:
    """Left a line a demo: how far from its beginning episodes start, over the steps of the training; right the share of
    episodes that succeed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.2))
    thousands = curve.steps / 1000
    for demo, starts in enumerate(curve.earliest.T):
        left.step(thousands, starts, where="post", label=f"demo {demo}", color=plt.get_cmap("viridis")(demo / 10))
    left.set(xlabel="environment steps (thousands)", ylabel="earliest start\n(steps from the reset)")
    left.set_ylim(bottom=0)
    right.plot(thousands, curve.success, label="of all remembered episodes", color=OKABE_ITO[0])
    if np.isfinite(curve.reset_success).any():
        right.plot(
            thousands, curve.reset_success, "o", markersize=3, label="from a reset, of a rollout", color=OKABE_ITO[1]
        )
    right.set(xlabel="environment steps (thousands)", ylabel="share that succeed", ylim=(-0.02, 1.02))
    right.legend(fontsize=9)
    return figure


def reset_figure(curves: Mapping[tuple[str, int], Curve]) -> Figure:
    """A line a training: the start farthest from the reset among its demos, and success from a reset; a colour an
    agent."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.2))
    agents = list(dict.fromkeys(agent for agent, _ in curves))
    for number, ((agent, _), curve) in enumerate(curves.items()):
        first = number == 0 or agent not in [other for other, _ in list(curves)[:number]]
        style = {"color": OKABE_ITO[agents.index(agent) % len(OKABE_ITO)], "label": agent if first else None}
        left.plot(curve.steps / 1000, curve.earliest.max(axis=1), linewidth=1, **style)
        known = np.isfinite(curve.reset_success)
        right.plot(curve.steps[known] / 1000, curve.reset_success[known], linewidth=1, **style)
    left.set(xlabel="environment steps (thousands)", ylabel="latest of the demos'\nearliest starts (steps)")
    left.set_ylim(bottom=0)
    left.legend(fontsize=9)
    right.set(xlabel="environment steps (thousands)", ylabel="success from a reset", ylim=(-0.02, 1.02))
    return figure


def starts_figure(demo: Demo, first: int, window: int) -> Figure:
    """Where a demo's episodes may begin: its way over the rooms coloured by starting point, those from `first` on
    ringed, a window of them."""
    positions = np.array([start(demo).facts[:3], *way(demo)[:-1]])
    room_map = RoomMap(pictures_of_demos([demo]))
    figure, axes = plt.subplots(figsize=(4.9, 4.8))
    room_map.draw(axes, dim=0.4)
    room_map.draw_path(axes, *positions.T, color="white", linewidth=0.6)
    points = room_map.xy(*positions.T)
    shown = axes.scatter(*points.T, c=np.arange(len(points)), s=16, cmap="viridis", zorder=2)
    ring = points[first : first + window]
    label = f"starts {first} to {first + len(ring) - 1}"
    axes.scatter(*ring.T, s=70, facecolors="none", edgecolors=OKABE_ITO[1], linewidths=1.3, zorder=3, label=label)
    axes.legend(loc="upper left", labelcolor="white", fontsize=9)
    figure.colorbar(shown, label="starting point (steps from the demo's beginning)", pad=0.01)
    return figure


def remembered(run: Run) -> tuple[list[int], list[list[list[bool]]]]:
    """The curriculum of a robustification's last checkpoint: each demo's earliest start, and the outcomes remembered of
    each of its starting points."""
    content = torch.load(run.checkpoints / "policy.pt", weights_only=True, map_location="cpu")
    curriculum = content["backward"]["curriculum"]
    return curriculum["earliest"], curriculum["results"]


def success_figure(earliest: Sequence[int], results: Sequence[Sequence[Sequence[bool]]]) -> Figure:
    """Success by starting point, a row a demo, white where no episode is remembered; a mark at each earliest start."""
    rates = np.full((len(results), max(map(len, results))), np.nan)
    for demo, points in enumerate(results):
        for step, outcomes in enumerate(points):
            if outcomes:
                rates[demo, step] = np.mean(outcomes)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(results)))
    shown = axes.imshow(rates, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.scatter(earliest, range(len(earliest)), marker="|", s=140, color=OKABE_ITO[5], label="earliest start")
    ends = [len(points) - 0.5 for points in results]
    axes.scatter(ends, range(len(ends)), marker="|", s=140, color="black", label="the demo's end", clip_on=False)
    axes.set(xlabel="starting point (steps from the reset)", ylabel="demo", yticks=range(len(results)))
    axes.grid(False)
    axes.legend(fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    figure.colorbar(shown, label="share that succeed", pad=0.01)
    return figure


def clip_figure(clip: float) -> Figure:
    """PPO's loss against the ratio of probabilities, for an action that was better than expected and for one that was
    worse."""
    ratio = torch.linspace(0.4, 1.6, 121)
    figure, axes = plt.subplots(figsize=(6, 3))
    for advantage, style in ((1.0, "-"), (-1.0, "--")):
        loss = clipped_loss(ratio.log(), torch.zeros(()), torch.full_like(ratio, advantage), clip)
        axes.plot(ratio.numpy(), loss.numpy(), style, label=f"advantage {advantage:+.0f}")
    for edge in (1 - clip, 1 + clip):
        axes.axvline(edge, color="gray", linestyle=":", linewidth=1)
    axes.set(xlabel="probability now / probability when played", ylabel="loss")
    axes.legend(fontsize=9)
    return figure
