"""Figures of notebook 04: stored learning curves, how far a code gets, an episode's options over the rooms."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mzlib.runs import read_curve
from mzlib.viz.rooms import RoomMap
from mzlib.viz.style import OKABE_ITO

TITLES = {"internal_rl": "unseen way over {}", "from_reset": "{}, from reset"}  # of a curve file's tasks


def curves_figure(bins: int = 24) -> Figure:
    """Success over emulator steps, a panel a task: the median of the seeds bold, each seed thin, means of `bins`."""
    tasks: dict[str, list[dict[str, str]]] = {}
    for name, title in TITLES.items():
        for row in read_curve(name):
            tasks.setdefault(title.format(row["task"]), []).append(row)
    agents = list(dict.fromkeys(row["agent"] for rows in tasks.values() for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.2), sharey=True, squeeze=False)
    for axes, (title, rows) in zip(panels[0], tasks.items(), strict=True):
        longest = max(int(row["step"]) for row in rows)
        middles = (np.arange(bins) + 0.5) * longest / bins / 1_000
        for agent, colour in zip(agents, OKABE_ITO, strict=False):
            own = [row for row in rows if row["agent"] == agent]
            seeds = [
                means([row for row in own if row["seed"] == s], longest, bins) for s in {row["seed"] for row in own}
            ]
            for success in seeds:
                axes.plot(middles, success, color=colour, lw=1, alpha=0.5)
            if seeds:
                axes.plot(middles, np.median(seeds, axis=0), color=colour, lw=2, label=agent)
        axes.set(xlabel="thousand emulator steps", title=title, ylim=(-0.02, 1))
    panels[0, 0].set(ylabel="success")
    panels[0, -1].legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def means(rows: Sequence[dict[str, str]], longest: int, bins: int) -> np.ndarray:
    """(bins,) success, the mean over the episodes that ended in each part of the training; NaN where none did."""
    place = np.minimum([(int(row["step"]) - 1) * bins // longest for row in rows], bins - 1)
    episodes, success = (np.array([float(row[name]) for row in rows]) for name in ("episodes", "success"))
    ended = np.bincount(place, episodes, bins)
    return np.divide(np.bincount(place, episodes * success, bins), ended, out=np.full(bins, np.nan), where=ended > 0)


def legs_figure(records: Sequence[dict]) -> Figure:
    """How often each leg arrives, by what is held all along, at most three; records named "<leg>, <held>: …", the
    interval as a line."""
    parts = [record["name"].partition(":")[0].rpartition(", ") for record in records]
    legs, held = (list(dict.fromkeys(part[i] for part in parts)) for i in (0, 2))
    figure, axes = plt.subplots(figsize=(8.5, 0.6 * len(legs) + 1.2))
    for (leg, _, what), record in zip(parts, records, strict=True):
        number = held.index(what)
        place = len(legs) - 1 - legs.index(leg) + 0.13 * (len(held) - 1) - 0.26 * number
        label, colour = what if leg == legs[0] else None, ("0.65", OKABE_ITO[1], OKABE_ITO[2])[number]
        axes.barh(place, record["value"], height=0.24, color=colour, label=label)
        axes.plot(record["interval"], [place] * 2, color="black", lw=1.2)
    axes.set(xlabel="arrives", xlim=(0, 1))
    axes.set_yticks(range(len(legs)), [leg.replace(") to ", ")\nto ") for leg in legs[::-1]], fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def options_figure(room_map: RoomMap, positions: Sequence[Sequence[int]], opened: Sequence[bool]) -> Figure:
    """A way over the map, each option in a colour of its own and a dot where it begins.

    positions: (t, 3) room, x, y after each step; opened: (t,) whether the switch was open before it.
    """
    figure, axes = plt.subplots(figsize=(6.4, 6.4 * room_map.picture.shape[0] / room_map.picture.shape[1]))
    room_map.draw(axes, dim=0.45)
    positions = np.array(positions)
    known = np.isin(positions[:, 0], list(room_map.pictures))
    begins = np.flatnonzero(np.asarray(opened) | (np.arange(len(positions)) == 0))
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], len(positions)], strict=True)):
        part = slice(max(begin - 1, 0), end)
        way = positions[part][known[part]]
        if len(way):
            colour = OKABE_ITO[1 + number % (len(OKABE_ITO) - 1)]
            room_map.draw_path(axes, *way.T, color=colour, lw=2)
            axes.plot(*room_map.xy(*way[:1].T)[0], "o", color=colour, ms=6, mec="white")
    return figure
