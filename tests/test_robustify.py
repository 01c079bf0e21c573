"""Robustification: the starts' rule, demos as tapes, rollouts that count what they should, and a training killed and
resumed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mzlib import demos, runs
from mzlib.evaluate import Observation
from mzlib.policies import ActorCritic, ActorCriticConfig, ActorCriticPolicy
from mzlib.robustify import Backward, Curriculum, CurriculumConfig, RobustifyConfig, Tape, cut_at, run, shortest
from mzlib.robustify.curriculum import LABELS
from mzlib.robustify.training import Demonstrated, discounted, first_policy
from mzlib.runs import Run, data_dir

TINY = RobustifyConfig(
    demo_count=2, total_steps=3 * 64, environments=8, rollout=8, epochs=1, minibatches=2, workers=2, device="cpu"
)


@pytest.fixture(scope="module")
def first_keys():
    return shortest(demos.load(data_dir("demos", "first_key.npz")), 100, 2)


@pytest.fixture(scope="module")
def tape(first_keys):
    return Tape.of(first_keys[0])


def filled(rates: dict[int, float], earliest: int, length: int = 60) -> Curriculum:
    """A curriculum of one demo, eight episodes at each given starting point."""
    curriculum = Curriculum(CurriculumConfig(trials=10), [length])
    curriculum.earliest = [earliest]
    for step, rate in rates.items():
        for k in range(8):
            curriculum.record(0, step, k < 8 * rate)
    return curriculum


@pytest.mark.parametrize(
    ("rates", "earliest"),
    [
        (dict.fromkeys(range(30, 40), 1.0), 25),  # two points make ten trials: safe at 31
        ({30: 0.0, 31: 0.0, 32: 0.0, 33: 0.25, 34: 1.0}, 28),  # 10 of 40: safe at 34
        (dict.fromkeys(range(30, 40), 0.0), 36),  # collapsed
        ({30: 1.0}, 30),  # too few episodes to tell
        ({}, 30),
    ],
)
def test_starts_move_back_as_far_as_they_are_safe(rates, earliest):
    curriculum = filled(rates, 30)
    curriculum.move()
    assert curriculum.earliest == [earliest]


def test_a_start_stops_at_the_reset_and_after_a_collapse_old_successes_are_forgotten():
    curriculum = filled(dict.fromkeys(range(4, 8), 1.0), 4)
    curriculum.move()
    assert curriculum.earliest == [0]
    curriculum.record(0, 0, False)
    curriculum.move()
    assert curriculum.earliest == [0]
    collapsed = filled(dict.fromkeys(range(30, 40), 0.0) | {45: 1.0}, 30)
    collapsed.move()
    assert collapsed.success == 0
    assert collapsed.rate(0, 45) is None


def test_a_share_of_episodes_begins_further_on():
    curriculum = Curriculum(CurriculumConfig(window=10, later=0.5), [60])
    curriculum.earliest = [30]
    steps = np.array([curriculum.draw()[1] for _ in range(2_000)])
    assert steps.min() == 30
    assert steps.max() == 59
    assert 0.28 < (steps >= 40).mean() < 0.38, "of the half that begin anywhere, two thirds"
    with pytest.raises(ValueError, match=r"later=1\.0"):
        CurriculumConfig(later=1.0)


def test_draws_lie_in_the_window_and_mostly_at_the_reset_once_there():
    curriculum = filled({}, 30)
    drawn = {curriculum.draw()[1] for _ in range(400)}
    assert drawn == set(range(30, 40))
    curriculum.earliest = [0]
    steps = np.array([curriculum.draw()[1] for _ in range(2_000)])
    assert 0.70 < (steps == 0).mean() < 0.81
    assert steps.max() > 50


def test_a_restored_curriculum_goes_on_as_the_old_one():
    curriculum = filled({30: 0.5, 31: 1.0}, 30)
    other = Curriculum(CurriculumConfig(), [60], seed=5)
    other.load_state_dict(curriculum.state_dict())
    assert other.success == curriculum.success == 0.75
    assert [other.draw() for _ in range(50)] == [curriculum.draw() for _ in range(50)]


@pytest.mark.parametrize("field", ["window", "move", "memory", "trials"])
def test_a_curriculum_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        CurriculumConfig(**{field: 0})


def test_demos_are_cut_at_the_goal_and_the_shortest_taken(first_keys):
    assert [demo.score for demo in first_keys] == [100, 100]
    assert len(first_keys[0]) <= len(first_keys[1])
    doors = demos.load(data_dir("demos", "first_door.npz"))
    cut = cut_at(doors[0], 100)
    assert cut.score == 100
    assert cut.rewards[-1] == 100
    assert len(cut) < len(doors[0])
    with pytest.raises(ValueError, match="scores 100, not goal=400"):
        cut_at(first_keys[0], 400)
    with pytest.raises(ValueError, match="demo_count=3: 2 demos"):
        shortest(first_keys, 100, 3)


def test_a_tape_starts_an_episode_where_the_demo_was(first_keys, tape):
    demo = first_keys[0]
    assert len(tape) == len(demo)
    assert tape.points[-1] == 100
    step = len(tape) - 5
    start = tape.start(step, 7, noops=3)
    assert start.noops == 0
    assert start.label == 7
    assert start.targets.tolist() == [0, 0, 0, 0, 100]
    assert np.array_equal(start.frames[-1], tape.frames[step])
    emulator = demos.start(demo)
    for action in demo.actions[:step].tolist():
        emulator.step(action)
    assert np.array_equal(tape.stack(step)[-1], emulator.frame)
    assert not np.array_equal(Tape.of(demo, two_frame_maximum=False).frames, tape.frames)
    assert start.state == emulator.save_state()
    reset = tape.start(0, 0, noops=3)
    assert reset.state is None
    assert reset.noops == 3
    assert len(reset.targets) == len(demo)


def test_returns_are_discounted():
    assert discounted(np.array([0.0, 1.0, 2.0]), 0.5).tolist() == [1.0, 2.0, 2.0]


def test_self_imitation_pulls_towards_the_demos_actions_while_they_do_better(tape):
    """The loss of the equations, and what it does: the demo's action gets likelier, the value rises to its return."""
    torch.manual_seed(0)
    policy, generator = ActorCritic(ActorCriticConfig()), torch.Generator().manual_seed(0)
    demonstrated = Demonstrated([tape], RobustifyConfig())
    frames = torch.from_numpy(np.stack([tape.stack(t) for t in range(len(tape))]))
    actions = torch.from_numpy(tape.actions.astype(int))

    def look():
        with torch.no_grad():
            logits, values, _ = policy.step(frames, policy.init_state(len(tape)), torch.ones(len(tape), dtype=bool))
        return logits.log_softmax(-1).gather(1, actions[:, None]).mean().item(), values.mean().item()

    before, optimiser = look(), torch.optim.Adam(policy.parameters(), 5e-4)
    for _ in range(30):
        optimiser.zero_grad()
        demonstrated.loss(policy, generator, 1.0).backward()
        optimiser.step()
    after = look()
    assert after[0] > before[0] + 0.3
    assert after[1] > before[1]
    demonstrated.returns = [np.full(len(tape), -9.0, np.float32)]  # worse than expected: nothing to imitate
    assert demonstrated.loss(policy, generator, 1.0).item() == 0


