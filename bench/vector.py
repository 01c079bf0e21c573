"""Speed of the vector environments as a ratio to ale-py's own, which cannot restore a state."""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from ale_py.vector_env import AtariVectorEnv

from mzlib.vecenv import Start, VecEnv, VecEnvConfig

COUNT = 128  # environments
STEPS = 16  # of all environments, a round
ROUNDS = 40


def reference(count: int, threads: int) -> AtariVectorEnv:
    """`count` emulators in C++ threads, with VecEnv's protocol."""
    envs = AtariVectorEnv(
        "montezuma_revenge",
        count,
        num_threads=threads,
        max_num_frames_per_episode=18_000,
        repeat_action_probability=0.25,
        full_action_space=True,
        autoreset_mode="SameStep",
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    envs.reset(seed=0)
    return envs


def in_turn(send: Callable[[int, np.ndarray], object], receive: Callable[[int], object]) -> None:
    """STEPS of both halves under random actions, one always in flight while the other is waited for."""
    rng = np.random.default_rng(0)
    for half in (0, 1):
        send(half, rng.integers(18, size=COUNT // 2))
    for step in range(STEPS):
        for half in (0, 1):
            receive(half)
            if step < STEPS - 1:
                send(half, rng.integers(18, size=COUNT // 2))


def vecenv_ratio(seconds: float) -> dict[str, dict]:
    """VecEnv with a process a core over AtariVectorEnv with a thread a core: the median of short rounds in turn.

    The same for both: 128 environments, sticky 0.25, 4 frames a step, their last two's maximum, gray 84 x 84, a stack
    of 4, whole games of at most 18,000 frames from a reset, random actions; two halves in turn, as robustification and
    RND play them. `vecenv_whole_ratio`: all at once, a step waiting for the slowest of all.
    """
    processes, rng = os.cpu_count(), np.random.default_rng(0)
    whole, halves = reference(COUNT, processes), [reference(COUNT // 2, processes) for _ in range(2)]
    with VecEnv(VecEnvConfig(count=COUNT, workers=processes)) as envs:
        envs.start([Start()] * COUNT)
        for i in range(COUNT):
            envs.supply(i, Start())

        def supply(rows: slice) -> None:
            for i in rows.start + np.flatnonzero(envs.ended[rows]):
                envs.supply(int(i), Start())

        def receive(half: int) -> None:
            envs.receive(half)
            supply(envs.halves[half])

        def ours_whole() -> None:
            for _ in range(STEPS):
                envs.step(rng.integers(18, size=COUNT))
                supply(slice(0, COUNT))

        def reference_whole() -> None:
            for _ in range(STEPS):
                whole.step(rng.integers(18, size=COUNT))

        plays = {
            "ours": lambda: in_turn(lambda half, actions: envs.send(actions, half), receive),
            "theirs": lambda: in_turn(
                lambda half, actions: halves[half].send(actions), lambda half: halves[half].recv()
            ),
            "ours whole": ours_whole,
            "theirs whole": reference_whole,
        }
        times, end = {name: [] for name in plays}, time.perf_counter() + seconds
        while len(times["theirs whole"]) < ROUNDS or time.perf_counter() < end:
            for name, play in plays.items():
                since = time.perf_counter()
                play()
                times[name].append(time.perf_counter() - since)
    results = {}
    for key, kind in (("vecenv_ratio", ""), ("vecenv_whole_ratio", " whole")):
        pairs = zip(times[f"ours{kind}"], times[f"theirs{kind}"], strict=True)
        rounds = [other / own for own, other in pairs]
        results[key] = {
            "value": statistics.median(rounds),
            "unit": "ratio",
            "reference": f"AtariVectorEnv, {COUNT} environments, {processes} threads, "
            + ("all at once" if kind else "two halves in turn"),
            "rounds": rounds,
        }
    steps = COUNT * STEPS
    return results | {
        "vecenv_steps_per_s": {"value": steps / statistics.median(times["ours"]), "unit": "steps/s"},
        "atari_vector_steps_per_s": {"value": steps / statistics.median(times["theirs"]), "unit": "steps/s"},
    }
