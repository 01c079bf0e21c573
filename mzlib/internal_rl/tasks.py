"""Montezuma's tasks, rewarded with 1 at their end only: places in a given order, or points from reset."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch

from mzlib import demos, interventions
from mzlib.dataset import evenly
from mzlib.demos import Demo
from mzlib.places import GOALS
from mzlib.runs import data_dir
from mzlib.trajectory import STACK
from mzlib.vecenv import Start

NOOP_MAX = 30  # raw frames after a reset, as in evaluation
STARTS = 64  # states that a composition begins in, at most


def arrivals(goal: int, after: int | None = None) -> list[tuple[Demo, int]]:
    """Where the places data arrives at a place of GOALS, from the place `after` where one is given: demos and how many
    steps of them, no way twice."""
    found = {}
    for path in sorted(data_dir("demos", "places").glob("*.npz")):
        for demo in demos.load(path):
            ends = np.flatnonzero(np.diff(demo.goals, append=-2)) + 1  # of legs, and of the way in
            aims = demo.goals[ends - 1]
            for number in np.flatnonzero(aims == goal):
                if after is None or (number and aims[number - 1] == after):
                    end = int(ends[number])
                    found[demo.seed, demo.actions[:end].tobytes()] = demo, end
    return list(found.values())


def begun(arrival: tuple[Demo, int], way: Sequence[int]) -> Start:
    """An episode from an arrival, whose success is to be at the places `way`, one after the other."""
    emulator, frames = interventions.watched_until(interventions.Start(*arrival), STACK)
    frames = [frames[0]] * (STACK - len(frames)) + frames
    return Start(emulator.save_state(), np.stack(frames), way=tuple(GOALS[goal] for goal in way))


class Task:
    """Where episodes begin and what they are rewarded for.

    places: indices into GOALS; an episode begins where the places data arrives at the first one, and is to be at the
    others in order. Without any it begins from a reset, 0 to 30 no-ops, and is to win `points`. after: where she is to
    have come from to the first place.
    """

    def __init__(self, places: Sequence[int] = (), points: int = 100, workers: int = 0, after: int | None = None):
        self.points, self.starts = points, []
        if places:
            with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
                self.starts = list(pool.map(partial(begun, way=places[1:]), evenly(arrivals(places[0], after), STARTS)))

    def draw(self, generator: torch.Generator) -> Start:
        """A new episode's start."""

        def number(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        if self.starts:
            return self.starts[number(len(self.starts))]
        return Start(noops=number(NOOP_MAX + 1), targets=np.array([self.points], np.int32))
