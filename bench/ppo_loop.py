"""The whole loop of robustification over the plain one: everything in turn, float32, frames in the order of their
axes."""

import os
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from bench.models import plain_features
from mzlib import demos
from mzlib.policies import ActorCritic, ActorCriticConfig
from mzlib.robustify import Backward, RobustifyConfig, shortest
from mzlib.vecenv import VecEnv

ROUNDS = 5


class PlainActorCritic(ActorCritic):
    """The same net in float32 on frames whose memory is laid out as it comes."""

    def features(self, frames: Tensor) -> Tensor:
        """(n, 4, 84, 84) uint8 to (n, hidden)."""
        return plain_features(self, frames)


class PlainVecEnv(VecEnv):
    """The same environments, a half waited for as soon as it is sent."""

    def send(self, actions: np.ndarray, half: int | None = None) -> None:
        """Hand the actions out and wait."""
        super().send(actions, half)
        super().receive(half)

    def receive(self, half: int | None = None) -> np.ndarray:
        """The rewards, which are there."""
        return self.rewards[self.halves[half]]


def ppo_steps_ratio(seconds: float) -> dict[str, dict]:
    """Steps/s of rollouts and updates, ours over plain: the median of an iteration each in turn."""
    config = RobustifyConfig(demo_count=2, workers=os.cpu_count())
    chosen = shortest(demos.upstream("shipped", "full"), config.goal, config.demo_count)
    torch.manual_seed(0)
    ours = Backward(config, ActorCritic(ActorCriticConfig()), chosen)
    plain = Backward(config, PlainActorCritic(ActorCriticConfig()), chosen)
    plain.environments.close()
    plain.environments, plain.acting_threads = PlainVecEnv(config.vecenv), None  # all: no emulator runs meanwhile
    times: dict[Backward, list[float]] = {ours: [], plain: []}
    with ours, plain:
        for loop in times:
            loop.improve(0.0)
        since = time.perf_counter()
        while len(times[plain]) < ROUNDS or time.perf_counter() < since + seconds:
            for loop, taken in times.items():
                begun = time.perf_counter()
                loop.improve(0.0)
                taken.append(time.perf_counter() - begun)
    rounds = [slow / fast for fast, slow in zip(times[ours], times[plain], strict=True)]
    steps = config.rollout * config.environments
    return {
        "ppo_steps_ratio": {
            "value": statistics.median(rounds),
            "unit": "ratio",
            "reference": "the same loop in turn, float32, plain memory layout",
            "rounds": rounds,
        },
        "ppo_steps_per_s": {"value": steps / statistics.median(times[ours]), "unit": "steps/s"},
    }
