"""What the screens tell that the files do not: spare lives, and whether actions and rewards stand in the right row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from mzlib.agc.files import Rows, Screens
from mzlib.emulator import ACTIONS

DEATH_FRAMES = 52  # from the first frame of the death animation to where she can act again
LAST_DEATH_FRAMES = 52  # from the last death's first frame to the game's end
HAT_ROWS, HAT_LEFT, HAT_WIDTH, HAT_SPACING, HATS = slice(15, 20), 56, 7, 8, 8
SCORE_ROWS, PLAY_ROWS = slice(5, 14), slice(50, None)
BRIGHT = 64  # luminance: the strip above the room is black but for hats and digits

LAGS = np.arange(-12, 9)  # rows
OWN_ACTION_LAG = -1.6  # the emulator's: what moves between screens i and i + 1 answers an action 1 or 2 rows earlier
OWN_REWARD_LAG = 1  # its digits change between the two screens after the one in whose row the reward stands
REWARD_REACH = 8  # rows on either side of a reward in which the digits are looked at
CHANGES, AROUND = 24, 6  # changes of direction looked at in each trajectory, and rows on either side of each
LEAST_PAIRS, LEAST = 400, 0.02  # pairs of screens; share of the motion's variance that some row's action must explain
SURE_PAIRS = 5_000  # pairs above which an offset of a row is no chance: 40 trajectories have some 6,000
TOP = 0.7  # the part of the curve, of its maximum, that does not tell where the maximum lies
DIRECTIONS = np.array([[("RIGHT" in a) - ("LEFT" in a), ("UP" in a) - ("DOWN" in a)] for a in ACTIONS])  # (18, 2)


def _hats() -> dict[bytes, int]:
    x = np.arange(160) - HAT_LEFT
    lit = [(x >= 0) & (x < HAT_SPACING * n) & (x % HAT_SPACING < HAT_WIDTH) for n in range(HATS)]
    return {row.tobytes(): n for n, row in enumerate(lit)}


HAT_PATTERNS = _hats()


def spare_lives(gray: np.ndarray) -> int | None:
    """The hats above the room, a spare life each, of a screen (210, 160); None where there is something else."""
    return HAT_PATTERNS.get((gray[HAT_ROWS].max(0) > BRIGHT).tobytes())


def motion(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Pixels to the right and upwards that what changed between two screens (h, w) has moved: for each direction the
    least-squares solution of the optical flow constraint over it (Lucas and Kanade 1981)."""
    before, after = before[PLAY_ROWS].astype(np.float32), after[PLAY_ROWS].astype(np.float32)
    change = after - before
    left, top, width, height = cv2.boundingRect((change != 0).astype(np.uint8))
    around = slice(max(top - 2, 0), top + height + 2), slice(max(left - 2, 0), left + width + 2)
    change, middle = change[around], (before[around] + after[around]) / 2
    if not width:
        return 0.0, 0.0
    near = cv2.dilate((change != 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    x, y = np.zeros_like(middle), np.zeros_like(middle)
    x[:, 1:-1], y[1:-1] = (middle[:, 2:] - middle[:, :-2]) / 2, (middle[:-2] - middle[2:]) / 2
    return tuple(float(-(slope * change)[near].sum() / (1 + np.square(slope)[near].sum())) for slope in (x, y))


def align(screens: Screens, rows: Rows) -> dict[str, list]:
    """What `Alignment.of` adds up, of one trajectory: sums of products by lag, and where digits change by a reward."""
    count = len(rows.actions)
    turns = np.flatnonzero(np.diff(DIRECTIONS[rows.actions], axis=0).any(1)) + 1
    turns = np.random.default_rng(0).permutation(turns)[:CHANGES]
    chosen = np.unique(turns[:, None] + np.arange(-AROUND, AROUND))
    chosen = chosen[(chosen >= -LAGS[0]) & (chosen < count - LAGS[-1])]
    gray = {i: screens.gray(i) for i in np.union1d(chosen, chosen + 1).tolist()}
    moved = np.array([motion(gray[i], gray[i + 1]) for i in chosen.tolist()]).reshape(-1, 2)
    sums = []
    for x, direction in zip(moved.T, DIRECTIONS.T, strict=True):
        y = direction[rows.actions[chosen[:, None] + LAGS]].astype(float)  # (pairs, lags)
        own = (np.full(len(LAGS), value) for value in (len(x), x.sum(), np.square(x).sum()))
        sums.append([*own, y.sum(0), np.square(y).sum(0), x @ y])
    lags = []
    for i in np.flatnonzero(rows.rewards).tolist():
        around = range(max(i - REWARD_REACH, 0), min(i + REWARD_REACH, count - 1))
        digits = [screens.gray(j)[SCORE_ROWS].tobytes() for j in (*around, around.stop)]
        changes = [j - i for j, one, two in zip(around, digits, digits[1:], strict=False) if one != two]
        lags += changes if len(changes) == 1 else []
    return {"actions": np.round(sums, 4).tolist(), "rewards": lags}


@dataclass(frozen=True)
class Alignment:
    """The inverse-dynamics test: which row's action explains best what moves between two screens, in how far.

    `action_offset` is what must be added to ConversionConfig.action_offset to set things right: 0 for rows as the
    emulator writes them, 1 if each action stands a row late. `reward_offset` likewise, from the digits of the score.
    None where there is too little to tell.
    """

    explained: np.ndarray  # (lags,) share of the motion's variance, by LAGS; mean of across and upwards
    reward_lags: np.ndarray  # (rewards,) rows from a reward to the change of the digits
    pairs: int

    @classmethod
    def of(cls, found: Iterable[Mapping[str, list]]) -> "Alignment":
        """The test over some trajectories' sums."""
        found = list(found)
        sums = sum((np.array(one["actions"]) for one in found), np.zeros((2, 6, len(LAGS))))
        n, x, xx, y, yy, xy = sums.transpose(1, 0, 2)  # (2, lags) each: across, upwards
        spread, shared = (n * xx - x * x) * (n * yy - y * y), np.maximum(n * xy - x * y, 0)
        explained = np.divide(shared**2, spread, out=np.zeros_like(spread), where=spread > 0).mean(0)
        return cls(explained, np.array([lag for one in found for lag in one["rewards"]], int), int(n[0, 0]))

    @property
    def action_offset(self) -> int | None:
        """Rows; None with few pairs of screens, or where no row's action explains enough of the motion."""
        if self.pairs < LEAST_PAIRS or self.explained.max() < LEAST:
            return None
        top = np.maximum(self.explained - TOP * self.explained.max(), 0)
        return round(float((top * LAGS).sum() / top.sum()) - OWN_ACTION_LAG)

    @property
    def reward_offset(self) -> int | None:
        """Rows; None where no reward changed the digits within sight."""
        if not len(self.reward_lags):
            return None
        lags, counts = np.unique(self.reward_lags, return_counts=True)
        return OWN_REWARD_LAG - int(lags[counts.argmax()])

    @property
    def remedy(self) -> str:
        """What is to be done about the offsets, in words; empty if nothing, or if the data are too few to be sure."""
        offsets = {"action": self.action_offset, "reward": self.reward_offset} if self.pairs >= SURE_PAIRS else {}
        told = (f"add {offset} to --{name}-offset" for name, offset in offsets.items() if offset)
        return ", ".join(told)
