"""Cell functions: what the archive takes for the same place.

A cell function maps the emulator, just after a step, to a hashable bytes key, or to None for a state that leads
nowhere (the player is already dying). Write your own: any `function(emulator) -> bytes | None` in an importable
module, named "module:function", will do.
"""

import functools
import importlib
from collections.abc import Callable

import numpy as np

from mzlib.emulator import SCREEN_SHAPE, Emulator

CellFunction = Callable[[Emulator], bytes | None]


@functools.cache
def area_weights(size: int, cells: int) -> np.ndarray:
    """(cells, size) float32 integers: how much of each of `size` pixels lies in each of `cells` equal parts, times
    `cells`."""
    weights = np.zeros((cells, size), np.float32)
    for unit in range(size * cells):  # a pixel is `cells` units wide, a part `size` units
        weights[unit // size, unit // cells] += 1
    return weights


def downscaled(emulator: Emulator, width: int = 11, height: int = 8, depth: int = 8) -> bytes:
    """The gray screen, averaged over width x height areas, each floor(mean * depth / 255) (Ecoffet et al. 2019,
    section 2.1).

    Sums are of integers below 2**24, so float32 holds them exactly: the same screen gives the same cell on every
    machine.
    """
    rows, columns = SCREEN_SHAPE
    screen = emulator.screen.astype(np.float32)
    sums = area_weights(rows, height) @ screen @ area_weights(columns, width).T
    return (sums.astype(np.int64) * depth // (255 * rows * columns)).astype(np.uint8).tobytes()


def domain(emulator: Emulator) -> bytes | None:
    """Montezuma's (level, keys, room, x // 16, y // 16) from RAM (Ecoffet et al. 2021, Methods); None while dying."""
    facts = emulator.facts
    if facts.dying:
        return None
    return bytes((facts.level, facts.keys, facts.room, facts.x // 16, facts.y // 16))


NAMED = {"downscaled": downscaled, "domain": domain}


def cell_function(name: str) -> CellFunction:
    """The cell function called `name`: downscaled, domain, or "module:function" for your own; ValueError if there is
    none."""
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
