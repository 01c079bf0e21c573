"""The from-reset protocol: tallies, sums, and the open-loop baseline."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mzlib import demos
from mzlib.emulator import ACTIONS
from mzlib.evaluate import (
    Episode,
    EvaluationProtocol,
    Observation,
    OpenLoop,
    bootstrap_interval,
    evaluate,
    interquartile_mean,
    play_episodes,
    select_demo,
    summarise,
    watch,
)
from mzlib.runs import data_dir

SHORT = EvaluationProtocol(episodes=4, max_frames=800)


def key_demo() -> demos.Demo:
    return demos.load(data_dir("demos", "first_key.npz"))[0]


def suicide() -> demos.Demo:
    """Walks off the start platform to her death."""
    return demos.from_actions(np.full(40, ACTIONS.index("RIGHT"), np.uint8))


def test_open_loop_begins_anew_after_each_death():
    policy = OpenLoop(replace(key_demo(), actions=np.array([3, 4, 5], np.uint8)))

    def act(began, lost):
        return policy.act(Observation(None, np.array(began), np.array(lost), np.arange(2))).tolist()

    no = [False, False]
    assert act([True, True], no) == [3, 3]
    assert act(no, no) == [4, 4]
    assert act(no, [False, True]) == [5, 3]
    assert act(no, no) == [0, 4]
    assert act(no, no) == [0, 5]


def test_a_demo_without_sticky_actions_scores_what_it_says():
    demo = key_demo()
    protocol = EvaluationProtocol(sticky=0, noop_max=0, episodes=1, max_frames=4 * len(demo))
    episode = Episode.from_reset(1, protocol)
    assert episode.noops == 0
    episode.emulator.wait(demo.noops)
    for action in demo.actions.tolist():
        episode.step(action)
    tally = episode.tally()
    assert (tally["score"], tally["first_life_score"], tally["first_key"], tally["rooms"]) == (100, 100, True, 1)


def test_the_first_life_counts_to_its_end():
    protocol = EvaluationProtocol(sticky=0, noop_max=0, episodes=1, max_frames=4000)
    (tally,) = play_episodes(partial(OpenLoop, suicide()), [0], protocol)
    assert tally["score"] == tally["first_life_score"] == 0
    assert tally["steps"] < 1000, "all lives are lost before the frames are used up"
    episode = Episode.from_reset(0, protocol)
    while not episode.life_lost:
        episode.step(ACTIONS.index("RIGHT"))
    assert episode.tally()["first_life_score"] == 0
    assert episode.lives == 5
    episode.score += 700
    while episode.lives == 5:
        episode.step(ACTIONS.index("RIGHT"))
    assert (episode.tally()["first_life_score"], episode.tally()["score"]) == (0, 700), "the second life doesn't count"
    assert episode.tally()["first_key"] is False


def test_the_result_does_not_depend_on_the_workers_or_the_width():
    make = partial(OpenLoop, key_demo())
    one, two = evaluate(make, SHORT, workers=1), evaluate(make, SHORT, workers=2)
    del one["steps_per_s"], two["steps_per_s"]
    assert one == two
    tallies = play_episodes(make, SHORT.seeds, SHORT, width=1)
    assert tallies == play_episodes(make, SHORT.seeds, SHORT, width=3)
    assert len({tally["noops"] for tally in tallies}) > 1
    assert [tally["seed"] for tally in tallies] == [100_000, 100_001, 100_002, 100_003]


def test_watching_is_playing():
    tally = play_episodes(partial(OpenLoop, key_demo()), [100_001], SHORT)[0]
    seen = [reward for _, _, reward in watch(OpenLoop(key_demo()), 100_001, SHORT)]
    assert (len(seen), sum(seen)) == (tally["steps"], tally["score"])


def test_a_policy_that_sees_gets_the_frames():
    class Looks:
        sees_frames = True
        shapes = ()

        def act(self, observation):
            self.shapes += (observation.frames.shape,)
            return np.zeros(len(observation.began), int)

    policy = Looks()
    play_episodes(lambda: policy, [1, 2], EvaluationProtocol(episodes=2, max_frames=8))
    assert set(policy.shapes) == {(2, 84, 84)}


def test_sums_by_hand():
    tallies = [
        {
            "seed": 9 - n,
            "score": score,
            "first_life_score": score / 2,
            "first_key": score > 0,
            "first_life_key": score > 100,
            "rooms": 1 + n,
            "visited": [1, 2, 6, 7][: 1 + n],
            "steps": 10,
        }
        for n, score in enumerate([0, 100, 400, 2500])
    ]
    summary = summarise(tallies, {"sticky": 0.25}, seconds=2.0)
    assert (summary["mean"], summary["median"], summary["iqm"], summary["first_life_mean"]) == (750, 250, 250, 375)
    assert (summary["first_key_rate"], summary["rooms_max"], summary["steps_per_s"]) == (0.75, 4, 20)
    assert summary["visited"] == [1, 2, 6, 7]
    assert summary["scores"] == [2500, 400, 100, 0], "by seed"
    low, high = summary["interval"]
    assert 0 <= low < 750 < high <= 2500


def test_iqm_and_interval():
    assert interquartile_mean(np.array([0.0, 10, 20, 8000])) == 15
    assert interquartile_mean(np.array([5.0])) == 5
    values = np.random.default_rng(1).normal(10, 2, 400)
    low, high = bootstrap_interval(values)
    assert abs((high - low) / 2 - 1.96 * values.std() / 20) < 0.03
    assert bootstrap_interval(np.array([3.0, 3.0])) == [3, 3]


def test_the_demo_is_chosen_on_selection_seeds(monkeypatch):
    asked = []

    def fake(make_policy, protocol, workers):
        asked.append(protocol.first_seed)
        return {"mean": len(make_policy.args[0])}

    monkeypatch.setattr("mzlib.evaluate.evaluate", fake)
    assert select_demo([key_demo(), suicide()], SHORT).score == 100
    assert asked == [50_000, 50_000]


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"episodes": 0}, "episodes=0"), ({"max_frames": -4}, "max_frames=-4"), ({"sticky": 2}, "sticky=2")],
)
def test_wrong_protocols(setting, message):
    with pytest.raises(ValueError, match=message):
        EvaluationProtocol(**setting)


def test_the_next_life_begins_where_the_player_stands_again():
    episode = Episode.from_reset(0, EvaluationProtocol(sticky=0, noop_max=0, episodes=1))
    start = episode.emulator.facts
    while not episode.life_lost:
        assert episode.steps < 60
        episode.step(ACTIONS.index("RIGHT") if episode.steps < 4 else 0)
    now = episode.emulator.facts
    assert (now.x, now.y, now.dying) == (start.x, start.y, False)
    assert now.lives == start.lives - 1
    episode.step(0)
    assert not episode.life_lost
