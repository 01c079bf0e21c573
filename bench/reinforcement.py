"""Notebook 04's results: on tasks that no walk of the places data shows, reinforcement over codes beside its rivals,
all on equal emulator steps."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import astuple
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from bench import metacontroller as bench_metacontroller
from mzlib import meta, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.evaluate import EVALUATION_SEED, SELECTION_SEED
from mzlib.internal_rl import CodePolicy, Episodes, ReinforceConfig, Task, training
from mzlib.internal_rl.policies import CodePolicyConfig
from mzlib.metacontroller import Metacontroller
from mzlib.places import GOALS
from mzlib.probes import SupervisedControllers
from mzlib.runs import Run, data_dir

TASKS = {  # no walk goes that way (indices into GOALS); too few steps for a detour by a way that one does go
    "four places": {"places": (5, 4, 3, 0), "max_steps": 34},
    "four others": {"places": (4, 3, 0, 2), "max_steps": 44},
}
SEEDS = (0, 1, 2)
EPISODES, RARE_EPISODES = 256, 1_024  # of trained agents, of others
LEG_STEPS, LEG_EPISODES, CODES_TRIED, FINALISTS = 14, 8, 64, 8
CODES, RAW = {"acts": "codes"}, {"acts": "actions", "temperature": 1.0}
AGENTS = {  # changes of the `full` profile; rates, batches, temperature by trials on seeds 90 to 92: codes 22, raw 4
    "internal RL": CODES,
    "raw actions": RAW | {"learning_rate": 0.0001, "rollout": 16, "batch": 16, "epochs": 2, "minibatches": 4},
    "a code every step": CODES | {"switch_rate": 1},
    "a code every ten steps": CODES | {"switch_rate": 10, "beta_threshold": 1.0},
    "internal RL with a critic": CODES | {"estimator": "gae"},
}
COMPARED = [("four places", agent) for agent in AGENTS] + [("four others", agent) for agent in list(AGENTS)[:2]]
FROM_RESET = {"First key": {"places": (), "points": 100, "max_steps": 300, "total_steps": 500_000}}
FROM_RESET_COMPARED = [(task, agent) for task in FROM_RESET for agent in list(AGENTS)[:2]]
LATEST = 10  # updates that a training's success is averaged over
UNTRAINED = {"codes from the prior": CODES | {"estimator": "none"}, "the clone": RAW | {"estimator": "none"}}


def settings(**changes) -> ReinforceConfig:
    """The `full` profile with changes, on the CPU, one process for the emulators."""
    profile = runs.load_profile("full", "04_internal_rl") | {"device": "cpu", "workers": 1}
    return runs.config_from(ReinforceConfig, profile | changes)


def trained(changes: dict) -> Path:
    """Reinforce on one thread, or take a run as it is; its folder."""
    torch.set_num_threads(1)
    config = settings(**changes)
    with Run.open("04_internal_rl", "full", config, quiet=True) as run:
        training.run(config, run)
        return run.folder


def won(folder: Path | None, changes: dict) -> np.ndarray:
    """Whether an agent succeeds, by episode, on evaluation seeds; without a folder as it begins."""
    torch.set_num_threads(1)
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
        return Episodes(env, policy).success(EPISODES if folder else RARE_EPISODES)


class Held:
    """A policy that gives each emulator a code of its own, (n, n_z), whatever it sees."""

    def __init__(self, codes: Tensor):
        self.rest = codes

    def init_cache(self, batch: int) -> Tensor:
        """The next codes (batch, n_z)."""
        codes, self.rest = self.rest[:batch], self.rest[batch:]
        return codes

    def step(self, residual: Tensor, cache: Tensor, reset: Tensor | None = None) -> tuple[Normal, Tensor]:
        """These codes, all but certain."""
        return Normal(cache, torch.full_like(cache, 1e-6)), cache


class Leg(NamedTuple):
    """A leg of a task's way, from wherever she came or from the place before it on that way."""

    begin: int
    end: int
    after: int | None = None

    def __str__(self) -> str:
        came = "" if self.after is None else f" (come from {GOALS[self.after].name})"
        return f"{GOALS[self.begin].name}{came} to {GOALS[self.end].name}"


def legs_of(places: tuple[int, ...]) -> list[Leg]:
    """The legs of a way, each from wherever she came, the later ones as part of it too."""
    legs = []
    for number, leg in enumerate(pairwise(places)):
        legs += [Leg(*leg)] + ([Leg(*leg, places[number - 1])] if number else [])
    return legs


class Told:
    """The controller of one place, told in training, where a metacontroller is asked for."""

    def __init__(self, metacontroller: Metacontroller, controllers: SupervisedControllers, goal: int):
        self.config, self.forced, self.step = metacontroller.config, metacontroller.forced, metacontroller.step
        self.controllers, self.goal = controllers, goal

    def hypernetwork(self, residual: Tensor, codes: Tensor) -> Tensor:
        """ê (n, n_e), whatever the codes."""
        return self.controllers(residual, torch.full((len(residual),), self.goal))


