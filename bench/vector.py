"""Speed of the vector environments as a ratio to ale-py's own, which cannot restore a state."""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from ale_py.vector_env import AtariVectorEnv

from mzlib.vecenv import Start, VecEnv, VecEnvConfig

COUNT = 128  # environments
ROUNDS = 20


def steps_per_s(step: Callable[[np.ndarray], object], rng: np.random.Generator, seconds: float) -> float:
    """Steps/s of all environments together, under random actions."""
    steps, since = 0, time.perf_counter()
    while time.perf_counter() < since + seconds:
        step(rng.integers(18, size=COUNT))
        steps += COUNT
    return steps / (time.perf_counter() - since)


def vecenv_ratio(seconds: float) -> dict[str, dict]:
    """VecEnv with a process a core over AtariVectorEnv with a thread a core: the median of short rounds in turn.

    The same for both: 128 environments, sticky 0.25, 4 frames a step, their last two's maximum, gray 84 x 84, a stack
    of 4, whole games of at most 18,000 frames from a reset, random actions.
    """
    processes = os.cpu_count()
    atari = AtariVectorEnv(
        "montezuma_revenge",
        COUNT,
        num_threads=processes,
        max_num_frames_per_episode=18_000,
        repeat_action_probability=0.25,
        full_action_space=True,
        autoreset_mode="SameStep",
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    atari.reset(seed=0)
    rng, ours, reference = np.random.default_rng(0), [], []
    with VecEnv(VecEnvConfig(count=COUNT, workers=processes)) as envs:
        envs.start([Start()] * COUNT)
        for i in range(COUNT):
            envs.supply(i, Start())

        def step(actions: np.ndarray) -> None:
            envs.step(actions)
            for i in np.flatnonzero(envs.ended):
                envs.supply(i, Start())

        for _ in range(ROUNDS):
            ours.append(steps_per_s(step, rng, seconds / 8))
            reference.append(steps_per_s(atari.step, rng, seconds / 8))
    atari.close()
    rounds = [one / other for one, other in zip(ours, reference, strict=True)]
    return {
        "vecenv_ratio": {
            "value": statistics.median(rounds),
            "unit": "ratio",
            "reference": f"AtariVectorEnv, {COUNT} environments, {processes} threads",
            "rounds": rounds,
        },
        "vecenv_steps_per_s": {"value": statistics.median(ours), "unit": "steps/s"},
        "atari_vector_steps_per_s": {"value": statistics.median(reference), "unit": "steps/s"},
    }
