"""The one from-reset protocol for every policy, and the open-loop baseline.

Every episode has a seed of its own: it seeds a freshly loaded emulator and draws the no-ops. Sticky actions 0.25 per
raw frame, 0 to 30 no-ops, at most 18,000 raw frames (Machado et al. 2018). A whole game has several lives; the
first-life score is what was won before the first was lost.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple, Protocol

import numpy as np

from mzlib.demos import Demo
from mzlib.emulator import FRAMES_PER_ACTION, NOOP, Emulator

SELECTION_SEED = 50_000  # first seed for choosing among demos, checkpoints, coefficients
EVALUATION_SEED = 100_000  # first seed for results


@dataclass(frozen=True)
class EvaluationProtocol:
    """What a from-reset score depends on; stored with every result."""

    game: str = "montezuma_revenge"
    sticky: float = 0.25
    noop_max: int = 30  # raw frames, drawn uniformly from 0..noop_max
    max_frames: int = 18_000  # raw frames of play
    frames_per_action: int = FRAMES_PER_ACTION
    episodes: int = 100
    first_seed: int = EVALUATION_SEED

    def __post_init__(self):
        for name in ("max_frames", "frames_per_action", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 <= self.sticky < 1 or self.noop_max < 0 or self.first_seed < 0:
            raise ValueError(
                f"sticky={self.sticky}, noop_max={self.noop_max}, first_seed={self.first_seed}: out of range"
            )

    @property
    def seeds(self) -> range:
        """The episodes' seeds."""
        return range(self.first_seed, self.first_seed + self.episodes)


class Observation(NamedTuple):
    """What a policy sees of n episodes in play."""

    frames: np.ndarray | None  # (n, 84, 84) uint8; None for a policy that sets `sees_frames` to False
    began: np.ndarray  # (n,) bool: the episode's first observation
    life_lost: np.ndarray  # (n,) bool: a life was lost, and the next one begins with the next action
    seeds: np.ndarray  # (n,) int: the episodes' seeds; drawing from them makes a score independent of the grouping


class Policy(Protocol):
    """Acts for n episodes at once, keeping what it remembers of each by its place in the batch."""

    sees_frames: bool

    def act(self, observation: Observation) -> np.ndarray:
        """(n,) actions."""
        ...


