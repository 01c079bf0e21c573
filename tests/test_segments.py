"""Matching, events and mutual information on sequences whose truth is planted."""

import numpy as np
import pytest

from mzlib import segments
from mzlib.places import GOALS, PLACES
from mzlib.segments import IN_THE_AIR, SUPPORTS


def planted(rows: int = 40, steps: int = 60) -> tuple[np.ndarray, ...]:
    """Goals that change every 15 steps or so, and actions that change every 5 or so, at the goals' changes too."""
    rng = np.random.default_rng(0)
    goals, changed = np.full((rows, steps), -1), rng.random((rows, steps)) < 0.2
    for row in range(rows):
        cuts = np.cumsum(rng.integers(10, 20, 4)) + 5
        for g, (begin, end) in enumerate(zip([5, *cuts], [*cuts, steps], strict=True)):
            goals[row, begin:end] = g
        changed[row, cuts[cuts < steps]] = True
    return goals, changed


def test_planted_truth_scores_one_and_controls_less():
    goals, changed = planted()
    true, allowed = segments.goal_changes(goals)
    assert not true[:, :6].any(), "the first goal follows none"
    found = segments.compare(true, true, allowed, changed)
    assert (found["switch"]["f1"], found["switch"]["interval"]) == (1, [1, 1])
    for name in segments.CONTROLS:
        assert found[name]["interval"][1] < 0.8
    assert found["actions"]["f1"] > found["random"]["f1"], "goals change only where actions do"
    late = np.roll(true, 3, axis=1)
    assert segments.compare(late, true, allowed, changed)["switch"]["f1"] < 0.2
    assert segments.compare(np.roll(true, 2, axis=1), true, allowed, changed)["switch"]["f1"] > 0.95
    none = segments.compare(np.zeros_like(true), true, allowed, changed)
    assert all(score["f1"] == 0 for score in none.values())


def test_controls_place_as_many_and_only_where_allowed():
    rng, allowed, changed = np.random.default_rng(0), np.arange(10, 40), np.array([12, 20, 33])
    for control in (segments.at_random, segments.evenly):
        for count in (0, 1, 7, 30):
            drawn = control(count, allowed, changed, rng)
            assert len(set(drawn.tolist())) == count
            assert set(drawn.tolist()) <= set(allowed.tolist())
    even = segments.evenly(5, allowed, changed, rng)
    assert set(np.diff(even)) == {6}
    assert sorted(segments.at_changes(7, allowed, changed, rng)) == [12, 20, 33]


def test_the_bootstrap_draws_groups():
    goals, changed = planted()
    true, allowed = segments.goal_changes(goals)
    opened = true.copy()
    opened[::2] = False  # every other sequence finds nothing
    alone = segments.compare(opened, true, allowed, changed)["switch"]
    same = segments.compare(opened, true, allowed, changed, groups=np.zeros(len(goals)))["switch"]
    pairs = segments.compare(opened, true, allowed, changed, groups=np.arange(len(goals)) % 2)["switch"]
    assert alone["f1"] == same["f1"] == pairs["f1"] < 0.8
    assert same["interval"] == [same["f1"]] * 2, "one group is one observation"
    assert pairs["interval"] == [0, 1], "two that differ"
    assert 0.1 < alone["interval"][1] - alone["interval"][0] < 0.5


def test_supports_hold_every_place_and_nothing_between():
    middles = np.array([[p.room, (p.x_min + p.x_max) // 2, (p.y_min + p.y_max) // 2] for p in (*PLACES, *GOALS)])
    assert (segments.supports(middles) != IN_THE_AIR).all()
    assert (segments.supports(np.array([[1, 48, 170], [1, 110, 235 + 15], [9, 77, 235]])) == IN_THE_AIR).all()
    names = [SUPPORTS[i].name for i in segments.supports(np.array([[1, 21, 160], [1, 109, 190], [1, 40, 148]]))]
    assert names == ["left ladder", "rope", "floor"]


def test_events_are_seen_a_step_after_they_happened():
    start, air, rope, ladder = (1, 77, 235), (1, 95, 240), (1, 109, 190), (1, 77, 220)
    way = [start, start, air, start, start, ladder, ladder, start, air, air, rope, rope, (2, 3, 235), (2, 3, 235)]
    rewards = np.zeros(len(way))
    rewards[11] = 100
    happened = segments.events(np.array(way), rewards)
    # after step 5 the platform is left for the ladder; 7 back; 8 left for the rope; 10 on it; 11 key; 12 another room
    assert np.flatnonzero(happened).tolist() == [6, 8, 9, 11, 12, 13]
    regions = segments.regions(np.array(way))
    assert [SUPPORTS[i].name for i in regions[[2, 5, 9, 10, 13]]] == [
        "start platform", "middle ladder", "start platform", "rope", "right room, floor"]  # fmt: skip
    assert not segments.events(np.array([start, air, start, start]), np.zeros(4)).any(), "a jump on the spot"


def test_spans_cover_the_valid_steps_once():
    opened = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], bool)
    valid = np.array([[1] * 6, [0, 1, 1, 1, 0, 0], [0] * 6], bool)
    assert list(segments.spans(opened, valid)) == [(0, 0, 3), (0, 3, 5), (0, 5, 6), (1, 1, 2), (1, 2, 4)]


def test_clusters_find_groups():
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=300)
    labels = segments.clusters(10 * np.eye(4)[truth] + rng.standard_normal((300, 4)), 4)
    assert segments.mutual_information(labels, truth)["share"] == pytest.approx(1)
    assert len(set(segments.clusters(np.zeros((5, 2)), 3))) == 1


def test_mutual_information_by_hand():
    a = np.array([0, 0, 1, 1] * 50)
    assert segments.mutual_information(a, a)["nats"] == pytest.approx(np.log(2))
    known = segments.mutual_information(a, np.array([0, 0, 1, 2] * 50))
    assert known["nats"] == pytest.approx(np.log(2))
    assert known["share"] == pytest.approx(np.log(2) / (1.5 * np.log(2)), abs=0.02)
    blind = segments.mutual_information(np.random.default_rng(0).integers(9, size=60), np.arange(60) % 7)
    assert blind["nats"] > 0.2, "few samples always tell something"
    assert abs(blind["nats"] - blind["floor"]) < 0.12
