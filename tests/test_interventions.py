"""Situations within demos, what is reached from there, and the distance of what was reached."""

import numpy as np
import pytest
import torch

from mzlib import demos, interventions, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.interventions import Injected, Start, at, leg_starts, total_variation, visits
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import GOALS
from mzlib.runs import data_dir
from mzlib.steering import ControlledPolicy

SIZES = {"channels": 4, "width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "layer": 1, "seq_len": 12}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "b.safetensors"
    runs.save_weights(path, MontezumaVLM(BackboneConfig(**SIZES)))
    return path


@pytest.fixture(scope="module")
def places() -> list[demos.Demo]:
    return sorted(demos.load(data_dir("demos", "places", "plain.npz")), key=len)[:3]


class Rehearsed(ControlledPolicy):
    """Plays each demo's own actions on from its start, and keeps what it was shown."""

    def __init__(self, weights, starts, memory):
        super().__init__(weights)
        self.starts, self.memory, self.t, self.shown = starts, memory, 0, []

    def act(self, observation):
        super().act(observation)
        self.shown.append((observation.frames.copy(), observation.began.copy()))
        first = self.t - (self.memory - 1)
        self.t += 1
        rest = [s.demo.actions[max(s.step + first, 0) :] for s in self.starts]
        return np.array([actions[0] if len(actions) else 0 for actions in rest])


def test_the_demos_own_actions_reach_their_own_places(weights, places):
    starts = leg_starts(places)
    assert all(start.demo.goals[start.step] == start.goal >= 0 for start in starts)
    policy = Rehearsed(weights, starts, memory=20)
    seen = visits(policy, None, starts, steps=60, memory=20)
    for start, visited in zip(starts, seen, strict=True):
        follow = start.demo.goals[start.step : start.step + 50]
        if len(follow) and (follow == start.goal).sum() < 50:
            assert start.goal in visited
    frames, began = policy.shown[19]
    for i, start in enumerate(starts):
        trajectory = demos.record(start.demo)
        if start.step:
            assert np.array_equal(frames[i], trajectory.frames[start.step - 1])
            assert not began[i]
    short = next(i for i, start in enumerate(starts) if start.step < 15)
    assert policy.shown[3][1][short], "before it began, its first frame only"


def test_who_dies_visits_no_more(weights, places, monkeypatch):
    start = leg_starts(places)[0]
    monkeypatch.setattr(interventions, "at", lambda emulator: int(emulator.lives))
    policy = Rehearsed(weights, [Start(start.demo, 0)], memory=4)
    policy.starts = [Start(demos.Demo(np.full(200, 3, np.uint8), np.zeros(200)), 0)]  # walks off the platform
    visited = visits(policy, None, policy.starts, steps=200, memory=4)
    assert visited == [[]], "the place of a life lost counts not"
    assert len(policy.shown) < 200


def test_places_are_those_of_the_goals(places):
    demo = places[0]
    for step, (emulator, _, _) in enumerate(demos.replay(demo)):
        if step == len(demo) - 1:
            facts = emulator.facts
            assert GOALS[at(emulator)].holds(facts.room, facts.x, facts.y)
            assert at(emulator) == demo.goals[-1]


def test_injecting_holds_each_rows_code(weights, places):
    torch.manual_seed(1)
    meta = Metacontroller(MetacontrollerConfig(16, code_dim=2, controller_rank=2)).requires_grad_(False)
    starts = leg_starts(places)[:3]
    codes, source = np.ones((3, 2)), np.array([start.goal for start in starts])
    found = interventions.inject(weights, meta, codes, source, starts, steps=6, group=2)
    assert found.steered.shape == found.left.shape == (3,)
    again = interventions.inject(weights, meta, codes, source, starts, steps=6, group=2)
    assert np.array_equal(found.steered, again.steered)
    assert Injected(np.array([1, 2]), np.array([1, 0]), np.array([-1, 0])).agreement() == (0.5, 0.0)
    reached = interventions.reaches(weights, None, starts, steps=6, group=2)
    assert reached.dtype == bool
    assert len(reached) == 3


def test_total_variation_by_hand_and_its_floor():
    a, b = np.array([0] * 60 + [1] * 40), np.array([0] * 20 + [2] * 80)
    found = total_variation(a, b)
    assert found["distance"] == pytest.approx(0.8)
    assert 0.02 < found["floor"] < 0.2
    rng = np.random.default_rng(0)
    same = [total_variation(rng.integers(5, size=40), rng.integers(5, size=40)) for _ in range(20)]
    assert np.mean([found["distance"] > found["floor"] for found in same]) < 0.3
    assert np.mean([found["distance"] for found in same]) > 0.05, "few draws always differ"


def test_a_branch_is_what_visits_sees(weights, places):
    torch.manual_seed(1)
    meta = Metacontroller(MetacontrollerConfig(16, code_dim=2, controller_rank=2)).requires_grad_(False)
    meta.hypernetwork.a.mul_(30)
    start = leg_starts(places)[-1]
    frames, positions = interventions.branch(weights, meta, start, np.array([1.0, -2.0]), 10)
    assert frames.shape == (10, 84, 84)
    assert frames.dtype == np.uint8
    rows = []
    control = interventions.HeldCodes(meta, np.array([[1.0, -2.0]]))
    for (emulator,), _ in interventions.play_on(ControlledPolicy(weights), control, [start], 10):
        rows.append((emulator.facts.room, emulator.facts.x, emulator.facts.y, emulator.frame.sum()))
    assert [tuple(p) for p in positions] == [row[:3] for row in rows[1:]]
    assert frames.sum((1, 2)).tolist() == [row[3] for row in rows[1:]]
    other = interventions.branch(weights, meta, start, np.array([-3.0, 2.0]), 10)[1]
    assert not np.array_equal(positions, other), "another code, another way"
