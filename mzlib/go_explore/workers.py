"""Explorers: return to a picked state, explore from there, report what was seen; in this process or in several."""

import os
import signal
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import NamedTuple

import cv2
import numpy as np

from mzlib.emulator import Emulator
from mzlib.go_explore.archive import Candidate, Episode, Pick
from mzlib.go_explore.cells import cell_function, downscaled
from mzlib.go_explore.dynamic import Cut, pack_screen

Standing = tuple[int, int]  # (score, -length)


class Task(NamedTuple):
    """A pick and the number of the episode to be explored from it."""

    number: int
    pick: Pick


class Explorer:
    """One emulator, exploring.

    A state is packed by zlib with the game's first state as preset dictionary: two states differ in few of their 7.7
    kB.
    """

    def __init__(self, config):
        self.config = config
        self.cell_of = cell_function(config.cells)
        self.dynamic = config.cells == "dynamic"
        self.emulator = Emulator(config.game, config.seed, config.sticky)
        self.emulator.wait(config.noops)
        self.first_score = sum(self.emulator.step(action) for action in config.prefix)
        self.first_state = self.emulator.save_state(include_rng=config.sticky > 0)
        self.known: dict[bytes, Standing] = {}
        self.latest = -1  # number of a task

    def start(self) -> Candidate:
        """The way to where the search begins: no action but the configuration's prefix."""
        key, state, length = self.cell_of(self.emulator), self.pack(self.first_state), len(self.config.prefix)
        return Candidate(key, self.first_score, length, self.place(), state, self.screen())

    def recut(self, cut: Cut) -> None:
        """Cut screens into cells by `cut` from now on; what was known of the old cells is forgotten."""
        self.cell_of = partial(downscaled, **cut._asdict())
        self.known.clear()

    def screen(self) -> bytes:
        """The screen, packed, where cells are cut anew; else nothing."""
        return pack_screen(self.emulator.screen) if self.dynamic else b""

    def place(self) -> tuple[int, int, int]:
        """(room, x, y) from RAM for Montezuma, zeros for other games; for drawing only."""
        if self.config.game != "montezuma_revenge":
            return (0, 0, 0)
        facts = self.emulator.facts
        return (facts.room, facts.x, facts.y)

    def pack(self, state: bytes) -> bytes:
        """Compress a state, to some 0.3 kB."""
        packer = zlib.compressobj(1, zlib.DEFLATED, -15, 8, 0, self.first_state)
        return packer.compress(state) + packer.flush()

    def unpack(self, packed: bytes) -> bytes:
        """The state that `pack` compressed."""
        return zlib.decompressobj(-15, self.first_state).decompress(packed)

    def explore(self, task: Task) -> Episode:
        """Return to the pick, then act at random for `explore_steps`, repeating the last action with
        `repeat_probability`.

        `known` (cell -> the archive's standing, perhaps an old one) only saves work: a way that is no better than
        what the archive had is not worth a state. What the archive accepts doesn't depend on it, as long as it has
        nothing of later episodes: an earlier task, given again because its explorer was lost, goes without.
        """
        config, emulator = self.config, self.emulator
        known = self.known if task.number > self.latest else {}
        self.latest = max(self.latest, task.number)
        rng = np.random.default_rng((config.seed, task.number))
        actions = random_actions(rng, config)
        sampled, sample = rng.integers(1, config.explore_steps + 1) if self.dynamic else 0, b""
        emulator.load_state(self.unpack(task.pick.state))
        lives = emulator.lives
        score, length = task.pick.score, task.pick.length
        visited, candidates, done, offset = set(), [], None, 0
        for offset, action in enumerate(actions.tolist(), start=1):
            reward = emulator.step(action)
            score += reward
            length += 1
            cell = self.cell_of(emulator)
            died = cell is None or emulator.lives < lives
            if emulator.game_over or (config.life_loss_terminal and died) or 0 < reward < config.least_reward:
                done = (score, offset)
                break
            if offset == sampled:
                sample = self.screen()
            if cell is None:
                continue
            visited.add(cell)
            standing = (score, -length)
            if cell not in known or standing > known[cell]:
                known[cell] = standing
                state = emulator.save_state(include_rng=config.sticky > 0)
                candidates.append(Candidate(cell, score, offset, self.place(), self.pack(state), self.screen()))
        return Episode(offset, actions[:offset].tobytes(), tuple(sorted(visited)), tuple(candidates), done, sample)

    def work(self, cut: Cut | None, news: dict[bytes, Standing], tasks: list[Task]) -> dict[int, Episode]:
        """Take in a new cut, if any, and news of the archive's standings, then explore: task number -> episode."""
        if cut is not None:
            self.recut(cut)
        self.known |= news
        return {task.number: self.explore(task) for task in tasks}


