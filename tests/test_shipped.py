"""The demonstrations and weights that the workbook ships: what the README says of them is so."""

import collections
import itertools
from functools import partial

import numpy as np
import pytest

from mzlib import demos, pinpad_study, runs
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.evaluate import EvaluationProtocol, evaluate
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.policies import ActorCriticPolicy, ClonePolicy
from mzlib.runs import data_dir

FILES = sorted(data_dir("demos").glob("*.npz"))
SCORES = {"first_key": 100, "first_key_sticky": 100, "first_door": 400, "first_door_sticky": 400}


def test_the_files():
    assert [path.stem for path in FILES] == sorted(SCORES)
    assert sum(path.stat().st_size for path in FILES) < 5_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scores_and_settings(path):
    loaded = demos.load(path)
    assert len(loaded) >= 8
    assert {demo.score >= SCORES[path.stem] for demo in loaded} == {True}
    assert {demo.sticky for demo in loaded} == {0.25 if "sticky" in path.stem else 0.0}
    assert {demo.frames_per_action for demo in loaded} == {4}
    assert all(demo.rewards[-1] > 0 for demo in loaded), "a demo ends with its last reward"


def test_each_comes_from_a_search_of_its_own():
    seeds = collections.Counter(demo.seed for path in FILES for demo in demos.load(path))
    assert max(seeds.values()) == 1
    assert max(seeds) < 50_000, "training seeds"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sample_replays(path):
    loaded = demos.load(path)
    for number in np.random.default_rng(0).choice(len(loaded), 4, replace=False):
        demos.verify(loaded[number])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sample_is_clean_and_without_a_death(path):
    demo = demos.load(path)[-1]
    lives = {emulator.lives for emulator, _, _ in demos.replay(demo)}
    assert lives == {6}
    assert np.array_equal(demos.clean(demo).actions, demo.actions), "cleaning it again changes nothing"


@pytest.mark.parametrize(("score", "count"), [(100, 200), (400, 50)])
def test_how_many_there_are_and_about_half_are_sticky(score, count):
    sticky = [demo.sticky > 0 for path in FILES for demo in demos.load(path) if demo.score >= score]
    assert len(sticky) >= count
    assert abs(np.mean(sticky) - 0.5) <= 0.1


def test_the_ways_through_many_rooms():
    ways = demos.load(data_dir("demos", "rooms", "five_million.npz"))
    results = {record["name"]: record["per_seed"] for record in runs.read_results()["five_million"]}
    scored = results["Go-Explore: score after 5 M steps, domain cells (median)"]
    assert {str(way.seed): way.score for way in ways} == scored
    demos.verify(ways[1])


def test_the_ways_of_the_long_search():
    best, *ways = demos.load(data_dir("demos", "rooms", "hundred_million.npz"))
    results = {record["name"]: record for record in runs.read_results()["hundred_million"]}
    setting = "100 M steps, gates cells, domain weights"
    assert results[f"Go-Explore: score after {setting}"]["value"] == best.score
    for points, way in zip((2_500, 5_000, 10_000, 31_000), ways, strict=True):
        kept = results[f"Go-Explore, {setting}: the shortest way kept to {points:,} points"]
        assert kept["value"] == len(way)
        assert way.score >= points
    demos.verify(ways[-1])
    entry = results[f"Go-Explore, {setting}: points on entering treasure room 1"]
    steps = itertools.islice(demos.replay(best), entry["protocol"]["way_steps"])
    before, inside = [emulator.facts.room for emulator, _, _ in steps][-2:]
    assert (before == 15, inside == 15) == (False, True)
    assert best.rewards[: entry["protocol"]["way_steps"]].sum() == entry["value"]


def test_the_grid_worlds_switch_opens_at_changes_of_subgoal():
    backbone, about = runs.load_weights(
        data_dir("weights", "pinpad_backbone.safetensors"), PinpadBackbone, PinpadBackboneConfig
    )
    path = data_dir("weights", "pinpad_metacontroller.safetensors")
    metacontroller, _ = runs.load_weights(path, Metacontroller, MetacontrollerConfig, backbone=about["sha256"])
    config = runs.config_from(pinpad_study.PinpadStudyConfig, runs.load_profile("full", "00_pinpad"))
    assert (backbone.config, metacontroller.config) == (config.backbone, config.metacontroller)
    stored = {record["name"]: record["per_seed"] for record in runs.read_results()["pinpad"]}
    success = stored["Grid world: success of internal RL"]
    middle = sorted(success, key=success.get)[len(success) // 2]  # the seed of the shipped weights
    found = pinpad_study.look(backbone, metacontroller, pinpad_study.held_out(config, 300))
    f1 = stored["Grid world: switch against true changes of subgoal, F1 (median)"][middle]
    assert found["f1"] == pytest.approx(f1, abs=0.05)
    assert found["kl"] == pytest.approx(stored["Grid world: KL an episode"][middle], rel=0.2)


@pytest.mark.parametrize(
    ("weights", "record", "points", "greedy", "max_frames"),
    [
        ("policy", "Robustified, first key: key in the first life", 100, False, 1_200),
        ("policy_key_and_door", "Robustified, key and door: 400 points in the first life", 400, True, 1_600),
        ("policy_2500_points", "Robustified, 2,500 points: 2500 points in the first life", 2_500, True, 2_400),
        ("policy_3500_points", "Robustified, 3,500 points: 3500 points in the first life", 3_500, True, 2_800),
    ],
)
def test_a_policy_does_from_reset_what_its_record_says(weights, record, points, greedy, max_frames):
    stored = {record["name"]: record["per_seed"]["0"] for record in runs.read_results()["robustify"]}
    assert stored[record] > 0.9
    make = partial(ActorCriticPolicy, data_dir("weights", f"{weights}.safetensors"), greedy=greedy)
    played = evaluate(make, EvaluationProtocol(episodes=8, max_frames=max_frames), workers=1)
    assert sum(score >= points for score in played["first_life_scores"]) >= 7


def test_the_ways_to_2500_points():
    far = demos.load(data_dir("demos", "far", "points_2500.npz"))
    assert [demo.score for demo in far] == [2500] * 2 + [2600] * 5
    assert len({demo.seed for demo in far}) == len(far)
    demos.verify(min(far, key=len))


@pytest.mark.parametrize(("points", "last"), [(3500, 3000), (6500, 1000)])
def test_the_ways_that_keep_the_sword(points, last):
    (demo,) = demos.load(data_dir("demos", "far", f"points_{points}.npz"))
    assert demo.score == points
    assert demo.rewards[-1] == last
    demos.verify(demo)


def test_the_policys_rollouts_are_many_different_and_replay():
    loaded = demos.load(data_dir("demos", "robust", "first_key.npz"))
    assert len(loaded) >= 500
    assert len({demo.actions.tobytes() for demo in loaded}) == len(loaded) == len({demo.seed for demo in loaded})
    assert all(demo.sticky == 0.25 and demo.score == 100 and demo.seed < 50_000 for demo in loaded)
    for number in np.random.default_rng(0).choice(len(loaded), 3, replace=False):
        demos.verify(loaded[number])


def test_the_clone_with_rollouts_takes_the_key_from_reset():
    stored = {record["name"]: record["value"] for record in runs.read_results()["cloning"]}
    assert stored["Clone, step layout, with the policies' rollouts: key in the first life"] > 0.9
    make = partial(ClonePolicy, data_dir("weights", "backbone_rollouts.safetensors"), temperature=0.25)
    played = evaluate(make, EvaluationProtocol(episodes=6, max_frames=1_200), workers=1)
    assert sum(played["first_life_keys"]) >= 5
