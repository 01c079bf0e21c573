"""The grid world's results (notebook 00): three seeds of the study, and on each seed's own backbone the baselines.

Runs go side by side, a thread each, into runs/full/; what is there already is not run again.
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
OWN, RAW = "internal RL", "raw actions"
RAW_LEARNING_RATE = 0.0001  # of a whole backbone; the codes' policy, which begins from nothing, takes thirty times that
BASELINES = {  # what differs, and the trainings that a baseline shares with its seed's own run
    RAW: (
        {"raw_actions": True, "rl_learning_rate": RAW_LEARNING_RATE, "evaluation_episodes": 5_000},
        ("backbone", "metacontroller"),
    ),
    "switch always open": ({"always_open": True}, ("backbone",)),
    "co-trained backbone": ({"cotrained": True}, ("backbone",)),
}
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
        kept = [line for line in lines if json.loads(line)["step"] <= last[shared[-1]]]
        for name in shared:
            shutil.copy(source / "checkpoints" / f"{name}.pt", folder / "checkpoints")
        (folder / "metrics.jsonl").write_text("".join(kept))
    with Run.open("00_pinpad", "full", config, quiet=True) as run:
        pinpad_study.run(config, run)
    return folder


def layers(seed: int, folder: Path) -> list[dict]:
    """By layer: what a linear probe reads, how often a supervised controller for each subgoal solves the new task."""
    torch.set_num_threads(1)
    config = settings(seed=seed)
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


def everything(workers: int, baselines: tuple[str, ...] = ()) -> dict[str, list[Path]]:
    """Per agent the run folder of each seed; writes the curves and, of the first seed, the weights into data/."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        own = list(pool.map(study, SEEDS, [{}] * len(SEEDS)))
        jobs = {}
        for agent in baselines:
            changes, shared = BASELINES[agent]
            jobs[agent] = [pool.submit(study, s, changes, folder, shared) for s, folder in zip(SEEDS, own, strict=True)]
        tables = list(pool.map(layers, SEEDS, own))
        folders = {OWN: own} | {agent: [job.result() for job in waiting] for agent, waiting in jobs.items()}
    learning, switching = [], []
    for agent, places in folders.items():
        for seed, place in zip(SEEDS, places, strict=True):
            for row in runs.read_metrics(place / "metrics.jsonl"):
                if "success" in row:
                    learning.append({"agent": agent, "seed": seed, "step": row["episodes"], "success": row["success"]})
                elif "f1" in row and not BASELINES.get(agent, ({}, ()))[0].get("raw_actions"):
                    columns = ("step", "kl_weight", "held_out_nll", "kl", "f1", "switches", "sharp")
                    switching.append({"agent": agent, "seed": seed} | {name: row[name] for name in columns})
    runs.write_curve("pinpad", learning)
    runs.write_curve("pinpad_switch", switching)
    runs.write_curve("pinpad_layers", [row for table in tables for row in table])
    weights = runs.data_dir("weights")
    weights.mkdir(exist_ok=True)
    for name in ("backbone", "metacontroller"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(own[0] / f"{name}{suffix}", weights / f"pinpad_{name}{suffix}")
    return folders


def finals(folders: list[Path]) -> dict[int, dict]:
    """Every seed's final.json."""
    return {seed: runs.read_final(folder) for seed, folder in zip(SEEDS, folders, strict=True)}
