"""The backward curriculum: where on each demo the next episode begins, moved back as the policy succeeds (Salimans &
Chen 2018; Ecoffet et al. 2021, Methods, "Robustification")."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.trajectory import STACK
from mzlib.vecenv import Start

LABELS = 100_000  # a start's label: demo × LABELS + step


class Tape(NamedTuple):
    """A demo's replay: what an episode that begins at one of its steps needs."""

    states: list[bytes]  # before each action, the sticky generator left out
    frames: np.ndarray  # (T, 84, 84) uint8, seen before each action
    actions: np.ndarray  # (T,) uint8
    points: np.ndarray  # (T + 1,) int32, won before each action; the last is the demo's score

    @classmethod
    def of(cls, demo: Demo, two_frame_maximum: bool = True) -> "Tape":
        """Replay the demo."""
        emulator = demos.start(demo)
        emulator.two_frame_maximum = two_frame_maximum
        states, frames, rewards = [], [], []
        for action in demo.actions.tolist():
            states.append(emulator.save_state())
            frames.append(emulator.frame)
            rewards.append(emulator.step(action))
        return cls(states, np.stack(frames), demo.actions, np.cumsum([0, *rewards]).astype(np.int32))

    def __len__(self) -> int:
        return len(self.actions)

    def stack(self, step: int) -> np.ndarray:
        """(4, 84, 84): the frames seen up to a step, oldest first."""
        return self.frames[np.maximum(np.arange(step - STACK + 1, step + 1), 0)]

    def start(self, step: int, label: int, noops: int) -> Start:
        """An episode that begins at a step: at step 0 with a real reset and no-ops, else in the demo's state there."""
        targets = self.points[step + 1 :] - self.points[step]
        if step == 0:
            return Start(noops=noops, targets=targets, label=label)
        return Start(self.states[step], self.stack(step), targets=targets, label=label)


def cut_at(demo: Demo, goal: int) -> Demo:
    """The demo up to the step at which it has `goal` points; ValueError if it never has."""
    if demo.score < goal:
        raise ValueError(f"{demo.source}: scores {demo.score}, not goal={goal}; take another demo or a lower goal")
    end = int(np.flatnonzero(np.cumsum(demo.rewards) >= goal)[0]) + 1
    goals = None if demo.goals is None else demo.goals[:end]
    return replace(demo, actions=demo.actions[:end], rewards=demo.rewards[:end], goals=goals)


def shortest(candidates: Sequence[Demo], goal: int, count: int) -> list[Demo]:
    """The `count` shortest demos to `goal` points, cut there; ValueError if there are fewer."""
    fit = sorted((cut_at(demo, goal) for demo in candidates if demo.score >= goal), key=len)
    if len(fit) < count:
        raise ValueError(f"demo_count={count}: {len(fit)} demos reach goal={goal}; take at most as many")
    return fit[:count]


def tapes(chosen: Sequence[Demo], workers: int | None = None, two_frame_maximum: bool = True) -> list[Tape]:
    """The demos' replays, in parallel processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(Tape.of, two_frame_maximum=two_frame_maximum), chosen))


@dataclass(frozen=True)
class CurriculumConfig:
    """How starts move back."""

    window: int = 10  # starting points a demo, from the earliest on
    move: int = 6  # steps that the earliest goes back at most
    threshold: float = 0.2  # cumulative success that lets it
    memory: int = 8  # episodes remembered of each starting point
    trials: int = 5  # episodes that a success rate takes
    from_reset: float = 0.75  # share of episodes from a reset once a demo's start has come there
    later: float = 0.0  # share of episodes before that from anywhere past the earliest: what is known is kept up

    def __post_init__(self):
        for name in ("window", "move", "memory", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("threshold", "from_reset"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: a share above 0, at most 1, is needed")
        if not 0 <= self.later < 1:
            raise ValueError(f"later={self.later}: a share below 1 is needed")


class Curriculum:
    """Starting points on several demos, and how episodes from them went.

    `earliest` (demos,): each demo's earliest starting point; its episodes begin there or up to `window` steps later.
    """

    def __init__(self, config: CurriculumConfig, lengths: Sequence[int], seed: int = 0):
        self.config, self.lengths = config, list(lengths)
        self.earliest = [max(length - config.move, 0) for length in lengths]
        self.results = [[deque(maxlen=config.memory) for _ in range(length)] for length in lengths]
        self.rng = np.random.default_rng(seed)

    def draw(self) -> tuple[int, int]:
        """(demo, step) of the next episode's start."""
        demo = int(self.rng.integers(len(self.lengths)))
        first = self.earliest[demo]
        if first == 0:
            if self.rng.random() < self.config.from_reset:
                return demo, 0
            return demo, int(self.rng.integers(self.lengths[demo]))
        if self.config.later and self.rng.random() < self.config.later:
            return demo, int(self.rng.integers(first, self.lengths[demo]))
        return demo, int(self.rng.integers(first, min(first + self.config.window, self.lengths[demo])))

    def record(self, demo: int, step: int, succeeded: bool) -> None:
        """Remember how an episode from there ended."""
        self.results[demo][step].append(bool(succeeded))

    def move(self) -> None:
        """Move every demo's earliest start.

        Go forward from it until the episodes seen are `trials`, and the share of them that succeeded is `threshold`:
        that starting point is safe, and the earliest becomes `move` steps before it. So the start goes back by as much
        where its very first points succeed, less where only later ones do, and forward when none does: a policy that
        has collapsed begins again from where it succeeds.
        """
        config = self.config
        for demo, first in enumerate(self.earliest):
            if first == 0 and self.rate(demo, 0) is not None:
                continue  # once at the reset, it stays
            seen = won = 0
            for step in range(first, min(first + config.window, self.lengths[demo])):
                results = self.results[demo][step]
                seen, won = seen + len(results), won + sum(results)
                if seen >= config.trials and won >= config.threshold * seen:
                    self.earliest[demo] = max(step - config.move, 0)
                    break
            else:
                if seen >= 2 * config.trials:  # what succeeded before is to be tried anew
                    self.earliest[demo] = min(first + config.move, self.lengths[demo] - 1)
                    for results in self.results[demo]:
                        results.clear()

    def rate(self, demo: int, step: int) -> float | None:
        """The share of remembered episodes from there that succeeded; None without any."""
        results = self.results[demo][step]
        return sum(results) / len(results) if results else None

    @property
    def success(self) -> float:
        """The share of all remembered episodes that succeeded."""
        results = [result for demo in self.results for point in demo for result in point]
        return sum(results) / max(len(results), 1)

    def state_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        results = [[list(point) for point in demo] for demo in self.results]
        return {"earliest": list(self.earliest), "results": results, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        """Return to what `state_dict` gave."""
        self.earliest = list(state["earliest"])
        self.results = [[deque(point, self.config.memory) for point in demo] for demo in state["results"]]
        self.rng.bit_generator.state = state["rng"]
