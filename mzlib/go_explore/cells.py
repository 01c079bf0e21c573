"""Cell functions: what the archive takes for the same place.

A cell function maps the emulator, just after a step, to a hashable bytes key, or to None for a state that leads
nowhere (the player is already dying). Write your own: any `function(emulator) -> bytes | None` in an importable
module, named "module:function", will do.
"""

import importlib
from collections.abc import Callable

import numpy as np

from mzlib.emulator import Emulator, compiled

CellFunction = Callable[[Emulator], bytes | None]


@compiled
def levels(gray: np.ndarray, width: int, height: int, depth: int) -> np.ndarray:
    """(height * width,) uint8: floor(mean * depth / 255) of `gray` over each of width x height equal areas.

    gray: (rows, columns) uint8. A pixel that a cut passes through counts on both sides, by its shares. All in integers,
    so the same screen gives the same cell on every machine.
    """
    rows, columns = gray.shape
    bands = np.zeros((height + 1, columns), np.int32)  # sums over the rows of each area, times height
    for row in range(rows):
        area = row * height // rows
        share = min((area + 1) * rows - row * height, height)
        this, below = bands[area], bands[area + 1]
        for column in range(columns):
            this[column] += share * gray[row, column]
            below[column] += (height - share) * gray[row, column]
    found = np.zeros((height, width + 1), np.int64)  # sums over each area, times height * width
    for column in range(columns):
        area = column * width // columns
        share = min((area + 1) * columns - column * width, width)
        for band in range(height):
            found[band, area] += share * bands[band, column]
            found[band, area + 1] += (width - share) * bands[band, column]
    cells = np.empty((height, width), np.uint8)
    for band in range(height):
        for area in range(width):
            cells[band, area] = found[band, area] * depth // (255 * rows * columns)
    return cells.ravel()


def downscaled(emulator: Emulator, width: int = 11, height: int = 8, depth: int = 8) -> bytes:
    """The gray screen, averaged over width x height areas, each floor(mean * depth / 255) (Ecoffet et al. 2019,
    section 2.1)."""
    return levels(emulator.screen, width, height, depth).tobytes()


def domain(emulator: Emulator) -> bytes | None:
    """Montezuma's (level, keys, room, x // 16, y // 16) from RAM (Ecoffet et al. 2021, Methods); None while dying."""
    facts = emulator.facts
    if facts.dying:
        return None
    return bytes((facts.level, facts.keys, facts.room, facts.x // 16, facts.y // 16))


def gates(emulator: Emulator) -> bytes | None:
    """Domain cells, each twice: while the gates of light are open, and while they are closed.

    Without it the shortest way into a cell between two gates is one that comes too late to get out of it, and keeps
    out of the archive those that wait there.
    """
    cell = domain(emulator)
    return None if cell is None else cell + bytes([emulator.facts.gates_open])


NAMED = {"downscaled": downscaled, "dynamic": downscaled, "domain": domain, "gates": gates}  # dynamic: its first cut
RAM_CELLS = ("domain", "gates")  # from Montezuma's RAM


def cell_function(name: str) -> CellFunction:
    """The cell function called `name`: downscaled, dynamic, domain, gates, or "module:function" for your own;
    ValueError if there is none."""
    if name in NAMED:
        return NAMED[name]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(NAMED)
        raise ValueError(
            f"cells={name!r}: {error}; use {known} or 'module:function' of an importable module"
        ) from error
