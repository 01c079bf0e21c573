"""The grid world's results (notebook 00): three seeds of the study, and on each seed's own backbone the baselines.

Two worlds: pads in their quarters of the board, and, with the settings that suited it, pads anywhere. Runs go side by
side, a thread each, into runs/full/; what is there already is not run again.
"""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from mzlib import pinpad_study, runs
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.pinpad import Pinpad
from mzlib.pinpad_study import ExpertBatches, PinpadStudyConfig, descend, held_out
from mzlib.probes import SupervisedControllers, at_layer, play_supervised, probe_by_layer
from mzlib.runs import Run

SEEDS = (0, 1, 2)
WORLDS = {  # by the name of its results: what differs from the profile
    "pinpad": {},
    "pinpad_anywhere": {
        "size": "laptop",
        "backbone_steps": 5_000,
        "code_dim": 4,
        "kl_weight": 0.1,
        "kl_peak": 0.3,
        "kl_anneal_steps": 960,
        "switch_bias": 0.0,
        "meta_steps": 3_000,
        "rl_batch": 2_048,
        "rl_iterations": 30,
        "rl_epochs": 2,
        "rl_learning_rate": 0.003,
    },
}
OWN, RAW, LONG = "internal RL", "raw actions", ", longer task"
RAW_LEARNING_RATE = 0.0003  # of a whole backbone: three times as much learns nothing, a third of it more slowly
FEWER = {"evaluation_episodes": 20_000}  # a tenth of it for what isn't rare
RAW_CHANGES = {"raw_actions": True, "rl_learning_rate": RAW_LEARNING_RATE} | FEWER
LONG_CHANGES = {"task_legs": 5, "rl_batch": 1_024, "rl_iterations": 40}
TRAINED = ("backbone", "metacontroller")
BASELINES = {  # what differs, and the trainings that a baseline shares with its seed's own run
    RAW: (RAW_CHANGES, TRAINED),
    "switch always open": ({"always_open": True} | FEWER, ("backbone",)),
    "co-trained backbone": ({"cotrained": True} | FEWER, ("backbone",)),
    OWN + LONG: (LONG_CHANGES, TRAINED),
    RAW + LONG: (RAW_CHANGES | LONG_CHANGES, TRAINED),
}
FEWER_SEEDS = {"switch always open": SEEDS[:1], "co-trained backbone": SEEDS[:1]}  # a whole training each
LONGER = 5  # how far some learning curves go on, in times their iterations
SUPERVISED_STEPS, SUPERVISED_EPISODES = 500, 2_000


def settings(**changes) -> PinpadStudyConfig:
    """The `full` profile with changes, on the CPU."""
    return runs.config_from(PinpadStudyConfig, runs.load_profile("full", "00_pinpad") | {"device": "cpu"} | changes)


def study(seed: int, changes: dict, source: Path | None = None, shared: tuple[str, ...] = ()) -> Path:
    """Run the study, or what is left of it once the trainings `shared` are taken over from the run in `source`."""
    torch.set_num_threads(1)
    config = settings(seed=seed, **changes)
    with Run.open("00_pinpad", "full", config, quiet=True) as run:
        folder, begun = run.folder, bool(run.metrics())
    if shared and not begun:  # with their rows, and so with their cost
        last = {"backbone": config.backbone_steps, "metacontroller": config.backbone_steps + config.meta_steps}
        lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= last.get(shared[-1], np.inf)]
        for name in shared:
            shutil.copy(source / "checkpoints" / f"{name}.pt", folder / "checkpoints")
        (folder / "metrics.jsonl").write_text("".join(kept))
    with Run.open("00_pinpad", "full", config, quiet=True) as run:
        pinpad_study.run(config, run)
    return folder


def longer(seed: int, changes: dict, source: Path) -> Path:
    """The run in `source`, its reinforcement continued."""
    changes = changes | {"rl_iterations": LONGER * settings(**changes).rl_iterations}
    shared = (*TRAINED, "raw_rl" if "raw_actions" in changes else "internal_rl")
    return study(seed, changes | FEWER, source, shared)


