"""Figures of notebook 05: cells, selection and the growing archive."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mzlib.demos import Demo, replay
from mzlib.emulator import NOOP, Emulator
from mzlib.go_explore import Archive, downscaled
from mzlib.viz.rooms import RoomMap
from mzlib.viz.style import OKABE_ITO
from mzlib.viz.widgets import TimeSlider


def cell_figure(emulator: Emulator, width: int = 11, height: int = 8, depth: int = 8) -> Figure:
    """The screen in colour, in gray, and as the cell that it falls into."""
    cell = np.frombuffer(downscaled(emulator, width, height, depth), np.uint8).reshape(height, width)
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6))
    pictures = (
        (emulator.rgb(), "what a person sees"),
        (emulator.screen, "gray, maximum of two frames"),
        (cell, f"its cell: {width} x {height}, values 0 to {depth}"),
    )
    for one, (picture, title) in zip(axes, pictures, strict=True):
        one.imshow(picture, cmap="gray", aspect="auto")
        one.set(xticks=[], yticks=[])
        one.grid(False)
        one.set_title(title, fontsize=10)
    return figure


def selection_figure(archive: Archive) -> Figure:
    """How often each cell has been seen, and how likely it is to be picked next."""
    seen = archive.column("seen")
    weights = 1 / np.sqrt(seen + 1)
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.scatter(seen + 1, weights / weights.sum(), s=12, color=OKABE_ITO[0])
    axes.set(xscale="log", yscale="log", xlabel="times seen since its last improvement, plus 1")
    axes.set_ylabel("chance of being picked")
    return figure


def growth_figure(metrics: Sequence[Mapping]) -> Figure:
    """Score, rooms and cells over the steps of a search; metrics: its rows, as numbers or as text."""
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8))
    steps = np.array([int(row["step"]) for row in metrics])
    unit, word = (1_000_000, "millions") if steps.max() > 5_000_000 else (1_000, "thousands")
    for number, (one, name) in enumerate(zip(axes, ("score", "rooms", "cells"), strict=True)):
        values = [float(row[name]) for row in metrics]
        one.step(steps / unit, values, where="post", color=OKABE_ITO[number])
        one.set(xlabel=f"steps ({word})", ylabel="best score (points)" if name == "score" else name)
        one.set_ylim(bottom=0)
        one.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def gates_figure(emulator: Emulator) -> Figure:
    """The screen while the gates of light are closed, and while they are open, the player standing still.

    emulator: where she may stand for 64 steps, in a room with gates.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
    for one, wanted in zip(axes, (False, True), strict=True):
        while emulator.facts.gates_open != wanted:
            emulator.step(NOOP)
        one.imshow(emulator.rgb()[48:110], aspect="auto")
        for x in range(0, 160, 16):  # the cells' borders, 3 pixels left of the player's middle
            one.axvline(x + 3, color="0.7", lw=0.6)
        one.set(xticks=[], yticks=[])
        one.set_title("open: 9 steps of 32" if wanted else "closed", fontsize=10)
    return figure


def archive_slider(archive: Archive, room_map: RoomMap) -> TimeSlider:
    """The archive over the room map with a slider through the search's time; a point is a cell, coloured by its
    score."""
    points = room_map.xy(*(archive.column(name) for name in ("room", "x", "y")))
    steps = sorted(archive.score_steps.items(), key=lambda item: item[1])
    series = {"best score": ([step for _, step in steps], [score for score, _ in steps])}
    return TimeSlider(
        room_map.picture,
        points[:, 0],
        points[:, 1],
        archive.column("found"),
        archive.column("score"),
        series,
        alt="The archive's cells over the rooms, by the step at which each was found.",
        value_name="score",
        end=archive.steps,
        log=True,
    )


def pyramid_figure(demo: Demo) -> Figure:
    """A demo's way through the first level, coloured by its steps, over the rooms that it sees."""
    pictures, positions = {}, []
    for emulator, _, _ in replay(demo):
        facts = emulator.facts
        if facts.level > 0:
            break
        if facts.room not in pictures:
            pictures[facts.room] = emulator.rgb().copy()
        positions.append((facts.room, facts.x, facts.y))
    room_map = RoomMap(pictures)
    points = room_map.path(*np.array(positions).T)
    height, width, _ = room_map.picture.shape
    figure, axes = plt.subplots(figsize=(9.5, 9 * height / width))
    room_map.draw(axes, dim=0.5)
    steps = np.arange(len(points) - 1)
    lines = LineCollection(np.stack([points[:-1], points[1:]], axis=1), array=steps, cmap="viridis", linewidth=1.5)
    axes.add_collection(lines)
    figure.colorbar(lines, ax=axes, label="step", shrink=0.6, pad=0.01)
    return figure


STEP_PART = "Exploring step, "  # how their results' names begin
KIND_STYLES = {"downscaled": "-", "dynamic": "--", "domain": "-.", "domain, domain weights": ":"}


def kinds_figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Best score and rooms over the steps by kind of cells: a line the median of seeds, a band from least to most.

    rows: of data/results/five_million.curve.csv, as text.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
    kinds = list(dict.fromkeys(row["cells_kind"] for row in rows))
    for number, kind in enumerate(kinds):
        seeds: dict[str, list] = {}
        for row in rows:
            if row["cells_kind"] == kind:
                seeds.setdefault(row["seed"], []).append([float(row[name]) for name in ("step", "score", "rooms")])
        steps = np.linspace(0, max(float(row["step"]) for row in rows), 200)
        for one, column in zip(axes, (1, 2), strict=True):
            values = np.array([value_at(steps, np.array(seed)[:, [0, column]]) for seed in seeds.values()])
            line = np.median(values, axis=0)
            style = {"color": OKABE_ITO[number], "step": "post"}
            one.fill_between(steps / 1e6, values.min(0), values.max(0), alpha=0.15, linewidth=0, **style)
            one.step(
                steps / 1e6,
                line,
                where="post",
                color=OKABE_ITO[number],
                linestyle=KIND_STYLES.get(kind, "-"),
                label=kind,
            )
    for one, name in zip(axes, ("best score (points)", "rooms"), strict=True):
        one.set(xlabel="steps (millions)", ylabel=name)
        one.set_ylim(bottom=0)
    axes[0].legend(fontsize=9)
    return figure


def value_at(steps: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The last value of `curve` (n, 2: step, value) at or before each of `steps`; 0 before its first."""
    index = np.searchsorted(curve[:, 0], steps, side="right")
    return np.concatenate([[0.0], curve[:, 1]])[index]


def step_costs_figure(records: Sequence[Mapping]) -> Figure:
    """The microseconds of an exploring step by part, a bar a kind of cells.

    records: of data/results/explore_speed.json.
    """
    parts: dict[str, dict[str, float]] = {}
    for record in records:
        if record["name"].startswith(STEP_PART):
            cells, part = record["name"].removeprefix(STEP_PART).split(" cells: ")
            parts.setdefault(part, {})[cells] = record["value"]
    figure, axes = plt.subplots(figsize=(8, 2.2))
    left: dict[str, float] = {}
    for number, (part, times) in enumerate(parts.items()):
        begins = [left.get(cells, 0.0) for cells in times]
        axes.barh(list(times), list(times.values()), left=begins, color=OKABE_ITO[number], label=part)
        left = {cells: begin + time for begin, (cells, time) in zip(begins, times.items(), strict=True)}
    axes.set(xlabel="microseconds a step, one process")
    axes.legend(fontsize=9, ncols=len(parts), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
