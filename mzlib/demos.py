"""Demonstrations as files of actions: record, save, load, verify by replay, shorten and clean.

A demo holds no frames: the emulator replays them. It starts in a freshly loaded ROM with its `seed` set before loading,
waits `noops` raw frames (or loads `state`), then takes its actions. With sticky actions on, the seed fixes which are
stuck.
"""

import io
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError  # NumPy parses array headers with tokenize

import ale_py
import numpy as np

from mzlib.emulator import FRAMES_PER_ACTION, GAMES, NOOP, Emulator, rom_md5
from mzlib.runs import atomic_path, data_dir, given_path, in_processes, runs_root
from mzlib.trajectory import ACTION_COUNT, Trajectory


@dataclass(frozen=True)
class Demo:
    """One demonstration; compared by value of all but its arrays."""

    actions: np.ndarray  # (T,) uint8
    rewards: np.ndarray  # (T,) int32, points
    game: str = "montezuma_revenge"
    seed: int = 0
    noops: int = 0  # raw frames before the first action
    sticky: float = 0.0
    frames_per_action: int = FRAMES_PER_ACTION
    state: bytes | None = None  # initial emulator state, where it isn't the game's start
    goals: np.ndarray | None = None  # (T,) int16
    source: str = "demo"

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def score(self) -> int:
        """Sum of the rewards, in points."""
        return int(self.rewards.sum())


def start(demo: Demo) -> Emulator:
    """An emulator in which the demo's first action is next."""
    emulator = Emulator(demo.game, demo.seed, demo.sticky, demo.frames_per_action)
    emulator.wait(demo.noops)
    if demo.state is not None:
        emulator.load_state(demo.state)
    return emulator


def replay(demo: Demo) -> Iterator[tuple[Emulator, int, int]]:
    """Play the demo; after each step yields (emulator, action, reward), the emulator showing what followed."""
    emulator = start(demo)
    for action in demo.actions.tolist():
        reward = emulator.step(action)
        yield emulator, action, reward


def verify(demo: Demo) -> None:
    """Replay the demo; ValueError naming the first differing step and both scores unless every reward is as stored."""
    rewards = np.array([reward for _, _, reward in replay(demo)], np.int32)
    if not np.array_equal(rewards, demo.rewards):
        step = int(np.argmax(rewards != demo.rewards))
        raise ValueError(
            f"{demo.source}: replay differs at step {step} (reward {rewards[step]}, stored {demo.rewards[step]}): "
            f"score {rewards.sum()} in replay, {demo.score} in the file; make the demo again with this ale-py"
        )


def verify_all(demos: Sequence[Demo], workers: int | None = None) -> None:
    """`verify` every demo, in parallel processes; ValueError for the first that fails."""
    for _ in in_processes(verify, demos, workers):
        pass


def record(demo: Demo) -> Trajectory:
    """Replay the demo into a Trajectory with frames, lives and RAM; ValueError if its rewards differ."""
    frames, lives, ram, rewards = [], [], [], []
    for emulator, _, reward in replay(demo):
        frames.append(emulator.frame)
        lives.append(emulator.lives)
        ram.append(emulator.ram.copy())
        rewards.append(reward)
    if rewards != demo.rewards.tolist():
        verify(demo)
    return Trajectory(
        actions=demo.actions,
        rewards=np.array(rewards, np.float32),
        frames=np.array(frames),
        lives=np.array(lives, np.uint8),
        source=demo.source,
        frames_per_action=demo.frames_per_action,
        ram=np.array(ram),
        goals=demo.goals,
    )


def from_actions(actions: np.ndarray, **settings) -> Demo:
    """A demo of these actions, the rewards taken from a replay; `settings` are Demo's other fields."""
    demo = Demo(np.asarray(actions, np.uint8), np.zeros(len(actions), np.int32), **settings)
    return replace(demo, rewards=np.array([reward for _, _, reward in replay(demo)], np.int32))


SCALARS = ("game", "rom_md5", "ale_py", "frames_per_action", "sticky")
ARRAYS = ("actions", "rewards", "offsets", "score", "seed", "noops")