def layers(seed: int, changes: dict, folder: Path) -> list[dict]:
    """By layer: what a linear probe reads, how often a supervised controller for each subgoal solves the new task."""
    torch.set_num_threads(1)
    config = settings(seed=seed, **changes)
    backbone, _ = runs.load_weights(folder / "backbone.safetensors", PinpadBackbone, PinpadBackboneConfig)
    backbone.requires_grad_(False)
    unseen = held_out(config, 600)
    halves = [type(unseen)(*(x[rows] for x in unseen)) for rows in (slice(300), slice(300, None))]
    probes = probe_by_layer(backbone, *halves)
    table = [{"seed": seed, "step": layer, "probe": probe, "success": ""} for layer, probe in enumerate(probes)]
    for layer in range(1, config.depth):
        torch.manual_seed(seed)
        cut, draw = at_layer(backbone, layer), ExpertBatches(config, 3, config.meta_batch)
        controllers = SupervisedControllers(len(config.pinpad.subgoals), config.width, config.controller_rank)
        parameters = list(controllers.parameters())
        optimiser = torch.optim.AdamW(parameters, config.meta_learning_rate)
        for step in range(SUPERVISED_STEPS):
            descend(parameters, optimiser, controllers.loss(cut, draw(step)))
        pinpad = Pinpad(config.pinpad, SUPERVISED_EPISODES)
        pinpad.reset_random(np.random.default_rng(pinpad_study.EVALUATION_SEED), config.pinpad.post_training_task)
        table[layer]["success"] = float(play_supervised(cut, controllers, pinpad).mean())
    return table


def everything(workers: int, world: str = "pinpad") -> dict[str, dict[str, list[Path]]]:
    """The run folder of each seed, per length ("once" or "longer") and agent; writes the curves and, of the first
    world's middle seed by success, the weights into data/."""
    baselines = {agent: of for agent, of in BASELINES.items() if world == "pinpad" or not agent.endswith(LONG)}
    changes = {OWN: WORLDS[world]} | {agent: WORLDS[world] | change for agent, (change, _) in baselines.items()}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        once = {OWN: list(pool.map(study, SEEDS, [changes[OWN]] * len(SEEDS)))}
        tables = pool.map(layers, SEEDS, [changes[OWN]] * len(SEEDS), once[OWN])
        begun = {
            agent: [pool.submit(study, s, changes[agent], once[OWN][s], shared) for s in FEWER_SEEDS.get(agent, SEEDS)]
            for agent, (_, shared) in baselines.items()
        }
        once |= {agent: [job.result() for job in jobs] for agent, jobs in begun.items()}
        begun = {
            agent: [pool.submit(longer, s, changes[agent], once[agent][s]) for s in SEEDS]
            for agent in ((OWN, RAW) if world == "pinpad" else ())
        }
        further = {agent: [job.result() for job in jobs] for agent, jobs in begun.items()}
        runs.write_curve(f"{world}_layers", [row for table in tables for row in table])
    learning, switching = [], []
    for agent, places in (once | further).items():
        for seed, place in enumerate(places):
            for row in runs.read_metrics(place / "metrics.jsonl"):
                if "success" in row:
                    learning.append({"agent": agent, "seed": seed, "step": row["episodes"], "success": row["success"]})
                elif "f1" in row and "metacontroller" not in baselines.get(agent, ({}, ()))[1]:
                    columns = ("step", "kl_weight", "held_out_nll", "kl", "f1", "switches", "sharp")
                    switching.append({"agent": agent, "seed": seed} | {name: row[name] for name in columns})
    runs.write_curve(world, learning)
    runs.write_curve(f"{world}_switch", switching)
    if world == "pinpad":
        ship(sorted(once[OWN], key=lambda folder: runs.read_final(folder)["success"])[len(SEEDS) // 2])
    return {"once": once, "longer": further}


def ship(folder: Path) -> None:
    """Copy a run's weights into data/weights/."""
    weights = runs.data_dir("weights")
    weights.mkdir(exist_ok=True)
    for name in ("backbone", "metacontroller"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(folder / f"{name}{suffix}", weights / f"pinpad_{name}{suffix}")


def finals(folders: list[Path]) -> dict[int, dict]:
    """Every seed's final.json."""
    return {seed: runs.read_final(folder) for seed, folder in enumerate(folders)}
