"""What models train on: demos → frames in a cache → death-free segments → windows; episodes as batches of tensors."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import ale_py
import numpy as np
import torch
from torch import Tensor

from mzlib.agc import UNKNOWN, Play, plays
from mzlib.demos import Demo, load, recorded, start, upstream, verify
from mzlib.emulator import NOOP, rom_md5
from mzlib.pinpad import Episodes
from mzlib.runs import atomic_path, data_dir, in_processes, runs_root
from mzlib.trajectory import ACTION_COUNT, FRAME_SHAPE

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

PAD = ACTION_COUNT  # the action id of steps that are not there
EARLIER_FRAMES = 3  # before a window's first, so that every step can stack 4
SOURCES = ("demos", "agc", "mine")
LAYOUT = 1  # of the cache's files; another number makes old caches be built again


@dataclass(frozen=True, eq=False)
class FrameCache:
    """N demos replayed: frames memory-mapped, the rest in memory, all demos end to end (`steps` = sum of their T).

    Frame `offsets[i] + i + t` is what is seen when action t of demo i is chosen; each demo has one more after its last
    action.
    """

    frames: np.ndarray  # (steps + N, 84, 84) uint8, memory-mapped
    actions: np.ndarray  # (steps,) uint8
    rewards: np.ndarray  # (steps,) int32, points
    lives: np.ndarray  # (steps,) uint8: left after the step, the current one included
    dying: np.ndarray  # (steps,) bool: the death animation runs after the step
    positions: np.ndarray  # (steps, 3) uint8: room, x, y after the step; agc.UNKNOWN where no memory tells
    goals: np.ndarray  # (steps,) int16, -1 unknown
    offsets: np.ndarray  # (N + 1,) int64
    seed: np.ndarray  # (N,) int64
    score: np.ndarray  # (N,) int32

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def build(cls, demos: Sequence[Demo | Play], folder: Path, workers: int | None = None) -> "FrameCache":
        """The cache of these demos: opened if `folder` holds it, else replayed into `folder`, replacing another.

        workers: processes that replay, all cores by default. Until a build is whole, `folder` keeps its old cache or
        none; a second process that asks meanwhile waits. Raises ValueError, naming the demo, for one that replays with
        other rewards, and for no demos.
        """
        if not demos:
            raise ValueError("demos is empty: give at least one, such as those of demos.load(path)")
        folder, key = Path(folder), cache_key(demos)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            if (cache := _opened(folder, key)) is None:
                _write(demos, folder, key, min(workers or os.cpu_count() or 1, len(demos)))
                cache = _opened(folder, key)
        return cache


def cache_key(demos: Sequence[Demo | Play]) -> str:
    """SHA-256 of all that the demos' replays depend on, the emulator included."""
    digest = hashlib.sha256(f"{LAYOUT} {ale_py.__version__}".encode())
    for demo in demos:
        if isinstance(demo, Play):
            digest.update(demo.record.sha256.encode())
            continue
        start_state = None if demo.state is None else hashlib.sha256(demo.state).hexdigest()
        goals = np.full(len(demo), -1) if demo.goals is None else demo.goals
        settings = (demo.game, rom_md5(demo.game), int(demo.seed), int(demo.noops), float(demo.sticky), start_state)
        digest.update(repr((*settings, int(demo.frames_per_action), len(demo))).encode())
        for array, dtype in ((demo.actions, np.uint8), (demo.rewards, np.int32), (goals, np.int16)):
            digest.update(np.asarray(array, dtype).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(folder: Path, key: str) -> FrameCache | None:
    """The cache in `folder`, or None if there is none or another one."""
    if not all((folder / name).exists() for name in ("steps.npz", "frames.npy")):
        return None
    with np.load(folder / "steps.npz", allow_pickle=False) as file:
        steps = dict(file)
    if str(steps.pop("key")) != key:
        return None
    return FrameCache(frames=np.load(folder / "frames.npy", mmap_mode="r"), **steps)


def _write(demos: Sequence[Demo | Play], folder: Path, key: str, workers: int) -> None:
    """Replay into `folder`; steps.npz, which makes a folder a cache, goes first and comes last."""
    offsets = np.cumsum([0, *map(len, demos)], dtype=np.int64)
    steps = {
        "actions": np.concatenate([demo.actions for demo in demos]),
        "rewards": np.concatenate([demo.rewards for demo in demos]),
        "lives": np.zeros(offsets[-1], np.uint8),
        "dying": np.zeros(offsets[-1], bool),
        "positions": np.zeros((offsets[-1], 3), np.uint8),
        "goals": np.concatenate([np.full(len(demo), -1) if demo.goals is None else demo.goals for demo in demos]),
        "offsets": offsets,
        "seed": np.array([demo.seed for demo in demos], np.int64),
        "score": np.array([demo.score for demo in demos], np.int32),
        "key": key,
    }
    steps["goals"] = steps["goals"].astype(np.int16)
    unfinished = folder / "frames.tmp.npy"  # one name is enough under the lock, and a killed build's is overwritten
    try:
        shape = (int(offsets[-1]) + len(demos), *FRAME_SHAPE)
        frames = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for i, (seen, lives, dying, positions) in enumerate(in_processes(_replayed, demos, workers)):
            begin, end = offsets[i], offsets[i + 1]
            frames[begin + i : end + i + 1] = seen
            steps["lives"][begin:end], steps["dying"][begin:end] = lives, dying
            steps["positions"][begin:end] = positions
        frames.flush()
        (folder / "steps.npz").unlink(missing_ok=True)
        os.replace(unfinished, folder / "frames.npy")
    finally:
        unfinished.unlink(missing_ok=True)
    with atomic_path(folder / "steps.npz") as temporary:
        np.savez_compressed(temporary, **steps)


def _replayed(demo: Demo | Play) -> tuple[np.ndarray, ...]:
    """(frames (T + 1, 84, 84), lives (T,), dying (T,), positions (T, 3)) of one demo; ValueError if its rewards differ.

    A saved state has no screen: a demo that starts in one has for its first frame what a NOOP would show. A human's
    play is read, not replayed.
    """
    if isinstance(demo, Play):
        return demo.read()
    emulator = start(demo)
    if demo.state is None:
        first = emulator.frame
    else:
        other = start(replace(demo, sticky=0.0))
        other.step(NOOP)
        first = other.frame
    frames, rewards, lives, dying, positions = [first], [], [], [], []
    for action in demo.actions.tolist():
        rewards.append(emulator.step(action))
        facts = emulator.facts
        frames.append(emulator.frame)
        lives.append(emulator.lives)
        dying.append(facts.dying)
        positions.append((facts.room, facts.x, facts.y))
    if rewards != demo.rewards.tolist():
        verify(demo)
    return np.array(frames), np.array(lives), np.array(dying), np.array(positions).reshape(-1, 3)


def training_demos(
    which: str, profile: str, rollouts: bool = False, limit: int = 0, source: str = "demos"
) -> list[Demo | Play]:
    """What a model learns from: with source "demos" those of `demos.upstream`, with "shipped" also the places data, or
    with "places" that alone; with "agc" the converted human data, with "mine" the games that the reader has recorded.

    rollouts: the robustified policies' own episodes too. limit: so many, evenly picked; 0: all. ValueError for what
    does not go together, FileNotFoundError for a source that isn't there.
    """
    if source not in SOURCES:
        raise ValueError(f"source={source!r}: use one of {', '.join(SOURCES)}")
    if rollouts and (which, source) != ("shipped", "demos"):
        raise ValueError(f"rollouts=true: they go with source=demos, demos=shipped, not source={source}, demos={which}")
    if source == "demos":
        chosen = [] if which == "places" else upstream(which, profile)
        folders = ("places", "robust")[: 1 + rollouts] if which in ("shipped", "places") else ()
        paths = [path for name in folders for path in sorted(data_dir("demos", name).glob("*.npz"))]
        chosen += [demo for path in paths for demo in load(path)]
    else:
        chosen = list(plays()) if source == "agc" else recorded()
    return evenly(chosen, limit) if limit else chosen


def evenly(items: Sequence, count: int) -> list:
    """`count` of the items, or all if there are fewer, evenly picked."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def cache_folder(which: str, rollouts: bool = False, limit: int = 0, source: str = "demos") -> Path:
    """Where the frames of `training_demos` are kept."""
    name = Path(which).stem if source == "demos" else source
    return runs_root() / "cache" / f"{name}{'+rollouts' * rollouts}-{limit}"


def segments(cache: FrameCache, i: int) -> list[tuple[int, int]]:
    """Step ranges [begin, end) of demo i in which she acts: from the demo's start, or from where the picture shows her
    put back after a death, to the step before the one in which she begins to die."""
    demo = slice(cache.offsets[i], cache.offsets[i + 1])
    lives, dying, positions = cache.lives[demo].astype(int), cache.dying[demo], cache.positions[demo]
    steps = np.arange(len(lives))
    died = np.maximum.accumulate(np.where(dying, steps, -1))  # the last step of the last death so far, -1 before any
    moved = (positions != positions[died]).any(1)  # the animation over, she lies there for another step or two
    moved |= positions[:, 0] == UNKNOWN  # a signal from the screen covers these steps too
    moved = np.maximum.accumulate(np.where(moved, steps, -1))
    stands = (died < 0) | (moved > died)
    acts = stands & np.append(stands[:1], stands[:-1]) & (np.diff(lives, prepend=lives[:1]) >= 0) & (lives > 0)
    edges = np.flatnonzero(np.diff(acts, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def shared_beginnings(cache: FrameCache, demos: Sequence[int]) -> dict[int, int]:
    """For each of these demos, how many of its first steps an earlier one of them, of the same seed, took just so."""
    shared, earlier = {}, {}
    for i in demos:
        steps = slice(cache.offsets[i], cache.offsets[i + 1])
        play = np.column_stack([cache.actions[steps], cache.positions[steps]])
        others = earlier.setdefault(int(cache.seed[i]), [])
        shared[i] = 0
        for other in others:
            common = min(len(play), len(other))
            differs = (play[:common] != other[:common]).any(1)
            shared[i] = max(shared[i], int(differs.argmax()) if differs.any() else common)
        others.append(play)
    return shared


class WindowBatch(NamedTuple):
    """Windows of L steps; where a segment begins inside a window, the steps before are padding."""

    frames: Tensor  # (b, L + 3, 84, 84) uint8: index j + 3 is seen when action j is chosen; first frame repeated
    actions: Tensor  # (b, L) long, PAD where padding
    previous: Tensor  # (b, L) long: the action before, PAD at a segment's beginning
    valid: Tensor  # (b, L) bool: counts in loss and accuracy
    goals: Tensor  # (b, L) long, -1 unknown; never an input of a model
    change: Tensor  # (b, L) bool: valid, and another action than the known previous one
    positions: Tensor  # (b, L, 3) int: room, x, y after the step; -1 where padding


class WindowDataset:
    """Windows of `seq_len` steps of some demos' segments, ending every `stride` steps back from a segment's last, but
    never within a beginning that is another demo's too.

    demo_indices: into the cache. limit_trajs: percent of these demos to use, best scores first. noop_subsample: of
    windows whose last action is NOOP only a share `noop_keep`, drawn by `seed`, stays; no step inside a window is ever
    removed, which would change time. mask_noops: NOOP targets don't count either. Raises ValueError, naming the
    parameter, for one out of range or when no window is left.

        windows = WindowDataset(cache, train, limit_trajs=50)
        for batch in windows.batches(32, epoch=0): ...
    """

    def __init__(
        self,
        cache: FrameCache,
        demo_indices: Sequence[int],
        seq_len: int = 64,
        limit_trajs: float = 100.0,
        noop_subsample: bool = True,
        noop_keep: float = 0.1,
        mask_noops: bool = False,
        seed: int = 0,
        stride: int = 8,
    ):
        for name, value in (("seq_len", seq_len), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1 step is needed")
        if not 0 < limit_trajs <= 100:
            raise ValueError(f"limit_trajs={limit_trajs}: a percentage in (0, 100] is needed, 100 uses every demo")
        if not 0 <= noop_keep <= 1:
            raise ValueError(f"noop_keep={noop_keep}: a rate in [0, 1] is needed, 1 keeps every window")
        chosen = np.asarray(demo_indices, int)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(cache):
            raise ValueError(f"demo_indices={chosen.tolist()}: one or more from 0 to {len(cache) - 1} are needed")
        best_first = chosen[np.argsort(-cache.score[chosen], kind="stable")]
        self.demo_indices = np.sort(best_first[: int(np.ceil(len(chosen) * limit_trajs / 100))]).tolist()
        self.cache, self.seq_len, self.mask_noops, self.seed = cache, seq_len, mask_noops, seed
        shared = shared_beginnings(cache, self.demo_indices)
        ends = [
            (i, cache.offsets[i] + begin, cache.offsets[i] + last)
            for i in self.demo_indices
            for begin, end in segments(cache, i)
            for last in range(end - 1, begin - 1, -stride)
            if last >= shared[i]
        ]
        windows = np.array(ends, np.int64).reshape(-1, 3)  # demo, its segment's first step, the window's last step
        kept = np.ones(len(windows), bool)
        if noop_subsample:
            kept = (cache.actions[windows[:, 2]] != NOOP) | (np.random.default_rng(seed).random(len(kept)) < noop_keep)
        if not kept.any():
            raise ValueError(f"noop_keep={noop_keep}: none of {len(kept)} windows is left; raise it or give more demos")
        self.windows, self.keep_rate = windows[kept], float(kept.mean())

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Sequence[int]) -> WindowBatch:
        """These windows as tensors on the CPU."""
        cache = self.cache
        demo, begin, last = self.windows[np.asarray(indices, int), :, None].transpose(1, 0, 2)  # (b, 1) each
        steps = last + np.arange(1 - self.seq_len - EARLIER_FRAMES, 1)  # (b, L + 3)
        frames = np.take(cache.frames, np.maximum(steps, begin) + demo, axis=0)
        steps = steps[:, EARLIER_FRAMES:]  # (b, L)
        there, follows = steps >= begin, steps > begin
        steps = np.maximum(steps, begin)
        actions = np.where(there, cache.actions[steps], PAD)
        previous = np.where(follows, cache.actions[steps - follows], PAD)
        valid = there & (actions != NOOP) if self.mask_noops else there
        goals = np.where(there, cache.goals[steps], -1)
        positions = np.where(there[..., None], cache.positions[steps].astype(np.int32), -1)
        change = valid & follows & (actions != previous)
        arrays = (frames, actions.astype(int), previous.astype(int), valid, goals.astype(int), change, positions)
        return WindowBatch(*map(torch.from_numpy, arrays))

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) the windows in an epoch's order, which follows from seed and epoch alone."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def batches(self, size: int, epoch: int, shuffle: bool = True, first: int = 0) -> Iterator[WindowBatch]:
        """One epoch's batches of `size` windows, from batch `first` on; the order follows from seed and epoch alone.

        Shuffled, the last short batch is dropped; in order, it is given. Raises ValueError if that leaves none.
        """
        if size < 1 or (shuffle and size > len(self)):
            raise ValueError(f"size={size}: a batch has 1 to {len(self)} windows here; take another size or more demos")
        order = self.order(epoch) if shuffle else np.arange(len(self))
        stop = len(order) - len(order) % size if shuffle else len(order)
        return (self.batch(order[at : at + size]) for at in range(first * size, stop, size))


def split_by_seed(cache: FrameCache, held_out: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """(train, held-out) demo indices; a share `held_out` of the demos' seeds, at least one, is held out whole.

    Demos of one search share its seed and hence their beginnings, so they stay together. Raises ValueError for a share
    outside (0, 1) and for fewer than two seeds.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: a share in (0, 1) is needed, such as 0.1")
    seeds = np.unique(cache.seed)
    if len(seeds) < 2:
        raise ValueError(f"held_out={held_out}: all {len(cache)} demos have seed {seeds[0]}; add demos of another seed")
    count = min(max(round(held_out * len(seeds)), 1), len(seeds) - 1)
    aside = np.isin(cache.seed, np.random.default_rng(seed).permutation(seeds)[:count])
    return np.flatnonzero(~aside).tolist(), np.flatnonzero(aside).tolist()


class PinpadBatch(NamedTuple):
    """Pinpad episodes as tensors, cut to the longest; steps after an episode's end are not `valid`."""

    observations: Tensor  # (b, t, channels) uint8, compact
    actions: Tensor  # (b, t) uint8
    next_cells: Tensor  # (b, t) uint8: the agent's cell in o_{t+1}
    valid: Tensor  # (b, t) bool
    goals: Tensor  # (b, t) int8: the truth, for measuring only
    lengths: Tensor  # (b,) long


def pinpad_batch(episodes: Episodes, device: str | torch.device = "cpu") -> PinpadBatch:
    """Episodes as a batch on `device`."""
    steps = int(episodes.lengths.max())
    arrays = (episodes.observations[:, :steps], episodes.actions[:, :steps], episodes.positions[:, 1 : steps + 1])
    arrays += (np.arange(steps) < episodes.lengths[:, None], episodes.goals[:, :steps], episodes.lengths)
    return PinpadBatch(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