def save(path: Path, demos: Sequence[Demo]) -> None:
    """Write demos of one game and one emulator setting to a demo file, in one step; ValueError if they differ in
    these."""
    first = demos[0]
    settings = {"game": first.game, "frames_per_action": first.frames_per_action, "sticky": first.sticky}
    for demo in demos:
        for name, value in settings.items():
            if getattr(demo, name) != value:
                raise ValueError(
                    f"{path.name}: {name} is {value} in one demo, {getattr(demo, name)} in another; use two files"
                )
    arrays = {
        "actions": np.concatenate([demo.actions for demo in demos]).astype(np.uint8),
        "rewards": np.concatenate([demo.rewards for demo in demos]).astype(np.int32),
        "offsets": np.cumsum([0, *map(len, demos)], dtype=np.int64),
        "score": np.array([demo.score for demo in demos], np.int32),
        "seed": np.array([demo.seed for demo in demos], np.int64),
        "noops": np.array([demo.noops for demo in demos], np.int32),
        **settings,
        "rom_md5": rom_md5(first.game),
        "ale_py": ale_py.__version__,
    }
    if any(demo.state is not None for demo in demos):
        states = [demo.state or b"" for demo in demos]
        arrays["state"] = np.frombuffer(b"".join(states), np.uint8)
        arrays["state_offsets"] = np.cumsum([0, *map(len, states)], dtype=np.int64)
    if any(demo.goals is not None for demo in demos):
        goals = [np.full(len(demo), -1) if demo.goals is None else demo.goals for demo in demos]
        arrays["goals"] = np.concatenate(goals).astype(np.int16)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load(path: Path) -> list[Demo]:
    """Read a demo file and check it against itself and this machine's ROM (not by replay: see `verify`).

    ValueError, in one line naming the file: not a demo file, truncated, an inconsistent array, another ROM, a score
    that is not the sum of its rewards. FileNotFoundError if it isn't there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path.name}: no such demo file; data/demos/ holds the shipped ones")
    try:
        content = path.read_bytes()
        if content[:2] != b"PK":
            raise ValueError("no .npz archive")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, RuntimeError, TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name}: damaged or not a demo file ({error}); fetch it again") from error
    missing = [name for name in (*ARRAYS, *SCALARS) if name not in arrays]
    if missing:
        raise ValueError(f"{path.name}: not a demo file, {missing[0]!r} is missing; write it with mzlib.demos.save")
    check_arrays(path.name, arrays)
    offsets = arrays["offsets"].tolist()
    demos = []
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        state = None
        if "state" in arrays:
            state_begin, state_end = arrays["state_offsets"][i : i + 2].tolist()
            state = arrays["state"][state_begin:state_end].tobytes() or None
        demo = Demo(
            actions=arrays["actions"][begin:end],
            rewards=arrays["rewards"][begin:end],
            game=str(arrays["game"]),
            seed=int(arrays["seed"][i]),
            noops=int(arrays["noops"][i]),
            sticky=float(arrays["sticky"]),
            frames_per_action=int(arrays["frames_per_action"]),
            state=state,
            goals=arrays["goals"][begin:end] if "goals" in arrays else None,
            source=f"{path.name}#{i}",
        )
        if demo.score != arrays["score"][i]:
            raise ValueError(
                f"{demo.source}: score {arrays['score'][i]}, but its rewards sum to {demo.score}; fetch it again"
            )
        demos.append(demo)
    return demos


def check_arrays(name: str, arrays: dict[str, np.ndarray]) -> None:
    """ValueError naming the first array of a demo file that doesn't fit the others or this machine."""
    game = str(arrays["game"])
    if game not in GAMES:
        raise ValueError(f"{name}: game {game!r} is not covered; this workbook plays {', '.join(GAMES)}")
    if str(arrays["rom_md5"]) != rom_md5(game):
        raise ValueError(f"{name}: made with another ROM of {game} (md5 {arrays['rom_md5']}, here {rom_md5(game)})")
    for array, dtype in (("actions", np.uint8), ("rewards", np.int32)):
        if arrays[array].dtype != dtype or arrays[array].ndim != 1:
            raise ValueError(
                f"{name}: {array} is {arrays[array].dtype} {arrays[array].shape}; a row of {dtype.__name__} is needed"
            )
    for array in ("offsets", "score", "seed", "noops", "goals", "state_offsets", "frames_per_action"):
        if array in arrays and arrays[array].dtype.kind not in "iu":
            raise ValueError(f"{name}: {array} is {arrays[array].dtype}; integers are needed; fetch it again")
    for scalar, fits in (("frames_per_action", lambda n: n >= 1), ("sticky", lambda p: 0 <= p < 1)):
        value = arrays[scalar]
        if value.shape != () or value.dtype.kind not in "iuf" or not fits(value):
            raise ValueError(f"{name}: {scalar} is {value}; fetch it again")
    offsets, steps = arrays["offsets"], len(arrays["actions"])
    if (
        offsets.ndim != 1
        or len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != steps
        or (np.diff(offsets) <= 0).any()
    ):
        raise ValueError(f"{name}: offsets must rise from 0 to the number of actions, {steps}; fetch it again")
    if steps and arrays["actions"].max() >= ACTION_COUNT:
        raise ValueError(f"{name}: action {arrays['actions'].max()}; actions are 0 to {ACTION_COUNT - 1}")
    lengths = {"rewards": steps, "goals": steps} | dict.fromkeys(("score", "seed", "noops"), len(offsets) - 1)
    if ("state" in arrays) != ("state_offsets" in arrays):
        raise ValueError(f"{name}: state and state_offsets go together; one is missing")
    if "state_offsets" in arrays:
        lengths["state_offsets"] = len(offsets)
    for array, length in lengths.items():
        if array in arrays and arrays[array].shape != (length,):
            raise ValueError(f"{name}: {array} has shape {arrays[array].shape}, ({length},) is needed; fetch it again")
    if (arrays["seed"] < 0).any() or (arrays["seed"] >= 2**31).any() or (arrays["noops"] < 0).any():
        raise ValueError(f"{name}: a seed outside 0 to 2**31 - 1, or negative noops; fetch it again")
    if "state_offsets" in arrays:
        ends = arrays["state_offsets"]
        if ends[0] != 0 or ends[-1] != len(arrays["state"]) or (np.diff(ends) < 0).any():
            raise ValueError(
                f"{name}: state_offsets must rise from 0 to the size of state, {len(arrays['state'])}; fetch it again"
            )