def test_a_rollout_holds_what_was_lived(first_keys):
    torch.manual_seed(0)
    config = replace(TINY, rollout=24, warm_up=3, lag=4)
    with Backward(config, ActorCritic(ActorCriticConfig()), first_keys) as backward:
        rollout, rewards, values, ended, tally = backward.collect()
        labels = backward.environments.labels
        assert {int(label) // LABELS for label in labels} <= {0, 1}
    assert tally["episodes"] > 8
    assert tally["resets"] == 0
    assert torch.equal(rollout.began[1:], ended[:-1])
    assert rollout.began[0].all()
    weights = rollout.weight.T
    for row, began in zip(weights, rollout.began.T, strict=True):  # each episode's first three steps are the demo's
        for begin in torch.where(began)[0].tolist():
            assert (row[begin : begin + 3] == 0).all()
    assert 0 < (rollout.weight == 0).float().mean() < 0.9
    assert set(rewards.unique().tolist()) <= {0.0, 1.0}
    assert values.shape == (25, 8)
    with torch.no_grad():
        log_p = ActorCritic.unroll(backward.policy, rollout.frames, rollout.state, rollout.began)[0].log_softmax(-1)
    expected = log_p.gather(-1, rollout.actions[..., None])[..., 0]
    torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("recurrent", [False, True])
def test_killed_then_resumed_equals_uninterrupted(tmp_path, monkeypatch, recurrent):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    config = replace(TINY, recurrent=recurrent, warm_up=2 if recurrent else 0)
    with Run.open("06_robustify", "smoke", config, tmp_path / "whole", quiet=True) as whole:
        run(config, whole)

    real = Backward.improve

    def dies(self, share):
        if share >= 2 / 3:
            raise KeyboardInterrupt
        return real(self, share)

    monkeypatch.setattr("mzlib.robustify.training.CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(Backward, "improve", dies)
    with (
        pytest.raises(KeyboardInterrupt),
        Run.open("06_robustify", "smoke", config, tmp_path / "cut", quiet=True) as cut,
    ):
        run(config, cut)
    shares = []
    monkeypatch.setattr(Backward, "improve", lambda self, share: (shares.append(share), real(self, share))[1])
    with Run.open("06_robustify", "smoke", config, tmp_path / "cut", quiet=True) as cut:
        run(config, cut)
    assert shares == [2 / 3], "resumed, not begun anew"
    rows = [
        [
            {k: v for k, v in row.items() if k != "wall_s"}
            for row in runs.read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    contents = [(tmp_path / name / "policy.safetensors").read_bytes() for name in ("whole", "cut")]
    assert contents[0] == contents[1]
    policy = ActorCriticPolicy(tmp_path / "cut" / "policy.safetensors")
    seen = Observation(np.zeros((2, 84, 84), np.uint8), np.ones(2, bool), np.zeros(2, bool), np.array([1, 2]))
    assert policy.act(seen).shape == (2,)


def test_a_training_begins_with_an_earlier_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    weights = tmp_path / "earlier.safetensors"
    torch.manual_seed(5)
    earlier = ActorCritic(ActorCriticConfig())
    runs.save_weights(weights, earlier, environment_steps=1_234)
    policy, steps = first_policy(replace(TINY, begin_with=str(weights)))
    assert steps == 1_234
    kept = {name: value.bfloat16().float() for name, value in earlier.state_dict().items()}
    assert all(torch.equal(value, kept[name]) for name, value in policy.state_dict().items())
    assert first_policy(TINY)[1] == 0
    with pytest.raises(ValueError, match="begin_with=.*set recurrent alike"):
        first_policy(replace(TINY, begin_with=str(weights), recurrent=True))
    config = replace(TINY, begin_with=str(weights))
    with Run.open("06_robustify", "smoke", config, tmp_path / "run", quiet=True) as opened:
        final = run(config, opened)
    assert final["upstream_steps"] == 1_234
    about = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert about["environment_steps"] == 1_234 + final["steps"]


def test_imitation_without_memory_of_the_way_is_refused():
    with pytest.raises(ValueError, match="imitation"):
        RobustifyConfig(recurrent=True, imitation=0.1)
