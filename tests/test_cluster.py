"""Go-Explore on a Ray cluster: several nodes on this machine, some of which are killed.

Ray is not in the lock: `pip install '.[cluster]'`, or all but the first tests are skipped.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mzlib.go_explore import Explorer, GoExploreConfig, Search
from mzlib.runs import REPO

TINY = GoExploreConfig(total_steps=3_000, batch=8, explore_steps=40, workers=1, seed=3)
DYNAMIC = replace(TINY, cells="dynamic", explore_steps=100, recompute_every=1_000)
LATER = 6  # batches

pytestmark = pytest.mark.filterwarnings("ignore:.*Ray will no longer override accelerator:FutureWarning")


# ---- without Ray


def test_nothing_imports_ray_unasked():
    code = "import sys, mzlib.go_explore.search, mzlib.robustify, mzlib.play; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert "mzlib.go_explore.workers" in loaded.split()
    assert {"ray", "mzlib.go_explore.cluster"} & set(loaded.split()) == set()


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it weren't installed
    monkeypatch.delitem(sys.modules, "mzlib.go_explore.cluster", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"^cluster='auto': needs Ray; pip install '.\[cluster\]'$"):
        Search(replace(TINY, cluster="auto"))


# ---- with Ray


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")


@pytest.fixture(scope="module")
def cluster(ray):
    """A head without CPUs; tests add nodes and remove them."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPO), prepend=os.pathsep)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        yield cluster
        cluster.shutdown()


NODE = {"object_store_memory": 2**27, "include_dashboard": False}


@pytest.fixture
def nodes(cluster) -> list:
    """Two nodes of two CPUs, those that the last test left included."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**NODE, num_cpus=2)
    cluster.wait_for_nodes()
    return sorted(cluster.worker_nodes, key=lambda node: node.node_id)


def on(cluster, config: GoExploreConfig, workers: int = 4) -> GoExploreConfig:
    return replace(config, cluster=cluster.address, workers=workers)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def archive_after(search: Search, batches: int) -> dict:
    for _ in range(batches):
        search.advance()
    return {name: array.copy() for name, array in search.archive.to_arrays().items()}


def undisturbed(config: GoExploreConfig, batches: int) -> dict:
    with Search(config) as search:
        return archive_after(search, batches)


def all_started(search: Search) -> None:
    """Wait for every explorer; those at work on the first batches would else be the first to start."""
    end = time.monotonic() + 60
    while not all(remote.started for remote in search.workers.remotes):
        assert time.monotonic() < end, "waited in vain"
        search.workers._work()


def places(ray, search: Search) -> dict:
    """Explorer -> (node id, process id)."""

    def place(explorer):
        return ray.get_runtime_context().get_node_id(), os.getpid()

    return {remote: ray.get(remote.actor.__ray_call__.remote(place)) for remote in search.workers.remotes}


@pytest.mark.slow
def test_a_cluster_does_not_change_the_archive(nodes, cluster):
    """Four explorers here, two there, with cells that are cut anew."""
    with Search(on(cluster, DYNAMIC, 0)) as search:
        assert search.workers.count == 4
        all_started(search)
        found = archive_after(search, LATER)
        assert search.recutting.cut != type(search.recutting.cut)(), "it was cut anew"
    assert same(found, undisturbed(DYNAMIC, LATER))
    assert not same(found, undisturbed(replace(DYNAMIC, seed=4), LATER))


@pytest.mark.slow
def test_an_explorer_that_dies_is_replaced(nodes, cluster, ray):
    with Search(on(cluster, DYNAMIC, 2)) as search:
        all_started(search)
        archive_after(search, 4)
        assert search.workers.cut, "which new explorers are to be told"
        dying = places(ray, search)
        for _, pid in dying.values():
            os.kill(pid, signal.SIGKILL)
        found = archive_after(search, LATER - 4)
        assert not set(dying) & set(search.workers.remotes)
        search.workers.DEATHS = 0
        for _, pid in places(ray, search).values():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="^cluster='.*': explorers keep dying; run again to resume$"):
            archive_after(search, 2)
    assert same(found, undisturbed(DYNAMIC, LATER))


@pytest.mark.slow
def test_a_killed_node_changes_nothing(nodes, cluster, ray):
    """Its explorers are frozen first, so that they surely have tasks; the others get these."""
    with Search(on(cluster, DYNAMIC)) as search:
        all_started(search)
        archive_after(search, 3)
        lost = {remote: pid for remote, (node, pid) in places(ray, search).items() if node == nodes[0].node_id}
        assert len(lost) == 2
        for pid in lost.values():
            os.kill(pid, signal.SIGSTOP)
        give, given = search.workers.give, []

        def kill_once_given(tasks):
            give(tasks)
            if not given:
                given.extend(task for remote, chunk in search.workers.out.values() if remote in lost for task in chunk)
                cluster.remove_node(nodes[0], allow_graceful=False)

        search.workers.give = kill_once_given
        found = archive_after(search, LATER - 3)
        assert len(given) > 2
        assert not set(lost) & set(search.workers.remotes)
        assert sum(remote.started for remote in search.workers.remotes) == 2, "the other two are waited for"
    assert same(found, undisturbed(DYNAMIC, LATER))


def test_an_explorer_that_cannot_start_says_why(nodes, cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(cell=lambda emulator: b"here only"))
    with (
        Search(on(cluster, replace(TINY, cells="mine:cell"), 1)) as search,
        pytest.raises(
            RuntimeError, match=r"^cluster='.*': an explorer can't start there: ValueError: cells='mine:cell'"
        ),
    ):
        search.advance()


@pytest.mark.slow
def test_without_any_node_it_waits_for_one(nodes, cluster):
    with Search(on(cluster, TINY, 2)) as search:
        archive_after(search, 1)
        for node in nodes:
            cluster.remove_node(node, allow_graceful=False)
        new = cluster.add_node(**NODE, num_cpus=1)
        found = archive_after(search, LATER - 1)
        assert [remote.started for remote in search.workers.remotes].count(True) == 1, "on the one CPU that there is"
        cluster.remove_node(new, allow_graceful=False)
        search.workers.PATIENCE = 1
        with pytest.raises(RuntimeError, match="no explorer has started for 1 s; give the cluster free CPUs"):
            archive_after(search, 2)
    assert same(found, undisturbed(TINY, LATER))


def test_a_node_with_another_emulator_is_refused(ray):
    from mzlib.go_explore.cluster import RemoteExplorer

    state = Explorer(TINY).first_state
    assert RemoteExplorer(TINY, state).first_state == state
    with pytest.raises(RuntimeError, match="install the same ale-py on every node"):
        RemoteExplorer(TINY, state[:-1] + bytes([state[-1] ^ 1]))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_no_cluster_there(ray, address):
    with pytest.raises(ConnectionError, match=f"^cluster='{address}': no Ray there .*; use local, auto or"):
        Search(replace(TINY, cluster=address))


@pytest.mark.slow
def test_a_cluster_of_ones_own(ray, tmp_path):
    """A search begun in processes here goes on in a cluster: one parameter, which changes no result."""
    with Search(TINY) as search:
        archive_after(search, 3)
        search.save(tmp_path / "latest.npz")
    with Search.load(tmp_path / "latest.npz", replace(TINY, cluster="local", workers=2)) as search:
        found = archive_after(search, LATER - 3)
        assert len(search.workers.remotes) == 2
    assert not ray.is_initialized()
    assert same(found, undisturbed(TINY, LATER))
