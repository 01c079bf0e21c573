"""Option rollouts on the emulator: how well the emulators and the cached network share a step's time."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch

from mzlib import runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.internal_rl import CodePolicy, Episodes, OptionVectorEnv, Task
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.vecenv import VecEnvConfig

COUNT = 64  # environments
ROUNDS = 10


def steps_per_s(step: Callable[[], object], seconds: float) -> float:
    """Steps/s of all environments together, of a call that takes one step in each."""
    calls, since = 0, time.perf_counter()
    while time.perf_counter() < since + seconds:
        step()
        calls += 1
    return COUNT * calls / (time.perf_counter() - since)


def rollout_efficiency(seconds: float, workers: int = 0) -> dict[str, dict]:
    """Rollout steps/s over 1 / (1/e + 1/f): e the emulators alone under the actions last taken, f the cached network
    alone (backbone, switch, code policy, draws, keeping) on the frames last seen; the median of short rounds in turn.

    The shipped backbone, a metacontroller as it begins, 64 environments on the first key. Above 1 what the emulators
    do while the network works is worth more than what keeping the episodes costs.
    """
    torch.manual_seed(0)
    path = runs.data_dir("weights", "backbone.safetensors")
    backbone = runs.load_weights(path, MontezumaVLM, BackboneConfig)[0].requires_grad_(False).eval()
    meta = Metacontroller(MetacontrollerConfig(backbone.config.width)).requires_grad_(False).eval()
    policy = CodePolicy(backbone.config.width, meta.config.code_dim)
    config = VecEnvConfig(count=COUNT, workers=workers or os.cpu_count(), life_loss_ends=True, max_steps=300)
    rolling, emulating, thinking = [], [], []
    with closing(OptionVectorEnv(config, Task(), backbone, meta, temperature=0.25)) as env:
        episodes = Episodes(env, policy)
        episodes.play(64)
        envs = env.envs

        def emulate() -> None:
            envs.step(envs._rows["actions"])
            for i in np.flatnonzero(envs.ended):
                envs.supply(i, env.task.draw(env.generator))

        @torch.no_grad()
        def think() -> None:
            for half, rows in enumerate(env.halves):
                seen = env.seen[half] = env._see(half, np.zeros(rows.stop - rows.start, bool))
                distribution, episodes.caches[half] = policy.step(seen.observation, episodes.caches[half], seen.fresh)
                env._actions(half, distribution.sample())

        for _ in range(ROUNDS):
            rolling.append(steps_per_s(lambda: episodes.play(16), seconds / 8) * 16)
            episodes.finished.clear()
            emulating.append(steps_per_s(emulate, seconds / 8))
            thinking.append(steps_per_s(think, seconds / 8))
            env.begin()
            episodes.steps.zero_()
    rounds = [r * (1 / e + 1 / f) for r, e, f in zip(rolling, emulating, thinking, strict=True)]
    reference = f"1 / (1/e + 1/f), {COUNT} environments, {config.workers} processes, {torch.get_num_threads()} threads"
    efficiency = {"value": statistics.median(rounds), "unit": "ratio", "reference": reference, "rounds": rounds}
    speeds = {"rollout": rolling, "rollout_emulators": emulating, "rollout_network": thinking}
    return {"rollout_efficiency": efficiency} | {
        f"{name}_steps_per_s": {"value": statistics.median(found), "unit": "steps/s"} for name, found in speeds.items()
    }
