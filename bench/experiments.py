"""The workbook's measured results: `python -m bench.experiments NAME` writes data/results/NAME.json.

first_key    steps until a search with 11x8x9 cells first holds the key: 10 seeds
explore_speed  a search's steps/s against the emulator's own, with 10 thousand and 1 million cells; a step by part
five_million score and rooms after 5 M steps by kind of cells: 3 seeds each, verified by replay
other_games  pitfall and private_eye with downscaled cells: 3 seeds of 1 M steps each, verified by replay
hundred_million  one search of 100 M steps, its score verified by replay
speeds       how fast learners are, as ratios within the run: some of `make bench`
pinpad       the grid world of notebook 00: switch, codes and internal RL, three seeds
pinpad_anywhere  the same where pads lie anywhere on the board, with the settings that suited it
metacontroller  notebook 03: three seeds, openings against two truths, what codes tell, and whether they steer
internal_rl  notebook 04: reinforcement over codes and its rivals on two unseen ways, 3 seeds each; single codes by leg
from_reset   notebook 04: the first key from reset, codes and raw actions, 3 seeds each; steps to halve the failures
cloning      the backbone of notebook 02 in four variants: held-out steps, acting from reset, free runs, probes
ablations    robustify with one thing changed: 3 seeds each, shorter
robustify    ten demos of the first key (3 seeds), of key and door, six of 2,500 points, one of 3,500; 200 episodes from
             reset each
rnd          PPO + RND, profile full: scores and rooms from reset, the prediction error by room; resumes its run
open_loop    the best demo's actions, to the key and to the door, played from reset under sticky actions, 200 episodes
"""

import argparse
import datetime
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench import cloning as bench_cloning
from bench import metacontroller as bench_metacontroller
from bench import pinpad as bench_pinpad
from bench import reinforcement
from bench import rnd as bench_rnd
from bench import robustify as bench_robustify
from bench.exploring import step_costs
from bench.models import ppo_learner_ratio
from bench.ppo_loop import ppo_steps_ratio
from bench.rnd import rnd_speed
from bench.speed import explore_efficiency, explore_scaling
from bench.training import cloning as cloning_speed
from bench.vector import vecenv_ratio
from mzlib import demos, runs
from mzlib.demos import Demo
from mzlib.evaluate import EvaluationProtocol, OpenLoop, bootstrap_interval, evaluate, select_demo
from mzlib.go_explore import GoExploreConfig, Search, load_archive, run
from mzlib.go_explore.extract import extract
from mzlib.interventions import total_variation

COSTS = ("steps", "upstream_steps", "wall_s")  # of a final.json
SEARCH = "a search in a deterministic emulator (no policy)"


def record(name: str, values: dict[int, float], unit: str, protocol: dict, steps: int, since: float, **changes) -> dict:
    """A result record: the median over seeds with its bootstrap interval, and what it cost."""
    numbers = np.array(list(values.values()), float)
    return {
        "name": name,
        "value": float(np.median(numbers)),
        "unit": unit,
        "interval": bootstrap_interval(numbers, np.median),
        "per_seed": {str(seed): value for seed, value in values.items()},
        "protocol": protocol,
        "steps": steps,
        "upstream_steps": 0,
        "wall_s": round(time.perf_counter() - since, 1),
        "machine": runs.machine(),
        "command": f"python -m bench.experiments {protocol.pop('experiment')}",
        "commit": runs.git_commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    } | changes


def steps_to_key(seed: int, limit: int = 1_000_000) -> tuple[int, int]:
    """(steps until the first key, steps searched) of one search with 11x8x9 cells."""
    config = GoExploreConfig(cells="downscaled", seed=seed, total_steps=limit, workers=1)
    with Search(config) as search:
        archive = search.archive
        while archive.first_step(100) is None and archive.steps < limit:
            search.advance()
        return archive.first_step(100) or limit, archive.steps


def first_key(workers: int) -> list[dict]:
    """Median over 10 seeds of the steps to the first key."""
    since, seeds = time.perf_counter(), range(10)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = dict(zip(seeds, pool.map(steps_to_key, seeds), strict=True))
    protocol = {"experiment": "first_key", "what": SEARCH, "cells": "11x8x9 downscaled", "sticky": 0, "noops": 0}
    values = {seed: steps for seed, (steps, _) in found.items()}
    searched = sum(steps for _, steps in found.values())
    return [record("Go-Explore: steps to the first key (median)", values, "steps", protocol, searched, since)]


