"""One Atari emulator: step, observe, save, load, and what its memory says about the game.

A *step* is one action held for `frames_per_action` emulator frames, each frame one `act` call; what is observed is the
maximum of the step's last two frames, since sprites flicker at 30 Hz.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ale_py
import cv2
import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode

from mzlib.trajectory import FRAME_SHAPE

GAMES = ("montezuma_revenge", "pitfall", "private_eye")
ACTIONS = (  # in the emulator's own order
    *("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT"),
    *("UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE", "DOWNLEFTFIRE"),
)
NOOP = 0
FRAMES_PER_ACTION = 4
SCREEN_SHAPE = (210, 160)
TILE, FRAME_TILE = (5, 40), (2, 21)  # a tile of the screen makes one of the frame
NO_TILES = (42, 0, 4, 0)  # top, bottom, left, right of an empty rectangle of tiles: any union with it is the other

# Luminance of the 128 NTSC colours, by half the palette index that `getScreen` returns: `getScreenGrayscale` without
# its cost.
NTSC_GRAY = (
    *(0, 74, 111, 142, 170, 192, 214, 236, 64, 95, 122, 148, 172, 193, 214, 233, 63, 87, 110, 131, 150, 167, 184, 199),
    *(59, 85, 107, 129, 148, 167, 183, 199, 44, 68, 90, 110, 128, 146, 161, 176, 51, 74, 95, 115, 132, 149, 164, 178),
    *(39, 63, 85, 107, 125, 143, 159, 174, 22, 49, 73, 96, 116, 136, 153, 169, 17, 41, 64, 85, 104, 121, 137, 153),
    *(32, 60, 85, 109, 130, 150, 168, 186, 40, 69, 95, 120, 141, 162, 182, 200, 43, 74, 101, 127, 151, 173, 193, 212),
    *(40, 71, 98, 124, 147, 169, 189, 207, 41, 74, 104, 132, 157, 181, 203, 223, 47, 79, 107, 133, 157, 179, 200, 220),
    *(47, 79, 107, 133, 157, 179, 200, 220),
)
GRAY = np.repeat(np.array(NTSC_GRAY, np.uint8), 2)

RNG_MARK = b"|last action|"  # ends a state that was saved with the sticky generator
STICKING_FRAMES = 12  # 0.25**12: the chance that none of so many frames takes the action

ALEInterface.setLoggerMode(LoggerMode.Error)


def rom_path(game: str) -> Path:
    """Path of the ROM that ale-py ships for `game`; ValueError for a game that the workbook does not cover."""
    if game not in GAMES:
        raise ValueError(f"game={game!r} is not covered; use one of {', '.join(GAMES)}")
    return Path(ale_py.roms.get_rom_path(game))


@functools.cache
def rom_md5(game: str) -> str:
    """MD5 of the ROM of `game`, as demo files record it."""
    return hashlib.md5(rom_path(game).read_bytes()).hexdigest()


class Snapshot(NamedTuple):
    """A full emulator state with what was seen in it, since the screen is stale after a restore."""

    state: bytes  # ALEState.serialize()
    screens: np.ndarray  # (2, 210, 160) uint8 palette indices of the last two emulator frames


class Facts(NamedTuple):
    """What Montezuma's memory says: where the player is and what she carries."""

    room: int
    x: int  # pixels, grows to the right; 77 at the start
    y: int  # pixels, grows upwards; 235 at the start
    level: int
    lives: int  # spare lives: 5 at the start
    keys: int
    dying: bool  # the death animation is running
    gates_open: bool  # the gates of light are off: 9 steps of every 32, in all rooms at once


ROOM_ADDRESS, X_ADDRESS, Y_ADDRESS, DYING_ADDRESS = 3, 42, 43, 55
LEVEL_ADDRESS, LIVES_ADDRESS, INVENTORY_ADDRESS, KEY_BITS = 57, 58, 65, 0x0E
GATES_ADDRESS = 83  # frames that the gates of light stay open for


def facts(ram: np.ndarray) -> Facts:
    """Read Montezuma's RAM.

    ram: (128,) uint8. The addresses are those of Ecoffet et al. 2021 (Methods), but for the gates', which we found by
    watching; all are checked against the screen by the tests.
    """
    ram = ram.tobytes()  # plain integers are quicker to take from bytes
    return Facts(
        room=ram[ROOM_ADDRESS],
        x=ram[X_ADDRESS],
        y=ram[Y_ADDRESS],
        level=ram[LEVEL_ADDRESS],
        lives=ram[LIVES_ADDRESS],
        keys=(ram[INVENTORY_ADDRESS] & KEY_BITS).bit_count(),
        dying=ram[DYING_ADDRESS] > 0,
        gates_open=ram[GATES_ADDRESS] > 0,
    )


