"""Demonstrations out of searches: the best way or the shortest to a score, cut at a reward, verified by replay.

python -m mzlib.go_explore.extract --out best.npz --score 2500 full/05_go_explore full/05_go_explore+seed=1
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.go_explore.archive import Archive, Best
from mzlib.go_explore.search import GoExploreConfig, archive_of, demo_of
from mzlib.runs import config_from, runs_root


def shortest(archive: Archive, score: int) -> Best:
    """The shortest way in the archive to at least `score` points; ValueError if there is none."""
    scores, lengths = archive.column("score"), archive.column("length")
    enough = np.flatnonzero(scores >= score)
    ends = archive.done.length > 0 and archive.done.score >= score
    if not len(enough) and not ends:
        raise ValueError(f"score={score}: this search's best is {archive.best().score}; ask for no more")
    if ends and (not len(enough) or archive.done.length < lengths[enough].min()):
        return archive.done
    cell = int(enough[np.argmin(lengths[enough])])
    return Best(int(scores[cell]), int(lengths[cell]), archive.node(cell))


def cut(demo: Demo, max_rewards: int | None = None, score: int | None = None) -> Demo:
    """The demo up to its last reward, to reward number `max_rewards`, or to where it has `score` points: the first of
    these.

    A reward is a step that wins points. ValueError if the demo has no reward, or never `score` points.
    """
    rewarded = np.flatnonzero(demo.rewards > 0)
    if not len(rewarded) or (max_rewards is not None and max_rewards < 1):
        raise ValueError(f"{demo.source}: {len(rewarded)} rewards, max_rewards={max_rewards}; nothing to cut after")
    end = int(rewarded[-1 if max_rewards is None else min(max_rewards, len(rewarded)) - 1]) + 1
    if score is not None:
        reached = np.flatnonzero(np.cumsum(demo.rewards) >= score)
        if not len(reached):
            raise ValueError(f"{demo.source}: it never has {score} points; ask for no more")
        end = min(end, int(reached[0]) + 1)
    return replace(demo, actions=demo.actions[:end], rewards=demo.rewards[:end])


def extract(folder: Path, score: int | None = None, max_rewards: int | None = None) -> Demo:
    """The demo of a run folder: the shortest way to the highest score, or to at least `score` points, then `cut`.

    Its rewards come from a replay, and the cut demo is replayed once more. ValueError or FileNotFoundError for a
    folder without a search, or without such a way.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder.name}: no run there (config.json is missing); give a run's folder")
    known = {field.name for field in fields(GoExploreConfig)}
    settings = json.loads(path.read_text())["settings"]
    config = config_from(GoExploreConfig, {name: value for name, value in settings.items() if name in known})
    archive = archive_of(folder / "checkpoints" / "latest.npz")
    best = archive.best() if score is None else shortest(archive, score)
    demo = cut(demo_of(config, archive, best), max_rewards, score)
    demos.verify(demo)
    return replace(demo, source=f"{folder.name}, seed {config.seed}")


def extract_all(folders: Sequence[Path], score: int | None = None, max_rewards: int | None = None) -> list[Demo]:
    """One demo of each run folder, the shortest first; ValueError if two are the same way."""
    found = sorted((extract(folder, score, max_rewards) for folder in folders), key=len)
    ways = [(demo.seed, demo.noops, demo.actions.tobytes()) for demo in found]
    for number, way in enumerate(ways):
        if way in ways[:number]:
            twins = [demo.source for demo, other in zip(found, ways, strict=True) if other == way]
            raise ValueError(f"{' and '.join(twins)}: the same way twice; give runs of different seeds")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m mzlib.go_explore.extract", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="run folders, absolute or below the runs' root")
    parser.add_argument("--score", type=int, help="the shortest way to so many points; default: the highest score")
    parser.add_argument("--max-rewards", type=int, help="cut after so many rewards; default: after the last")
    parser.add_argument("--out", type=Path, required=True, help="demo file to write")
    given = parser.parse_args(argv)
    try:
        found = extract_all([runs_root() / folder for folder in given.folders], given.score, given.max_rewards)
        demos.save(given.out, found)
    except (OSError, ValueError) as error:
        sys.exit(f"mzlib.go_explore.extract: {error}")
    for demo in found:
        print(f"{demo.source}: {demo.score} points in {len(demo)} actions")


if __name__ == "__main__":
    main()
