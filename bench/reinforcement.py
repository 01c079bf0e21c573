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

TASKS = {  # no walk goes that way (indices into GOALS); too few steps for a detour by a way that one does go
    "four places": {"places": (5, 4, 3, 0), "max_steps": 34},
}
SEEDS = (0, 1, 2)
EPISODES = 256
CODES, RAW = {"acts": "codes"}, {"acts": "actions"}
AGENTS = {"internal RL": CODES, "raw actions": RAW}  # changes of the `full` profile
UNTRAINED = {"codes from the prior": CODES | {"estimator": "none"}, "the clone": RAW | {"estimator": "none"}}


def settings(**changes) -> ReinforceConfig:
    """The `full` profile with changes, on the CPU."""
    return runs.config_from(ReinforceConfig, runs.load_profile("full", "04_internal_rl") | {"device": "cpu"} | changes)


def trained(**changes) -> Path:
    """Reinforce, or take a run as it is; its folder."""
    config = settings(**changes)
    with Run.open("04_internal_rl", "full", config) as run:
        training.run(config, run)
        return run.folder


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
