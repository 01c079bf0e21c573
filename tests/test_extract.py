"""Demos out of searches: which way, where it is cut, several runs into one file, and every wrong one refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzlib import demos, go_explore
from mzlib.demos import Demo
from mzlib.go_explore import Archive, Candidate, Episode, GoExploreConfig, load_archive
from mzlib.go_explore.extract import cut, extract, extract_all, main, shortest
from mzlib.runs import Run

SHORT = GoExploreConfig(total_steps=1_500, batch=4, explore_steps=40, workers=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of three searches that begin shortly before shipped demos' first reward."""
    made = []
    for demo in demos.upstream("shipped", "quick")[:3]:
        assert demo.sticky == 0
        first = int(np.flatnonzero(demo.rewards)[0])
        prefix = tuple(demo.actions[: first - 2].tolist())
        config = replace(SHORT, seed=demo.seed, noops=demo.noops, prefix=prefix)
        folder = tmp_path_factory.mktemp("runs") / f"run{len(made)}"
        with Run.open("05_go_explore", "quick", config, folder=folder, quiet=True) as run:
            assert go_explore.run(config, run)["score"] >= 100
        made.append(folder)
    return made


def test_the_best_way_ends_with_its_last_reward(folders):
    demo = extract(folders[0])
    with Run.open("05_go_explore", "quick", config_of(folders[0]), folder=folders[0], quiet=True) as run:
        archive = load_archive(run)
    assert demo.score == archive.best().score
    assert len(demo) <= archive.best().length
    assert demo.rewards[-1] > 0
    demos.verify(demo)


def config_of(folder) -> GoExploreConfig:
    """The configuration of one of the folders."""
    settings = json.loads((folder / "config.json").read_text())["settings"]
    return GoExploreConfig(**{**settings, "prefix": tuple(settings["prefix"])})


def test_several_runs_make_one_file(folders, tmp_path, capsys):
    main([*map(str, folders), "--score", "100", "--max-rewards", "1", "--out", str(tmp_path / "key.npz")])
    kept = demos.load(tmp_path / "key.npz")
    assert len(kept) == 3
    assert [len(demo) for demo in kept] == sorted(len(demo) for demo in kept)
    assert [demo.score for demo in kept] == [100] * 3
    assert len({demo.seed for demo in kept}) == 3
    for demo in kept:
        demos.verify(demo)
    assert "100 points in" in capsys.readouterr().out


def test_the_command_line_fails_in_one_line(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"^mzlib.go_explore.extract: score=99999: .*ask for no more$"):
        main([str(folders[0]), "--score", "99999", "--out", str(tmp_path / "none.npz")])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_extracted(folders, tmp_path):
    with pytest.raises(ValueError, match="score=99999: this search's best is"):
        extract(folders[0], score=99_999)
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        extract(tmp_path)
    with pytest.raises(ValueError, match="the same way twice"):
        extract_all([folders[0], folders[0]], max_rewards=1)
    with pytest.raises(ValueError, match="max_rewards=0"):
        extract(folders[0], max_rewards=0)


@given(st.lists(st.sampled_from([0, 0, -5, 100, 400]), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 900))
def test_where_a_demo_is_cut(rewards, most, score):
    demo = Demo(np.arange(len(rewards), dtype=np.uint8), np.array(rewards, np.int32))
    if max(rewards) <= 0:
        with pytest.raises(ValueError, match="0 rewards"):
            cut(demo)
        return
    whole, few = cut(demo), cut(demo, most)
    assert whole.rewards[-1] > 0
    assert max(rewards[len(whole) :], default=0) <= 0
    assert np.count_nonzero(few.rewards > 0) == min(most, np.count_nonzero(np.array(rewards) > 0))
    assert few.rewards[-1] > 0
    assert len(few.actions) == len(few.rewards)
    if max(np.cumsum(rewards)) >= score:
        enough = cut(demo, score=score)
        assert enough.score >= score or len(enough) == len(whole)
        assert np.cumsum(rewards)[: len(enough) - 1].max(initial=0) < score
    else:
        with pytest.raises(ValueError, match=f"never has {score} points"):
            cut(demo, score=score)


def test_the_shortest_way_to_a_score():
    archive = Archive(Candidate(b"start", 0, 0, (1, 77, 235), b""))
    ways = tuple(Candidate(b"%d" % o, s, o, (1, 2, 3), b"") for s, o in ((0, 2), (100, 4), (400, 6), (500, 8)))
    archive.merge(archive.pick(0), Episode(9, bytes(9), (), ways, (500, 9)))
    standings = {
        score: (shortest(archive, score).score, shortest(archive, score).length) for score in (1, 100, 101, 500)
    }
    assert standings == {1: (100, 4), 100: (100, 4), 101: (400, 6), 500: (500, 8)}
    archive.merge(archive.pick(0), Episode(5, bytes(5), (), (), (600, 5)))
    assert (shortest(archive, 200).length, shortest(archive, 600).length, shortest(archive, 100).length) == (5, 5, 4)
    with pytest.raises(ValueError, match="score=601: this search's best is 600"):
        shortest(archive, 601)
