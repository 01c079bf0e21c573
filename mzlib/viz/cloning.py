"""Figures of notebooks 01 and 02: legs over the rooms, windows as tokens, where the clone is unsure, probes."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from mzlib.dataset import PAD, FrameCache, WindowBatch
from mzlib.emulator import ACTIONS
from mzlib.places import GOALS
from mzlib.runs import read_curve, read_results
from mzlib.viz.rooms import RoomMap
from mzlib.viz.style import OKABE_ITO


def legs_figure(cache: FrameCache, room_map: RoomMap, demos: Sequence[int], columns: int = 3) -> Figure:
    """Trajectories over the room map, a panel each, every leg in a colour of its own and its goal named."""
    rows = -(-len(demos) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 3.9 * rows), squeeze=False)
    for one, demo in zip(axes.flat, demos, strict=False):
        room_map.draw(one)
        steps = slice(cache.offsets[demo], cache.offsets[demo + 1])
        positions, goals = cache.positions[steps], cache.goals[steps]
        names = []
        edges = [*np.flatnonzero(np.diff(goals, prepend=-2)), len(goals)]
        for leg, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            goal = goals[begin]
            colour = "white" if goal < 0 else OKABE_ITO[1:][leg % (len(OKABE_ITO) - 1)]
            room_map.draw_path(one, *positions[max(begin - 1, 0) : end].T, color=colour, linewidth=1.2 + (goal >= 0))
            names += [GOALS[goal].name] if goal >= 0 else []
        one.set_title("\n→ ".join(names), fontsize=9, loc="left")
    for one in axes.flat[len(demos) :]:
        one.set_visible(False)
    return figure


def windows_figure(batch: WindowBatch) -> Figure:
    """Windows as rows of action tokens, a colour an action, padding white; a dot where the action changes."""
    actions = batch.actions.numpy()
    used = np.unique(actions[actions < PAD])
    place = np.full(PAD + 1, len(used))
    place[used] = np.arange(len(used))
    colours = [*(plt.get_cmap("tab20")(2 * i % 20 + i // 10) for i in range(len(used))), (1, 1, 1, 1)]
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.22 * len(actions)))
    shown = axes.imshow(place[actions], cmap=ListedColormap(colours), vmin=-0.5, vmax=len(used) + 0.5, aspect="auto")
    rows, steps = np.nonzero(batch.change.numpy())
    axes.scatter(steps, rows, s=8, color="black")
    axes.set(xlabel="step of the window", ylabel="window", yticks=[])
    axes.grid(False)
    bar = figure.colorbar(shown, ticks=range(len(used) + 1), pad=0.01)
    bar.ax.set_yticklabels([*(ACTIONS[i] for i in used), "(padding)"], fontsize=8)
    return figure


def unsure_figure(room_map: RoomMap, positions: np.ndarray, entropy: np.ndarray) -> Figure:
    """Where over the rooms the clone's choice is open: positions (n, 3) in RAM coordinates, entropy (n,) in nats."""
    inside = np.isin(positions[:, 0], list(room_map.pictures))
    points = room_map.xy(*positions[inside].T)
    order = np.argsort(entropy[inside])
    figure, axes = plt.subplots(figsize=(6.4, 4.6))
    room_map.draw(axes, dim=0.4)
    shown = axes.scatter(*points[order].T, c=entropy[inside][order], s=7, cmap="magma", vmin=0)
    figure.colorbar(shown, label="entropy of the next action, nats", pad=0.01)
    return figure


def probes_figure(by_layer: Mapping[str, Sequence[float]], since: Sequence[float], edges: Sequence[int]) -> Figure:
    """Accuracy of reading the goal: by layer with what it is held against, and by steps since the leg began.

    by_layer: name → accuracy after the embedding and each block, or one value. since: accuracy in each bin of `edges`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    for name, values in by_layer.items():
        if len(values) == 1:
            left.axhline(values[0], linestyle=":", color="gray", label=name)
        else:
            left.plot(range(len(values)), values, "o-", label=name)
    left.set(xlabel="after block", ylabel="accuracy of a linear probe", ylim=(0, 1))
    left.legend(fontsize=9)
    right.plot([(a + b) / 2 for a, b in zip(edges[:-1], edges[1:], strict=True)], since, "o-", color=OKABE_ITO[2])
    right.set(xlabel="steps since the leg began", ylabel="accuracy", ylim=(0, 1))
    return figure


def curves_figure(name: str) -> Figure:
    """Of stored trainings, a line a variant: NLL on held-out demos over all steps and at change points."""
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3))
    for variant, rows in groupby(read_curve(name), key=lambda row: row["variant"]):
        rows = list(rows)
        steps = [int(row["step"]) for row in rows]
        for one, key in zip(axes, ("nll", "change_nll"), strict=True):
            one.plot(steps, [float(row[key]) for row in rows], label=variant)
    axes[0].set(xlabel="gradient step", ylabel="nats a step", title="all steps")
    axes[1].set(xlabel="gradient step", title="change points")
    axes[1].legend(fontsize=9)
    return figure


def stored_probes_figure() -> Figure:
    """`probes_figure` of data/results/cloning_probes.curve.csv, medians over splits."""
    tables = {"layer": {}, "age": {}}
    for row in read_curve("cloning_probes"):
        tables[row["kind"]].setdefault(int(row["step"]), []).append(float(row["accuracy"]))
    layer, age = ({step: float(np.median(values)) for step, values in tables[kind].items()} for kind in tables)
    record = next(r for r in read_results()["cloning"] if "goal read" in r["name"])
    chance = record["protocol"]["chance (commonest goal)"]
    edges = [*age, 2 * max(age)]
    return probes_figure({"residual stream": list(layer.values()), "commonest goal": [chance]}, [*age.values()], edges)
