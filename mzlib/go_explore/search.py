"""Phase 1 of Go-Explore as a stage: select cells, return to them, explore, take in what was found; resumable at any
batch."""

import json
import zipfile
import zlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError  # NumPy parses array headers with tokenize

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.emulator import GAMES
from mzlib.go_explore.archive import Archive, Best, Pick
from mzlib.go_explore.cells import RAM_CELLS, cell_function
from mzlib.go_explore.dynamic import Recutting, rekeyed
from mzlib.go_explore.log import DamagedChunk, Node, pack_blobs, unpack_blobs
from mzlib.go_explore.selection import RULES
from mzlib.go_explore.workers import Explorer, Task, Workers
from mzlib.runs import Run, atomic_path, progress, runs_root, stop_button
from mzlib.runs.profiles import settings_of

LOG = "log"  # folder beside the checkpoint
BROKEN = (zipfile.BadZipFile, zlib.error, TokenError)  # what NumPy lets through from a damaged file


@contextmanager
def readable(path: Path):
    """The arrays of a checkpoint; whatever is wrong with them becomes a ValueError naming the file."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except DamagedChunk:
        raise
    except (OSError, LookupError, EOFError, TypeError, ValueError, RuntimeError, *BROKEN) as error:
        raise ValueError(f"{path.name}: not a readable checkpoint ({error}); remove it to begin anew") from error


@dataclass(frozen=True)
class GoExploreConfig:
    """Settings of one search; defaults as in Ecoffet et al. 2021 (Methods) but for the batch, which is 100 there."""

    game: str = "montezuma_revenge"
    cells: str = "domain"  # downscaled, dynamic, domain, gates, or "module:function" for a cell function of your own
    selection: str = "seen"  # the rule by which cells are picked: seen, counts (2019), domain
    recompute_every: int = 10_000_000  # steps between two cuts of dynamic cells
    total_steps: int = 200_000  # of exploration: 4 emulator frames each
    seed: int = 0
    explore_steps: int = 100  # from each pick
    repeat_probability: float = 0.95
    batch: int = 20  # picks drawn at once; two batches are under way at any time
    life_loss_terminal: bool = True  # an exploration ends when a life is lost
    least_reward: int = 0  # an exploration ends with a smaller one, too
    sticky: float = 0.0
    noops: int = 0  # raw frames before the first action
    prefix: tuple[
        int, ...
    ] = ()  # actions taken before the search begins, such as a demo's: the search goes on from there
    checkpoint_every: int = 250_000  # steps
    resume: str = field(
        default="", metadata={"free": True}
    )  # another run's folder (below the runs' root, or absolute) whose search a new run goes on with
    workers: int = field(
        default=0, metadata={"free": True}
    )  # processes; 0: one a core. The result doesn't depend on it.
    cluster: str = field(
        default="", metadata={"free": True}
    )  # a Ray cluster to explore on: "local", "auto", "host:port" or "ray://host:port"; "": processes here

    def __post_init__(self):
        if self.game not in GAMES:
            raise ValueError(f"game={self.game!r}: use one of {', '.join(GAMES)}")
        if self.cells in RAM_CELLS and self.game != "montezuma_revenge":
            raise ValueError(f"cells={self.cells!r}: known for montezuma_revenge only, not {self.game}; use downscaled")
        cell_function(self.cells)
        if self.selection not in RULES:
            raise ValueError(f"selection={self.selection!r}: use one of {', '.join(RULES)}")
        if self.selection == "domain" and self.cells not in RAM_CELLS:
            raise ValueError(f"selection='domain': it weighs domain or gates cells, not {self.cells!r}; use seen")
        for name in ("total_steps", "explore_steps", "batch", "checkpoint_every", "recompute_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.least_reward < 0:
            raise ValueError(f"least_reward={self.least_reward}: points, 0 for any")
        for name in ("repeat_probability", "sticky"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a probability in [0, 1) is needed")
        if self.noops < 0 or self.workers < 0 or not 0 <= self.seed < 2**31:
            raise ValueError(f"noops={self.noops}, workers={self.workers}, seed={self.seed}: none may be negative")


def workers_of(config: GoExploreConfig) -> Workers:
    """Explorers in processes here, or on the Ray cluster that the configuration names."""
    if not config.cluster:
        return Workers(config, config.workers)
    try:
        from mzlib.go_explore.cluster import ClusterWorkers  # nothing else imports Ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ModuleNotFoundError(f"cluster={config.cluster!r}: needs Ray; pip install '.[cluster]'") from error
    return ClusterWorkers(config, config.workers)


class Search:
    """A search under way: the archive, its random generator and the two batches being explored.

    The next batch is drawn before the last is taken in, so that no worker waits. Episodes are taken in by number, so
    the same seed gives the same archive with any number of workers, here or on a cluster, and a search resumed from a
    checkpoint the one never killed.
    """

    def __init__(self, config: GoExploreConfig, archive: Archive | None = None, workers: Workers | None = None):
        self.config = config
        self.workers = workers or workers_of(config)
        start = self.workers.explorer.start()
        self.archive = archive or Archive(start, config.selection)
        self.recutting = Recutting(config.seed, config.recompute_every) if config.cells == "dynamic" else None
        self.rng = np.random.default_rng((config.seed, 2**32))
        self.batches: deque[list[Task]] = deque()
        self.drawn = 0  # episodes so far

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *details) -> None:
        self.workers.__exit__(*details)

    def advance(self) -> None:
        """Draw and hand out what is missing of two batches, then take in the older; cut dynamic cells anew when due."""
        while len(self.batches) < 2:
            picks = self.archive.select(self.rng, self.config.batch)
            batch = [Task(self.drawn + i, pick) for i, pick in enumerate(picks)]
            self.drawn += len(batch)
            self._hand_out(batch)
        self._take_in()
        if self.recutting and self.recutting.due(self.archive.steps, len(self.archive)):
            while self.batches:  # what is under way has the old cells
                self._take_in()
            self._recut()

    def _take_in(self) -> None:
        batch = self.batches.popleft()
        changed = set()
        for task, episode in zip(batch, self.workers.take(range(batch[0].number, batch[-1].number + 1)), strict=True):
            changed.update(self.archive.merge(task.pick, episode))
            if episode.sample:
                self.recutting.recent.append(episode.sample)
        self.workers.tell({self.archive.keys[cell]: self.archive.standing(cell) for cell in changed})

    def _recut(self) -> None:
        """Choose a new cut from recent screens and give every cell the key that its screen has under it."""
        cut = self.recutting.choose()
        self.archive.rekey(rekeyed(self.archive.screens, cut))
        self.recutting.chosen(self.archive.steps, len(self.archive))
        self.workers.recut(cut)
        self._tell_all()

    def _tell_all(self) -> None:
        self.workers.tell({key: self.archive.standing(cell) for cell, key in enumerate(self.archive.keys)})

    def _hand_out(self, batch: list[Task]) -> None:
        self.batches.append(batch)
        self.workers.give(batch)

    def demo(self, best: Best | None = None) -> Demo:
        """The best way found (or the given one) as a demo; see `demo_of`."""
        return demo_of(self.config, self.archive, best)

    def save(self, path: Path) -> None:
        """Write all that `load` needs: full chunks of the log to the folder `log` beside, then `path` in one step.

        A checkpoint names the chunks that it needs; one that no checkpoint names yet is written again after a kill.
        """
        self.archive.log.write(path.parent / LOG)
        waiting = [task for batch in self.batches for task in batch]
        picks = [(t.number, t.pick.cell, t.pick.score, t.pick.length, *t.pick.node) for t in waiting]
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                **self.archive.to_arrays(),
                **pack_blobs("pick_states", [task.pick.state for task in waiting]),
                picks=np.array(picks, np.int64).reshape(-1, 6),
                batch_sizes=np.array([len(batch) for batch in self.batches], np.int64),
                drawn=self.drawn,
                rng=np.array(json.dumps(self.rng.bit_generator.state)),
                **(self.recutting.to_arrays() if self.recutting else {}),
            )

    @classmethod
    def load(cls, path: Path, config: GoExploreConfig) -> "Search":
        """The search that `save` wrote, its waiting picks handed out again; ValueError naming a damaged file."""
        with readable(path) as arrays:
            archive = Archive.from_arrays(arrays, path.parent / LOG)
            states = unpack_blobs("pick_states", arrays)
            tasks = deque(
                Task(number, Pick(cell, score, length, Node(*node), state))
                for (number, cell, score, length, *node), state in zip(arrays["picks"].tolist(), states, strict=True)
            )
            drawn, sizes = int(arrays["drawn"]), arrays["batch_sizes"].tolist()
            generator = json.loads(str(arrays["rng"]))
            recutting = Recutting(config.seed, config.recompute_every) if config.cells == "dynamic" else None
            if recutting:
                recutting.restore(arrays)
        search = cls(config, archive)
        search.drawn, search.rng.bit_generator.state = drawn, generator
        if recutting:
            search.recutting = recutting
            search.workers.recut(recutting.cut)
        search._tell_all()
        for size in sizes:
            search._hand_out([tasks.popleft() for _ in range(size)])
        return search


def demo_of(config: GoExploreConfig, archive: Archive, best: Best | None = None) -> Demo:
    """The best way in an archive (or the given one) as a demo, its rewards taken from a replay.

    Raises RuntimeError if the replay's score is another than the archive's: a score counts only if one playthrough
    makes it.
    """
    best = best or archive.best()
    demo = demos.from_actions(
        np.append(np.array(config.prefix, np.uint8), archive.way(best.node)),
        game=config.game,
        seed=config.seed,
        noops=config.noops,
        sticky=config.sticky,
        source=f"search of seed {config.seed}",
    )
    if demo.score != best.score or len(demo) != best.length:
        raise RuntimeError(
            f"{demo.source}: the archive says {best.score} points in {best.length} actions, "
            f"the replay {demo.score} in {len(demo)}; this is a fault of the search, please report it"
        )
    return demo


def load_archive(run: Run) -> Archive:
    """The archive of a run's latest checkpoint, to look at; see `archive_of`."""
    return archive_of(run.checkpoints / "latest.npz")


