"""Figures of notebook 05: cells, selection and the growing archive."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mzlib.emulator import Emulator
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


def growth_figure(metrics: Sequence[dict]) -> Figure:
    """Score, rooms and cells over the steps of a search."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    steps = np.array([row["step"] for row in metrics]) / 1000
    for number, (one, name) in enumerate(zip(axes, ("score", "rooms", "cells"), strict=True)):
        one.step(steps, [row[name] for row in metrics], where="post", color=OKABE_ITO[number])
        one.set(xlabel="steps (thousands)", ylabel="best score (points)" if name == "score" else name)
        one.set_ylim(bottom=0)
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
