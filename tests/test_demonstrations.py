"""Searches for demonstrations: reward by reward, and the last one large if so asked."""

from dataclasses import replace

import numpy as np
import pytest

from mzlib import demos
from mzlib.go_explore import GoExploreConfig, Search
from mzlib.go_explore.demonstrations import find, main, next_reward
from mzlib.runs import data_dir

SHORT = GoExploreConfig(total_steps=4_000, explore_steps=30, batch=5, workers=1)


def before(demo: demos.Demo, steps: int, **changes) -> GoExploreConfig:
    """A search that begins `steps` steps before the demo ends."""
    prefix = tuple(demo.actions[: len(demo) - steps].tolist())
    return replace(SHORT, seed=demo.seed, noops=demo.noops, prefix=prefix, **changes)


@pytest.fixture(scope="module")
def spider():
    """The way that ends with the spider's 3,000 points."""
    return demos.load(data_dir("demos", "far", "points_3500.npz"))[0]


def test_the_way_to_the_next_reward_ends_with_it(spider):
    found = next_reward(before(spider, 4))
    assert found.score == spider.score == 3500
    assert np.flatnonzero(found.rewards)[-1] == len(found) - 1
    demos.verify(found)


def test_a_smaller_reward_than_wanted_is_no_find(spider):
    key = int(np.flatnonzero(spider.rewards)[0])
    config = before(spider, len(spider) - key + 2)
    assert next_reward(config).score == 100
    assert next_reward(replace(config, least_reward=3000)) is None


def test_an_exploration_ends_with_a_smaller_reward_than_wanted(spider):
    key = int(np.flatnonzero(spider.rewards)[0])
    for least, most in ((0, 100), (100, 100), (101, 0)):
        with Search(before(spider, len(spider) - key + 2, least_reward=least)) as search:
            for _ in range(40):
                search.advance()
            assert search.archive.column("score").max() == most


def test_a_reward_as_large_as_wanted_is_found_and_none_larger(spider):
    assert next_reward(before(spider, 4, least_reward=3000)).rewards[-1] == 3000
    assert next_reward(before(spider, 4, least_reward=3001)) is None


def test_a_least_reward_is_not_negative():
    with pytest.raises(ValueError, match="least_reward=-1"):
        GoExploreConfig(least_reward=-1)


def test_a_demo_goes_on_from_where_another_ends(spider):
    steps = len(spider) - 4
    begin = replace(spider, actions=spider.actions[:steps], rewards=spider.rewards[:steps])
    found = find(spider.seed, 3500, total_steps=4_000, last_reward=3000, begin=begin)
    assert found.score == 3500
    assert found.noops == spider.noops
    assert len(found) <= len(spider) + 30
    demos.verify(found)
    assert find(spider.seed, 3500, total_steps=1_000, last_reward=3001, begin=begin) is None


def test_only_what_is_not_sticky_goes_on(tmp_path, monkeypatch, capsys):
    sticky, plain = (data_dir("demos", f"first_key{kind}.npz") for kind in ("_sticky", ""))
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    for file, option in ((sticky, []), (plain, ["--sticky", "0.25"])):
        monkeypatch.setattr("sys.argv", ["", "--onward", str(file), "--out", str(tmp_path / "x.npz"), *option])
        with pytest.raises(SystemExit):
            main()
        assert f"--onward {file}: sticky" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()