def compiled(function: Callable) -> Callable:
    """A loop over pixels, compiled by Numba when it is first called: it takes a process 120 MB, which those that only
    read data can spare."""

    @functools.cache
    def machine_code() -> Callable:
        import numba

        return numba.njit(cache=True)(function)

    @functools.wraps(function)
    def call(*arguments):
        return machine_code()(*arguments)

    return call


@compiled
def look(screens: np.ndarray, words: np.ndarray, looked: np.ndarray, gray: np.ndarray) -> tuple[int, int, int, int]:
    """Bring `gray`, the maximum of two screens, up to date where they are others than those looked at before; return
    the rectangle of tiles (top, bottom, left, right) that holds the changes, NO_TILES if there are none.

    screens: (2, 210, 160) uint8 palette indices. words: the same memory, eight pixels a uint64. looked: like words, the
    screens of the last look. gray: (210, 160) uint8. The mean change is a sixth of the screen. Compiled: NumPy's `any`
    and `argmax` leave the processor's vector registers in a state in which the emulator runs 15 % slower (NumPy 2,
    AVX-512).
    """
    top, bottom, left, right = NO_TILES
    for row in range(words.shape[1]):
        changes = np.uint64(0)
        for word in range(words.shape[2]):
            changes |= (words[0, row, word] ^ looked[0, row, word]) | (words[1, row, word] ^ looked[1, row, word])
        if not changes:
            continue
        top, bottom = min(top, row // TILE[0]), row // TILE[0] + 1
        for word in range(words.shape[2]):
            if words[0, row, word] != looked[0, row, word] or words[1, row, word] != looked[1, row, word]:
                tile = 8 * word // TILE[1]
                left, right = min(left, tile), max(right, tile + 1)
                looked[0, row, word], looked[1, row, word] = words[0, row, word], words[1, row, word]
                for column in range(8 * word, 8 * word + 8):
                    gray[row, column] = max(GRAY[screens[0, row, column]], GRAY[screens[1, row, column]])
    return top, bottom, left, right


def pixels(rows: tuple[int, int], columns: tuple[int, int], tile: tuple[int, int]) -> tuple[slice, slice]:
    """A rectangle of tiles as slices of an image."""
    (top, bottom), (left, right), (height, width) = rows, columns, tile
    return slice(top * height, bottom * height), slice(left * width, right * width)


class Emulator:
    """An Atari 2600 running one game, restorable to any saved state.

    game: one of GAMES. seed: of the sticky-action generator, below 2**31. sticky: probability per emulator frame that
    the previous action is repeated instead of the given one (Machado et al. 2018, section 5.3); 0 makes the emulator
    deterministic. two_frame_maximum: whether a screen is the maximum of a step's last two frames, or the last alone.
    Raises ValueError for a parameter out of its range.
    """

    def __init__(
        self,
        game: str = "montezuma_revenge",
        seed: int = 0,
        sticky: float = 0.0,
        frames_per_action: int = FRAMES_PER_ACTION,
        two_frame_maximum: bool = True,
    ):
        if not 0 <= sticky < 1:
            raise ValueError(f"sticky={sticky}: a probability in [0, 1) is needed, such as 0.25")
        if frames_per_action < 1:
            raise ValueError(f"frames_per_action={frames_per_action}: at least 1 is needed, 4 is usual")
        self.game, self.sticky, self.frames_per_action = game, sticky, frames_per_action
        self.two_frame_maximum = two_frame_maximum
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky)
        self._screens = np.zeros((2, *SCREEN_SHAPE), np.uint8)
        self._words = self._screens.view(np.uint64)
        self._looked, self._gray = np.zeros_like(self._words), np.zeros(SCREEN_SHAPE, np.uint8)
        self._frame, self._to_resize = np.zeros(FRAME_SHAPE, np.uint8), NO_TILES
        self._ram = np.zeros(128, np.uint8)
        self._last_action = NOOP
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Load the ROM afresh with `seed`, the only way to seed the sticky generator (about 0.2 s)."""
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed={seed}: a seed from 0 to 2**31 - 1 is needed")
        self.seed = seed
        self._ale.setInt("random_seed", seed)
        self._ale.loadROM(rom_path(self.game))
        self._last_action = NOOP
        self._look_twice()

    def reset(self, noops: int = 0) -> None:
        """Start a new episode, then let `noops` raw frames pass; the sticky generator goes on from where it was."""
        self._ale.reset_game()
        self._last_action = NOOP
        self.wait(noops)

    def wait(self, frames: int) -> None:
        """Let `frames` raw emulator frames of NOOP pass."""
        for _ in range(frames):
            self._last_action = NOOP
            self._ale.act(NOOP)
        self._look_twice()

    def _look_twice(self) -> None:
        self._ale.getScreen(self._screens[0])
        self._screens[1] = self._screens[0]

    def step(self, action: int) -> int:
        """Hold `action` for `frames_per_action` frames; return the sum of their rewards (points)."""
        act = self._ale.act
        self._last_action = action
        reward = 0
        for _ in range(self.frames_per_action - 1):
            reward += act(action)
        self._ale.getScreen(self._screens[0])
        reward += act(action)
        self._ale.getScreen(self._screens[1])
        return reward

    def _look(self) -> None:
        """Bring the gray screen up to date."""
        seen = self._screens if self.two_frame_maximum else self._screens[[1, 1]]
        changed = look(seen, self._words, self._looked, self._gray)
        (top, bottom, left, right), before = changed, self._to_resize
        self._to_resize = min(top, before[0]), max(bottom, before[1]), min(left, before[2]), max(right, before[3])

    @property
    def screen(self) -> np.ndarray:
        """(210, 160) uint8: gray, the maximum of the last step's last two frames; else the last one.

        A buffer that the next look overwrites.
        """
        self._look()
        return self._gray

    @property
    def frame(self) -> np.ndarray:
        """(84, 84) uint8: the screen resized by area, what every model sees (Machado et al. 2018)."""
        self._look()
        top, bottom, left, right = self._to_resize
        if top < bottom:
            screen, frame = (pixels((top, bottom), (left, right), tile) for tile in (TILE, FRAME_TILE))
            size = (FRAME_TILE[1] * (right - left), FRAME_TILE[0] * (bottom - top))
            self._frame[frame] = cv2.resize(self._gray[screen], size, interpolation=cv2.INTER_AREA)
            self._to_resize = NO_TILES
        return self._frame.copy()

    def rgb(self) -> np.ndarray:
        """(210, 160, 3) uint8: the emulator's current picture in colour, for people; stale right after `load`."""
        return self._ale.getScreenRGB()

    @property
    def ram(self) -> np.ndarray:
        """(128,) uint8: the console's memory (a buffer that the next call overwrites)."""
        self._ale.getRAM(self._ram)
        return self._ram

    @property
    def facts(self) -> Facts:
        """Montezuma's facts in the current state; ValueError for another game."""
        if self.game != "montezuma_revenge":
            raise ValueError(f"game={self.game!r}: RAM facts are known for montezuma_revenge only")
        return facts(self.ram)

    @property
    def lives(self) -> int:
        """Lives left, the current one included."""
        return self._ale.lives()

    @property
    def game_over(self) -> bool:
        """Whether the whole game has ended; `step` does nothing then."""
        return self._ale.game_over()

    def save(self, include_rng: bool = False) -> Snapshot:
        """Save the full state; with `include_rng` also the sticky generator, so that sticky runs repeat identically."""
        return Snapshot(self.save_state(include_rng), self._screens.copy())

    def load(self, snapshot: Snapshot) -> None:
        """Return to a saved state, its screen included."""
        self.load_state(snapshot.state)
        self._screens[:] = snapshot.screens

    def save_state(self, include_rng: bool = False) -> bytes:
        """The state alone, without the screen, as ALEState.serialize() gives it (7.7 kB; 14.4 kB with the generator).

        With the generator one byte follows, the last action, which ALE leaves out of its states: a restored sticky
        emulator would repeat whatever it did before the restore. (If all four frames of the last step were stuck, 1
        step in 256 at 0.25, the action repeated is an older one, and the byte is wrong.)
        """
        state = self._ale.cloneState(include_rng=include_rng).serialize()
        return state + RNG_MARK + bytes((self._last_action,)) if include_rng else state

    def load_state(self, state: bytes, sticking_frames: int | None = None) -> None:
        """Return to a state given as bytes; the screen stays stale until the next `step`.

        With a sticky generator the last action is taken anew until it is the one that sticks: for `sticking_frames`
        (default 12), fewer of which are faster and wrong more often (4: in 0.4 % of states).
        """
        saved, mark, last_action = state.rpartition(RNG_MARK)
        self._ale.restoreState(ALEState(saved if mark else state))
        if mark:
            self._last_action = last_action[0]
            for _ in range(STICKING_FRAMES if sticking_frames is None else sticking_frames):
                self._ale.act(self._last_action)
            self._ale.restoreState(ALEState(saved))
