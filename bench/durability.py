"""A search killed again and again, checked after each kill: `python -m bench.durability` writes
data/results/go_explore_durability.json.

The kills take turns: kill -9 of the main process at a random moment, of an explorer, and of the main process while it
writes a checkpoint. Nothing is written unless after each all processes end by themselves, the checkpoint loads, it
holds the score that the search never killed had at that step, its best way replays to that score, and no more was lost
than is searched between two checkpoints; and in the end the archive equals that of the search never killed, and the
ways to its DONE cell and its best cells replay to their scores.
"""

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mzlib import runs
from mzlib.go_explore import Archive, Best, GoExploreConfig, Search, demo_of
from mzlib.runs.folders import read_metrics

PATIENCE = 20  # seconds that orphaned explorers have to notice
KINDS = ("main process", "explorer", "main process, writing a checkpoint")
TOP = 100  # cells whose ways are replayed in the end


class Stage:
    """The search as a user starts it: `python -m mzlib.go_explore` in a process group of its own."""

    def __init__(self, config: GoExploreConfig, folder: Path):
        command = [sys.executable, "-m", "mzlib.go_explore", "--profile", "smoke", "--folder", str(folder)]
        for name in ("cells", "total_steps", "seed", "checkpoint_every", "workers"):
            command += ["--set", f"{name}={getattr(config, name)}"]
        environment = os.environ | {"MZ_RUNS": str(folder.parent), "CI": "true"}
        self.folder, self.checkpoint = folder, folder / "checkpoints" / "latest.npz"
        self.log = folder.with_suffix(".log")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, cwd=runs.REPO, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_) -> None:
        for process in self.members():
            os.kill(process, signal.SIGKILL)
        self.process.wait()

    def members(self) -> list[int]:
        """The living processes of the group: the main one, explorers, multiprocessing's resource tracker."""
        table = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], check=True, capture_output=True, text=True)
        rows = [line.split() for line in table.stdout.splitlines()]
        return [int(pid) for pid, group, state in rows if int(group) == self.process.pid and state[0] != "Z"]

    def finish(self) -> None:
        """Wait for a regular end; RuntimeError with the last line it said if it is another."""
        if self.process.wait():
            raise RuntimeError(f"the search ended with {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        return (self.log.read_text().strip().splitlines() or ["(nothing)"])[-1]

    def kill(self, delay: float, kind: str = KINDS[0]) -> tuple[int, float]:
        """kill -9 one process after `delay` seconds; (others in its group, seconds until all were gone).

        kind: of KINDS. A checkpoint is waited for from then on; with a single worker there is no explorer to kill, and
        the main process is taken.
        """
        try:
            self.process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            pass
        else:
            raise RuntimeError(
                f"the search ended before its kill, with {self.process.returncode}: {self.last_words()}; "
                "if it was finished, give it more --steps"
            )
        others = len(self.members()) - 1
        explorers = self.explorers() if kind == KINDS[1] else []
        while kind == KINDS[2] and not self.half_written() and self.process.poll() is None:
            time.sleep(0.0005)
        os.kill(explorers[0] if explorers else self.process.pid, signal.SIGKILL)
        since = time.perf_counter()
        while left := self.members():
            if time.perf_counter() > since + PATIENCE:
                raise RuntimeError(f"{len(left)} processes outlived the killed search by {PATIENCE} s")
            time.sleep(0.05)
        self.process.wait()
        return others, time.perf_counter() - since

    def half_written(self) -> list[Path]:
        """Files of a checkpoint that is being written, or was when the search was killed."""
        return list(self.checkpoint.parent.rglob(".*.tmp.npz"))

    def explorers(self) -> list[int]:
        """The living explorers: children that multiprocessing spawned for work."""
        told = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,args="], check=True, capture_output=True, text=True).stdout
        rows = [line.split(maxsplit=2) for line in told.splitlines()]
        return [int(pid) for pid, group, words in rows if int(group) == self.process.pid and "spawn_main" in words]


def check(stage: Stage, config: GoExploreConfig, score_steps: dict[int, int], before: int) -> dict:
    """Hold what a kill left against the search never killed; RuntimeError for what is lost or invented.

    score_steps: of the search never killed, each best score -> the step at which it was reached. before: steps of the
    checkpoint seen last.
    """
    logged = max((row["step"] for row in read_metrics(stage.folder / "metrics.jsonl")), default=0)
    steps = score = 0
    verified = None
    if stage.checkpoint.exists():
        with Search.load(stage.checkpoint, replace(config, workers=1)) as search:
            steps, score = search.archive.steps, max(search.archive.score_steps)
            demo = search.demo()  # raises if the replay tells another score
            verified = demo.score
            if verified != score:
                raise RuntimeError(f"step {steps}: the archive says {score} points, its best way is worth {verified}")
    expected = max((points for points, step in score_steps.items() if step <= steps), default=0)
    if steps < before:
        raise RuntimeError(f"the checkpoint went back from step {before} to {steps}")
    if score != expected:
        raise RuntimeError(f"step {steps}: {score} points, but the search never killed had {expected}")
    most = config.checkpoint_every + config.batch * config.explore_steps
    if logged - steps > most:
        raise RuntimeError(f"the log says step {logged}, the checkpoint {steps}: more than {most} lost")
    return {"steps": steps, "score": score, "verified": verified}


def replay_the_best(config: GoExploreConfig, archive: Archive, top: int) -> int:
    """Replay the ways to the DONE cell and to the `top` best cells; RuntimeError if one makes another score. How
    many."""
    score, length = archive.column("score"), archive.column("length")
    cells = np.lexsort((length, -score))[:top].tolist()
    ways = [Best(int(score[cell]), int(length[cell]), archive.node(cell)) for cell in cells]
    ways += [archive.done] if archive.done.length else []
    for way in ways:
        demo_of(config, archive, way)
    return len(ways)


def drill(config: GoExploreConfig, kills: int, seed: int, top: int = TOP) -> dict:
    """Search once undisturbed, once killed `kills` times at random moments and resumed; RuntimeError if it shows.

    Returns {kills, by_kind, half: kills that left a checkpoint half written, score, cells, steps, replayed: ways,
    gone_s: longest time until all processes had ended}.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="mz_durability_") as scratch:
        root = Path(scratch).resolve()
        since = time.perf_counter()
        with Stage(config, root / "whole") as whole:
            while not whole.checkpoint.exists() and whole.process.poll() is None:
                time.sleep(0.02)
            first = time.perf_counter() - since
            whole.finish()
        total = time.perf_counter() - since
        starting = max(0.0, first - total * config.checkpoint_every / config.total_steps)
        with Search.load(whole.checkpoint, replace(config, workers=1)) as search:
            score_steps = search.archive.score_steps
            result = {"kills": kills, "score": search.demo().score, "cells": len(search.archive)}
            result["steps"] = search.archive.steps
        print(f"undisturbed: {result['score']} points, {result['cells']} cells in {total:.1f} s", flush=True)
        before, slowest, by_kind, half = 0, 0.0, dict.fromkeys(KINDS, 0), 0
        for number in range(1, kills + 1):
            delay = rng.uniform(starting / 2, starting + 1.5 * (total - starting) / (kills + 2))
            kind = KINDS[(number - 1) % len(KINDS)]
            by_kind[kind] += 1
            with Stage(config, root / "killed") as stage:
                others, gone = stage.kill(delay, kind)
            half += bool(stage.half_written())
            left = check(stage, config, score_steps, before)
            before, slowest = left["steps"], max(slowest, gone)
            told = "no checkpoint yet" if left["verified"] is None else f"{left['verified']:5,} points, replayed"
            print(
                f"kill {number:2} after {delay:5.2f} s ({kind}): {others} other processes gone in {gone:.2f} s; "
                f"step {left['steps']:7,}, {told}",
                flush=True,
            )
        with Stage(config, root / "killed") as stage:
            stage.finish()
        with np.load(whole.checkpoint) as one, np.load(stage.checkpoint) as other:
            differing = [name for name in one.files if not np.array_equal(one[name], other[name])]
            if differing or one.files != other.files:
                raise RuntimeError(f"killed and resumed, the search came to other {', '.join(differing)}")
        with Search.load(stage.checkpoint, replace(config, workers=1)) as search:
            result |= {"replayed": replay_the_best(config, search.archive, top), "by_kind": by_kind, "half": half}
    print(
        f"killed {kills} times: the same archive in the end, array for array; "
        f"{half} checkpoints were left half written; {result['replayed']} ways replayed to their scores"
    )
    return result | {"gone_s": slowest}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description="Kill a search again and again.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120_000, help="of each of the two searches")
    parser.add_argument("--checkpoint-every", type=int, default=5_000, help="steps")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a core")
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the moments of the kills")
    given = parser.parse_args(argv)
    config = GoExploreConfig(
        cells="domain",
        total_steps=given.steps,
        seed=given.seed,
        checkpoint_every=given.checkpoint_every,
        workers=given.workers,
    )
    since = time.perf_counter()
    result = drill(config, given.kills, given.seed)
    protocol = {
        "what": "a search killed (-9) at random moments and resumed; it must end as the search never killed",
        "cells": config.cells,
        "kills": given.kills,
        "kills by kind": result["by_kind"],
        "kills that left a checkpoint half written": result["half"],
        "ways replayed in the end": result["replayed"],
        "steps": given.steps,
        "checkpoint_every": given.checkpoint_every,
        "checked after each kill": "explorers end, checkpoint loads, its score is the undisturbed search's, replayed",
        "score": result["score"],
        "longest until explorers ended, s": round(result["gone_s"], 2),
    }
    record = {
        "name": "Go-Explore: kills survived without a trace",
        "value": result["kills"],
        "unit": "kills",
        "interval": [result["kills"], result["kills"]],
        "per_seed": {str(given.seed): result["kills"]},
        "protocol": protocol,
        "steps": result["steps"],
        "upstream_steps": 0,
        "wall_s": round(time.perf_counter() - since, 1),
        "machine": runs.machine(),
        "command": f"python -m bench.durability --kills {given.kills} --steps {given.steps} --seed {given.seed}",
        "commit": runs.git_commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    runs.write_result("go_explore_durability", [record])


if __name__ == "__main__":
    main()