def archive_of(path: Path) -> Archive:
    """The archive of a checkpoint; FileNotFoundError if there is none, ValueError naming a damaged file."""
    if not path.exists():
        raise FileNotFoundError(f"{path.name}: this run has no checkpoint yet; run the search first")
    with readable(path) as arrays:
        return Archive.from_arrays(arrays, path.parent / LOG)


def room_states(config: GoExploreConfig, archive: Archive) -> dict[int, bytes]:
    """Room -> an emulator state in it, of the cell by which the room was discovered."""
    explorer = Explorer(config)
    rooms = archive.column("room")
    first = {room: int(np.flatnonzero(rooms == room)[0]) for room in archive.rooms()}
    return {room: explorer.unpack(archive.states[cell]) for room, cell in first.items()}


def open_search(config: GoExploreConfig, run: Run) -> Search:
    """The search of a run folder as its latest checkpoint left it, or that of the run to `resume`, or a new one.

    Errors: FileNotFoundError if the run to resume has no checkpoint, ValueError if it searched with another setting.
    """
    for left in run.checkpoints.rglob(".*.tmp.npz"):  # by a kill in mid-checkpoint
        left.unlink()
    path = run.checkpoints / "latest.npz"
    if not path.exists() and config.resume:
        path = checkpoint_to_resume(config)
    search = Search.load(path, config) if path.exists() else Search(config)
    run.truncate_metrics(search.archive.steps)
    return search


