"""The places data: ways found in the real emulator, trajectories that hold when replayed from the game's start."""

from dataclasses import replace

import numpy as np
import pytest

from mzlib import demos
from mzlib.emulator import NOOP, Emulator
from mzlib.go_explore import legs
from mzlib.places import GOALS, HELD_OUT, KEY_AND_OUT, POST_TRAINING_TASKS, goal_at
from mzlib.runs import data_dir

SHIPPED = sorted(data_dir("demos", "places").glob("*.npz"))


def ends_of_legs(demo: demos.Demo) -> list[int]:
    """The last step of each leg."""
    return np.flatnonzero((np.diff(demo.goals, append=-2) != 0) & (demo.goals >= 0)).tolist()


def successions(aims: list[int]) -> set[tuple[int, int, int]]:
    """Three places one after the other, all of them."""
    return set(zip(aims, aims[1:], aims[2:], strict=False))


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_ways_lead_to_neighbours_and_through_no_third_place(sticky):
    emulator = Emulator(seed=3, sticky=sticky)
    emulator.wait(5)
    state = emulator.save_state(include_rng=sticky > 0)
    found = legs.ways(emulator, limit=400)
    lengths = {GOALS[goal].name: len(actions) for goal, actions in found.items()}
    doors = {"left door", "upper right platform"}
    assert doors | {"middle ladder, bottom"} <= lengths.keys() <= doors | {"middle ladder, bottom", "rope"}
    for goal, actions in found.items():
        emulator.load_state(state)
        visited = []
        for action in actions:
            emulator.step(action)
            facts = emulator.facts
            visited.append(goal_at(facts.room, facts.x, facts.y))
        assert visited[-1] == goal, GOALS[goal].name
        assert set(visited) <= {-1, 0, goal}, "on the way only where it began"
        assert facts.lives == 5
        assert not facts.dying
    if not sticky:
        assert lengths["middle ladder, bottom"] < lengths["rope"] < lengths["left door"]


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
    monkeypatch.setattr(legs, "BRANCHES", (2, 2, 1))
    begin = legs.root(40_003, 0.0)
    grown = legs.grow(begin, legs.at_end(begin), np.random.default_rng(0))
    assert grown
    for demo in grown:
        assert (demo.goals[: len(begin)] == -1).all()
        aims = demo.goals[ends_of_legs(demo)].tolist()
        assert len(aims) == 3
        assert not successions(aims) & HELD_OUT
        assert legs.arrives(demo)
    demo = grown[0]
    assert not legs.arrives(replace(demo, actions=np.where(demo.goals >= 0, NOOP, demo.actions)))
    assert not legs.arrives(replace(demo, rewards=demo.rewards + np.int32(1)))


def test_a_leg_through_a_third_place_is_split_where_she_stands_on_it():
    for demo in demos.load(SHIPPED[0]):
        aims = demo.goals[ends_of_legs(demo)].tolist()
        if (4, 2, 0) in successions(aims):
            break
    assert np.array_equal(legs.split(demo).goals, demo.goals), "no leg of the shipped ones leads through a third place"
    begins = [0, *(np.flatnonzero(np.diff(demo.goals)) + 1).tolist(), len(demo)]
    spans = [(a, b) for a, b in zip(begins[:-1], begins[1:], strict=True) if demo.goals[a] >= 0]
    middle = next(i for i in range(1, len(spans)) if (aims[i - 1], *aims[i : i + 2]) == (4, 2, 0))
    begin, end = spans[middle][0], spans[middle + 1][1]
    joined = demo.goals.copy()
    joined[begin:end] = 0  # from the rope to the start platform in one
    again = legs.split(replace(demo, goals=joined))
    assert set(again.goals[begin:end].tolist()) == {2, 0}
    change = int(np.flatnonzero(np.diff(again.goals[begin:end]))[0]) + begin
    assert again.goals[change] == 2
    assert abs(change + 1 - spans[middle][1]) <= 2, "a leg made for the platform may go a step further on it"
    facts = [emulator.facts for emulator, _, _ in demos.replay(demo)][change]
    assert GOALS[2].holds(facts.room, facts.x, facts.y)
    assert np.array_equal(np.delete(again.goals, range(begin, end)), np.delete(demo.goals, range(begin, end)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_places_data(path):
    loaded = demos.load(path)
    aims = [demo.goals[ends_of_legs(demo)].tolist() for demo in loaded]
    assert all(3 <= len(goals) <= 10 for goals in aims)
    assert all(a != b for goals in aims for a, b in zip(goals, goals[1:], strict=False))
    shown = set().union(*map(successions, aims))
    assert not shown & HELD_OUT
    pairs = {pair for goals in aims for pair in zip(goals, goals[1:], strict=False)}
    assert all({(a, b), (b, c)} <= pairs for a, b, c in HELD_OUT), "each leg of them is shown"
    assert len({goal for goals in aims for goal in goals}) >= 10
    for demo in loaded[:: max(len(loaded) // 4, 1)]:
        assert legs.arrives(demo)


def test_what_is_held_out():
    assert successions(list(KEY_AND_OUT)) >= HELD_OUT
    for task in POST_TRAINING_TASKS:
        assert all(0 <= goal < len(GOALS) for goal in task)
        assert successions(list(task)) & HELD_OUT
