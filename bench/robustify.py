"""Notebook 06's results: policies robustified from the shipped demos, played from reset on evaluation seeds."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from mzlib import demos, robustify, runs
from mzlib.evaluate import SELECTION_SEED, EvaluationProtocol, evaluate
from mzlib.policies import ActorCriticPolicy
from mzlib.robustify import RobustifyConfig
from mzlib.runs import Run

EPISODES = 200
FIRST_KEY = "first key"
DOOR = "data/weights/policy_key_and_door.safetensors"
FAR = {"imitation": 0.1, "reward_scale": 0.002}
SPIDER = {
    "goal": 3500,
    "demos": "data/demos/far/points_3500.npz",
    "demo_count": 1,
    "learning_rate": 0.0003,
    "threshold": 0.3,
    "later": 0.25,
    "lag": 100,
}
AGENTS = {  # changes of the `full` profile, one training after the other; seeds
    FIRST_KEY: ([{}], (0, 1, 2)),
    "key and door": (
        [{"goal": 400, "total_steps": 1_600_000, "begin_with": "data/weights/policy.safetensors", "imitation": 0.1}],
        (0,),
    ),
    "2,500 points": (
        [
            {
                "goal": 2500,
                "demos": "data/demos/far/points_2500.npz",
                "demo_count": 6,
                "total_steps": 2_500_000,  # the stored run's rate fell otherwise: its record says how
                "begin_with": DOOR,
                **FAR,
            }
        ],
        (0,),
    ),
    "3,500 points": (
        [
            # the stored run: stopped at 1.27 M of 1.6 M, its start then 106 steps from the reset
            {**SPIDER, **FAR, "begin_with": DOOR, "move": 8, "window": 12, "total_steps": 1_300_000},
            # what it had forgotten of the way to the key comes back in larger moves
            {**SPIDER, **FAR, "move": 24, "window": 28, "total_steps": 800_000},
        ],
        (0,),
    ),
}
DEMOS = 10  # columns of the curve
ABLATIONS = {  # of the first key
    "GRU": {"recurrent": True, "warm_up": 8},
    (PLAIN := "ten demos"): {},
    "one demo": {"demo_count": 1},
    "self-imitation": {"imitation": 0.1},
    "the last frame alone": {"two_frame_maximum": False},
}
ABLATION_STEPS, LATE_STEPS = 600_000, 100_000


def train(trainings: list[dict], seed: int, workers: int) -> list[Path]:
    """Robustifications in the `full` profile, each but the first beginning with the policy of the one before, or what
    there is of them; their run folders."""
    profile = runs.load_profile("full", "06_robustify") | {"device": "cpu", "episodes": 0, "workers": workers}
    folders = []
    for changes in trainings:
        if folders:
            changes = changes | {"begin_with": str(folders[-1] / "policy.safetensors")}
        config = runs.config_from(RobustifyConfig, profile | {"seed": seed} | changes)
        with Run.open("06_robustify", "full", config) as run:
            robustify.run(config, run)
            folders.append(run.folder)
    return folders


def cost(folders: list[Path]) -> tuple[int, int, float]:
    """Environment steps of the trainings in these folders, those spent before, and seconds."""
    finals = [runs.read_final(folder) for folder in folders]
    return sum(f["steps"] for f in finals), finals[0]["upstream_steps"], sum(f["wall_s"] for f in finals)


def trial(goal: int) -> EvaluationProtocol:
    """What decides between drawn and likeliest actions: long enough for the goal's demos and half of them again."""
    return EvaluationProtocol(episodes=100, first_seed=SELECTION_SEED, max_frames=1_600 if goal <= 2500 else 2_400)


def played(folder: Path, goal: int, workers: int) -> dict:
    """The policy from reset on evaluation seeds, whole games: its actions drawn, or the likeliest, whichever wins
    `goal` points in the first life more often on selection seeds (`trials`)."""
    make, trials = partial(ActorCriticPolicy, folder / "policy.safetensors"), {}
    for greedy in (True, False):
        tried = evaluate(partial(make, greedy=greedy), trial(goal), workers)
        trials[greedy] = share(tried["first_life_scores"], goal)
    policy = partial(make, greedy=max(trials, key=trials.get))
    return evaluate(policy, EvaluationProtocol(episodes=EPISODES), workers) | {"trials": trials}


def share(scores: list[float], goal: int) -> float:
    """The share of episodes that won at least `goal` points."""
    return float(np.mean(np.array(scores) >= goal))


def on_one_core(trainings: list[dict], seed: int) -> list[Path]:
    """`train` on one core."""
    torch.set_num_threads(1)
    return train(trainings, seed, 1)


def side_by_side(agents: dict[str, tuple[list[dict], Sequence[int]]], workers: int) -> dict[str, dict[int, list[Path]]]:
    """The run folders of every agent's seeds, `workers` trainings at once, a process and a core each."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {
            agent: {seed: pool.submit(on_one_core, trainings, seed) for seed in seeds}
            for agent, (trainings, seeds) in agents.items()
        }
        return {agent: {seed: job.result() for seed, job in jobs.items()} for agent, jobs in waiting.items()}


def ablation(folder: Path) -> dict[str, float]:
    """Steps until every demo's starts are at reset (ABLATION_STEPS if never), and the share of late training episodes
    from reset that win the key: actions drawn, sticky, up to 30 no-ops, one life."""
    rows = runs.read_metrics(folder / "metrics.jsonl")
    back = [row["environment_steps"] for row in rows if not any(row["earliest"])]
    late = [row for row in rows if row["environment_steps"] > rows[-1]["environment_steps"] - LATE_STEPS]
    resets = sum(row["resets"] for row in late)
    won = sum(row["reset_succeeded"] for row in late) / resets if resets else 0.0
    return {"steps": back[0] if back else ABLATION_STEPS, "won": won}


def mismatched_points() -> list[int]:
    """What the shipped demos' actions win if each is held for one frame, not four: the fault of known ports."""
    chosen = robustify.shortest(demos.upstream("shipped", "full"), 100, DEMOS)
    settings = [{"seed": demo.seed, "noops": demo.noops, "sticky": demo.sticky} for demo in chosen]
    held = [demos.from_actions(d.actions, frames_per_action=1, **s) for d, s in zip(chosen, settings, strict=True)]
    return [demo.score for demo in held]


def write_curve(name: str, folders: dict[str, dict[int, list[Path]]]) -> None:
    """Success and earliest starts against steps, by agent and seed."""
    rows = []
    for agent, seeds in folders.items():
        for seed, trainings in seeds.items():
            before = 0
            for folder in trainings:
                metrics = runs.read_metrics(folder / "metrics.jsonl")
                for row in metrics:
                    resets, step = row["resets"], before + row["environment_steps"]
                    kept = {"agent": agent, "seed": seed, "step": step, "success": row["success"]}
                    kept["reset_success"] = row["reset_succeeded"] / resets if resets else ""
                    earliest = [*row["earliest"], *[""] * DEMOS][:DEMOS]
                    rows.append(kept | {f"earliest_{demo}": step for demo, step in enumerate(earliest)})
                before += metrics[-1]["environment_steps"]
    runs.write_curve(name, rows)


def ship(folders: dict[str, dict[int, list[Path]]]) -> None:
    """Each agent's policy of seed 0 as shipped weights."""
    for agent, seeds in folders.items():
        name = "policy" if agent == FIRST_KEY else f"policy_{agent.replace(',', '').replace(' ', '_')}"
        for suffix in (".safetensors", ".json"):
            shutil.copy(seeds[0][-1] / f"policy{suffix}", runs.data_dir("weights", name + suffix))
