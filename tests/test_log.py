"""The log in chunks: what it holds, on disk and not, and what happens when a file is not as it was written."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzlib.go_explore import GoExploreConfig, Search, log
from mzlib.go_explore.log import DamagedChunk, Log, Node

CONFIG = GoExploreConfig(batch=4, explore_steps=40, workers=1, seed=3)


def grown(log: Log, count: int, seed: int = 0) -> dict[Node, bytes]:
    """Add episodes, each begun somewhere along an earlier one; returns the ways to some nodes."""
    rng, ways = np.random.default_rng(seed), {Node(-1, 0): b""}
    for _ in range(count):
        parent = list(ways)[rng.integers(len(ways))]
        actions = rng.bytes(rng.integers(1, 9))
        offset = int(rng.integers(1, len(actions) + 1))
        ways[Node(len(log), offset)] = ways[parent] + actions[:offset]
        log.append(parent, actions)
    return ways


@given(st.integers(1, 9), st.integers(0, 40))
def test_ways_are_the_same_in_memory_and_on_disk(tmp_path_factory, episodes, count):
    folder = tmp_path_factory.mktemp("chunks")
    log = Log(episodes)
    ways = grown(log, count)
    for _ in range(2):
        assert len(log) == count
        for node, way in ways.items():
            assert log.way(node).tobytes() == way
        log.write(folder)
        assert len(log.actions) == count % episodes
        assert len(list(folder.iterdir())) == count // episodes
        log = Log.from_arrays(log.to_arrays(), folder)


def test_a_chunk_is_written_once(tmp_path):
    log = Log(4)
    grown(log, 9)
    log.write(tmp_path)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for _ in range(3):
        log.append(Node(-1, 0), b"12")
    log.write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "altered": lambda path: path.write_bytes(
        path.read_bytes()[:60] + bytes((path.read_bytes()[60] ^ 1,)) + path.read_bytes()[61:]
    ),
    "another chunk": lambda path: shutil.copy(path.with_name("00000.npz"), path),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a search's checkpoint with several chunks."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.Log.__init__, "__defaults__", (2,))
        with Search(CONFIG) as search:
            for _ in range(6):
                search.advance()
            search.save(folder / "latest.npz")
    assert len(list((folder / "log").iterdir())) > 3
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_named(saved, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    DAMAGES[damage](folder / "log" / "00002.npz")
    with pytest.raises(
        DamagedChunk, match=r"^log/00002.npz: this part of the search's log .* put the file back"
    ) as said:
        Search.load(folder / "latest.npz", CONFIG)
    assert "\n" not in str(said.value)


def test_damage_after_loading_is_named_too(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    with Search.load(folder / "latest.npz", CONFIG) as search:
        (folder / "log" / "00001.npz").unlink()
        with pytest.raises(DamagedChunk, match=r"^log/00001.npz"):
            search.archive.way(Node(2, 1))
        with pytest.raises(DamagedChunk, match=r"^log/00001.npz"):
            search.save(tmp_path / "elsewhere" / "latest.npz")


def test_a_search_goes_on_in_another_folder(saved, tmp_path):
    with Search.load(saved / "latest.npz", CONFIG) as search:
        for _ in range(3):
            search.advance()
        search.save(tmp_path / "latest.npz")
        best = search.demo()
    names = {path.name for path in (tmp_path / "log").iterdir()}
    assert names > {path.name for path in (saved / "log").iterdir()}
    assert all(re.fullmatch(r"\d{5}\.npz", name) for name in names)
    with Search.load(tmp_path / "latest.npz", CONFIG) as search:
        assert np.array_equal(search.demo().actions, best.actions)