def arrivals(leg: Leg, metacontroller: Path, told: SupervisedControllers | None = None) -> dict[str, np.ndarray]:
    """Whether she gets from one place to the next in LEG_STEPS: under one code from the prior held all along; under the
    best of them, chosen on selection seeds and played on evaluation seeds; if given, under the controller told the next
    place in training."""
    torch.set_num_threads(1)
    changes = {"metacontroller": str(metacontroller), "places": leg[:2]}
    config = settings(**changes, max_steps=LEG_STEPS, environments=CODES_TRIED)
    parts, task = training.upstream(config, "full"), Task(leg[:2], workers=1, after=leg.after)
    dim = parts.metacontroller.config.code_dim

    def arrived(codes: Tensor, seed: int, acting: training.Upstream = parts) -> np.ndarray:
        with closing(training.environment(config, acting, task, seed)) as env:
            return Episodes(env, Held(codes)).success(LEG_EPISODES * CODES_TRIED).reshape(-1, CODES_TRIED)

    codes = torch.randn(CODES_TRIED, dim, generator=torch.Generator().manual_seed(0))
    drawn = arrived(codes, SELECTION_SEED)
    few = codes[drawn.mean(0).argsort()[-FINALISTS:].copy()]
    again = arrived(few.repeat(CODES_TRIED // FINALISTS, 1), SELECTION_SEED + CODES_TRIED)
    best = few[again.mean(0).reshape(-1, FINALISTS).mean(0).argmax()]
    found = {"any code": drawn, "the best code": arrived(best.repeat(CODES_TRIED, 1), EVALUATION_SEED)}
    if told is not None:
        acting = parts._replace(metacontroller=Told(parts.metacontroller, told, leg.end))
        found["told the place"] = arrived(torch.zeros(CODES_TRIED, dim), EVALUATION_SEED, acting)
    return {held: each.flatten() for held, each in found.items()}


class Reinforced(NamedTuple):
    """All of notebook 04's runs."""

    folders: dict[tuple[str, str], dict[int, Path]]  # by task and agent, then by seed
    won: dict[tuple[str, str], np.ndarray]  # likewise, (seeds, episodes); agents UNTRAINED too
    legs: dict[Leg, list[dict[str, np.ndarray]]]  # of the tasks, as of `arrivals`, by the metacontroller's seed


def everything(tasks: dict[str, dict], compared: list[tuple[str, str]], workers: int) -> Reinforced:
    """Train and play agents on tasks, those in `compared`, each on a core of its own; play the untrained ones too."""
    folders, plays = {}, {}
    legs = dict.fromkeys(leg for task in tasks.values() for leg in legs_of(task["places"]))
    metacontrollers, told = [], []
    if legs:
        wanted = [(bench_metacontroller.settings().switch_cost, seed) for seed in SEEDS]
        made = bench_metacontroller.everything(wanted, workers)
        metacontrollers = [folder / "metacontroller.safetensors" for folder in made.values()]
        controllers = bench_metacontroller.told_controllers(meta.upstream(bench_metacontroller.settings(), "full"))
        told = [controllers] + [None] * (len(SEEDS) - 1)  # once, whatever the metacontroller
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {
            (task, agent): [pool.submit(trained, AGENTS[agent] | tasks[task] | {"seed": seed}) for seed in SEEDS]
            for task, agent in compared
        }
        begun = {
            (task, agent): [pool.submit(won, None, UNTRAINED[agent] | tasks[task])]
            for task in tasks
            for agent in UNTRAINED
        }
        for (task, agent), waiting in jobs.items():
            folders[task, agent] = {seed: job.result() for seed, job in zip(SEEDS, waiting, strict=True)}
            chosen = AGENTS[agent] | tasks[task]
            plays[task, agent] = [pool.submit(won, folder, chosen) for folder in folders[task, agent].values()]
        held = {
            leg: [pool.submit(arrivals, leg, *given) for given in zip(metacontrollers, told, strict=True)]
            for leg in legs
        }
        found = {leg: [job.result() for job in waiting] for leg, waiting in held.items()}
        results = {key: np.stack([job.result() for job in waiting]) for key, waiting in (begun | plays).items()}
    return Reinforced(folders, results, found)


def steps_to(folder: Path, success: float) -> int | None:
    """Emulator steps after which a training's success, over its LATEST updates, is first as high; None if it never
    is."""
    rows = runs.read_metrics(folder / "metrics.jsonl")
    for last in range(LATEST, len(rows) + 1):
        if np.mean([row["success"] for row in rows[last - LATEST : last]]) >= success:
            return rows[last - 1]["environment_steps"]
    return None


def write_curve(name: str, folders: dict[tuple[str, str], dict[int, Path]]) -> None:
    """Success over emulator steps by task, agent and seed."""
    rows = []
    for (task, agent), seeds in folders.items():
        for seed, folder in seeds.items():
            for row in runs.read_metrics(folder / "metrics.jsonl"):
                kept = {"task": task, "agent": agent, "seed": seed, "step": row["environment_steps"]}
                rows.append(kept | {name: row[name] for name in ("episodes", "success", "options")})
    runs.write_curve(name, rows)


def ship(folders: dict[tuple[str, str], dict[int, Path]]) -> None:
    """The weights of internal RL's first seed, into data/."""
    folder = folders[next(iter(TASKS)), "internal RL"][SEEDS[0]]
    for suffix in (".safetensors", ".json"):
        shutil.copy(folder / f"agent{suffix}", data_dir("weights", f"agent{suffix}"))
