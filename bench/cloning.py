"""Notebook 02's results: the backbone in both layouts, with and without sight of its actions;
how it acts from reset, runs free from other starts, and what of the goal can be read in it.
"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mzlib import bc, demos, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.bc import BCConfig, ClonePolicy
from mzlib.dataset import FrameCache, WindowDataset, split_by_seed
from mzlib.evaluate import EVALUATION_SEED, SELECTION_SEED, EvaluationProtocol, Observation, evaluate
from mzlib.places import GOALS, goal_at
from mzlib.probes import probe_accuracy
from mzlib.runs import Run

FIRST, WITH_ROLLOUTS = "step layout", "step layout, with the policies' rollouts"
VARIANTS = {  # the others are trained for less: what they cost is in their records
    FIRST: {},
    WITH_ROLLOUTS: {"rollouts": True, "limit_trajs": 50.0, "epochs": 4.0},
    "step layout, sees its actions": {"see_actions": True, "epochs": 3.0},
    "seed layout": {"layout": "seed", "epochs": 1.0},
    "seed layout, sees its actions": {"layout": "seed", "see_actions": True, "epochs": 1.0},
}
EPISODES = 200  # from reset, of the first two variants
TEMPERATURES, TRIAL = (0.25, 0.5, 1.0), EvaluationProtocol(episodes=32, first_seed=SELECTION_SEED, max_frames=3_200)
FREE_STARTS, FREE_STEPS = 100, 200
PROBE_WINDOWS = 400
SINCE = (0, 3, 6, 10, 15, 20, 30, 60)  # steps since a leg began


def settings(**changes) -> BCConfig:
    """The `full` profile with changes, on the CPU, one process."""
    profile = runs.load_profile("full", "02_bc") | {"device": "cpu", "workers": 1, "episodes": 0}
    return runs.config_from(BCConfig, profile | changes)


def clone(changes: dict) -> Path:
    """Train one variant on one thread, or take it as it is; its run folder."""
    torch.set_num_threads(1)
    config = settings(**changes)
    with Run.open("02_bc", "full", config, quiet=True) as run:
        bc.run(config, run)
        return run.folder


def everything(workers: int) -> dict[str, Path]:
    """Each variant's run folder; the frames are replayed once, beforehand."""
    for changes in ({}, VARIANTS[WITH_ROLLOUTS]):
        bc.data(settings(workers=workers, **changes), "full")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return dict(zip(VARIANTS, pool.map(clone, VARIANTS.values()), strict=True))


def acting(folder: Path, workers: int) -> dict:
    """The clone from reset on evaluation seeds, at the temperature that takes the key in the first life most often on
    selection seeds; `trials` tells how often at each."""
    weights, trials = folder / "backbone.safetensors", {}
    for temperature in TEMPERATURES:
        policy = partial(ClonePolicy, weights, temperature=temperature)
        trials[temperature] = evaluate(policy, TRIAL, workers)["first_life_key_rate"]
    policy = partial(ClonePolicy, weights, temperature=max(trials, key=trials.get))
    return evaluate(policy, EvaluationProtocol(episodes=EPISODES), workers) | {"trials": trials}


def free_run(weights: Path, starts: list[tuple[demos.Demo, int]]) -> list[list[int]]:
    """Which places of GOALS the clone visits, in order, from within each demo at a step; no sticky actions."""
    visited = []
    for number, (demo, cut) in enumerate(starts):
        policy = ClonePolicy(weights, seed=number)
        emulator, seen = demos.start(demo), []
        for action in demo.actions[:cut].tolist():
            emulator.step(action)
        lives, first = emulator.facts.lives, True
        for _ in range(FREE_STEPS):
            seen_now = Observation(emulator.frame[None], np.array([first]), np.array([False]), np.array([demo.seed]))
            emulator.step(int(policy.act(seen_now)[0]))
            facts, first = emulator.facts, False
            if facts.dying or facts.lives < lives:
                break
            goal = goal_at(facts.room, facts.x, facts.y)
            seen += [goal] if goal >= 0 else []
        visited.append([goal for goal, _ in groupby(seen)])
    return visited


def free_runs(folder: Path, workers: int) -> list[list[int]]:
    """`free_run` from FREE_STARTS random steps of held-out demos."""
    config = settings()
    cache, _, _ = bc.data(config, "full")
    starts = free_starts(cache, bc.demonstrations(config, "full"))
    run = partial(free_run, folder / "backbone.safetensors")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [visited for share in pool.map(run, [starts[i::workers] for i in range(workers)]) for visited in share]


