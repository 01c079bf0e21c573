"""Dynamic downscaled cells: width, height and depth are chosen anew from recent screens as the search goes on."""

import math
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mzlib.emulator import SCREEN_SHAPE
from mzlib.go_explore.cells import levels
from mzlib.go_explore.log import pack_blobs, unpack_blobs

TARGET = 0.125  # cells a screen of the sample
SAMPLE = 4_000  # screens, one of each of the last episodes; 10,000 in the paper, which asks for 2.5 times the cells
TRIES = 200  # 3,000 in the released settings
FIRST_STEP = 10_000  # of the first recut, as in the released settings
MOST_CELLS = 50_000  # more than which are recut at once
LIMITS = (32, 42, 255)  # of width, height and depth: areas of 5x5 pixels cost as much as the emulator's step


class Cut(NamedTuple):
    """How screens are cut into cells: areas across, areas down, levels of gray."""

    width: int = 11
    height: int = 8
    depth: int = 8


def pack_screen(screen: np.ndarray) -> bytes:
    """Compress a (210, 160) uint8 screen, to some 0.6 kB."""
    return zlib.compress(screen.tobytes(), 6)


def unpack_screen(packed: bytes) -> np.ndarray:
    """The screen that `pack_screen` compressed."""
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(SCREEN_SHAPE)


def keys(screens: Iterable[np.ndarray], cut: Cut) -> list[bytes]:
    """The keys that `cells.downscaled` gives to these screens."""
    return [levels(screen, *cut).tobytes() for screen in screens]


def rekeyed(screens: Iterable[bytes], cut: Cut) -> list[bytes]:
    """The key of each packed screen under `cut`."""
    return keys(map(unpack_screen, screens), cut)


def objective(counts: Sequence[int], target: float = TARGET) -> float:
    """H_n / sqrt(|n/T - 1| + 1) of screens that fall into n cells, so many into each; the larger, the better.

    H_n: entropy over log n, 0 for a single cell. T: the wanted number of cells, `target` a screen.
    (Ecoffet et al. 2021, Methods, "Downscaling parameters".)
    """
    shares = np.array(counts, np.float64) / sum(counts)
    if len(shares) == 1:
        return 0.0
    entropy = -float((shares * np.log(shares)).sum()) / math.log(len(shares))
    return entropy / math.sqrt(abs(len(shares) / (target * sum(counts)) - 1) + 1)


def best_cut(screens: Sequence[bytes], rng: np.random.Generator, cut: Cut, tries: int = TRIES) -> Cut:
    """The best cut by `objective` of `tries` ones for packed screens, `cut` the first.

    Each is drawn around the best so far: geometric distributions whose means are its numbers plus 1, which leave a 1
    again.
    """
    unpacked = [unpack_screen(screen) for screen in screens]

    def value(one: Cut) -> float:
        return objective(list(Counter(keys(unpacked, one)).values()))

    best, highest, tried = cut, value(cut), {cut}
    for _ in range(tries):
        drawn = (min(int(rng.geometric(1 / (mean + 1))), limit) for mean, limit in zip(best, LIMITS, strict=True))
        if (one := Cut(*drawn)) in tried:
            continue
        tried.add(one)
        if (now := value(one)) > highest:
            best, highest = one, now
    return best


class Recutting:
    """When the cells are cut anew, and how: the recent screens, the present cut and when the next is due."""

    def __init__(self, seed: int, every: int):
        """every: steps between two cuts. The first comes after FIRST_STEP, from few screens and so a coarse one; until
        `every` is reached the next comes when the steps have doubled."""
        self.seed, self.every = seed, every
        self.cut, self.number = Cut(), 0  # cuts so far
        self.next_step, self.most_cells = min(FIRST_STEP, every), MOST_CELLS
        self.recent: deque[bytes] = deque(maxlen=SAMPLE)

    def due(self, steps: int, cells: int) -> bool:
        """Whether it is time for a new cut: enough steps since the last, or too many cells."""
        return bool(self.recent) and (steps >= self.next_step or cells > self.most_cells)

    def choose(self) -> Cut:
        """The next cut, from the recent screens."""
        self.number += 1
        self.cut = best_cut(self.recent, np.random.default_rng((self.seed, 2**33, self.number)), self.cut)
        return self.cut

    def chosen(self, steps: int, cells: int) -> None:
        """The archive has been cut anew, into so many cells: a quarter more than which are too many, if MOST_CELLS
        are not."""
        self.next_step, self.most_cells = steps + min(self.every, steps), max(MOST_CELLS, cells * 5 // 4)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds of it."""
        return {
            "cut": np.array([*self.cut, self.number, self.next_step, self.most_cells], np.int64),
            **pack_blobs("recent", list(self.recent)),
        }

    def restore(self, arrays) -> None:
        """Take back what `to_arrays` gave."""
        *cut, self.number, self.next_step, self.most_cells = arrays["cut"].tolist()
        self.cut = Cut(*cut)
        self.recent.extend(unpack_blobs("recent", arrays))
