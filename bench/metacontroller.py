"""Notebook 03's results: metacontrollers on the shipped backbone. Do their openings match truths that training never
sees, what do the codes tell, and do they steer?"""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mzlib import demos, discovery, interventions, meta, runs, segments, steering
from mzlib.backbone.residuals import Sequences, streams
from mzlib.dataset import FrameCache, WindowDataset
from mzlib.evaluate import bootstrap_interval
from mzlib.go_explore.legs import MOVES
from mzlib.interventions import Injected, Start
from mzlib.metacontroller import Metacontroller
from mzlib.runs import Run, data_dir

SEEDS = (0, 1, 2)
COSTS = (0.0, 0.1, 0.25, 0.4, 0.7)  # of an opening, tried with the first seed
SELDOM = 20  # a switch that opens less than once in so many steps is taken for shut
ORDINARY = ("first_key", "first_door")  # demos that name no goals
STARTS = 200  # situations, each where a held-out leg begins
REACH_STEPS, HOLD_STEPS = 80, 60
CONTROLLERS = {"rank": 16, "steps": 400, "lr": 3e-3}
BACKBONE = data_dir("weights", "backbone_places.safetensors")


def settings(**changes) -> meta.MetaConfig:
    """The `full` profile with changes, on the CPU, one process."""
    profile = runs.load_profile("full", "03_metacontroller") | {"device": "cpu", "workers": 1}
    return runs.config_from(meta.MetaConfig, profile | changes)


def train(seed: int, switch_cost: float) -> Path:
    """Train one metacontroller on one thread, or take it as it is; its run folder."""
    torch.set_num_threads(1)
    config = settings(seed=seed, switch_cost=switch_cost)
    with Run.open("03_metacontroller", "full", config, quiet=True) as run:
        meta.run(config, run)
        return run.folder


def everything(workers: int) -> dict[tuple[float, int], Path]:
    """The run folders by cost of an opening and seed: every cost with the first seed; the profile's cost and none with
    every seed. The streams are computed once, beforehand."""
    chosen = settings(workers=workers)
    meta.upstream(chosen, "full")
    wanted = [(cost, seed) for seed in SEEDS for cost in (chosen.switch_cost, 0.0)]
    wanted = list(dict.fromkeys(wanted + [(cost, SEEDS[0]) for cost in COSTS]))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {(cost, seed): pool.submit(train, seed, cost) for cost, seed in wanted}
        return {key: job.result() for key, job in jobs.items()}


class Ground(NamedTuple):
    """What all seeds are measured on: the backbone, and data that neither it nor a metacontroller has seen."""

    upstream: meta.Upstream
    selection: np.ndarray  # windows of `upstream.unseen` that settings are chosen by: of odd search seeds
    evaluation: np.ndarray  # the others
    ordinary: Sequences  # demos that name no goals
    starts: list[Start]  # where legs of evaluation seeds begin, each once


def ground() -> Ground:
    """The held-out side of the shipped data."""
    config = settings()
    upstream = meta.upstream(config, "full")
    seeds = upstream.unseen.seeds(np.arange(len(upstream.unseen)))
    held_out = set(seeds.tolist())
    chosen = [demo for name in ORDINARY for demo in demos.load(data_dir("demos", f"{name}.npz"))]
    cleaned = [demos.clean(demo, names=MOVES) for demo in chosen if demo.seed in held_out]
    folder = runs.runs_root() / "cache"
    cache = FrameCache.build(cleaned, folder / "ordinary", 1)
    windows = WindowDataset(cache, range(len(cache)), config.seq_len, noop_subsample=False, stride=config.seq_len)
    ordinary = Sequences(windows, streams(upstream.backbone, cache, folder / "streams"))
    places = [d for d in upstream.demos if d.seed in held_out and d.seed % 2 == 0 and d.sticky == 0]
    starts = distinct(interventions.leg_starts(places))
    return Ground(upstream, np.flatnonzero(seeds % 2), np.flatnonzero(seeds % 2 == 0), ordinary, starts)


def distinct(starts: list[Start]) -> list[Start]:
    """At most STARTS of the situations, at random, none twice: paths of one tree share their beginnings."""
    once = {(s.demo.seed, s.goal, s.demo.actions[: s.step].tobytes()): s for s in starts}
    kept = list(once.values())
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))[:STARTS]]


def load(folder: Path) -> Metacontroller:
    """The metacontroller of a run folder."""
    return steering.load_metacontroller(folder / "metacontroller.safetensors", BACKBONE)


