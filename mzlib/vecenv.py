"""Many emulators in worker processes over shared memory, each episode from any given state.

    with VecEnv(VecEnvConfig(count=64, life_loss_ends=True)) as envs:
        envs.start([Start()] * 64)
        for i in range(64):
            envs.supply(i, Start())             # where the next episode begins
        rewards = envs.step(actions)            # or send(actions, 0), receive(0), the other half meanwhile
        for i in np.flatnonzero(envs.ended):
            envs.supply(i, Start())

An episode's end and the next one's beginning are one step: `frames`, `ram` and `lives` show what the next action
answers to, everything else tells of the step just taken and its episode. Actions and results go through shared memory,
which the operating system frees with the last process that uses it; a step costs one small message a worker and half.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import cv2
import numpy as np

from mzlib.emulator import (
    ACTIONS,
    FRAMES_PER_ACTION,
    GAMES,
    RNG_MARK,
    STICKING_FRAMES,
    Emulator,
)
from mzlib.places import Place
from mzlib.trajectory import FRAME_SIZE, STACK

ROW = np.dtype(  # one environment in shared memory
    [
        ("labels", np.int64),
        ("rewards", np.int32),
        ("scores", np.int32),
        ("lengths", np.int32),
        ("actions", np.uint8),
        ("ended", np.bool_),
        ("cause", np.uint8),
        ("succeeded", np.bool_),
        ("lives", np.uint8),
        ("ram", np.uint8, 128),
        ("frames", np.uint8, (STACK, FRAME_SIZE, FRAME_SIZE)),
    ],
    align=True,
)


class Cause(IntEnum):
    """Why an episode ended; where several hold at one step, the first."""

    IN_PLAY = 0
    GAME_OVER = 1
    LIFE_LOST = 2
    SUCCESS = 3
    LAGGING = 4
    LIMIT = 5


class Start(NamedTuple):
    """Where an episode begins, and what it is measured by."""

    state: bytes | None = None  # Emulator.save_state() without the generator, which runs on; None: a real reset
    frames: np.ndarray | None = None  # (4, 84, 84) uint8, oldest first: what was seen up to `state`
    noops: int = 0  # raw frames of NOOP before the first action
    targets: np.ndarray | None = None  # (n,) int32: points won in the demo's next 1, 2, … n steps; n reach success
    way: tuple[Place, ...] = ()  # places to be at one after the other; the last one is success (Montezuma)
    extra: int = 0  # steps that the episode goes on after success, at most
    label: int = 0  # the caller's own mark, comes back with each step of the episode

    def check(self) -> None:
        """ValueError unless an episode can begin here."""
        if (self.state is None) != (self.frames is None):
            raise ValueError("state and frames: give both (what was seen up to the state), or neither for a reset")
        if self.state is not None and RNG_MARK in self.state:
            raise ValueError("state holds the sticky generator, which would repeat itself; save it without")
        if self.frames is not None and self.frames.shape != ROW["frames"].shape:
            raise ValueError(f"frames: shape {self.frames.shape}, not {ROW['frames'].shape}")
        if self.targets is not None and not (self.targets.ndim == 1 and len(self.targets)):
            raise ValueError(f"targets: shape {self.targets.shape}; points after each of the demo's steps are needed")
        if self.way and self.targets is not None:
            raise ValueError("way and targets: success is the one or the other; give one of them")
        if self.noops < 0 or self.extra < 0:
            raise ValueError(f"noops={self.noops}, extra={self.extra}: 0 or more are needed")


@dataclass(frozen=True)
class VecEnvConfig:
    """What all environments have in common."""

    game: str = "montezuma_revenge"
    count: int = 128  # environments
    workers: int = field(default=0, metadata={"free": True})  # processes; 0: one a core
    seed: int = 0  # environment i has the sticky generator of seed + i
    sticky: float = 0.25
    frames_per_action: int = FRAMES_PER_ACTION
    two_frame_maximum: bool = True  # else frames show a step's last one alone, in which sprites flicker
    life_loss_ends: bool = False
    max_steps: int = 4_500  # of an episode
    lag: int | None = None  # steps by which an episode may win its points later than the demo; None: any

    def __post_init__(self):
        if self.game not in GAMES:
            raise ValueError(f"game={self.game!r} is not covered; use one of {', '.join(GAMES)}")
        for name, least in (("count", 1), ("workers", 0), ("seed", 0), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        if self.frames_per_action < 2:
            raise ValueError(
                f"frames_per_action={self.frames_per_action}: at least 2 are needed, "
                "since a restored emulator shows its picture only after a frame"
            )
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky={self.sticky}: a probability in [0, 1) is needed, such as 0.25")
        if self.lag is not None and self.lag < 0:
            raise ValueError(f"lag={self.lag}: steps, 0 or more, are needed, or None")


class VecEnv:
    """Environments that step together, or in two halves in turn.

    What the next action answers to (views of shared memory, which the next step overwrites):
    frames: (count, 4, 84, 84) uint8, the last four observations (see `Emulator.frame`), oldest first; after a reset
    the first one four times. ram: (count, 128) uint8. lives: (count,) uint8.

    What the last step did, and the episode that it belonged to: rewards: (count,) int32, points. ended: (count,) bool.
    cause: (count,) uint8, a `Cause`. succeeded: (count,) bool, the last target or place is reached. scores, lengths:
    (count,) int32, points and steps so far. labels: (count,) int64.

    An episode ends with the game, with a lost life (if `life_loss_ends`), `extra` steps after success, when it lags
    (at its step t its score is below the demo's `lag` steps earlier, targets[t - lag]; Salimans & Chen 2018), or after
    `max_steps`. `halves` are the two slices of environments.

    The same seed, starts and actions give the same frames whatever `workers` is. After a restored state the sticky
    generator runs on, and the first frame may repeat NOOP, as after a reset. Workers end with this process, however it
    ends. RuntimeError when one died.
    """

    def __init__(self, config: VecEnvConfig):
        self.config = config
        middle = (config.count + 1) // 2
        self.halves = (slice(0, middle), slice(middle, config.count))
        context = get_context("spawn")
        memory = context.RawArray("B", config.count * ROW.itemsize)  # an unlinked file: nothing to clean up
        self._rows = np.frombuffer(memory, ROW)
        for name in set(ROW.names) - {"actions"}:
            setattr(self, name, self._rows[name])
        self._supplied = np.zeros(config.count, bool)
        self._sent = [False, False]
        workers = min(config.workers or os.cpu_count(), config.count)
        self._members = [_members(self.halves, worker, workers) for worker in range(workers)]
        self._worker_of = {i: worker for worker in range(workers) for half in self._members[worker] for i in half}
        self._answers: list[set[int]] = [set() for _ in range(workers)]
        self._connections, self._processes = [], []
        for members in self._members:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, config, members, memory), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)

    def __enter__(self) -> "VecEnv":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; may be called again."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def start(self, starts: Sequence[Start]) -> None:
        """Begin an episode in every environment, dropping the ones in play; `frames`, `ram`, `lives` show them."""
        if len(starts) != self.config.count:
            raise ValueError(f"{len(starts)} starts for {self.config.count} environments: give one each")
        for i, start in enumerate(starts):
            self.supply(i, start)
        self._ask("begin", [()] * len(self._connections))
        self._supplied[:] = False

    def supply(self, i: int, start: Start) -> None:
        """Say where the next episode of environment i begins, in place of what was said before.

        To be done before the episode in play ends, best when the one before it has ended.
        """
        start.check()
        self._tell(self._worker_of[i], ("supply", i, start))
        self._supplied[i] = True

    def send(self, actions: np.ndarray, half: int | None = None) -> None:
        """Hand out the actions of a half (0 or 1; None: of all) and return at once. actions: (n,) integers."""
        halves = (0, 1) if half is None else (half,)
        for each in halves:
            if self._sent[each]:
                raise RuntimeError(f"half {each}: sent already; receive it first")
        part = slice(None) if half is None else self.halves[half]
        actions = np.asarray(actions)
        if actions.shape != self.rewards[part].shape:
            raise ValueError(f"actions: shape {actions.shape}, not {self.rewards[part].shape}")
        if actions.size and not 0 <= actions.min() <= actions.max() < len(ACTIONS):
            raise ValueError(f"actions from {actions.min()} to {actions.max()}: 0 to {len(ACTIONS) - 1} are known")
        self._rows["actions"][part] = actions
        for each in halves:
            self._sent[each] = True
        for worker in range(len(self._connections)):
            self._tell(worker, halves)

    def receive(self, half: int | None = None) -> np.ndarray:
        """Wait until the half (0 or 1; None: all) has stepped; returns its rewards, a view.

        RuntimeError when an episode ended and no start had been supplied, or when a worker has died: close it then.
        """
        for each in (0, 1) if half is None else (half,):
            if not self._sent[each]:
                raise RuntimeError(f"half {each}: nothing to receive; send its actions first")
            for worker, answers in enumerate(self._answers):
                while each not in answers:
                    answers.update(self._answer(worker))
                answers.remove(each)
            self._sent[each] = False
            part = self.halves[each]
            self._supplied[part] &= ~self.ended[part]
        return self.rewards if half is None else self.rewards[self.halves[half]]

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Take one step in every environment; returns `rewards`."""
        self.send(actions)
        return self.receive()

    @property
    def supplied(self) -> np.ndarray:
        """(count,) bool: the next episode's start is there."""
        return self._supplied.copy()

    def save(self) -> list[dict]:
        """All environments' full state, one dict of plain values and bytes each, which `torch.save` keeps.

        Going on and resuming from here are the same, sticky generators included. RuntimeError between send and
        receive.
        """
        saved = self._ask("save", [()] * len(self._connections))
        return [saved[self._worker_of[i]][i] for i in range(self.config.count)]

    def load(self, saved: Sequence[dict]) -> None:
        """Return to what `save` gave, in this or another VecEnv of the same configuration (`workers` aside)."""
        if len(saved) != self.config.count:
            raise ValueError(f"{len(saved)} saved environments for {self.config.count}: use the same count")
        shares = [({i: saved[i] for half in members for i in half},) for members in self._members]
        self._ask("load", shares)
        self._supplied[:] = [one["next"] is not None for one in saved]

    def _ask(self, what: str, arguments: list[tuple]) -> list:
        """Every worker's answer."""
        if any(self._sent):
            raise RuntimeError(f"half {self._sent.index(True)}: sent; receive it first")
        for worker, given in enumerate(arguments):
            self._tell(worker, (what, *given))
        return [self._answer(worker) for worker in range(len(arguments))]

    def _tell(self, worker: int, message: object) -> None:
        if self._connections[worker].closed:
            raise RuntimeError("the environments are closed; make a new VecEnv")
        try:
            self._connections[worker].send(message)
        except OSError as error:
            raise self._death(worker) from error

    def _answer(self, worker: int) -> object:
        try:
            answer = self._connections[worker].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    def _death(self, worker: int) -> RuntimeError:
        self._processes[worker].join(timeout=5)
        code = self._processes[worker].exitcode
        return RuntimeError(f"vector worker {worker} died (exit code {code}); resume from the last checkpoint")


def _members(halves: tuple[slice, slice], worker: int, workers: int) -> tuple[list[int], list[int]]:
    """The environments of each half that belong to a worker: it has the next half to do while one is acted on."""
    return tuple([i for i in range(half.start, half.stop) if i % workers == worker] for half in halves)


class Environment:
    """One emulator and the episode played on it, in a worker process; `row` is its part of the shared memory."""

    def __init__(self, config: VecEnvConfig, i: int, row: np.ndarray):
        self.config, self.i, self.row = config, i, row
        self.frames, self.ram = row["frames"], row["ram"]
        self.emulator = Emulator(
            config.game, config.seed + i, config.sticky, config.frames_per_action, config.two_frame_maximum
        )
        self.start, self.next = Start(), None
        self.emulator.reset()
        self.home, self.home_frame = self.emulator.save_state(), self.emulator.frame
        self.score = self.steps = 0
        self.succeeded_at: int | None = None
        self.lives = self.emulator.lives

    def begin(self) -> None:
        """Begin an episode at the supplied start."""
        if self.next is None:
            raise RuntimeError(
                f"environment {self.i}: its episode ended before the next start was there; "
                f"call supply({self.i}, start) whenever ended[{self.i}]"
            )
        self.start, self.next = self.next, None
        start, emulator = self.start, self.emulator
        if start.state is None and self.config.game != "montezuma_revenge":
            emulator.reset(start.noops)
            self.frames[:] = emulator.frame
        else:
            state, seen = (self.home, self.home_frame) if start.state is None else (start.state, start.frames)
            emulator.load_state(state)
            emulator.wait(STICKING_FRAMES)  # else the first frame may repeat what the episode before did last
            emulator.load_state(state)
            self.frames[:] = seen
            if start.noops:
                emulator.wait(start.noops)
                self._see()
                if start.state is None:
                    self.frames[:-1] = self.frames[-1]
        self.score = self.steps = 0
        self.succeeded_at = None
        self.lives = self.row["lives"] = emulator.lives
        self.ram[:] = emulator.ram

    def _see(self) -> None:
        """Move the stack on."""
        self.frames[:-1] = self.frames[1:]
        self.frames[-1] = self.emulator.frame

    def step(self) -> None:
        """Take the action that is in shared memory and write there what came of it."""
        row, emulator = self.row, self.emulator
        reward = emulator.step(int(row["actions"]))
        self.score += reward
        self.steps += 1
        lives = emulator.lives
        cause = self._cause(lives)
        row["rewards"], row["scores"], row["lengths"], row["labels"] = reward, self.score, self.steps, self.start.label
        row["cause"], row["ended"], row["succeeded"] = cause, cause > 0, self.succeeded_at is not None
        if cause:
            self.begin()
            return
        self.lives = row["lives"] = lives
        self.ram[:] = emulator.ram
        self._see()

    def _cause(self, lives: int) -> Cause:
        """Why the episode ends with this step, if it does."""
        config, targets, steps = self.config, self.start.targets, self.steps
        if targets is not None and self.succeeded_at is None and self.score >= targets[-1]:
            self.succeeded_at = steps
        if self.start.way and self._is_at(self.start.way[0]):
            self.start = self.start._replace(way=self.start.way[1:])
            self.succeeded_at = None if self.start.way else steps
        if self.emulator.game_over:
            return Cause.GAME_OVER
        if config.life_loss_ends and lives < self.lives:
            return Cause.LIFE_LOST
        if self.succeeded_at is not None:
            if steps - self.succeeded_at >= self.start.extra:
                return Cause.SUCCESS
        elif targets is not None and config.lag is not None:
            due = min(steps - 1 - config.lag, len(targets) - 1)
            if due >= 0 and self.score < targets[due]:
                return Cause.LAGGING
        return Cause.LIMIT if steps >= config.max_steps else Cause.IN_PLAY

    def _is_at(self, place: Place) -> bool:
        """Whether she is there, alive."""
        facts = self.emulator.facts
        return not facts.dying and place.holds(facts.room, facts.x, facts.y)

    def save(self) -> dict:
        """Plain values and bytes."""
        state = self.emulator.save_state(include_rng=True)
        self.emulator.load_state(state)  # so that going on and resuming have the same last action to repeat
        return {
            "state": state,
            "row": self.row.tobytes(),
            "start": _plain(self.start._replace(state=None, frames=None)),
            "next": None if self.next is None else _plain(self.next),
            "score": self.score,
            "steps": self.steps,
            "succeeded_at": self.succeeded_at,
            "lives": self.lives,
        }

    def load(self, saved: dict) -> None:
        """Return to what `save` gave."""
        self.emulator.load_state(saved["state"])
        (row,) = np.frombuffer(saved["row"], ROW)
        for name in ROW.names:
            self.row[name] = row[name]
        self.start = _from_plain(saved["start"])
        self.next = None if saved["next"] is None else _from_plain(saved["next"])
        for name in ("score", "steps", "succeeded_at", "lives"):
            setattr(self, name, saved[name])


def _plain(start: Start) -> dict:
    """A start with bytes in place of arrays."""
    values = start._asdict()
    if start.frames is not None:
        values["frames"] = start.frames.astype(np.uint8).tobytes()
    if start.targets is not None:
        values["targets"] = start.targets.astype(np.int32).tobytes()
    values["way"] = [tuple(place) for place in start.way]
    return values


def _from_plain(values: dict) -> Start:
    """The start that `_plain` gave."""
    start = Start(**values | {"way": tuple(Place(*place) for place in values.get("way", ()))})
    if start.frames is not None:
        start = start._replace(frames=np.frombuffer(start.frames, np.uint8).reshape(ROW["frames"].shape))
    if start.targets is not None:
        start = start._replace(targets=np.frombuffer(start.targets, np.int32))
    return start


def _serve(connection: Connection, config: VecEnvConfig, members: tuple[list[int], list[int]], memory) -> None:
    """A worker's loop: do what is asked until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button is the main process's to handle
    cv2.setNumThreads(1)
    rows = np.frombuffer(memory, ROW)
    halves = [[Environment(config, i, rows[i]) for i in half] for half in members]
    environments = {environment.i: environment for half in halves for environment in half}
    try:
        while True:
            answer = _do(connection.recv(), halves, environments)
            if answer is not None:
                connection.send(answer)
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return


def _do(message: object, halves: list[list[Environment]], environments: dict[int, Environment]) -> object:
    """Obey one message; returns the answer, None for none."""
    try:
        match message:
            case (0 | 1, *_):
                for half in message:
                    for environment in halves[half]:
                        environment.step()
                return message
            case ("supply", i, start):
                environments[i].next = start
                return None
            case ("begin",):
                for environment in environments.values():
                    environment.begin()
            case ("save",):
                return {i: environment.save() for i, environment in environments.items()}
            case ("load", saved):
                for i, environment in environments.items():
                    environment.load(saved[i])
        return "done"
    except RuntimeError as error:
        return error
