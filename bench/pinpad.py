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
BASELINES = {  # what differs, and the trainings that a baseline shares with its seed's own run
    "raw actions": ({"raw_actions": True}, ("backbone", "metacontroller")),
    "switch always open": ({"always_open": True}, ("backbone",)),
    "co-trained backbone": ({"cotrained": True}, ("backbone",)),
}
SUPERVISED_STEPS, SUPERVISED_EPISODES = 1_000, 2_000


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


def pinpad(workers: int) -> tuple[dict[str, list[dict]], dict[str, list[dict]], Path]:
    """Everything: (per agent the final.json of each seed, curves by name, the first seed's folder)."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        own = list(pool.map(study, SEEDS, [{}] * len(SEEDS)))
        others = {
            agent: [pool.submit(study, seed, changes, folder, shared) for seed, folder in zip(SEEDS, own, strict=True)]
            for agent, (changes, shared) in BASELINES.items()
        }
        tables = list(pool.map(layers, SEEDS, own))
        folders = {"internal RL": own} | {agent: [job.result() for job in jobs] for agent, jobs in others.items()}
    learning, distortion = [], []
    for agent, places in folders.items():
        for seed, place in zip(SEEDS, places, strict=True):
            for row in runs.read_metrics(place / "metrics.jsonl"):
                if "success" in row:
                    learning.append({"agent": agent, "seed": seed, "step": row["episodes"], "success": row["success"]})
                elif "f1" in row:
                    columns = ("step", "kl_weight", "held_out_nll", "kl", "f1", "switches", "sharp")
                    distortion.append({"agent": agent, "seed": seed} | {name: row[name] for name in columns})
    finals = {
        agent: [json.loads((place / "final.json").read_text()) for place in places] for agent, places in folders.items()
    }
    curves = {"pinpad": learning, "pinpad_switch": distortion, "pinpad_layers": [row for t in tables for row in t]}
    return finals, curves, own[0]