class Tape:
    """A demo's replay kept step by step, so that a change of its actions is tried from where it begins.

    `states[t]` is the emulator's state before action t; `views[t]` is what step t led to: (reward, RAM facts).
    """

    def __init__(self, demo: Demo, emulator: Emulator | None = None):
        self.demo = demo
        if emulator is None:
            self.emulator = start(demo)
        else:  # one of the same settings, for a demo with a state: saves loading the ROM
            self.emulator = emulator
            emulator.load_state(demo.state)
        self.actions: list[int] = []
        self.views: list[tuple] = []
        self.states = [self._state()]
        self.steps = 0  # emulator steps taken, the cost
        self.splice(0, demo.actions.tolist())

    def _state(self) -> bytes:
        return self.emulator.save_state(include_rng=self.demo.sticky > 0)

    def step(self, action: int) -> tuple:
        """Take one step from where the emulator is; returns its view."""
        self.steps += 1
        return (self.emulator.step(action), self.emulator.facts)

    def splice(self, at: int, actions: Sequence[int]) -> None:
        """Replace all from step `at` on by `actions`."""
        self.emulator.load_state(self.states[at])
        del self.actions[at:], self.views[at:], self.states[at + 1 :]
        for action in actions:
            self.views.append(self.step(action))
            self.actions.append(action)
            self.states.append(self._state())

    def to_demo(self) -> Demo:
        """The demo of the actions now on the tape."""
        rewards = np.array([reward for reward, _ in self.views], np.int32)
        return replace(self.demo, actions=np.array(self.actions, np.uint8), rewards=rewards)