def checkpoint_to_resume(config: GoExploreConfig) -> Path:
    """The checkpoint of the run that `config.resume` names, if its search is the one of `config`."""
    folder = runs_root() / config.resume
    path = folder / "checkpoints" / "latest.npz"
    if not path.exists():
        raise FileNotFoundError(f"resume={config.resume!r}: no checkpoint in that folder; give one that holds a search")
    then = json.loads((folder / "config.json").read_text())["settings"]
    now, _, free = settings_of(config)
    for name in sorted(now.keys() - free - {"total_steps", "checkpoint_every"}):
        if then.get(name) != now[name]:
            raise ValueError(
                f"resume={config.resume!r}: that search has {name}={then.get(name)!r}, not {now[name]!r}; set {name} so"
            )
    return path


def run(config: GoExploreConfig, run: Run) -> dict:
    """Search until `total_steps`; resumes, logs, checkpoints, verifies the best way by replay; returns the headline
    numbers.

    Raises KeyboardInterrupt after saving when stopped: the same call goes on from there.
    """
    if run.final is not None:
        return run.final
    path = run.checkpoints / "latest.npz"
    with open_search(config, run) as search, stop_button() as stopped:
        archive = search.archive
        saved = logged = archive.steps
        with progress(config.total_steps, archive.steps, "exploring") as bar:
            while archive.steps < config.total_steps and not stopped.is_set():
                before = archive.steps
                search.advance()
                bar.update(archive.steps - before)
                if archive.steps - logged >= 10_000 or archive.steps >= config.total_steps:
                    logged = archive.steps
                    best = archive.best().score
                    run.log(logged, cells=len(archive), rooms=len(archive.rooms()), score=best)
                    bar.set_postfix(score=best, cells=len(archive), rooms=len(archive.rooms()))
                if archive.steps - saved >= config.checkpoint_every:
                    saved = archive.steps
                    search.save(path)
        search.save(path)
        if stopped.is_set():
            print(f"stopped at step {archive.steps:,}; run again to resume")
            raise KeyboardInterrupt
        demo = search.demo()
    demos.save(run.folder / "best.npz", [demo])
    return run.finish(
        score=demo.score,
        actions=len(demo),
        rooms=len(archive.rooms()),
        cells=len(archive),
        first_key_step=archive.first_step(100),
        replay_verified=True,
        steps=archive.steps,
        protocol={
            "what": "search result in a deterministic emulator"
            if not config.sticky
            else "search result, sticky generator restored",
            "game": config.game,
            "sticky": config.sticky,
            "noops": config.noops,
            "prefix_actions": len(config.prefix),
            "frames_per_action": demo.frames_per_action,
            "cells": config.cells,
            "selection": config.selection,
            **({"resumed from": config.resume} if config.resume else {}),
        },
    )
