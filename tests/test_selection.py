"""Selection: the sum tree against plain probabilities, and the three rules' weights against their formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzlib.go_explore import Archive, Candidate, Episode, GoExploreConfig, Search
from mzlib.go_explore.selection import RULES, Selector, SumTree

CONFIG = GoExploreConfig(total_steps=3_000, batch=4, explore_steps=40, workers=1, seed=3)
weight = st.floats(0, 1e6, allow_subnormal=False)


def fits(tree: SumTree, weights: np.ndarray) -> None:
    """The tree draws where the running sum of the plain weights says."""
    assert math.isclose(tree.total, weights.sum(), rel_tol=1e-12)
    uniform = (np.arange(200) + 0.5) / 200
    drawn, edges = tree.draw(uniform), np.concatenate([[0], np.cumsum(weights)])
    slack = 1e-12 * edges[-1]
    assert (weights[drawn] > 0).all()
    assert (edges[drawn] <= uniform * edges[-1] + slack).all()
    assert (uniform * edges[-1] <= edges[drawn + 1] + slack).all()


@given(st.lists(weight, min_size=1, max_size=70).filter(any), st.data())
def test_the_sum_tree_draws_with_the_plain_probabilities(weights, data):
    weights = np.array(weights)
    tree = SumTree(weights)
    fits(tree, weights)
    cells = np.array(sorted(data.draw(st.sets(st.integers(0, len(weights) - 1)))), np.int64)
    weights[cells] = data.draw(st.lists(weight, min_size=len(cells), max_size=len(cells)))
    tree.set(cells, weights[cells])
    assert np.array_equal(tree.sums, SumTree(weights).sums), "the order of the changes leaves no trace"
    if weights.any():
        fits(tree, weights)


def test_the_largest_number_draws_a_cell_with_a_weight():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = np.append(rng.random(37), np.zeros(5))
        assert SumTree(weights).draw(np.array([np.nextafter(1, 0), 0.0])).tolist() == [36, 0]


def test_the_tree_draws_what_a_search_in_the_running_sum_draws():
    """The drawing of NumPy's Generator.choice, whose cost is linear in the cells."""
    weights = 1 / np.sqrt(np.random.default_rng(1).integers(500, size=3_000) + 1.0)
    chosen = np.random.default_rng(2).choice(3_000, size=5_000, p=weights / weights.sum())
    assert np.array_equal(SumTree(weights).draw(np.random.default_rng(2).random(5_000)), chosen)


# ---- the rules

KEYS = [bytes((level, keys, room, x, 9)) for level in (0, 1) for keys in (0, 1, 2) for room in (1, 2) for x in range(4)]
GATES = [key + bytes([gates]) for key in KEYS if key[2] == 1 for gates in (0, 1)]


def filled(keys: list[bytes], rule: str, counts: np.random.Generator) -> Archive:
    archive = Archive(Candidate(keys[0], 0, 0, (0, 0, 0), b""), rule)
    for number, key in enumerate(keys[1:], start=1):
        way = Candidate(key, 0, number, (0, 0, 0), b"")
        archive.merge(archive.pick(0), Episode(number, bytes(number), (key,), (way,), None))
        if counts.random() < 0.3:
            archive.select(counts, 2)
    for name in ("seen", "chosen", "chosen_since_new"):
        archive.column(name)[:] = counts.integers(50, size=len(keys))
    archive.selector.changed += range(len(keys))
    return archive


def expected(archive: Archive, rule: str) -> list[float]:
    """The weights, from the formulas of the docstrings, one cell at a time."""
    weights, known = [], set(archive.keys)
    for cell, (level, keys, room, x, *rest) in enumerate(archive.keys):
        seen, chosen, since = (int(archive.column(n)[cell]) for n in ("seen", "chosen", "chosen_since_new"))
        if rule == "counts":
            counts = ((0.1, chosen), (0.0, since), (0.3, seen))
            weights.append(1 + sum(w * (1 / (v + 0.001)) ** 0.5 + 0.00001 for w, v in counts))
            continue
        value = (seen + 1) ** -0.5
        if rule == "domain":
            beside = (bytes((level, keys, room, x + d, *rest)) in known for d in (-1, 1) if x + d >= 0)
            more = any(key[0] == level and key[1] > keys and key[2:] == bytes((room, x, *rest)) for key in known)
            value = 0.1 ** (max(k[0] for k in known) - level) * (value + (2 - sum(beside)) / 10 + (not more))
        weights.append(value)
    return weights


@pytest.mark.parametrize("rule", RULES)
@given(st.sampled_from((KEYS, GATES)).flatmap(st.permutations).map(lambda keys: keys[:25]), st.integers(0, 99))
def test_the_weights_are_those_of_the_rule(rule, keys, seed):
    archive = filled(keys, rule, np.random.default_rng(seed))
    archive.select(np.random.default_rng(0), 1)
    tree = archive.selector.tree
    assert np.allclose(tree.sums[tree.leaves :][: len(keys)], expected(archive, rule), rtol=1e-12)
    again = Selector(rule)
    again.draw(archive, np.zeros(1))
    assert np.array_equal(again.tree.sums, tree.sums), "built anew, as after a resume"


def test_the_counts_of_choices():
    archive = Archive(Candidate(b"start", 0, 0, (1, 77, 235), b""), "counts")
    way = Candidate(b"a", 0, 5, (1, 2, 3), b"")
    found, nothing = (Episode(9, bytes(9), (b"start",), ways, None) for ways in ((way,), ()))
    for episode, counts in ((nothing, (1, 1)), (nothing, (2, 2)), (found, (3, 0)), (nothing, (4, 1))):
        archive.merge(archive.pick(0), episode)
        assert (archive.column("chosen")[0], archive.column("chosen_since_new")[0]) == counts
    better = Episode(9, bytes(9), (), (way._replace(offset=4),), None)
    archive.merge(archive.pick(1), nothing)
    assert archive.column("chosen")[1] == 1
    archive.merge(archive.pick(0), better)
    assert [archive.column(name)[1] for name in ("seen", "chosen", "chosen_since_new")] == [0, 0, 0], "improved"


@pytest.mark.parametrize("rule", ["counts", "domain"])
def test_a_rule_searches_the_same_with_workers_and_after_a_resume(rule, tmp_path):
    config, archives = GoExploreConfig(**{**vars(CONFIG), "selection": rule}), []
    for workers in (1, 3):
        with Search(GoExploreConfig(**{**vars(config), "workers": workers})) as search:
            for batch in range(8):
                if batch == 4 and workers == 3:
                    search.save(tmp_path / "latest.npz")
                search.advance()
            archives.append(search.archive.to_arrays())
    with Search.load(tmp_path / "latest.npz", config) as search:
        for _ in range(4):
            search.advance()
        archives.append(search.archive.to_arrays())
    with Search(CONFIG) as search:
        for _ in range(8):
            search.advance()
        assert not np.array_equal(archives[0]["cell_found"], search.archive.column("found")), (
            "another rule, another way"
        )
    for other in archives[1:]:
        assert [name for name in archives[0] if not np.array_equal(archives[0][name], other[name])] == []