def random_actions(rng: np.random.Generator, config) -> np.ndarray:
    """(explore_steps,) uint8: uniform actions, each held on with probability `repeat_probability`."""
    steps = config.explore_steps
    drawn = rng.integers(18, size=steps, dtype=np.uint8)
    fresh = rng.random(steps) >= config.repeat_probability
    fresh[0] = True
    return drawn[np.maximum.accumulate(np.where(fresh, np.arange(steps), 0))]


class Workers:
    """Explorers in `count` processes (1: in this one); episodes come back in the order in which tasks were given.

    A worker that dies raises RuntimeError here; workers end when this process does, however it ends.
    """

    CHUNK = 2  # episodes a message
    AHEAD = 2  # messages a worker holds: one at work, one waiting

    def __init__(self, config, count: int = 0):
        self.count = count or os.cpu_count()
        self.explorer = Explorer(config)
        self.tasks: deque[Task] = deque()
        self.finished: dict[int, Episode] = {}
        self.connections, self.processes, self.held, self.news, self.cuts = [], [], [], [], []
        if self.count == 1:
            return
        context = get_context("spawn")
        for _ in range(self.count):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, config), daemon=True)
            with one_thread_each():
                process.start()
            there.close()
            self.connections.append(here)
            self.processes.append(process)
            self.held.append(0)
            self.news.append({})
            self.cuts.append(None)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()

    def tell(self, standings: dict[bytes, Standing]) -> None:
        """Let all workers know the archive's standings, which spares them ways that would not be accepted."""
        if not self.connections:
            self.explorer.known |= standings
        for news in self.news:
            news |= standings

    def recut(self, cut: Cut) -> None:
        """Let all workers cut screens by `cut` from the next task on; no task may be under way."""
        self.explorer.recut(cut)
        for worker in range(len(self.connections)):
            self.cuts[worker], self.news[worker] = cut, {}

    def give(self, tasks: list[Task]) -> None:
        """Add tasks to be explored."""
        self.tasks.extend(tasks)
        for worker in range(len(self.connections)):
            self._feed(worker)

    def take(self, numbers: range) -> Iterator[Episode]:
        """The episodes of these numbers, in order, as they become ready."""
        for number in numbers:
            while number not in self.finished:
                self._work()
            yield self.finished.pop(number)

    def _work(self) -> None:
        """Explore one task here, or wait until a worker reports."""
        if not self.connections:
            task = self.tasks.popleft()
            self.finished[task.number] = self.explorer.explore(task)
            return
        for connection in wait(self.connections):
            worker = self.connections.index(connection)
            try:
                self.finished |= connection.recv()
            except (EOFError, OSError) as error:
                raise self._death(worker) from error
            self.held[worker] -= 1
            self._feed(worker)

    def _feed(self, worker: int) -> None:
        while self.tasks and self.held[worker] < self.AHEAD:
            chunk = [self.tasks.popleft() for _ in range(min(self.CHUNK, len(self.tasks)))]
            try:
                self.connections[worker].send((self.cuts[worker], self.news[worker], chunk))
            except OSError as error:
                raise self._death(worker) from error
            self.cuts[worker], self.news[worker] = None, {}
            self.held[worker] += 1

    def _death(self, worker: int) -> RuntimeError:
        self.processes[worker].join(timeout=5)
        code = self.processes[worker].exitcode
        return RuntimeError(f"explorer {worker} died (exit code {code}); run again to resume")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in the block get one thread for their matrix products: a pool in each slows all of them."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve(connection, config) -> None:
    """A worker's loop: explore what is sent until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stop button is the main process's to handle
    cv2.setNumThreads(1)
    explorer = Explorer(config)
    try:
        while True:
            connection.send(explorer.work(*connection.recv()))
    except (EOFError, ConnectionResetError, BrokenPipeError):
        return