def openings(folder: Path, ground: Ground) -> dict:
    """`look` at held-out places data; F1 with its interval, the switch's and each control's, by truth; what codes
    tell."""
    metacontroller, backbone, unseen = load(folder), ground.upstream.backbone, ground.upstream.unseen
    torch.manual_seed(0)
    played = discovery.play_through(backbone, metacontroller, unseen, ground.evaluation)
    rows = np.arange(len(ground.ordinary))
    events = discovery.play_through(backbone, metacontroller, ground.ordinary, rows)
    matches = {
        "changes of goal": discovery.match(played, unseen),
        "events": discovery.match_events(events, ground.ordinary),
    }
    codes = discovery.codes_of(played, played.switch > discovery.OPEN)
    told = discovery.information(codes)
    return {"look": discovery.look(played, unseen), "matches": matches, "information": told}


def supervised(ground: Ground) -> dict[str, tuple[float, list[float]]]:
    """How often the wanted place is reached from where a held-out leg begins: under controllers told each place in
    training, and by the backbone alone; with intervals."""
    backbone, training = ground.upstream.backbone, ground.upstream.training
    controllers = steering.train_controllers(backbone, training, **CONTROLLERS)
    found = {}
    for name, held in (("told the place", controllers), ("left alone", None)):
        reached = interventions.reaches(BACKBONE, held, ground.starts, REACH_STEPS).astype(float)
        found[name] = float(reached.mean()), bootstrap_interval(reached)
    return found


def injected(folder: Path, ground: Ground) -> dict[str, Injected]:
    """Codes of held-out legs, each held where another walk is about to choose: at the same place, on a way of another
    search, from where some walk of the data goes on to the place that the code was for.

    By which of a leg's codes: the one in force as soon as an opening for it counts as found, and its last one.
    """
    metacontroller, backbone, unseen = load(folder), ground.upstream.backbone, ground.upstream.unseen
    torch.manual_seed(0)
    played = discovery.play_through(backbone, metacontroller, unseen, np.arange(len(unseen)))
    legs = discovery.codes_of(played, segments.goal_changes(played.goals)[0])
    seeds = unseen.seeds(legs.sequence)
    rng, starts, sources = np.random.default_rng(0), [], []
    for start in ground.starts:
        before = start.demo.goals[start.step - 1] if start.step else -1
        fit = (legs.before == before) & (legs.goal == start.goal) & (before >= 0) & (seeds != start.demo.seed)
        if fit.any():
            starts.append(start)
            sources.append(rng.choice(np.flatnonzero(fit)))
    begun = np.minimum(legs.begin + segments.TOLERANCE, legs.end - 1)
    chosen = {"as the leg begins": played.code[legs.sequence, begun], "at the leg's end": legs.code}
    return {
        when: interventions.inject(BACKBONE, metacontroller, codes[sources], legs.goal[sources], starts, HOLD_STEPS)
        for when, codes in chosen.items()
    }


def costs(folders: dict[tuple[float, int], Path], ground: Ground) -> list[dict]:
    """What the first seed's metacontrollers make of the walks for selection, a row a cost of an opening."""
    backbone, unseen, rows = ground.upstream.backbone, ground.upstream.unseen, []
    for cost in COSTS:
        torch.manual_seed(0)
        played = discovery.play_through(backbone, load(folders[cost, SEEDS[0]]), unseen, ground.selection)
        names = ("nll", "kl", "nll_and_kl", "backbone_nll", "open", "sharp", "precision", "recall", "f1")
        looked = discovery.look(played, unseen)
        row = {"seed": SEEDS[0], "step": settings().steps, "switch_cost": cost}
        rows.append(row | {name: looked[name] for name in names})
    return rows


def affordable(rows: list[dict]) -> float:
    """The cost to take, by a rule that asks for no goals: the highest at which the switch still opens, once in SELDOM
    steps, and codes are worth their price, NLL + KL below the backbone's NLL. ValueError if there is none."""
    fit = [row["switch_cost"] for row in rows if row["open"] * SELDOM >= 1 and row["nll_and_kl"] < row["backbone_nll"]]
    if not fit:
        tried = [row["switch_cost"] for row in rows]
        raise ValueError(
            f"switch_cost: no cost of {tried} keeps a switch that opens and codes that pay; try others"
        )
    return max(fit)


def write_curve(folders: dict[int, Path], tried: list[dict]) -> None:
    """α, KL, NLL and F1 over each seed's training; the costs tried; and seed 0's weights, into data/."""
    runs.write_curve("metacontroller_costs", tried)
    rows = []
    for seed, folder in folders.items():
        for row in runs.read_metrics(folder / "metrics.jsonl"):
            kept = {"agent": "metacontroller", "seed": seed, "step": row["step"], "kl_weight": row["kl_weight"]}
            rows.append(kept | {"kl": row["kl_sequence"], "held_out_nll": row["nll"], "f1": row["f1"]})
    runs.write_curve("metacontroller", rows)
    for suffix in (".safetensors", ".json"):
        shutil.copy(folders[0] / f"metacontroller{suffix}", runs.data_dir("weights", f"metacontroller{suffix}"))
