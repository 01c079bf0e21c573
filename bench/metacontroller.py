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
from mzlib.probes import SupervisedControllers
from mzlib.runs import Run, data_dir

SEEDS = (0, 1, 2)
COSTS = (0.0, 0.1, 0.25, 0.4, 0.7)  # of an opening, tried with the first seed
DEARER = 1.03  # what a switch that opens less may add to NLL + KL
SELDOM = 20  # a switch that opens less than once in so many steps is taken for shut
ORDINARY = ("first_key", "first_door")  # demos that name no goals
STARTS = 200  # situations at most, each where a held-out leg begins
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


def everything(wanted: list[tuple[float, int]], workers: int) -> dict[tuple[float, int], Path]:
    """The run folders by cost of an opening and seed, trained if they aren't there; the streams are computed once,
    beforehand."""
    meta.upstream(settings(workers=workers), "full")
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


def state_of(start: Start) -> tuple[int, bytes]:
    """What tells the situation's state: paths of one tree share their beginnings."""
    return start.demo.seed, start.demo.actions[: start.step].tobytes()


def distinct(starts: list[Start]) -> list[Start]:
    """The situations in random order, none twice."""
    kept = list({(*state_of(start), start.goal): start for start in starts}.values())
    return [kept[i] for i in np.random.default_rng(0).permutation(len(kept))]


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


def told_controllers(upstream: meta.Upstream) -> SupervisedControllers:
    """One controller for each place, told in training."""
    return steering.train_controllers(upstream.backbone, upstream.training, **CONTROLLERS)


def supervised(ground: Ground) -> dict[str, tuple[float, list[float]]]:
    """How often the wanted place is reached from where a held-out leg begins: under controllers told each place in
    training, and by the backbone alone; with intervals."""
    controllers = told_controllers(ground.upstream)
    found, starts = {}, ground.starts[:STARTS]
    for name, held in (("told the place", controllers), ("left alone", None)):
        reached = interventions.reaches(BACKBONE, held, starts, REACH_STEPS).astype(float)
        found[name] = float(reached.mean()), bootstrap_interval(reached)
    return found


class Pair(NamedTuple):
    """A situation where a walk is about to choose, and a leg of another search's walk whose code is held there."""

    start: Start
    leg: int  # an index into the legs


def pairs(ground: Ground, legs: discovery.Codes, known: bool) -> list[Pair]:
    """At most STARTS situations, each with a leg that set out from the same place, in another search, for a place that
    the situation's own walk did not go to; `known`: one that other walks of the data did go to, from that very
    state."""
    unseen, rng = ground.upstream.unseen, np.random.default_rng(0)
    seeds, ways = unseen.seeds(legs.sequence), {}
    for start in ground.starts:
        ways.setdefault(state_of(start), set()).add(start.goal)
    found = []
    for i in rng.permutation(len(ground.starts)):
        start = ground.starts[i]
        before = start.demo.goals[start.step - 1] if start.step else -1
        fit = (legs.before == before) & (legs.goal != start.goal) & (legs.goal >= 0) & (before >= 0)
        fit &= seeds != start.demo.seed
        if known:
            fit &= np.isin(legs.goal, list(ways[state_of(start)]))
        if fit.any():
            found.append(Pair(start, int(rng.choice(np.flatnonzero(fit)))))
    return found[:STARTS]


def injected(folder: Path, ground: Ground) -> dict[str, Injected]:
    """Codes of held-out legs, each as in force when an opening for the leg counts as found, held where another walk is
    about to choose; by whether the data knows a way from there to the code's place."""
    metacontroller, backbone, unseen = load(folder), ground.upstream.backbone, ground.upstream.unseen
    torch.manual_seed(0)
    played = discovery.play_through(backbone, metacontroller, unseen, np.arange(len(unseen)))
    legs = discovery.codes_of(played, segments.goal_changes(played.goals)[0])
    codes = played.code[legs.sequence, np.minimum(legs.begin + segments.TOLERANCE, legs.end - 1)]
    found = {}
    for name, known in (("known", True), ("any", False)):
        chosen = pairs(ground, legs, known)
        sources, starts = [pair.leg for pair in chosen], [pair.start for pair in chosen]
        goals = legs.goal[sources]
        found[name] = interventions.inject(BACKBONE, metacontroller, codes[sources], goals, starts, HOLD_STEPS)
    return found


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
    """The cost of an opening to take, by a rule that knows no goals: of those at which the switch still opens, once in
    SELDOM steps or more, the highest whose NLL + KL is within DEARER of the least. ValueError if it always shuts."""
    fit = [row for row in rows if row["open"] * SELDOM >= 1]
    if not fit:
        raise ValueError(f"switch_cost: the switch shuts at all of {[row['switch_cost'] for row in rows]}; try others")
    least = min(row["nll_and_kl"] for row in fit)
    return max(row["switch_cost"] for row in fit if row["nll_and_kl"] <= DEARER * least)


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