def shorten(demo: Demo, budget: int = 20_000) -> Demo:
    """Leave out what the way does not need: loops first, then blocks of 16 to 2 actions, wherever the replay still
    scores.

    The result has at least the demo's score, loses no life that the demo keeps and ends with its last reward.
    `budget` is in emulator steps; with sticky actions the generator's draws shift too, so the replay decides there as
    well.
    """
    tape = Tape(demo)
    lives = tape.views[-1][1].lives

    def attempt(at: int, rest: list[int]) -> bool:
        """Keep the first `at` actions, then take `rest`: if that scores as much, it becomes the tape."""
        tape.emulator.load_state(tape.states[at])
        score = sum(reward for reward, _ in tape.views[:at])
        for count, action in enumerate(rest, start=1):
            reward, facts = tape.step(action)
            score += reward
            if facts.dying or facts.lives < lives:
                return False
            if score >= demo.score:
                tape.splice(at, rest[:count])
                return True
        return False

    def place(t: int) -> tuple:
        facts = tape.views[t][1]
        return (facts.room, facts.x, facts.y, facts.keys)

    t = 0
    while t < len(tape.actions) and tape.steps < budget:
        again = [u for u in range(len(tape.actions) - 1, t, -1) if place(u) == place(t)]
        for u in again[:3]:
            if attempt(t + 1, tape.actions[u + 1 :]):
                break
        t += 1
    for size in (16, 8, 4, 2):
        t = 0
        while t + size < len(tape.actions) and tape.steps < budget:
            if not attempt(t, tape.actions[t + size :]):
                t += size
    return tape.to_demo()


def clean(demo: Demo, emulator: Emulator | None = None, names: Sequence[int] = ()) -> Demo:
    """Replace every action that changes nothing about the way by the previous one, or else by NOOP.

    An action is replaced if the replay then keeps the same RAM facts (position, room, lives, keys) and reward at
    every later step: what stays is what a clone has to learn. emulator: see `Tape`. With `names` each action becomes
    the first of them that does as well, so that it follows from the state; from the last step back, since a button
    let go at one step alone would be pressed anew at the next.
    """
    tape = Tape(demo, emulator)

    def same_way(t: int, action: int) -> bool:
        """Try `action` at step t, until the emulator's whole state is the old one again or the demo ends."""
        tape.emulator.load_state(tape.states[t])
        states = []
        for u in range(t, len(tape.actions)):
            if tape.step(action if u == t else tape.actions[u]) != tape.views[u]:
                return False
            states.append(tape._state())
            if states[-1] == tape.states[u + 1]:
                break
        tape.states[t + 1 : t + 1 + len(states)] = states
        tape.actions[t] = action
        return True

    steps = range(len(tape.actions))
    for t in reversed(steps) if names else steps:
        for action in names or (tape.actions[t - 1] if t else NOOP, NOOP):
            if action == tape.actions[t] or same_way(t, action):
                break
    return tape.to_demo()


def upstream(which: str, profile: str) -> list[Demo]:
    """The demos a notebook builds on: "shipped" reads data/demos, "run" the best of the same profile's 05_go_explore
    run; or a demo file.

    FileNotFoundError if there are none, ValueError for another word; never the one in place of the other.
    """
    if which == "shipped":
        paths = sorted(data_dir("demos").glob("*.npz"))
        if not paths:
            raise FileNotFoundError("data/demos/ holds no demo file; fetch the repository again")
        return [demo for path in paths for demo in load(path)]
    if which == "run":
        path = runs_root() / profile / "05_go_explore" / "best.npz"
        if not path.exists():
            raise FileNotFoundError(
                f"demos='run': runs/{profile}/05_go_explore has no best.npz; run that notebook first"
            )
        return load(path)
    if which.endswith(".npz"):
        return load(given_path(which))
    raise ValueError(f"demos={which!r}: use 'shipped', 'run' or a .npz file")


def recorded() -> list[Demo]:
    """The games that the reader has recorded (`runs/mine/`, see mzlib.viz.play_yourself); FileNotFoundError if there
    are none."""
    paths = sorted((runs_root() / "mine").glob("*.npz"))
    if not paths:
        raise FileNotFoundError("source='mine': runs/mine holds no recorded game; play one in notebook 01")
    return [demo for path in paths for demo in load(path)]
