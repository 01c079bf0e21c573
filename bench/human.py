"""Speed of converting human play: against a plain loop in one process, as anyone would write it first."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from mzlib import agc, demos
from mzlib.runs import data_dir

COPIES = 16  # of one trajectory of some 5,000 frames, the length of a human's
ROUNDS = 3


def plain_convert(root: Path, folder: Path) -> None:
    """The reference: every screen read, made gray; of each four rows the last two screens' maximum, shrunk; no checks,
    no deaths, no alignment."""
    folder.mkdir(parents=True)
    for text in sorted(Path(root, "trajectories", agc.GAME).glob("*.txt")):
        rows = [[int(cell) for cell in line.split(",")] for line in text.read_text().splitlines()[2:]]
        screens = Path(root, "screens", agc.GAME, text.stem)
        gray = []
        frames, actions, rewards = [], [], []
        for i, row in enumerate(rows):
            gray.append(cv2.cvtColor(cv2.imread(str(screens / f"{i}.png")), cv2.COLOR_BGR2GRAY))
            if i % 4 == 0:
                frames.append(cv2.resize(np.max(gray[-2:], axis=0), (84, 84), interpolation=cv2.INTER_AREA))
                gray.clear()
            if i % 4 == 3:
                actions.append(row[4])
                rewards.append(sum(one[1] for one in rows[i - 3 : i + 1]))
        np.savez(folder / text.stem, frames=np.array(frames), actions=np.array(actions), rewards=np.array(rewards))


def seconds_of(call: Callable[[Path], object]) -> float:
    """How long a call takes that writes into a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mz_bench_") as scratch:
        since = time.perf_counter()
        call(Path(scratch) / "out")
        return time.perf_counter() - since


def written(root: Path, copies: int, steps: int | None = None) -> int:
    """Write copies of one trajectory (its PNGs as hard links); frames in all."""
    demo = demos.load(data_dir("demos", "rooms", "five_million.npz"))[1]
    demo = demos.from_actions(demo.actions[:steps], seed=demo.seed, noops=demo.noops)
    agc.export(demo, root, 0)
    text, screens = Path(root, "trajectories", agc.GAME), Path(root, "screens", agc.GAME)
    for number in range(1, copies):
        (text / f"{number}.txt").write_bytes((text / "0.txt").read_bytes())
        (screens / str(number)).mkdir()
        for png in (screens / "0").iterdir():
            os.link(png, screens / str(number) / png.name)
    return copies * (4 * len(demo) + 1)


def agc_speed(seconds: float, steps: int | None = None) -> dict[str, dict]:
    """The whole conversion, its checks, deaths, alignment test and checksums included, over the plain loop: with a
    process a core, and with one; the median of rounds in turn. `seconds` is not used: a round is as long as it is."""
    cores = os.cpu_count()
    times = {"plain": [], "one": [], "all": []}
    with tempfile.TemporaryDirectory(prefix="mz_bench_") as scratch:
        frames = written(Path(scratch), COPIES, steps)
        for _ in range(ROUNDS):
            times["plain"].append(seconds_of(lambda out: plain_convert(Path(scratch), out)))
            times["one"].append(seconds_of(lambda out: agc.convert(Path(scratch), out, workers=1)))
            times["all"].append(seconds_of(lambda out: agc.convert(Path(scratch), out, workers=cores)))
    found = {}
    for name, key in (("agc_conversion_ratio", "all"), ("agc_per_core_ratio", "one")):
        rounds = [plain / ours for plain, ours in zip(times["plain"], times[key], strict=True)]
        reference = f"plain loop in one process, {frames} frames; {cores if key == 'all' else 1} processes here"
        found[name] = {"value": statistics.median(rounds), "unit": "ratio", "reference": reference, "rounds": rounds}
    speed = {"value": frames / statistics.median(times["all"]), "unit": "frames/s"}
    return found | {"agc_frames_per_s": speed}
