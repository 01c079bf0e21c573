"""Speeds as ratios, each against a reference measured in the same run: a table, and runs/bench.json.

Not in `__main__.py`: multiprocessing can't find a package's main module again in a spawned process.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode

from bench.human import agc_speed
from bench.internal_rl import rollout_efficiency
from bench.models import models
from bench.ppo_loop import ppo_steps_ratio
from bench.rnd import rnd_speed
from bench.training import cloning
from bench.vector import vecenv_ratio
from bench.viewer import viewer_redraw
from mzlib import runs
from mzlib.emulator import Emulator, rom_path
from mzlib.go_explore import GoExploreConfig, Search
from mzlib.go_explore.workers import random_actions

CONFIG = GoExploreConfig(total_steps=10**9)
ROUNDS = 40
HANDED_OUT_SECONDS = 0.5  # after which explorers have finished what they were given


def raw_loop(seed: int, connection: Connection) -> None:
    """The reference: nothing but four `act` calls an action, on the explorers' kind of action stream from the states
    that they return to (some rooms take the emulator longer than others), for as many seconds as asked.

    The next state's turn comes after `explore_steps` or with the game's end: a finished game's steps cost nothing.
    """
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(rom_path("montezuma_revenge"))
    rng, act, over = np.random.default_rng(seed), ale.act, ale.game_over
    connection.send("ready")
    while asked := connection.recv():
        seconds, states = asked
        episodes = [(ALEState(state), random_actions(rng, CONFIG).tolist()) for state in states]
        steps, since = 0, time.perf_counter()
        for state, actions in itertools.cycle(episodes):
            if time.perf_counter() > since + seconds:
                break
            ale.restoreState(state)
            for action in actions:
                act(action)
                act(action)
                act(action)
                act(action)
                steps += 1
                if over():
                    break
        connection.send(steps / (time.perf_counter() - since))


@contextmanager
def raw_loops(count: int) -> Iterator[list[Connection]]:
    """As many concurrent raw loops as there are explorers, waiting to be asked."""
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    loops = [context.Process(target=raw_loop, args=(seed, pipes[seed][1]), daemon=True) for seed in range(count)]
    for loop in loops:
        loop.start()
    connections = [here for here, _ in pipes]
    for connection in connections:
        connection.recv()
    yield connections
    for connection, loop in zip(connections, loops, strict=True):
        connection.send(None)
        loop.join()


def raw_speed(loops: list[Connection], seconds: float, states: list[bytes]) -> float:
    """Steps/s of all raw loops together, the states dealt out among them."""
    for i, loop in enumerate(loops):
        loop.send((seconds, states[i :: len(loops)]))
    return sum(loop.recv() for loop in loops)


def exploring_speed(search: Search, seconds: float) -> float:
    """Steps/s of a search under way; its explorers are as far into the next batch before as after."""
    for _ in range(3):  # the first takes in what was finished while the search stood still
        search.advance()
    since, before = time.perf_counter(), search.archive.steps
    while time.perf_counter() < since + seconds:
        search.advance()
    return (search.archive.steps - before) / (time.perf_counter() - since)


def explore_efficiency(cells: str, seconds: float) -> dict[str, dict]:
    """Exploring steps/s over raw steps/s: the median of short rounds in turn, the archive warmed up first.

    Short, because a machine's speed drifts within seconds when others use it too.
    """
    processes = os.cpu_count()
    exploring, raw, rng = [], [], np.random.default_rng(0)
    with Search(replace(CONFIG, cells=cells, workers=processes)) as search, raw_loops(processes) as loops:
        exploring_speed(search, seconds)
        for _ in range(ROUNDS):
            exploring.append(exploring_speed(search, seconds / 8))
            time.sleep(HANDED_OUT_SECONDS)
            picks = search.archive.select(rng, 40 * processes)
            states = [search.workers.explorer.unpack(pick.state) for pick in picks]
            raw.append(raw_speed(loops, seconds / 8, states))
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


def fill(search: Search, cells: int) -> None:
    """Fill the archive up to `cells` cells: copies of those that it has, under made-up keys."""
    archive = search.archive
    real = len(archive)
    copied = np.arange(cells) % real
    archive.columns = {name: archive.column(name)[copied] for name in archive.columns}
    for number, cell in enumerate(copied[real:].tolist(), start=real):
        key = archive.keys[cell] + number.to_bytes(4)
        archive.index[key] = number
        archive.keys.append(key)
        archive.states.append(bytes(bytearray(archive.states[cell])))  # a copy of its own
        archive.screens.append(b"")
    search.workers.tell({key: archive.standing(archive.index[key]) for key in archive.keys[real:]})


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True, text=True).stdout
    return 1024 * int(told)


def explore_scaling(
    seconds: float, processes: int | None = None, few: int = 10_000, many: int = 1_000_000
) -> dict[str, dict]:
    """Exploring steps/s with `many` cells over those with `few`, downscaled: the median of rounds in turn; and memory.

    The cells are made up (see `fill`), the exploring is real. Bytes a cell: resident memory over that of the few
    cells, less the packed states', in the main process and in each explorer. A checkpoint's time is given apart.
    """
    processes = processes or os.cpu_count()
    config = replace(CONFIG, cells="downscaled", workers=processes)
    with Search(config) as small, Search(config) as large:
        for search in (small, large):
            exploring_speed(search, seconds)
        fill(small, few)
        exploring_speed(large, 0)
        pids = [os.getpid(), *(process.pid for process in large.workers.processes)]
        begin, before, states = len(large.archive), [resident(pid) for pid in pids], sum(map(len, large.archive.states))
        fill(large, many)
        exploring_speed(large, 1)  # draws, and lets the explorers know
        added, states = len(large.archive) - begin, sum(map(len, large.archive.states)) - states
        grown = [resident(pid) - old for pid, old in zip(pids, before, strict=True)]
        speeds = {few: [], many: []}
        for _ in range(ROUNDS):
            for cells, search in ((few, small), (many, large)):
                speeds[cells].append(exploring_speed(search, seconds / 8))
                time.sleep(HANDED_OUT_SECONDS)
        with tempfile.TemporaryDirectory(prefix="mz_bench_") as folder:
            since = time.perf_counter()
            large.save(Path(folder) / "latest.npz")
            saving = time.perf_counter() - since
    rounds = [loaded / light for light, loaded in zip(*speeds.values(), strict=True)]
    result = {
        "explore_scaling": {
            "value": statistics.median(rounds),
            "unit": f"ratio, {many} cells to {few}",
            "reference": f"the same search with {few} cells",
            "rounds": rounds,
        },
        "cell_bytes": {
            "value": (grown[0] - states) / added,
            "unit": "bytes a cell beyond its packed state, main process",
        },
        "checkpoint_s": {"value": saving, "unit": f"s to save {many} cells"},
    }
    result |= {
        f"explore_steps_per_s_{cells}": {"value": statistics.median(speeds[cells]), "unit": "steps/s"}
        for cells in speeds
    }
    if grown[1:]:
        result["cell_bytes_explorer"] = {"value": max(grown[1:]) / added, "unit": "bytes a cell, in each explorer"}
    return result


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
    "explore_scaling": explore_scaling,
    "models": models,
    "cloning": cloning,
    "vecenv": vecenv_ratio,
    "ppo": ppo_steps_ratio,
    "rollout": rollout_efficiency,
    "viewer": viewer_redraw,
    "rnd": rnd_speed,
    "agc": agc_speed,
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
