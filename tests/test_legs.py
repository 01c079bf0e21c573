"""The places data: ways found in the real emulator, trajectories that hold when replayed from the game's start."""

from dataclasses import replace

import numpy as np
import pytest

from mzlib import demos
from mzlib.emulator import NOOP, Emulator
from mzlib.go_explore import legs
from mzlib.places import GOALS, HELD_OUT, KEY_AND_OUT, POST_TRAINING_TASKS
from mzlib.runs import data_dir

SHIPPED = sorted(data_dir("demos", "places").glob("*.npz"))


def ends_of_legs(demo: demos.Demo) -> list[int]:
    """The last step of each leg."""
    return np.flatnonzero((np.diff(demo.goals, append=-2) != 0) & (demo.goals >= 0)).tolist()


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_ways_lead_where_they_say_and_no_shorter_way_was_passed_over(sticky):
    emulator = Emulator(seed=3, sticky=sticky)
    emulator.wait(5)
    state = emulator.save_state(include_rng=sticky > 0)
    found = legs.ways(emulator, limit=400)
    assert len(found) >= 5
    lengths = {}
    for goal, (actions, passed) in found.items():
        assert goal in passed
        emulator.load_state(state)
        visited = []
        for action in actions:
            emulator.step(action)
            facts = emulator.facts
            visited.append(GOALS[goal].holds(facts.room, facts.x, facts.y))
        assert visited[-1], GOALS[goal].name
        assert facts.lives == 5
        assert not facts.dying
        lengths[GOALS[goal].name] = len(actions)
    if not sticky:
        passed = {GOALS[goal].name: {GOALS[other].name for other in way.passed} for goal, way in found.items()}
        assert lengths["middle ladder, bottom"] < lengths["rope"], "the rope lies beyond the ladder"
        assert passed["right ladder, bottom"] == {"rope", "right platform", "right ladder, bottom"}
        assert passed["rope"] == {"rope"}, "a jump off the start platform"


def test_a_fall_is_no_arrival():
    emulator = Emulator()
    emulator.wait(5)
    begin = emulator.facts
    assert legs.settled(emulator, begin)
    emulator.reset()
    for _ in range(6):
        emulator.step(3)  # off the start platform's edge
    while emulator.facts.y == begin.y:
        emulator.step(3)
    assert not legs.settled(emulator, begin)


def test_a_tree_of_trajectories_replays_from_the_start(monkeypatch):
    monkeypatch.setattr(legs, "BRANCHES", (2, 1, 1))
    begin = legs.root(40_000, 0.0)
    grown = legs.grow(begin, legs.at_end(begin), np.random.default_rng(0))
    assert grown
    first = legs.ways(legs.at_end(begin))
    for demo in grown:
        assert (demo.goals[: len(begin)] == -1).all()
        aims = demo.goals[ends_of_legs(demo)].tolist()
        assert 2 <= len(aims) <= 3
        assert not set(zip(aims, aims[1:], strict=False)) & HELD_OUT
        assert aims[1] not in first or aims[0] not in first[aims[1]].passed, "the second leg is no part of one way"
        assert legs.arrives(demo)
    demo = grown[0]
    assert not legs.arrives(replace(demo, actions=np.where(demo.goals >= 0, NOOP, demo.actions)))
    assert not legs.arrives(replace(demo, rewards=demo.rewards + np.int32(1)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_places_data(path):
    loaded = demos.load(path)
    aims = [demo.goals[ends_of_legs(demo)].tolist() for demo in loaded]
    assert all(2 <= len(goals) <= 4 for goals in aims)
    pairs = {pair for goals in aims for pair in zip(goals, goals[1:], strict=False)}
    assert not pairs & HELD_OUT
    assert len({goal for goals in aims for goal in goals}) >= 10
    for demo in loaded[:: max(len(loaded) // 4, 1)]:
        assert legs.arrives(demo)


def test_what_is_held_out():
    assert set(HELD_OUT) == set(zip(KEY_AND_OUT, KEY_AND_OUT[1:], strict=False))
    for task in POST_TRAINING_TASKS:
        assert all(0 <= goal < len(GOALS) for goal in task)
        assert set(zip(task, task[1:], strict=False)) & HELD_OUT
