"""A training killed again and again: `python -m bench.kills` writes data/results/cloning_durability.json.

Nothing is written unless each kill (-9) falls into a training under way, each start after one goes on from a
checkpoint, and the last ends with the metrics, row for row, and the weights of the one never killed.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mzlib import runs

SMALL = {"device": "cpu", "demo_limit": 6, "seq_len": 16, "stride": 3, "batch_size": 4, "epochs": 90.0, "workers": 1}
CHECKPOINT = 500  # gradient steps between checkpoints, those of mzlib.runs.train
LOGGED = 200  # gradient steps between rows


def command(folder: Path) -> subprocess.Popen:
    """`python -m mzlib.bc` as a user starts it, on one thread."""
    arguments = [sys.executable, "-m", "mzlib.bc", "--profile", "smoke", "--folder", str(folder)]
    arguments += [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    environment = os.environ | {"MZ_RUNS": str(folder.parent), "CI": "true", "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(arguments, cwd=runs.REPO, env=environment, stdout=log, stderr=log)


def rows_of(folder: Path) -> list[dict]:
    """The logged rows without their seconds."""
    rows = runs.read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "wall_s"} for row in rows]


def step_of(folder: Path) -> int:
    """The step logged last."""
    return max((row["step"] for row in rows_of(folder)), default=0) if (folder / "metrics.jsonl").exists() else 0


def watch(process: subprocess.Popen, folder: Path, resumed: bool, after: int) -> None:
    """Wait until a step beyond `after` is logged, or the process ends. RuntimeError if a `resumed` training has dropped
    the rows before its checkpoint: it began anew."""
    while process.poll() is None:
        step = step_of(folder)
        if resumed and step < CHECKPOINT - LOGGED:
            raise RuntimeError(f"back at step {step}: the training began anew, not from its checkpoint")
        if step > after:
            return
        time.sleep(0.02)


def drill(kills: int, seed: int) -> int:
    """Train once undisturbed, once killed so many times at random moments; its steps. RuntimeError if it shows."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="mz_kills_") as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        if command(whole).wait():
            raise RuntimeError(f"the training ended early: {whole.with_suffix('.log').read_text().splitlines()[-1]}")
        last = step_of(whole)
        for number, after in enumerate(
            np.sort(rng.integers(CHECKPOINT, last - 2 * CHECKPOINT, kills)).tolist(), start=1
        ):
            process = command(killed)
            watch(process, killed, number > 1, after)
            time.sleep(rng.uniform(0, 1))
            if process.poll() is not None:
                raise RuntimeError(f"kill {number}: the training had ended; see {killed.with_suffix('.log').name}")
            process.kill()
            process.wait()
            print(f"kill {number} after step {step_of(killed):,}", flush=True)
        process = command(killed)
        watch(process, killed, True, last)
        if process.wait():
            raise RuntimeError(f"the resumed training ended early: {killed.with_suffix('.log').read_text()[-300:]}")
        if rows_of(whole) != rows_of(killed):
            raise RuntimeError("killed and resumed, the training logged other metrics")
        if (whole / "backbone.safetensors").read_bytes() != (killed / "backbone.safetensors").read_bytes():
            raise RuntimeError("killed and resumed, the training came to other weights")
        return step_of(whole)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description="Kill a training again and again.")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args()
    since = time.perf_counter()
    steps = drill(given.kills, given.seed)
    what = "a small cloning killed (-9) at random moments and resumed: metrics and weights as if never killed"
    record = {
        "name": "Cloning: kills survived without a trace",
        "value": given.kills,
        "unit": "kills",
        "interval": [given.kills, given.kills],
        "per_seed": {str(given.seed): given.kills},
        "protocol": {"what": what, "gradient steps": steps},
        "steps": 0,
        "upstream_steps": 0,
        "wall_s": round(time.perf_counter() - since, 1),
        "machine": runs.machine(),
        "command": f"python -m bench.kills --kills {given.kills} --seed {given.seed}",
        "commit": runs.git_commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    runs.write_result("cloning_durability", [record])


if __name__ == "__main__":
    main()
