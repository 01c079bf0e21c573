"""Find the demonstrations that the workbook ships: each by a search of its own, then shortened, cleaned and verified.

    python -m mzlib.go_explore.demonstrations --score 100 --count 100 --first-seed 0 --out data/demos/first_key.npz

It is resumable: every demo found waits in runs/demonstrations/ until the file is complete. Demos that the file holds
already count, and the search for more goes on with the seed after theirs.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.go_explore.archive import Best
from mzlib.go_explore.search import GoExploreConfig, Search
from mzlib.runs import progress, runs_root


def find(
    seed: int,
    score: int,
    sticky: float = 0.0,
    total_steps: int = 70_000,
    last_reward: int = 0,
    begin: Demo | None = None,
) -> Demo | None:
    """Search with `seed` until `score` points, then shorten and clean the way; None if the search finds nothing in
    time.

    The seed also draws the demo's no-ops, 0 to 30. Each reward on the way begins a new search where the last one
    ended, of at most `total_steps`. The last of them is to be of `last_reward` points or more: from where so many are
    missing, whoever wins fewer has gone astray. With `sticky` the search restores the sticky generator with every
    state, so its actions answer those that get stuck. begin: a demo to go on from, in place of the game's start.
    """
    demo, noops = begin, int(np.random.default_rng(seed).integers(31)) if begin is None else begin.noops
    while demo is None or demo.score < score:
        won = 0 if demo is None else demo.score
        config = GoExploreConfig(
            total_steps=total_steps,
            seed=seed,
            explore_steps=30,
            batch=5,
            sticky=sticky,
            noops=noops,
            prefix=() if demo is None else tuple(demo.actions.tolist()),
            least_reward=last_reward if won + last_reward >= score else 0,
            workers=1,
        )
        demo = next_reward(config)
        if demo is None:
            return None
        demo = demos.clean(demos.shorten(demo))
    demos.verify(demo)
    return demo


def next_reward(config: GoExploreConfig) -> Demo | None:
    """The first way found to a higher score than the search begins with, ending with that reward; None if there is
    none."""
    with Search(config) as search:
        archive = search.archive
        begin = int(archive.column("score").max())
        goal = begin + max(config.least_reward, 1)
        while archive.column("score").max() < goal:
            if archive.steps >= config.total_steps:
                return None
            search.advance()
        reached = np.flatnonzero(archive.column("score") >= goal)
        pick = archive.pick(int(reached[np.argmin(archive.column("length")[reached])]))
        try:
            demo = search.demo(Best(pick.score, pick.length, pick.node))
        except RuntimeError:
            if not config.sticky:
                raise
            return (
                None  # a stuck action that the state doesn't tell (see Emulator.save_state): no playthrough makes this
            )
    end = int(np.flatnonzero(np.cumsum(demo.rewards) > begin)[0]) + 1
    return replace(demo, actions=demo.actions[:end], rewards=demo.rewards[:end])


def find_and_keep(seed: int, folder: Path, **settings) -> Path | None:
    """`find`, its demo written to `folder` (an empty file if there is none) unless it is there already."""
    path = folder / f"{seed}.npz"
    if not path.exists():
        demo = find(seed, **settings)
        if demo is None:
            path.touch()
        else:
            demos.save(path, [demo])
    return path if path.stat().st_size else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--score", type=int, default=100, help="points at which a demo ends (100: the first key, 400: a door)"
    )
    parser.add_argument("--count", type=int, default=100, help="demos to find, each from a search seed of its own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sticky", type=float, default=0.0)
    parser.add_argument(
        "--total-steps", type=int, default=70_000, help="give a seed up after so many steps without a reward"
    )
    parser.add_argument(
        "--last-reward", type=int, default=0, help="points that the demo's last reward is to be of at least"
    )
    parser.add_argument("--onward", type=Path, help="a file whose first demo, not sticky, the searches go on from")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    begin = demos.load(given.onward)[0] if given.onward else None
    if begin and (begin.sticky or given.sticky):
        parser.error(f"--onward {given.onward}: sticky {begin.sticky}, --sticky {given.sticky}; only 0 goes on from 0")
    folder = runs_root() / "demonstrations" / given.out.stem
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(given, name) for name in ("score", "sticky", "total_steps", "last_reward")}
    work = partial(find_and_keep, folder=folder, begin=begin, **settings)
    kept = demos.load(given.out) if given.out.exists() else []
    seeds = count(max((demo.seed + 1 for demo in kept), default=given.first_seed))
    missing, found, pending = given.count - len(kept), {}, {}
    with (
        ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool,
        progress(given.count, len(kept), given.out.stem, "demo") as bar,
    ):
        while len(found) < missing:
            while len(pending) < given.workers:
                seed = next(seeds)
                pending[pool.submit(work, seed)] = seed
            future = next(as_completed(pending))
            seed = pending.pop(future)
            if (path := future.result()) is not None:
                found[seed] = path
                bar.update(1)
        pool.shutdown(cancel_futures=True)
    chosen = kept + [demos.load(found[seed])[0] for seed in sorted(found)]
    demos.save(given.out, chosen)
    lengths = [len(demo) for demo in chosen]
    print(
        f"{given.out}: {len(chosen)} demos, {min(lengths)} to {max(lengths)} actions, median {np.median(lengths):.0f}"
    )


if __name__ == "__main__":
    main()
