"""Speeds as ratios, each against a reference measured in the same run: a table, and runs/bench.json.

Not in `__main__.py`: multiprocessing can't find a package's main module again in a spawned process.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
from ale_py import ALEInterface, LoggerMode

from mzlib import runs
from mzlib.emulator import Emulator, rom_path
from mzlib.go_explore import GoExploreConfig, Search
from mzlib.go_explore.workers import random_actions

CONFIG = GoExploreConfig(total_steps=10**9)


def raw_loop(seconds: float, seed: int, barrier, counts) -> None:
    """The reference: nothing but four `act` calls an action, on the explorer's kind of action stream.

    A game that is over goes on from its restored first state at once: a reset would cost as much as a dozen steps, and
    steps of a finished game cost nothing.
    """
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(rom_path("montezuma_revenge"))
    start = ale.cloneState()
    stream = random_actions(np.random.default_rng(seed), replace(CONFIG, explore_steps=20_000)).tolist()
    barrier.wait(timeout=60)
    end, steps = time.perf_counter() + seconds, 0
    act, over = ale.act, ale.game_over
    while time.perf_counter() < end:
        for action in stream[steps % 20_000 : steps % 20_000 + 100]:
            act(action)
            act(action)
            act(action)
            act(action)
            if over():
                ale.restoreState(start)
        steps += 100
    counts.put(steps)


def raw_speed(seconds: float, processes: int) -> float:
    """Steps/s of as many concurrent raw loops as there are explorers."""
    context = get_context("spawn")
    barrier, counts = context.Barrier(processes), context.Queue()
    loops = [
        context.Process(target=raw_loop, args=(seconds, seed, barrier, counts), daemon=True)
        for seed in range(processes)
    ]
    for loop in loops:
        loop.start()
    steps = sum(counts.get(timeout=seconds + 60) for _ in loops)
    for loop in loops:
        loop.join()
    return steps / seconds


def exploring_speed(search: Search, seconds: float) -> float:
    """Steps/s of a search under way."""
    search.advance()
    since, before = time.perf_counter(), search.archive.steps
    while time.perf_counter() < since + seconds:
        search.advance()
    return (search.archive.steps - before) / (time.perf_counter() - since)


def explore_efficiency(cells: str, seconds: float) -> dict[str, dict]:
    """Exploring steps/s over raw steps/s, the median of three rounds in turn, the archive warmed up first."""
    processes = os.cpu_count()
    exploring, raw = [], []
    with Search(replace(CONFIG, cells=cells, workers=processes)) as search:
        exploring_speed(search, 2 * seconds)
        for _ in range(3):
            raw.append(raw_speed(seconds, processes))
            exploring.append(exploring_speed(search, seconds))
        size = statistics.mean(map(len, search.archive.states))
        cells_known = len(search.archive)
    rounds = [ours / bare for ours, bare in zip(exploring, raw, strict=True)]
    efficiency = {
        "value": statistics.median(rounds),
        "unit": "ratio",
        "reference": "concurrent raw 4x act loops",
        "rounds": rounds,
    }
    headline = {"explore_efficiency": efficiency} if cells == "downscaled" else {}
    return headline | {
        f"explore_efficiency_{cells}": efficiency,
        f"explore_steps_per_s_{cells}": {"value": statistics.median(exploring), "unit": "steps/s"},
        f"raw_steps_per_s_{cells}": {"value": statistics.median(raw), "unit": "steps/s"},
        f"state_bytes_{cells}": {"value": size, "unit": f"bytes a cell, packed ({cells_known} cells)"},
    }


def microseconds(call, seconds: float) -> float:
    """Mean time of a call."""
    since, calls = time.perf_counter(), 0
    while time.perf_counter() < since + seconds:
        call()
        calls += 1
    return 1e6 * (time.perf_counter() - since) / calls


def emulator_costs(seconds: float) -> dict[str, dict]:
    """What a step and a look cost in one process, for information."""
    emulator = Emulator()
    state = emulator.save_state()
    calls = {"emulator_step": lambda: emulator.step(0), "frame": lambda: emulator.frame}
    calls |= {"facts": lambda: emulator.facts, "save": emulator.save_state, "load": lambda: emulator.load_state(state)}
    return {f"{name}_us": {"value": microseconds(call, seconds / 5), "unit": "us"} for name, call in calls.items()}


BENCHES = {
    "emulator": emulator_costs,
    "explore_downscaled": lambda seconds: explore_efficiency("downscaled", seconds),
    "explore_domain": lambda seconds: explore_efficiency("domain", seconds),
}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=BENCHES, action="append", help="may be repeated")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    given = parser.parse_args(argv)
    results = {}
    for name in given.only or BENCHES:
        found = BENCHES[name](given.seconds)
        results |= found
        for key, result in found.items():
            rounds = " ".join(f"{ratio:.2f}" for ratio in result.get("rounds", []))
            print(f"{key:>32}  {result['value']:12,.3f}  {result['unit']}  {rounds}".rstrip(), flush=True)
    report = {"results": results, "machine": runs.machine(), "commit": runs.git_commit()}
    runs.write_atomic(runs.runs_root() / "bench.json", json.dumps(report, indent=1) + "\n")