class Episode:
    """One episode in play and its tallies."""

    def __init__(self, emulator: Emulator, step_limit: int, noops: int = 0):
        self.emulator, self.step_limit, self.noops = emulator, step_limit, noops
        self.lives = emulator.lives
        self.score = self.steps = 0
        self.first_life_score: int | None = None
        self.began, self.life_lost = True, False
        self.first_key = self.first_life_key = False
        self.waits_for: str | None = None
        self.rooms: set[int] = set()

    @classmethod
    def from_reset(cls, seed: int, protocol: EvaluationProtocol) -> "Episode":
        """An episode of the protocol at its first step: the seed draws the no-ops and which actions stick."""
        noops = int(np.random.default_rng(seed).integers(protocol.noop_max + 1))
        emulator = Emulator(protocol.game, seed, protocol.sticky, protocol.frames_per_action)
        emulator.wait(noops)
        return cls(emulator, protocol.max_frames // protocol.frames_per_action, noops)

    def step(self, action: int) -> int:
        """Take one step; returns its reward."""
        reward = self.emulator.step(action)
        self.score += reward
        self.steps += 1
        lives = self.emulator.lives
        lost, dying = lives < self.lives, False
        self.lives = lives
        if lost and self.first_life_score is None:
            self.first_life_score = self.score
        if self.emulator.game == "montezuma_revenge":
            facts = self.emulator.facts
            dying = facts.dying
            self.rooms.add(facts.room)
            self.first_key |= facts.keys > 0
            self.first_life_key |= facts.keys > 0 and self.first_life_score is None
        self._next_life(lost, dying)
        return reward

    def _next_life(self, lost: bool, dying: bool) -> None:
        """Tell when the next life begins: at the loss, in Montezuma a step after the death animation has run."""
        self.began = False
        if self.emulator.game != "montezuma_revenge":
            self.life_lost = lost
            return
        self.life_lost = self.waits_for == "respawn"
        if lost:
            self.waits_for = "animation"
        elif self.waits_for == "animation" and not dying:
            self.waits_for = "respawn"
        elif self.life_lost:
            self.waits_for = None

    @property
    def ended(self) -> bool:
        """Whether the game is over or the frames are used up."""
        return self.emulator.game_over or self.steps >= self.step_limit

    def tally(self) -> dict:
        """The episode's result as plain values."""
        first_life = self.score if self.first_life_score is None else self.first_life_score
        return {
            "seed": self.emulator.seed,
            "noops": self.noops,
            "score": self.score,
            "first_life_score": first_life,
            "first_key": self.first_key,
            "first_life_key": self.first_life_key,
            "rooms": len(self.rooms),
            "visited": sorted(self.rooms),
            "steps": self.steps,
        }


def observe(policy: Policy, episodes: Sequence[Episode]) -> Observation:
    """What the policy sees of these episodes now."""
    frames = np.stack([episode.emulator.frame for episode in episodes]) if policy.sees_frames else None
    began, life_lost = ([getattr(episode, name) for episode in episodes] for name in ("began", "life_lost"))
    seeds = np.array([episode.emulator.seed for episode in episodes])
    return Observation(frames, np.array(began), np.array(life_lost), seeds)


def watch(policy: Policy, seed: int, protocol: EvaluationProtocol) -> Iterator[tuple[Emulator, int, int]]:
    """Play one episode; after each step yields (emulator, action, reward), as `demos.replay` does."""
    episode = Episode.from_reset(seed, protocol)
    while not episode.ended:
        action = int(policy.act(observe(policy, [episode]))[0])
        yield episode.emulator, action, episode.step(action)


def play_episodes(
    make_policy: Callable[[], Policy], seeds: Sequence[int], protocol: EvaluationProtocol, width: int = 16
) -> list[dict]:
    """Play one episode a seed, `width` at a time in step, each group with a policy of its own; returns their
    tallies."""
    tallies = []
    for begin in range(0, len(seeds), width):
        policy = make_policy()
        episodes = [Episode.from_reset(seed, protocol) for seed in seeds[begin : begin + width]]
        while not all(episode.ended for episode in episodes):
            for episode, action in zip(episodes, policy.act(observe(policy, episodes)).tolist(), strict=True):
                if not episode.ended:
                    episode.step(action)
        tallies += [episode.tally() for episode in episodes]
    return tallies


def evaluate(make_policy: Callable[[], Policy], protocol: EvaluationProtocol, workers: int = 0) -> dict:
    """Play all episodes of the protocol in parallel processes and sum them up (see `summarise`).

    make_policy: picklable, such as a partial of a class. workers: 0 for one a core; the result doesn't depend on them
    if a policy that draws does so from the episodes' seeds (`policies.Draws`): it is made anew for each group of
    episodes, and `workers` decides the groups.
    """
    since = time.perf_counter()
    workers = min(workers or os.cpu_count(), protocol.episodes)
    shares = [protocol.seeds[worker::workers] for worker in range(workers)]
    if workers == 1:
        tallies = play_episodes(make_policy, shares[0], protocol)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            played = pool.map(partial(play_episodes, make_policy, protocol=protocol), shares)
            tallies = [tally for share in played for tally in share]
    return summarise(tallies, asdict(protocol), time.perf_counter() - since)


def summarise(tallies: list[dict], protocol: dict, seconds: float) -> dict:
    """One object of plain values: mean with its 95 % bootstrap interval, median, IQM, first-life mean, key rate,
    rooms (most in an episode; all that were visited), scores."""
    tallies = sorted(tallies, key=lambda tally: tally["seed"])
    scores = np.array([tally["score"] for tally in tallies], float)
    first = np.array([tally["first_life_score"] for tally in tallies], float)
    return {
        "episodes": len(tallies),
        "mean": float(scores.mean()),
        "interval": bootstrap_interval(scores, np.mean),
        "median": float(np.median(scores)),
        "iqm": interquartile_mean(scores),
        "first_life_mean": float(first.mean()),
        "first_life_interval": bootstrap_interval(first, np.mean),
        "first_key_rate": float(np.mean([tally["first_key"] for tally in tallies])),
        "first_life_key_rate": float(np.mean([tally["first_life_key"] for tally in tallies])),
        "rooms_max": max(tally["rooms"] for tally in tallies),
        "visited": sorted({room for tally in tallies for room in tally["visited"]}),
        "scores": [tally["score"] for tally in tallies],
        "first_life_scores": [tally["first_life_score"] for tally in tallies],
        "first_keys": [tally["first_key"] for tally in tallies],
        "first_life_keys": [tally["first_life_key"] for tally in tallies],
        "steps": sum(tally["steps"] for tally in tallies),
        "steps_per_s": sum(tally["steps"] for tally in tallies) / seconds,
        "protocol": protocol,
    }


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half: a quarter of the sorted values is cut at either end (Agarwal et al. 2021)."""
    values = np.sort(values)
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def bootstrap_interval(values: np.ndarray, statistic=np.mean, resamples: int = 5_000) -> list[float]:
    """[low, high]: the 95 % percentile bootstrap interval of `statistic`, with a generator of its own."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(len(values), size=(resamples, len(values)))]
    return np.quantile(statistic(drawn, axis=1), [0.025, 0.975]).tolist()


class OpenLoop:
    """A demo's actions, whatever is seen; begun again after each death, NOOP when they are used up."""

    sees_frames = False

    def __init__(self, demo: Demo):
        self.actions = np.append(demo.actions, np.uint8(NOOP))
        self.position: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        """(n,) actions: each episode's next one of the demo."""
        if self.position is None:
            self.position = np.zeros(len(observation.began), int)
        self.position[observation.began | observation.life_lost] = 0
        actions = self.actions[self.position]
        self.position = np.minimum(self.position + 1, len(self.actions) - 1)
        return actions


def select_demo(candidates: Sequence[Demo], protocol: EvaluationProtocol, workers: int = 0) -> Demo:
    """The demo with the highest open-loop mean score on selection seeds; the first among equals."""
    protocol = replace(protocol, first_seed=SELECTION_SEED)
    means = [evaluate(partial(OpenLoop, demo), protocol, workers)["mean"] for demo in candidates]
    return candidates[int(np.argmax(means))]