def explore_speed(workers: int) -> list[dict]:
    """Speeds of the search as ratios within this run, and the microseconds of an exploring step by part."""
    since, results = time.perf_counter(), []
    common = {"experiment": "explore_speed", "sticky": 0, "frames_per_action": 4}

    def add(name: str, rounds: list[float], unit: str, **protocol) -> None:
        numbers = np.array(rounds)
        found = record(name, dict(enumerate(rounds)), unit, common | protocol, 0, since, per_seed={})
        results.append(found | {"interval": bootstrap_interval(numbers, np.median)})

    for cells in ("downscaled", "domain"):
        rounds = explore_efficiency(cells, 8.0)[f"explore_efficiency_{cells}"]["rounds"]
        what = f"steps/s of {workers} explorers over those of as many loops that only call the emulator; rounds in turn"
        add(f"Go-Explore: share of the emulator's own speed, {cells} cells", rounds, "", what=what)
    measured = explore_scaling(8.0)
    what = "steps/s with 1,000,000 cells in the archive over those with 10,000; rounds in turn"
    add("Go-Explore: speed with a hundred times the cells", measured["explore_scaling"]["rounds"], "", what=what)
    for process, name in (("main process", "cell_bytes"), ("each explorer", "cell_bytes_explorer")):
        what = f"memory a cell beyond its packed state, {process}, 1,000,000 cells"
        if name in measured:
            add(f"Go-Explore: memory a cell, {process}", [measured[name]["value"]], "bytes", what=what)
    for cells in ("downscaled", "domain"):
        for part, rounds in step_costs(cells).items():
            what = "one process; loops that do one thing more each take turns"
            add(f"Exploring step, {cells} cells: {part}", rounds, "us", what=what)
    return results


SPEEDS = {
    "ppo_steps_ratio": "Robustification: steps/s over those of the plain loop",
    "ppo_learner_ratio": "Actor-critic's updates in float32: samples/s over those of plain convolutions",
    "ppo_learner_bfloat16_ratio": "Actor-critic's updates in bfloat16: samples/s over those in float32",
    "vecenv_ratio": "Vector environments, two halves in turn: steps/s over those of AtariVectorEnv",
    "vecenv_whole_ratio": "Vector environments, all at once: steps/s over those of AtariVectorEnv",
    "loader_headroom": "Cloning: windows/s loaded over windows/s trained",
    "bc_flops_utilisation": "Cloning: FLOP/s over those of a large float32 matrix product",
    "rnd_efficiency": "PPO + RND: steps/s over those of emulators and learner in turn",
    "rnd_flops_utilisation": "PPO + RND: the update's FLOP/s over those of a large float32 matrix product",
}


def speeds(workers: int) -> list[dict]:
    """The ratios of `make bench` that tell how fast learners are, each against a reference in the same run."""
    since, results, measured = time.perf_counter(), [], {}
    for measure, seconds in ((ppo_steps_ratio, 60), (ppo_learner_ratio, 30), (vecenv_ratio, 20)):
        measured |= measure(seconds)
    for measure in (cloning_speed, rnd_speed):
        measured |= measure(20)
    for name, title in SPEEDS.items():
        rounds = measured[name]["rounds"]
        protocol = {"experiment": "speeds", "what": f"median of {len(rounds)} rounds in turn; `make bench`: {name}"}
        found = record(title, dict(enumerate(rounds)), "", protocol, 0, since, per_seed={})
        results.append(found | {"interval": bootstrap_interval(np.array(rounds), np.median)})
    return results


KINDS = {"downscaled": {"cells": "downscaled"}, "dynamic": {"cells": "dynamic"}, "domain": {}}
KINDS |= {"domain, domain weights": {"selection": "domain"}}


def search_run(workers: int, **changes) -> runs.Run:
    """The run of a search in the `full` profile, open."""
    settings = runs.load_profile("full", "05_go_explore") | {"workers": workers} | changes
    return runs.Run.open("05_go_explore", "full", runs.config_from(GoExploreConfig, settings))


