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
ORDINARY = ("first_key", "first_door")  # demos that name no goals
STARTS = 100  # situations, each where a held-out leg begins
REACH_STEPS, HOLD_STEPS = 80, 60
CONTROLLERS = {"rank": 16, "steps": 400, "lr": 3e-3}
BACKBONE = data_dir("weights", "backbone_places.safetensors")


def settings(**changes) -> meta.MetaConfig:
    """The `full` profile with changes, on the CPU, one process."""
    profile = runs.load_profile("full", "03_metacontroller") | {"device": "cpu", "workers": 1}
    return runs.config_from(meta.MetaConfig, profile | changes)


def train(seed: int) -> Path:
    """Train one metacontroller on one thread, or take it as it is; its run folder."""
    torch.set_num_threads(1)
    with Run.open("03_metacontroller", "full", settings(seed=seed), quiet=True) as run:
        meta.run(settings(seed=seed), run)
        return run.folder


def everything(workers: int) -> dict[int, Path]:
    """Each seed's run folder; the streams are computed once, beforehand."""
    meta.upstream(settings(workers=workers), "full")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return dict(zip(SEEDS, pool.map(train, SEEDS), strict=True))


class Ground(NamedTuple):
    """What all seeds are measured on: the backbone, and data that neither it nor a metacontroller has seen."""

    upstream: meta.Upstream
    ordinary: Sequences  # demos that name no goals
    starts: list[Start]  # where legs begin, each once


def ground() -> Ground:
    """The held-out side of the shipped data."""
    config = settings()
    upstream = meta.upstream(config, "full")
    unseen = upstream.unseen
    held_out = set(unseen.seeds(np.arange(len(unseen))).tolist())
    chosen = [demo for name in ORDINARY for demo in demos.load(data_dir("demos", f"{name}.npz"))]
    cleaned = [demos.clean(demo, names=MOVES) for demo in chosen if demo.seed in held_out]
    folder = runs.runs_root() / "cache"
    cache = FrameCache.build(cleaned, folder / "ordinary", 1)
    windows = WindowDataset(cache, range(len(cache)), config.seq_len, noop_subsample=False, stride=config.seq_len)
    ordinary = Sequences(windows, streams(upstream.backbone, cache, folder / "streams"))
    places = [d for d in upstream.demos if d.seed in held_out and d.sticky == 0]
    return Ground(upstream, ordinary, distinct(interventions.leg_starts(places)))


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
    played = discovery.play_through(backbone, metacontroller, unseen, np.arange(len(unseen)))
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


def injected(folder: Path, ground: Ground) -> Injected:
    """Codes of held-out legs, each held where another leg begins: one that sets out from the same place, elsewhere."""
    metacontroller, backbone, unseen = load(folder), ground.upstream.backbone, ground.upstream.unseen
    torch.manual_seed(0)
    played = discovery.play_through(backbone, metacontroller, unseen, np.arange(len(unseen)))
    legs = discovery.codes_of(played, segments.goal_changes(played.goals)[0])
    rng, starts, sources = np.random.default_rng(0), [], []
    for start in ground.starts:
        before = start.demo.goals[start.step - 1] if start.step else -1
        fit = np.flatnonzero((legs.before == before) & (legs.goal != start.goal) & (legs.goal >= 0) & (before >= 0))
        if len(fit):
            starts.append(start)
            sources.append(rng.choice(fit))
    codes, goals = legs.code[sources], legs.goal[sources]
    return interventions.inject(BACKBONE, metacontroller, codes, goals, starts, steps=HOLD_STEPS)


def write_curve(folders: dict[int, Path]) -> None:
    """α, KL, NLL and F1 over each seed's training; and seed 0's weights, into data/."""
    rows = []
    for seed, folder in folders.items():
        for row in runs.read_metrics(folder / "metrics.jsonl"):
            kept = {"agent": "metacontroller", "seed": seed, "step": row["step"], "kl_weight": row["kl_weight"]}
            rows.append(kept | {"kl": row["kl_sequence"], "held_out_nll": row["nll"], "f1": row["f1"]})
    runs.write_curve("metacontroller", rows)
    for suffix in (".safetensors", ".json"):
        shutil.copy(folders[0] / f"metacontroller{suffix}", runs.data_dir("weights", f"metacontroller{suffix}"))
