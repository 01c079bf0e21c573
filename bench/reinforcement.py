"""Notebook 04's results: on tasks that no walk of the places data shows, reinforcement over codes beside its rivals,
all on equal emulator steps."""

import shutil
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import numpy as np

from mzlib import runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.evaluate import EVALUATION_SEED
from mzlib.internal_rl import CodePolicy, Episodes, ReinforceConfig, Task, training
from mzlib.internal_rl.policies import CodePolicyConfig
from mzlib.runs import Run, data_dir

TASKS = {"three places": (0, 4, 5), "four places": (5, 4, 3, 0)}  # indices into GOALS; no walk goes that way
SEEDS, TRIAL_SEED = (0, 1, 2), 100
EPISODES = 512
CODES, RAW = {"acts": "codes"}, {"acts": "actions"}
AGENTS = {  # changes of the `full` profile
    "internal RL": CODES,
    "internal RL with a critic": CODES | {"estimator": "gae"},
    "raw actions": RAW,
    "raw actions, PPO": RAW | {"estimator": "gae"},
    "a new code every step": CODES | {"switch_rate": 1},
    "a new code every 10 steps": CODES | {"switch_rate": 10, "beta_threshold": 1.0},
}
UNTRAINED = {"codes from the prior": CODES | {"estimator": "none"}, "the clone": RAW | {"estimator": "none"}}
RATES = (3e-4, 1e-3)  # learning rates, tried alike for every agent


def settings(**changes) -> ReinforceConfig:
    """The `full` profile with changes, on the CPU."""
    return runs.config_from(ReinforceConfig, runs.load_profile("full", "04_internal_rl") | {"device": "cpu"} | changes)


def trained(**changes) -> Path:
    """Reinforce, or take a run as it is; its folder."""
    config = settings(**changes)
    with Run.open("04_internal_rl", "full", config) as run:
        training.run(config, run)
        return run.folder


def tuned(agent: str, places: tuple[int, ...]) -> dict[float, float]:
    """An agent's success on selection seeds by learning rate, on a training seed of its own."""
    changes = AGENTS[agent] | {"places": places, "seed": TRIAL_SEED, "episodes": EPISODES}
    return {rate: runs.read_final(trained(learning_rate=rate, **changes))["success"] for rate in RATES}


def won(folder: Path | None, **changes) -> np.ndarray:
    """(EPISODES,) whether an agent succeeds, on evaluation seeds; without a folder as it begins."""
    config = settings(**changes)
    parts = training.upstream(config, "full")
    if folder is None:
        policy = training.policy_of(config, parts)
    elif config.acts == "actions":
        backbone, _ = runs.load_weights(folder / "backbone.safetensors", MontezumaVLM, BackboneConfig)
        policy = training.policy_of(config, parts._replace(backbone=backbone.eval()))
    else:
        policy, _ = runs.load_weights(
            folder / "agent.safetensors", lambda config: CodePolicy(*astuple(config)), CodePolicyConfig
        )
    task = Task(config.places, config.points, config.workers)
    with closing(training.environment(config, parts, task, EVALUATION_SEED)) as env:
        return Episodes(env, policy).success(EPISODES)


def write_curve(folders: dict[tuple[str, str], dict[int, Path]]) -> None:
    """Success over emulator steps by task, agent and seed; and the weights of internal RL's first seed, into data/."""
    rows = []
    for (task, agent), seeds in folders.items():
        for seed, folder in seeds.items():
            for row in runs.read_metrics(folder / "metrics.jsonl"):
                kept = {"task": task, "agent": agent, "seed": seed, "step": row["environment_steps"]}
                rows.append(kept | {name: row[name] for name in ("episodes", "success", "options")})
    runs.write_curve("internal_rl", rows)
    folder = folders[next(iter(TASKS)), "internal RL"][SEEDS[0]]
    for suffix in (".safetensors", ".json"):
        shutil.copy(folder / f"agent{suffix}", data_dir("weights", f"agent{suffix}"))