def write_curves(folders: dict[str, Path], free: list[list[int]], found: dict) -> None:
    """The trainings' curves, the places visited in free runs and in the data, the probes; and the weights, into
    data/."""
    curve = []
    for variant, folder in folders.items():
        for row in runs.read_metrics(folder / "metrics.jsonl"):
            columns = ("step", "train_nll", "nll", "accuracy", "change_nll", "change_accuracy")
            curve.append({"variant": variant, "seed": 0} | {name: row[name] for name in columns})
    runs.write_curve("cloning", curve)
    cache, _, _ = bc.data(settings(), "full")
    aimed = np.bincount(cache.goals[cache.goals >= 0], minlength=len(GOALS))
    seen = np.bincount([goal for visited in free for goal in visited], minlength=len(GOALS))
    rows = [
        {"seed": 0, "step": goal, "place": place.name, "free_visits": int(seen[goal]), "data_steps": int(aimed[goal])}
        for goal, place in enumerate(GOALS)
    ]
    runs.write_curve("cloning_places", rows)
    rows = []
    for kind, table, places in (("layer", found["by_layer"], None), ("age", found["by_age"], SINCE)):
        for split, values in enumerate(table):
            for i, value in enumerate(values):
                rows.append(
                    {"seed": split, "kind": kind, "step": i if places is None else places[i], "accuracy": value}
                )
    runs.write_curve("cloning_probes", rows)
    for variant, name in ((FIRST, "backbone"), (WITH_ROLLOUTS, "backbone_rollouts")):
        for suffix in (".safetensors", ".json"):
            shutil.copy(folders[variant] / f"backbone{suffix}", runs.data_dir("weights", f"{name}{suffix}"))


def free_starts(cache: FrameCache, files: list[demos.Demo]) -> list[tuple[demos.Demo, int]]:
    """Random steps of held-out demos played without sticky actions."""
    _, unseen = split_by_seed(cache, settings().held_out)
    plain = [i for i in unseen if files[i].sticky == 0]
    rng = np.random.default_rng(EVALUATION_SEED)
    chosen = [files[plain[rng.integers(len(plain))]] for _ in range(FREE_STARTS)]
    return [(demo, int(rng.integers(len(demo)))) for demo in chosen]


class Read(NamedTuple):
    """What a probe works on: steps whose goal is known."""

    stream: torch.Tensor  # (layers, steps, n_e)
    goals: torch.Tensor  # (steps,)
    ages: torch.Tensor  # (steps,): since the leg began, as far as the window shows


@torch.no_grad()
def read(backbone: MontezumaVLM, windows: WindowDataset, rows: np.ndarray) -> Read:
    """The residual streams of these windows, where the goal is known."""
    parts = []
    for some in np.array_split(rows, max(len(rows) // 16, 1)):
        batch = windows.batch(some)
        known = batch.valid & (batch.goals >= 0)
        layers = backbone.residuals(batch.frames, batch.previous, bc.padding_of(batch))
        since = torch.zeros_like(batch.goals)
        for t in range(1, since.shape[1]):
            same = (batch.goals[:, t] == batch.goals[:, t - 1]) & batch.valid[:, t - 1]
            since[:, t] = torch.where(same, since[:, t - 1] + 1, 0)
        parts.append((torch.stack([e[known] for e in layers]), batch.goals[known], since[known]))
    stream, goals, ages = zip(*parts, strict=True)
    return Read(torch.cat(stream, 1), torch.cat(goals), torch.cat(ages))


def probes(folder: Path, draws: int = 3) -> dict:
    """Accuracy of reading the current goal on held-out trajectories, by layer and by steps since the leg began.

    A probe is fitted to PROBE_WINDOWS windows of training trajectories, `draws` times to others.
    """
    backbone, _ = runs.load_weights(folder / "backbone.safetensors", MontezumaVLM, BackboneConfig)
    config = settings()
    cache, _, _ = bc.data(config, "full")
    windows = []
    for side in split_by_seed(cache, config.held_out):
        chosen = [i for i in side if (cache.goals[cache.offsets[i] : cache.offsets[i + 1]] >= 0).any()]
        windows.append(WindowDataset(cache, chosen, config.seq_len, stride=config.seq_len // 2, noop_subsample=False))
    training, unseen = windows
    rng = np.random.default_rng(0)
    test = read(backbone, unseen, rng.permutation(len(unseen))[:PROBE_WINDOWS])
    by_layer, by_age, chance = [], [], []
    for _ in range(draws):
        train = read(backbone, training, rng.permutation(len(training))[:PROBE_WINDOWS])
        by_layer.append([
            probe_accuracy(seen, train.goals, held, test.goals)
            for seen, held in zip(train.stream, test.stream, strict=True)
        ])  # fmt: skip
        middle = backbone.config.layer
        by_age.append([])
        for begin, end in zip(SINCE[:-1], SINCE[1:], strict=True):
            some = (test.ages >= begin) & (test.ages < end)
            held = test.stream[middle][some]
            by_age[-1].append(probe_accuracy(train.stream[middle], train.goals, held, test.goals[some]))
        chance.append(float((test.goals == train.goals.mode().values).float().mean()))
    return {"by_layer": by_layer, "by_age": by_age, "chance": chance, "steps": len(test.goals)}
