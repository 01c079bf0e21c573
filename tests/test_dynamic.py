"""Dynamic cells: the objective, the choice of a cut, the archive under new keys, and a search that recuts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzlib.emulator import Emulator
from mzlib.go_explore import Archive, Candidate, Episode, GoExploreConfig, Search, downscaled, dynamic
from mzlib.go_explore.dynamic import Cut, Recutting, best_cut, objective, pack_screen, rekeyed, unpack_screen
from mzlib.go_explore.workers import random_actions

CONFIG = GoExploreConfig(cells="dynamic", recompute_every=600, batch=4, explore_steps=60, workers=1, seed=3)


@pytest.fixture(scope="module")
def screens() -> list[bytes]:
    emulator, packed = Emulator(), []
    for action in random_actions(np.random.default_rng(0), replace(CONFIG, explore_steps=300)).tolist():
        emulator.step(action)
        packed.append(pack_screen(emulator.screen))
    return packed


def test_the_keys_are_those_of_downscaled_cells():
    emulator, rng = Emulator(), np.random.default_rng(0)
    for action in random_actions(rng, replace(CONFIG, explore_steps=30)).tolist():
        emulator.step(action)
        packed = pack_screen(emulator.screen)
        assert np.array_equal(unpack_screen(packed), emulator.screen)
        cut = Cut(*(int(rng.integers(1, limit + 1)) for limit in dynamic.LIMITS))
        assert rekeyed([packed], cut) == [downscaled(emulator, *cut)]


def test_the_objective():
    even = objective([8] * 10)
    assert even == pytest.approx(1), "an eighth as many cells as screens, all of one size"
    assert objective([80]) == 0
    assert objective([1] * 80) == pytest.approx(1 / np.sqrt(80 / 10 - 1 + 1)), (
        "every screen a cell of its own: too fine"
    )
    assert objective([40, 40]) == pytest.approx(1 / np.sqrt(1 - 2 / 10 + 1)), "even, but too coarse"
    assert objective([71, *[1] * 9]) < 0.4 < even, "as many cells, but one holds nearly all"
    shares = np.array([3, 1]) / 4
    assert objective([3, 1]) == pytest.approx(-(shares * np.log2(shares)).sum() / np.sqrt(2 / 0.5 - 1 + 1))


def test_the_chosen_cut_is_better(screens):
    def value(cut: Cut) -> float:
        return objective(np.unique(rekeyed(screens, cut), return_counts=True)[1].tolist())

    chosen = {best_cut(screens, np.random.default_rng(seed), Cut(), 60) for seed in (0, 0, 1)}
    assert all(value(cut) > value(Cut()) for cut in chosen)
    assert len(chosen) <= 2, "the same generator, the same cut"
    assert best_cut(screens, np.random.default_rng(0), Cut(1, 1, 1), 60) != Cut(1, 1, 1)


@given(
    st.lists(st.tuples(st.sampled_from([0, 100, 400]), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 9),
)
def test_under_new_keys_the_best_way_stays(ways, groups):
    archive = Archive(Candidate(b"start", 0, 0, (1, 77, 235), b"s"))
    for number, (score, offset) in enumerate(ways):
        way = Candidate(b"%d" % number, score, offset, (1, number, 3), b"state %d" % number, b"screen %d" % number)
        archive.merge(archive.pick(0), Episode(9, bytes((number, *range(8))), (), (way,), None))
    old = {cell: (archive.standing(cell), archive.states[cell], archive.screens[cell]) for cell in range(len(archive))}
    rooms, found = archive.column("x").copy(), archive.column("found").copy()
    trails = [archive.way(archive.node(cell)).tolist() for cell in old]
    keys = [b"new %d" % (cell % groups) for cell in old]
    archive.rekey(keys)
    assert archive.keys == sorted(set(keys), key=keys.index)
    for cell, key in enumerate(archive.keys):
        members = [one for one in old if keys[one] == key]
        best = max(members, key=lambda one: (old[one][0], -one))
        assert (archive.standing(cell), archive.states[cell], archive.screens[cell]) == old[best]
        assert archive.way(archive.node(cell)).tolist() == trails[best]
        assert archive.column("x")[cell] == rooms[best]
        assert archive.column("found")[cell] == found[members].min()
        assert archive.index[key] == cell
    picks = archive.select(np.random.default_rng(0), 20)
    assert {pick.cell for pick in picks} <= set(range(len(archive)))


def test_when_the_next_cut_is_due(screens):
    recutting = Recutting(0, 10_000_000)
    assert not recutting.due(10**8, 10**6), "nothing seen yet"
    recutting.recent.extend(screens[:50])
    assert not recutting.due(9_999, 50_000)
    assert recutting.due(10_000, 1)
    assert recutting.due(1, 50_001)
    recutting.choose()
    recutting.chosen(10_000, 60_000)
    assert not recutting.due(19_999, 75_000)
    assert recutting.due(20_000, 1)
    assert recutting.due(10_001, 75_001)
    recutting.chosen(20_000_000, 40_000)
    assert not recutting.due(29_999_999, 50_000)
    assert recutting.due(30_000_000, 1)
    assert recutting.due(20_000_001, 50_001)
    again = Recutting(0, 10_000_000)
    again.restore(recutting.to_arrays())
    assert vars(again) == vars(recutting)
    assert again.choose() == recutting.choose()


def searched(config: GoExploreConfig, batches: int) -> tuple[dict, Recutting]:
    with Search(config) as search:
        for _ in range(batches):
            search.advance()
        return search.archive.to_arrays(), search.recutting


def test_a_recut_search_is_the_same_with_workers_and_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic.best_cut, "__defaults__", (40,))
    whole, recutting = searched(CONFIG, 14)
    assert recutting.number >= 2
    assert recutting.cut != Cut()
    archives = [searched(replace(CONFIG, workers=3), 14)[0]]
    for stop in (3, 9):
        with Search(CONFIG) as search:
            for _ in range(stop):
                search.advance()
            search.save(tmp_path / f"{stop}.npz")
        with Search.load(tmp_path / f"{stop}.npz", replace(CONFIG, workers=2)) as search:
            for _ in range(14 - stop):
                search.advance()
            archives.append(search.archive.to_arrays())
    for other in archives:
        assert [name for name in whole if not np.array_equal(whole[name], other[name])] == []


def test_every_recut_cell_is_reached_by_its_way(monkeypatch):
    monkeypatch.setattr(dynamic.best_cut, "__defaults__", (40,))
    with Search(CONFIG) as search:
        while search.recutting.number < 2:
            search.advance()
        for _ in range(2):
            search.advance()
        archive, cut = search.archive, search.recutting.cut
        for cell in range(1, len(archive), 5):
            emulator = Emulator(seed=CONFIG.seed)
            score = sum(emulator.step(action) for action in archive.way(archive.node(cell)).tolist())
            assert downscaled(emulator, *cut) == archive.keys[cell]
            assert score == archive.column("score")[cell]


def test_another_game_with_lives_to_lose():
    config = replace(CONFIG, game="pitfall", life_loss_terminal=False, recompute_every=500)
    with Search(config) as search:
        while not search.recutting.number:
            search.advance()
        search.advance()
        assert search.archive.column("length").max() > 0
        search.demo()
