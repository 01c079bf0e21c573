"""Cell functions: what the archive takes for the same place.

A cell function maps the emulator, just after a step, to a hashable bytes key, or to None for a state that leads
nowhere (the player is already dying). Write your own: any `function(emulator) -> bytes | None` in an importable
module, named "module:function", will do.
"""

import functools
import importlib
from collections.abc import Callable

import cv2
import numpy as np

from mzlib.emulator import SCREEN_SHAPE, Emulator

CellFunction = Callable[[Emulator], bytes | None]


@functools.cache
def area_weights(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """How to cut `size` pixels into `cells` equal parts by their running sum S (S[0] = 0): with (positions, weights),
    `weights @ S[positions]` is each part's sum times `cells`.

    positions: (2 cells + 2,), the pixel borders on both sides of each cut. weights: (cells, 2 cells + 2) int32.
    """
    whole, fraction = np.divmod(np.arange(cells + 1) * size, cells)  # a cut lies fraction/cells into pixel `whole`
    positions = np.stack([whole, np.minimum(whole + 1, size)], axis=1).ravel()
    at_cut = np.zeros((cells + 1, 2 * cells + 2), np.int32)
    at_cut[np.arange(cells + 1), np.arange(0, 2 * cells + 2, 2)] = cells - fraction
    at_cut[np.arange(cells + 1), np.arange(1, 2 * cells + 2, 2)] = fraction
    return positions, np.diff(at_cut, axis=0)


@functools.cache
def downscaling(width: int, height: int, depth: int) -> tuple[np.ndarray, ...]:
    """What `downscaled` needs: entries of the flat integral image, weights of rows and columns, thresholds of the
    depth levels."""
    rows, columns = SCREEN_SHAPE
    row_positions, row_weights = area_weights(rows, height)
    column_positions, column_weights = area_weights(columns, width)
    entries = row_positions[:, None] * (columns + 1) + column_positions
    thresholds = -(-np.arange(1, depth + 1) * 255 * rows * columns // depth)
    return entries, row_weights, column_weights.T, thresholds.astype(np.int32)


def downscaled(emulator: Emulator, width: int = 11, height: int = 8, depth: int = 8) -> bytes:
    """The gray screen, averaged over width x height areas, each floor(mean * depth / 255) (Ecoffet et al. 2019,
    section 2.1).

    All in integers, so the same screen gives the same cell on every machine. Plain products and a search instead of
    wide vector instructions (a float matrix product, a division): those slow the emulator's next step by 10 %.
    """
    entries, row_weights, column_weights, thresholds = downscaling(width, height, depth)
    sums = row_weights @ cv2.integral(emulator.screen).take(entries) @ column_weights
    return thresholds.searchsorted(sums, side="right").astype(np.uint8).tobytes()


def domain(emulator: Emulator) -> bytes | None:
    """Montezuma's (level, keys, room, x // 16, y // 16) from RAM (Ecoffet et al. 2021, Methods); None while dying."""
    facts = emulator.facts
    if facts.dying:
        return None
    return bytes((facts.level, facts.keys, facts.room, facts.x // 16, facts.y // 16))


NAMED = {"downscaled": downscaled, "dynamic": downscaled, "domain": domain}  # dynamic: its first cut


def cell_function(name: str) -> CellFunction:
    """The cell function called `name`: downscaled, dynamic, domain, or "module:function" for your own; ValueError if
    there is none."""
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