def searched(workers: int, **changes) -> tuple[dict, list[dict]]:
    """(final.json, a row of score, rooms and cells every half million steps) of a search in the `full` profile."""
    with search_run(workers, **changes) as folder:
        final, rows = run(folder.config, folder), folder.metrics()
    every = max(1, len(rows) // 100)
    return final, [
        {name: row[name] for name in ("step", "score", "rooms", "cells")} for row in rows[::every] + rows[-1:]
    ]


def seeds_searched(workers: int, searches: list[dict]) -> Iterator[Future]:
    """What will be the answer of `searched` to each of `searches`: `workers` of them side by side, a process each."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from [pool.submit(searched, 1, **changes) for changes in searches]


def seconds_of(finals: dict[int, dict], workers: int) -> float:
    """What one kind's searches took, resumed or not: the longest of them if all ran at once, else their sum."""
    seconds = [final["wall_s"] for final in finals.values()]
    return max(seconds) if workers >= len(seconds) else sum(seconds)


def five_million(workers: int) -> list[dict]:
    """By kind of cells, the median over 3 seeds of the replay-verified score after 5 M steps."""
    since, curve, seeds = time.perf_counter(), runs.read_curve("five_million"), range(3)
    results = {result["name"]: result for result in runs.read_results().get("five_million", [])}
    under_way = seeds_searched(workers, [{"seed": seed, **changes} for changes in KINDS.values() for seed in seeds])
    for kind in KINDS:
        found = {seed: next(under_way).result() for seed in seeds}
        finals = {seed: final for seed, (final, _) in found.items()}
        curve = [row for row in curve if row["cells_kind"] != kind]
        curve += [{"cells_kind": kind, "seed": seed} | row for seed, (_, rows) in found.items() for row in rows]
        steps = sum(final["steps"] for final in finals.values())
        for what, key, unit in (("score", "score", "points"), ("rooms", "rooms", "rooms")):
            protocol = {"experiment": "five_million", **finals[0]["protocol"], "what": SEARCH, "replay verified": True}
            protocol["side by side"] = f"{workers} searches"
            values = {seed: final[key] for seed, final in finals.items()}
            name = f"Go-Explore: {what} after 5 M steps, {kind} cells (median)"
            results[name] = record(name, values, unit, protocol, steps, since, wall_s=seconds_of(finals, workers))
        runs.write_curve("five_million", curve)
        runs.write_result("five_million", list(results.values()))  # kind by kind, the others kept: all take hours
    return list(results.values())


def other_games(workers: int) -> list[dict]:
    """By game, the median over 3 seeds of the replay-verified score after 1 M steps with downscaled cells."""
    since, results, games, seeds = time.perf_counter(), [], ("pitfall", "private_eye"), range(3)
    changes = {"cells": "downscaled", "total_steps": 1_000_000}
    under_way = seeds_searched(workers, [{"game": game, "seed": seed, **changes} for game in games for seed in seeds])
    for game in games:
        finals = {seed: next(under_way).result()[0] for seed in seeds}
        steps = sum(final["steps"] for final in finals.values())
        protocol = {"experiment": "other_games", **finals[0]["protocol"], "what": SEARCH, "replay verified": True}
        protocol["side by side"] = f"{workers} searches"
        values = {seed: final["score"] for seed, final in finals.items()}
        name = f"Go-Explore on {game}: score after 1 M steps (median)"
        results.append(record(name, values, "points", protocol, steps, since, wall_s=seconds_of(finals, workers)))
    return results


HUNDRED_MILLION = {  # the best cells and weights on searches of a few million steps
    "cells": "gates",
    "selection": "domain",
    "total_steps": 100_000_000,
    "checkpoint_every": 2_000_000,
}
POINTS = (2_500, 5_000, 10_000, 31_000)
TREASURE_ROOM = 15


def hundred_million(workers: int) -> list[dict]:
    """One search of 100 M steps, and its shortest ways to some scores, which are shipped; its checkpoints let a later
    call go on."""
    since = time.perf_counter()
    final, rows = searched(workers, **HUNDRED_MILLION)
    with search_run(workers, **HUNDRED_MILLION) as folder:
        archive = load_archive(folder)
        ways = {points: extract(folder.folder, points) for points in POINTS}
        best = demos.load(folder.folder / "best.npz")
    demos.save(runs.data_dir("demos", "rooms", "hundred_million.npz"), best + list(ways.values()))
    runs.write_curve("hundred_million", [{"seed": 0} | row for row in rows])
    protocol = {"experiment": "hundred_million", **final["protocol"], "what": SEARCH, "replay verified": True}
    setting, results = "100 M steps, gates cells, domain weights", []

    def add(name: str, value: int, unit: str, **more) -> None:
        cost = {"wall_s": final["wall_s"]}
        results.append(record(name, {0: value}, unit, protocol | more, final["steps"], since, **cost))

    add(f"Go-Explore: score after {setting}", final["score"], "points", way_steps=final["actions"])
    add(f"Go-Explore, {setting}: rooms", final["rooms"], "rooms")
    for level, (score, actions) in enumerate(treasure_rooms(best[0]), start=1):
        add(f"Go-Explore, {setting}: points on entering treasure room {level}", score, "points", way_steps=actions)
    for points, way in ways.items():
        add(f"Go-Explore, {setting}: steps to {points:,} points", archive.first_step(points), "steps")
        add(f"Go-Explore, {setting}: the shortest way kept to {points:,} points", len(way), "actions")
    return results


def treasure_rooms(demo: Demo) -> list[tuple[int, int]]:
    """(points, actions) of a demo when it first enters each level's last room."""
    found = {}
    for step, (emulator, _, _) in enumerate(demos.replay(demo), start=1):
        if emulator.facts.room == TREASURE_ROOM:
            found.setdefault(emulator.facts.level, (int(demo.rewards[:step].sum()), step))
    return list(found.values())


def open_loop(workers: int) -> list[dict]:
    """The open-loop baseline for the first key, and for key and door: the demo is chosen on selection seeds, then
    scored on evaluation seeds."""
    found, choosing = [], EvaluationProtocol(episodes=16, max_frames=2_400)
    protocol, shipped = EvaluationProtocol(episodes=200), demos.upstream("shipped", "full")
    for label, points in (("demo", 100), ("demo to the door", 400)):
        since = time.perf_counter()
        candidates = sorted((demo for demo in shipped if demo.score == points), key=len)[:24]
        chosen = select_demo(candidates, choosing, workers)
        played = evaluate(partial(OpenLoop, chosen), protocol, workers)
        described = {"what": "open-loop replay, from reset, restarted after each death"} | played["protocol"]
        described |= {
            "demo": f"{chosen.source}, {len(chosen)} actions",
            "chosen on": f"{choosing.episodes} selection episodes",
        }
        for place, scores in (("first life", "first_life_scores"), ("whole game", "scores")):
            scored = np.array(played[scores], float)
            for name, values, unit in (
                (f"{place.replace(' ', '-')} score (mean)", scored, "points"),
                (f"{points} points in the {place}", (scored >= points).astype(float), ""),
            ):
                about = {"experiment": "open_loop"} | described
                mean, interval = {protocol.first_seed: float(values.mean())}, bootstrap_interval(values)
                found.append(
                    record(f"Open-loop {label}: {name}", mean, unit, about, played["steps"], since)
                    | {"interval": interval, "per_seed": {}}
                )
    return found


def pinpad(workers: int, world: str = "pinpad") -> list[dict]:
    """Three seeds of the grid world's study and of its baselines, in one of bench.pinpad's worlds."""
    since = time.perf_counter()
    folders = bench_pinpad.everything(workers, world)
    own = bench_pinpad.finals(folders["once"][bench_pinpad.OWN])
    size, title = own[0]["protocol"]["world"], "Grid world" if world == "pinpad" else "Grid world, pads anywhere"
    seen = "held-out expert episodes (evaluation seed); beta > 0.5, one to one within 1 step, first step excluded"
    results = []

    def add(name: str, finals: dict[int, dict], key: str, unit: str, what: str, **about) -> None:
        protocol = {"experiment": world, "what": what, "world": size} | about
        steps, seconds = (sum(final[cost] for final in finals.values()) for cost in ("steps", "wall_s"))
        values = {seed: final[key] for seed, final in finals.items()}
        results.append(record(f"{title}: {name}", values, unit, protocol, steps, since, wall_s=seconds))

    add("switch against true changes of subgoal, F1 (median)", own, "f1", "", seen)
    add("share of beta outside 0.1 to 0.9", own, "sharp", "", seen)
    add(f"switches an episode ({own[0]['changes']:.3g} true changes)", own, "switches", "", seen)
    add("KL an episode", own, "kl", "nats", seen)
    for length, agents in folders.items():
        for agent, places in agents.items():
            trained = bench_pinpad.finals(places)
            colours = "".join(map(str, trained[0]["protocol"]["task"]))
            task = f"task {colours}, never trained, reward at its end only; layouts of an evaluation seed"
            long = ", longer task" if agent.endswith(bench_pinpad.LONG) else ""
            if length == "once" and agent in (bench_pinpad.OWN, bench_pinpad.OWN + bench_pinpad.LONG):
                add(f"success of the backbone's own actions{long}", trained, "backbone_success", "", task)
                add(f"success of codes from the prior{long}", trained, "prior_success", "", task)
            raw = agent.startswith(bench_pinpad.RAW)
            about = {"learning rate": bench_pinpad.RAW_LEARNING_RATE} if raw else {}
            short = agent.removesuffix(bench_pinpad.LONG)
            called = "raw-action RL" if raw else short if short == bench_pinpad.OWN else f"the {short}"
            further = f"after {bench_pinpad.LONGER} times the episodes, " if length == "longer" else ""
            what = f"after {trained[0]['episodes']:,} episodes; {task}"
            add(f"{further}success of {called}{long}", trained, "success", "", what, **about)
            if "backbone" not in bench_pinpad.BASELINES.get(short, ({}, ()))[1][-1:]:
                continue  # its metacontroller is its seed's own
            if not bench_pinpad.BASELINES[agent][0].get("always_open"):
                add(f"{agent}: F1", trained, "f1", "", seen)
            add(f"{agent}: KL an episode", trained, "kl", "nats", seen)
    return results


def share(values: list[bool]) -> tuple[float, list[float]]:
    """A share and its bootstrap interval."""
    return float(np.mean(values)), bootstrap_interval(np.array(values, float))


def cloning_predicts(variant: str, folder: Path, since: float) -> list[dict]:
    """What one variant predicts on held-out demos."""
    final, epochs = runs.read_final(folder), bench_cloning.settings(**bench_cloning.VARIANTS[variant]).epochs
    protocol = {"what": f"{variant}; demos of search seeds held out", "windows": final["windows"], "epochs": epochs}
    protocol["gradient steps"] = final["steps"]
    wanted = (("NLL", "nll", "nats"), ("accuracy", "accuracy", ""))
    wanted += (("NLL at change points", "change_nll", "nats"), ("accuracy at change points", "change_accuracy", ""))
    return [
        record(f"Clone, {variant}: {label}", {0: final[key]}, unit, {"experiment": "cloning"} | protocol, 0, since)
        | {"wall_s": final["wall_s"]}
        for label, key, unit in wanted
    ]


def cloning_acts(variant: str, folder: Path, workers: int, since: float, upstream: int = 0) -> list[dict]:
    """How a variant acts from reset; upstream: environment steps that its data took."""
    played = bench_cloning.acting(folder, workers)
    trials = played["trials"]
    chosen = ", ".join(f"{temperature}: {rate:.2f}" for temperature, rate in trials.items())
    what = f"{variant}; actions drawn at temperature {max(trials, key=trials.get)}"
    chosen = f"key in the first life on {bench_cloning.TRIAL.episodes} selection episodes of 800 steps, by it: {chosen}"
    protocol = {"what": what, "temperature by": chosen, **played["protocol"]}
    wanted = (
        ("key in the first life", *share(played["first_life_keys"]), ""),
        ("key in the whole game", *share(played["first_keys"]), ""),
        ("first-life score (mean)", played["first_life_mean"], played["first_life_interval"], "points"),
        ("whole-game score (mean)", played["mean"], played["interval"], "points"),
    )
    return [
        record(
            f"Clone, {variant}: {label}", {0: value}, unit, {"experiment": "cloning"} | protocol, played["steps"], since
        )
        | {"interval": interval, "upstream_steps": upstream}
        for label, value, interval, unit in wanted
    ]


def cloning(workers: int) -> list[dict]:
    """The backbone's four variants, and of the first one free runs and probes."""
    since = time.perf_counter()
    folders = bench_cloning.everything(workers)
    first, folder = next(iter(folders.items()))
    results = cloning_acts(first, folder, workers, since)
    policy = runs.read_results()["robustify"][0]  # whose rollouts the other variant saw
    upstream = policy["steps"] // len(policy["per_seed"])
    variant = bench_cloning.WITH_ROLLOUTS
    results += cloning_acts(variant, folders[variant], workers, since, upstream)
    results += [row for variant, place in folders.items() for row in cloning_predicts(variant, place, since)]
    final = runs.read_final(folder)
    unseen = {"experiment": "cloning", "what": "demos of search seeds held out"}
    for label, key in (("the previous action", "previous"), ("the commonest action", "majority")):
        results.append(record(f"Accuracy of {label} alone", {0: final[key]}, "", dict(unseen), 0, since))
    free = bench_cloning.free_runs(folder, workers)
    value, interval = share([len(visited) >= 2 for visited in free])
    protocol = {"experiment": "cloning", "what": f"{first}; from steps of held-out demos, no sticky actions"}
    protocol |= {"episodes": len(free), "steps each at most": bench_cloning.FREE_STEPS}
    name = "Clone: free runs that visit two places or more"
    results.append(record(name, {0: value}, "", protocol, 0, since) | {"interval": interval})
    found = bench_cloning.probes(folder)
    middle = len(found["by_layer"][0]) // 2
    for label, layer in (("the pixels' embedding", 0), ("the middle of the residual stream", middle)):
        values = dict(enumerate(row[layer] for row in found["by_layer"]))
        what = f"{first}; linear probe on held-out trajectories, per_seed: draws of what it is fitted to"
        protocol = {"experiment": "cloning", "what": what, "chance (commonest goal)": float(np.mean(found["chance"]))}
        results.append(record(f"Clone: goal read from {label}", values, "", protocol, 0, since))
    bench_cloning.write_curves(folders, free, found)
    return results


def metacontroller(workers: int) -> list[dict]:
    """Three metacontrollers on the shipped backbone."""
    since, results = time.perf_counter(), []
    first, cost = bench_metacontroller.SEEDS[0], bench_metacontroller.settings().switch_cost
    trained = bench_metacontroller.everything([(c, first) for c in bench_metacontroller.COSTS], workers)
    ground = bench_metacontroller.ground()
    tried = bench_metacontroller.costs(trained, ground)
    if (affordable := bench_metacontroller.affordable(tried)) != cost:
        raise ValueError(
            f"switch_cost={cost} in the full profile: by the rule it is {affordable}; set it and run again"
        )
    wanted = [(c, seed) for c in (cost, 0.0) for seed in bench_metacontroller.SEEDS]
    trained = bench_metacontroller.everything(wanted, workers)
    folders, free = ({seed: trained[c, seed] for seed in bench_metacontroller.SEEDS} for c in (cost, 0.0))
    found = {seed: bench_metacontroller.openings(folder, ground) for seed, folder in folders.items()}
    unpriced = {seed: bench_metacontroller.openings(folder, ground) for seed, folder in free.items()}
    injected = {seed: bench_metacontroller.injected(folder, ground) for seed, folder in folders.items()}
    told = bench_metacontroller.supervised(ground)
    finals = [runs.read_final(folder) for folder in folders.values()]
    spent = {"wall_s": sum(final["wall_s"] for final in finals)}
    settings = {"windows": finals[0]["windows"], "gradient steps": bench_metacontroller.settings().steps}
    settings |= {"cost of an opening": cost}
    unseen = f"{len(ground.evaluation)} windows of places data, search seeds held out"

    def add(name: str, values: dict[int, float], unit: str, what: str, **changes) -> None:
        protocol = {"experiment": "metacontroller", "what": what} | settings
        results.append(record(f"Metacontroller: {name}", values, unit, protocol, 0, since, **(spent | changes)))

    for name, key, unit in (
        ("NLL of the frozen backbone", "backbone_nll", "nats"),
        ("NLL with the posterior's codes", "nll", "nats"),
        ("NLL + KL of the posterior", "nll_and_kl", "nats"),
        ("NLL with codes from the prior, causal", "prior_nll", "nats"),
        ("share of beta outside 0.1 to 0.9", "sharp", ""),
        ("openings in a window's legs", "switches", ""),
        ("true changes of goal there", "changes", ""),
    ):
        add(name, {seed: own["look"][key] for seed, own in found.items()}, unit, f"a step; {unseen}")
    ordinary = f"{len(ground.ordinary)} windows of demos to the first key and door, search seeds held out"
    for truth, what in (("changes of goal", unseen), ("events", ordinary)):
        what += ", one to one within 2 steps; interval: the widest of the seeds' own, over search seeds"
        for who in found[0]["matches"][truth]:
            own = {seed: each["matches"][truth][who] for seed, each in found.items()}
            low, high = zip(*(each["interval"] for each in own.values()), strict=True)
            for key in ("f1", "precision", "recall"):
                changes = {"interval": [min(low), max(high)]} if key == "f1" else {}
                values = {seed: each[key] for seed, each in own.items()}
                add(f"{who} against {truth}, {key}", values, "", what, **changes)
    for key in ("f1", "precision", "recall", "sharp", "switches", "nll_and_kl"):
        values = {seed: own["look"][key] for seed, own in unpriced.items()}
        what = {"experiment": "metacontroller", "what": f"the paper's loss; {unseen}"} | settings
        name = f"Metacontroller, no cost of opening: {key}"
        results.append(record(name, values, "", what | {"cost of an opening": 0.0}, 0, since))
    for label in ("goal", "region"):
        values = {seed: each["information"][label]["share"] for seed, each in found.items()}
        what = f"16 clusters of segments' codes, beyond what shuffled labels tell; {unseen}"
        add(f"share of the {label}'s entropy that codes tell", values, "", what)
    values = {seed: each["information"]["length"]["median"] for seed, each in found.items()}
    add("median length of a segment", values, "steps", unseen)
    count = min(bench_metacontroller.STARTS, len(ground.starts))
    reach = f"{bench_metacontroller.REACH_STEPS} steps from where {count} held-out legs begin, not sticky"
    for name, (value, interval) in told.items():
        add(f"controllers {name}: the wanted place is reached", {0: value}, "", reach, interval=interval)
    what = f"first place reached in {bench_metacontroller.HOLD_STEPS} steps is the code's own, which the walk left for "
    what += "another at"
    for name, which in (("known", "states from where walks of the data go to both"), ("any", "the same place")):
        own = {seed: each[name] for seed, each in injected.items()}
        where = f"{what} {which}; {len(own[first].source)} situations"
        place = "a place that walks go to from there" if name == "known" else "a place"
        for who, side in (("with the code", 0), ("left alone", 1)):
            add(f"codes for {place}, {who}", {seed: each.agreement()[side] for seed, each in own.items()}, "", where)
    apart = {seed: total_variation(each["known"].steered, each["known"].left) for seed, each in injected.items()}
    for name, key in (("distance", "distance"), ("its noise floor", "floor")):
        values = {seed: each[key] for seed, each in apart.items()}
        add(f"injected codes, total variation: {name}", values, "", "first places with the code and without")
    bench_metacontroller.write_curve(folders, tried)
    return results


def internal_rl(workers: int) -> list[dict]:
    """Agents on tasks that no walk shows, each trained on one core; the walks' and the clone's cost is not counted, the
    same for all."""
    since = time.perf_counter()
    found = reinforcement.everything(reinforcement.TASKS, reinforcement.COMPARED, workers)
    results = reinforced("internal_rl", reinforcement.TASKS, found, since)
    what = f"held for at most {reinforcement.LEG_STEPS} steps: a code from the prior; the best of "
    what += f"{reinforcement.CODES_TRIED}, chosen on selection seeds, where any code was played too; the controller "
    what += "that was told the place in training. Seeds: of the metacontroller"
    for leg, by_seed in found.legs.items():
        for held, arrived in by_seed[0].items():
            protocol = {"experiment": "internal_rl", "what": what, "sticky": 0.25, "episodes": len(arrived)}
            rows = zip(reinforcement.SEEDS, by_seed, strict=True)
            rates = {seed: float(each[held].mean()) for seed, each in rows if held in each}
            changes = {"interval": bootstrap_interval(arrived)} if len(rates) == 1 else {}
            results.append(record(f"{leg}, {held}: arrives", rates, "", protocol, 0, since, **changes))
    reinforcement.write_curve("internal_rl", found.folders)
    reinforcement.ship(found.folders)
    return results


def from_reset(workers: int) -> list[dict]:
    """The same agents from a real reset, and the steps after which they fail half and a quarter as often as the
    clone."""
    since, tasks = time.perf_counter(), reinforcement.FROM_RESET
    found = reinforcement.everything(tasks, reinforcement.FROM_RESET_COMPARED, workers)
    results = reinforced("from_reset", tasks, found, since)
    for (task, agent), folders in found.folders.items():
        failure = 1 - float(found.won[task, "the clone"].mean())
        finals = [runs.read_final(folder) for folder in folders.values()]
        steps, upstream, seconds = (sum(final[cost] for final in finals) for cost in COSTS)
        for share, word in ((0.5, "halve"), (0.25, "quarter")):
            reached = {
                seed: reinforcement.steps_to(folder, 1 - share * failure) or tasks[task]["total_steps"]
                for seed, folder in folders.items()
            }
            what = f"training episodes, mean of {reinforcement.LATEST} updates; {tasks[task]['total_steps']:,} if never"
            protocol = {"experiment": "from_reset", "what": what, "sticky": 0.25, "the clone's failures": failure}
            name, cost = f"{task} from reset, {agent}: steps to {word} the clone's failures", {"wall_s": seconds}
            results.append(record(name, reached, "steps", protocol, steps, since, upstream_steps=upstream, **cost))
    reinforcement.write_curve("from_reset", found.folders)
    return results


def reinforced(experiment: str, tasks: dict[str, dict], found: reinforcement.Reinforced, since: float) -> list[dict]:
    """The success of every agent on every task, on evaluation seeds."""
    results = []
    for (task, agent), won in found.won.items():
        asked = tasks[task]
        begun = "begun where a walk arrives" if asked["places"] else "from reset, 0 to 30 no-ops"
        what = f"reward at the end; one life of at most {asked['max_steps']} steps, {begun}"
        protocol = {"experiment": experiment, "what": what, "places": asked["places"], "sticky": 0.25}
        protocol |= {"episodes": won.shape[1]}
        title = f"Unseen way over {task}" if asked["places"] else f"{task} from reset"
        name = f"{title}, {agent}: success"
        if agent in reinforcement.UNTRAINED:
            changes = {"interval": bootstrap_interval(won[0])}
            results.append(record(name, {0: float(won.mean())}, "", protocol, 0, since, **changes))
            continue
        folders = found.folders[task, agent]
        finals = [runs.read_final(folder) for folder in folders.values()]
        protocol |= {"learning rate": reinforcement.settings(**reinforcement.AGENTS[agent] | asked).learning_rate}
        steps, upstream, seconds = (sum(final[cost] for final in finals) for cost in COSTS)
        own = dict(zip(folders, won.mean(1).tolist(), strict=True))
        cost = {"wall_s": seconds, "upstream_steps": upstream}
        results.append(record(name, own, "", protocol, steps, since, **cost))
    return results


def robustify(workers: int) -> list[dict]:
    """Policies from demos, then played from reset: those of several seeds trained side by side, the others one by one
    with all cores."""
    since, folders, results = time.perf_counter(), {}, []
    for agent, (trainings, seeds) in bench_robustify.AGENTS.items():
        if len(seeds) > 1:
            folders |= bench_robustify.side_by_side({agent: (trainings, seeds)}, workers)
        else:
            folders[agent] = {seed: bench_robustify.train(trainings, seed, workers) for seed in seeds}
        goal, first = trainings[0].get("goal", 100), trainings[0]
        games = {seed: bench_robustify.played(made[-1], goal, workers) for seed, made in folders[agent].items()}
        costs = [bench_robustify.cost(made) for made in folders[agent].values()]
        steps, upstream, seconds = (sum(parts) for parts in zip(*costs, strict=True))
        shown = runs.read_final(folders[agent][0][-1])["demos"]
        trained = f"policy after {costs[0][0]:,} steps on {shown} demo{'s' * (shown > 1)}"
        chosen = "; ".join(
            f"seed {seed}: likeliest {game['trials'][True]:.2f}, drawn {game['trials'][False]:.2f}"
            for seed, game in games.items()
        )
        trial = bench_robustify.trial(goal)
        trial = f"{trial.episodes} selection episodes of {trial.max_frames // 4} steps"
        chosen = f"the better on {trial}, by seed: {chosen}"
        wanted = "key" if goal == 100 else f"{goal} points"
        for place, scores in (("first life", "first_life_scores"), ("whole game", "scores")):
            protocol = {"experiment": "robustify", "what": trained, "actions": chosen} | games[0]["protocol"]
            if len(seeds) > 1:
                minutes = ", ".join(f"{bench_robustify.cost(made)[2] / 60:.1f} min" for made in folders[agent].values())
                protocol["trainings side by side"] = minutes
            if "begin_with" in first:
                protocol |= {"begins with": Path(first["begin_with"]).stem, "self-imitation": first["imitation"]}
            scored = {seed: np.array(game[scores], float) for seed, game in games.items()}
            won = {seed: (of_games >= goal).astype(float) for seed, of_games in scored.items()}
            for name, values, unit in (
                (f"{wanted} in the {place}", won, ""),
                (f"{place.replace(' ', '-')} score (mean)", scored, "points"),
            ):
                means = {seed: float(of_games.mean()) for seed, of_games in values.items()}
                cost = {"wall_s": seconds, "upstream_steps": upstream}
                if len(seeds) == 1:  # no interval over seeds: over episodes
                    cost["interval"] = bootstrap_interval(values[seeds[0]])
                name = f"Robustified, {agent}: {name}"
                results.append(record(name, means, unit, dict(protocol), steps, since, **cost))
    bench_robustify.write_curve("robustify", folders)
    bench_robustify.ship(folders)
    return results


def ablations(workers: int) -> list[dict]:
    """The first key robustified with one thing changed, three seeds each; and demos replayed at the wrong frameskip.

    `workers` trainings side by side, a core each; then the policies with nothing changed from reset, 17 minutes of a
    core each.
    """
    since, results = time.perf_counter(), []
    common = {"experiment": "ablations", "sticky": 0.25, "noop_max": 30, "frames_per_action": 4}
    common["side by side"] = f"{workers} trainings, a core each; wall-clock is the sum of three"
    steps = {"total_steps": bench_robustify.ABLATION_STEPS}
    agents = {name: ([changes | steps], range(3)) for name, changes in bench_robustify.ABLATIONS.items()}
    trained = bench_robustify.side_by_side(agents, workers)
    for name, made in trained.items():
        folders = {seed: folder for seed, (folder,) in made.items()}
        found = {seed: bench_robustify.ablation(folder) for seed, folder in folders.items()}
        finals = [runs.read_final(folder) for folder in folders.values()]
        steps, seconds = (sum(final[cost] for final in finals) for cost in ("steps", "wall_s"))
        for label, key, unit, what in (
            ("starts back at reset", "steps", "steps", f"{bench_robustify.ABLATION_STEPS:,} if never"),
            (
                "key from reset, late in training",
                "won",
                "",
                "last 100,000 steps: training seeds, drawn actions, one life",
            ),
        ):
            values = {seed: float(ablation[key]) for seed, ablation in found.items()}
            protocol = common | {"what": what}
            results.append(record(f"Ablation, {name}: {label}", values, unit, protocol, steps, since, wall_s=seconds))
        if name != bench_robustify.PLAIN:
            continue
        games = {seed: bench_robustify.played(folder, 100, workers) for seed, folder in folders.items()}
        took = ", ".join(f"{final['wall_s'] / 60:.1f} min" for final in finals)
        commits = ", ".join(sorted({final["commit"] for final in finals}))
        for place, scores in (("first life", "first_life_scores"), ("whole game", "scores")):
            values = {seed: bench_robustify.share(game[scores], 100) for seed, game in games.items()}
            protocol = common | {"trainings, a core each": took, "trained at commit": commits} | games[0]["protocol"]
            label = f"Ablation, {name}: key in the {place}"
            results.append(record(label, values, "", protocol, steps, since, wall_s=seconds))
    points = dict(enumerate(bench_robustify.mismatched_points()))
    protocol = {
        "experiment": "ablations",
        "what": "replay of ten demos, each action held for 1 frame; per_seed: by demo",
    }
    results.append(record("Ablation, wrong frameskip: points of a demo's replay", points, "points", protocol, 0, since))
    bench_robustify.write_curve("ablations", trained)
    return results


def rnd(workers: int) -> list[dict]:
    """One training of PPO + RND; what is there of it is taken as it is."""
    since, seed = time.perf_counter(), 0
    folder = bench_rnd.train(seed, workers)
    final = runs.read_final(folder)
    runs.write_curve("rnd", bench_rnd.learning_curve(seed, folder))
    runs.write_curve("rnd_rooms", bench_rnd.room_curve(seed, folder))
    runs.write_curve("rnd_way", bench_rnd.way_curve(seed, folder))
    reached = final["first_points_step"]
    protocol = {"what": "the best of its milestones on selection seeds, from reset", **final["protocol"]}
    protocol |= {"first points in training": f"not in {final['steps']:,} steps" if reached is None else reached}
    wanted = (
        ("whole-game score (mean)", final["mean"], final["interval"], "points"),
        ("first-life score (mean)", final["first_life_mean"], final["first_life_interval"], "points"),
        ("key in the whole game", *share(final["first_keys"]), ""),
        ("rooms, most in an episode", final["rooms_max"], [final["rooms_max"]] * 2, "rooms"),
        ("best score of a training episode", final["best_score"], [final["best_score"]] * 2, "points"),
    )
    return [
        record(f"PPO + RND: {name}", {seed: value}, unit, {"experiment": "rnd"} | protocol, final["steps"], since)
        | {"interval": interval, "wall_s": final["wall_s"]}
        for name, value, interval, unit in wanted
    ]


EXPERIMENTS = {
    "first_key": first_key,
    "explore_speed": explore_speed,
    "five_million": five_million,
    "other_games": other_games,
    "hundred_million": hundred_million,
    "open_loop": open_loop,
}
EXPERIMENTS |= {"pinpad": pinpad, "pinpad_anywhere": partial(pinpad, world="pinpad_anywhere")}
EXPERIMENTS |= {"cloning": cloning, "metacontroller": metacontroller}
EXPERIMENTS |= {"speeds": speeds, "internal_rl": internal_rl, "from_reset": from_reset}
EXPERIMENTS |= {"robustify": robustify, "rnd": rnd, "ablations": ablations}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    for name in given.names:
        results = EXPERIMENTS[name](given.workers)
        runs.write_result(name, results)
        for result in results:
            print(f"{result['name']}: {result['value']:,.4g} {result['unit']}, 95 % {result['interval']}")


if __name__ == "__main__":
    main()
