"""Figures of notebook 01: demonstrations seen together."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mzlib.demos import Demo, replay
from mzlib.emulator import ACTIONS, Facts
from mzlib.places import PLACES
from mzlib.viz.clips import Clip
from mzlib.viz.rooms import RoomMap, pictures_of_demos
from mzlib.viz.style import OKABE_ITO


def way(demo: Demo) -> np.ndarray:
    """(T, 3) int: (room, x, y) after each step of a replay."""
    return np.array([emulator.facts[:3] for emulator, _, _ in replay(demo)])


def path_of(clip: Clip, room_map: RoomMap) -> np.ndarray:
    """(T, 2) map pixels of the player in each picture of a clip, for a ReplayScrubber."""
    facts: Sequence[Facts] = clip.facts
    return room_map.path([f.room for f in facts], [f.x for f in facts], [f.y for f in facts])


def ways_figure(demos: Sequence[Demo], room_map: RoomMap | None = None) -> Figure:
    """All demos' ways over the map of the rooms that they cross; sticky ones in another colour."""
    room_map = room_map or RoomMap(pictures_of_demos([max(demos, key=lambda demo: demo.score)]))
    rows, columns = room_map.picture.shape[:2]
    figure, axes = plt.subplots(figsize=(min(9, columns / 40), min(9, columns / 40) * rows / columns))
    room_map.draw(axes, dim=0.45)
    labelled = set()
    for demo in demos:
        room, x, y = way(demo).T
        known = np.isin(room, list(room_map.pictures))
        label = "found with sticky actions" if demo.sticky else "found without"
        colour = OKABE_ITO[1] if demo.sticky else OKABE_ITO[4]
        style = {"color": colour, "linewidth": 0.8, "alpha": 0.6, "label": None if label in labelled else label}
        room_map.draw_path(axes, room[known], x[known], y[known], **style)
        labelled.add(label)
    axes.legend(loc="upper left", labelcolor="white", fontsize=9)
    return figure


def places_figure(demo: Demo, room_map: RoomMap) -> Figure:
    """The named places of the map's rooms, numbered and listed, and a demo's way through them."""
    figure, (axes, listing) = plt.subplots(1, 2, figsize=(8, 5.4), width_ratios=(3, 1))
    room_map.draw(axes, dim=0.8)
    room_map.draw_places(axes)
    room_map.draw_path(axes, *way(demo).T, color=OKABE_ITO[4], linewidth=1.2)
    names = [f"{number:2d} {place.name}" for number, place in enumerate(PLACES, 1) if place.room in room_map.pictures]
    listing.text(0, 1, "\n".join(names), va="top", fontsize=9, linespacing=1.6)
    listing.axis("off")
    return figure


def lengths_figure(demos: Sequence[Demo]) -> Figure:
    """How many actions the demos take, by score."""
    figure, axes = plt.subplots(figsize=(7, 3))
    scores = sorted({demo.score for demo in demos})
    lengths = [[len(demo) for demo in demos if demo.score == score] for score in scores]
    labels = [f"{score} points ({len(group)})" for score, group in zip(scores, lengths, strict=True)]
    axes.hist(
        lengths, bins=30, stacked=True, label=labels, color=[OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(scores))]
    )
    axes.set(xlabel="actions (4 emulator frames each)", ylabel="demos")
    axes.legend()
    return figure


def actions_figure(demos: Sequence[Demo]) -> Figure:
    """How often each action is taken, and how often it is not the one before."""
    actions = np.concatenate([demo.actions for demo in demos])
    fresh = np.concatenate([demo.actions[1:][np.diff(demo.actions.astype(int)) != 0] for demo in demos])
    figure, axes = plt.subplots(figsize=(7, 3.6))
    places = np.arange(len(ACTIONS))
    axes.bar(places, np.bincount(actions, minlength=18) / len(actions), color=OKABE_ITO[4], label="taken")
    axes.bar(places, np.bincount(fresh, minlength=18) / len(actions), color=OKABE_ITO[0], label="newly chosen")
    axes.set_xticks(places, ACTIONS, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="share of all steps")
    axes.legend()
    return figure
