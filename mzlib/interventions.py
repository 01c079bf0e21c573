"""Interventions from within demos: which places a controlled backbone reaches there, beside the same left alone."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mzlib.demos import Demo, start
from mzlib.emulator import Emulator
from mzlib.evaluate import Observation
from mzlib.metacontroller import Metacontroller
from mzlib.places import goal_at
from mzlib.probes import SupervisedControllers
from mzlib.steering import Control, ControlledPolicy, GoalControl, HeldCodes


class Start(NamedTuple):
    """A situation: a demo up to before its step `step`, and the place aimed at from there, -1 unknown."""

    demo: Demo
    step: int
    goal: int = -1


def leg_starts(demos: Sequence[Demo]) -> list[Start]:
    """Where the legs of places demos begin."""
    starts = []
    for demo in demos:
        if demo.goals is not None:
            changes = np.flatnonzero(np.diff(demo.goals, prepend=-1))
            starts += [Start(demo, int(t), int(demo.goals[t])) for t in changes if demo.goals[t] >= 0]
    return starts


def play_on(
    policy: ControlledPolicy, control: Control | None, starts: Sequence[Start], steps: int, memory: int = 64
) -> Iterator[tuple[list[Emulator], np.ndarray]]:
    """The emulators, and (n,) bool, who has died: where the starts leave off, and after each step that a policy plays
    on from there, all at once.

    policy: new, not yet controlled. It first watches the last `memory` steps of the demo; then `control` takes hold.
    """
    watched = [watched_until(situation, memory) for situation in starts]
    seeds = np.arange(len(starts))
    none = np.zeros(len(starts), bool)
    for t in range(memory):
        frames = np.stack([seen[max(t - memory + len(seen), 0)] for _, seen in watched])
        began = np.array([t <= memory - len(seen) for _, seen in watched])
        if t < memory - 1:
            policy.act(Observation(frames, began, none, seeds))
            taken = [situation.demo.actions[max(situation.step - memory + t + 1, 0)] for situation in starts]
            policy.previous = torch.tensor(taken, dtype=torch.long)
    policy.control = control
    emulators = [emulator for emulator, _ in watched]
    lives = [emulator.lives for emulator in emulators]
    over = none.copy()
    yield emulators, over
    for _ in range(steps):
        actions = policy.act(Observation(frames, began, none, seeds))
        began = none
        for i in np.flatnonzero(~over):
            emulators[i].step(int(actions[i]))
            over[i] = emulators[i].facts.dying or emulators[i].lives < lives[i]
        yield emulators, over
        frames = np.stack([emulator.frame for emulator in emulators])


def visits(
    policy: ControlledPolicy, control: Control | None, starts: Sequence[Start], steps: int = 100, memory: int = 64
) -> list[list[int]]:
    """Which places of GOALS a policy visits, in order and until she dies, from each start at once for so many steps;
    see `play_on`. A place that she is at when `control` takes hold counts only if she leaves it and comes back."""
    seen: list[list[int]] = [[] for _ in starts]
    for emulators, over in play_on(policy, control, starts, steps, memory):
        for i in np.flatnonzero(~over):
            seen[i].append(at(emulators[i]))
        if over.all():
            break
    orders = [[goal for goal, _ in groupby(row)] for row in seen]
    return [[goal for goal in order[1:] if goal >= 0] for order in orders]


def branch(
    weights: Path, metacontroller: Metacontroller, situation: Start, code: np.ndarray, steps: int, **settings
) -> tuple[np.ndarray, np.ndarray]:
    """What happens if a code (n_z,) is held from there on: (frames (m, 84, 84), positions (m, 3): room, x, y), after
    each of m steps, `steps` or fewer if she dies."""
    frames, positions = [], []
    control = HeldCodes(metacontroller, np.asarray(code, np.float32)[None])
    for (emulator,), over in play_on(ControlledPolicy(weights, **settings), control, [situation], steps):
        facts = emulator.facts
        frames.append(emulator.frame)
        positions.append((facts.room, facts.x, facts.y))
        if over.any():
            break
    return np.array(frames[1:]), np.array(positions[1:])


def watched_until(situation: Start, memory: int) -> tuple[Emulator, list[np.ndarray]]:
    """An emulator in the situation, and the last `memory` frames seen, the one there last."""
    emulator = start(situation.demo)
    seen = [emulator.frame]
    for action in situation.demo.actions[: situation.step].tolist():
        emulator.step(action)
        seen.append(emulator.frame)
    return emulator, seen[-memory:]


def at(emulator: Emulator) -> int:
    """The place of GOALS that she is at, or -1."""
    facts = emulator.facts
    return goal_at(facts.room, facts.x, facts.y)


def reaches(weights: Path, controllers: SupervisedControllers | None, starts: Sequence[Start], steps: int = 100,
            group: int = 32, **settings) -> np.ndarray:  # fmt: skip
    """(n,) bool: whether the wanted goal of each start is visited, under its controller or, with None, without."""
    found = []
    for begin in range(0, len(starts), group):
        some = starts[begin : begin + group]
        goals = [situation.goal for situation in some]
        control = None if controllers is None else GoalControl(controllers, goals)
        seen = visits(ControlledPolicy(weights, **settings), control, some, steps)
        found += [goal in visited for goal, visited in zip(goals, seen, strict=True)]
    return np.array(found, bool)


class Injected(NamedTuple):
    """First places reached from n starts, as indices into GOALS, -1 for none."""

    source: np.ndarray  # (n,) where the code's own trajectory went
    steered: np.ndarray  # (n,) with the code injected
    left: np.ndarray  # (n,) with no intervention

    def agreement(self) -> tuple[float, float]:
        """How often the source's place is reached first: (with the code, without)."""
        return float((self.steered == self.source).mean()), float((self.left == self.source).mean())


def inject(
    weights: Path,
    metacontroller: Metacontroller,
    codes: np.ndarray,
    source: np.ndarray,
    starts: Sequence[Start],
    steps: int = 60,
    group: int = 32,
    **settings,
) -> Injected:
    """Hold each code (n, n_z), collected in other trajectories on the way to `source` (n,), from its start on."""
    reached: list[list[int]] = [[], []]
    for begin in range(0, len(starts), group):
        rows = slice(begin, begin + group)
        for found, control in zip(reached, (HeldCodes(metacontroller, codes[rows]), None), strict=True):
            seen = visits(ControlledPolicy(weights, **settings), control, starts[rows], steps)
            found += [visited[0] if visited else -1 for visited in seen]
    return Injected(np.asarray(source), *(np.array(found) for found in reached))


def total_variation(a: np.ndarray, b: np.ndarray, shuffles: int = 500) -> dict[str, float]:
    """Total-variation distance of the places that a (n,) and b (m,) reached, in [0, 1]; beside it the `floor`, its 95 %
    quantile if both were drawn from the same places."""
    both = np.unique(np.concatenate([a, b]), return_inverse=True)[1]

    def distance(labels: np.ndarray) -> float:
        shares = [np.bincount(x, minlength=both.max() + 1) / len(x) for x in (labels[: len(a)], labels[len(a) :])]
        return float(np.abs(shares[0] - shares[1]).sum() / 2)

    rng = np.random.default_rng(0)
    floor = np.quantile([distance(rng.permutation(both)) for _ in range(shuffles)], 0.95)
    return {"distance": distance(both), "floor": float(floor)}
