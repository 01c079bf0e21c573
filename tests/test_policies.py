"""Actor-critics: one step at a time equals all at once, memories end with episodes, and draws belong to episodes."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib import demos, runs
from mzlib.evaluate import EvaluationProtocol, Observation, OpenLoop, evaluate, play_episodes
from mzlib.policies import ActorCritic, ActorCriticConfig, ActorCriticPolicy, Draws

SMALL = {"channels": (4, 8, 8), "hidden": 32, "memory": 16}


def model(recurrent: bool, **changes) -> ActorCritic:
    torch.manual_seed(0)
    made = ActorCritic(ActorCriticConfig(recurrent=recurrent, **SMALL | changes))
    torch.nn.init.orthogonal_(made.policy_head.weight)  # logits that differ
    return made


def some_frames(*shape: int) -> torch.Tensor:
    """Each of nine squares in random gray: noise by pixel looks the same to a convolution everywhere."""
    squares = torch.randint(256, (*shape, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return squares.repeat_interleave(28, -1).repeat_interleave(28, -2)


@pytest.mark.parametrize("recurrent", [False, True])
@torch.no_grad()
def test_step_by_step_equals_all_at_once(recurrent):
    net, frames = model(recurrent, value_heads=2), some_frames(7, 3, 4)
    began = torch.zeros(7, 3, dtype=torch.bool)
    began[0, 1] = began[4, 0] = began[5] = True
    state = torch.randn_like(net.init_state(3))
    logits, values = net.unroll(frames, state, began)
    assert logits.shape == (7, 3, 18)
    assert values.shape == (7, 3, 2)
    for t in range(7):
        stepped, value, state = net.step(frames[t], state, began[t])
        assert (stepped - logits[t]).abs().max() <= 1e-5
        assert (value - values[t]).abs().max() <= 1e-5


@torch.no_grad()
def test_memory_lasts_for_an_episode():
    net, frames = model(True), some_frames(4, 2, 4)
    began = torch.zeros(4, 2, dtype=torch.bool)
    began[2, 0] = True
    other = frames.clone()
    other[0] = 255 - other[0]
    change = (net.unroll(frames, net.init_state(2), began)[0] - net.unroll(other, net.init_state(2), began)[0]).abs()
    assert change[1].amax(-1).min() > 1e-4, "what was seen is remembered"
    assert change[2:, 0].max() == 0, "but not past an episode's beginning"
    assert change[2:, 1].max() > 1e-5


def test_gradients_stop_where_an_episode_begins_and_reach_the_given_state():
    net, frames = model(True), some_frames(3, 2, 4)
    began = torch.zeros(3, 2, dtype=torch.bool)
    began[1, 0] = True
    state = torch.zeros(2, 16, requires_grad=True)
    net.unroll(frames, state, began)[0][2].square().sum().backward()
    assert not state.grad[0].any()
    assert state.grad[1].any()


def test_the_initialisation():
    net = ActorCritic(ActorCriticConfig(recurrent=True))
    for layer, gain in [(net.hidden, math.sqrt(2)), (net.policy_head, 0.01), (net.value_head, 1.0)]:
        singular = torch.linalg.svdvals(layer.weight.detach())
        assert torch.allclose(singular, torch.full_like(singular, gain), rtol=1e-3)
        assert not layer.bias.any()
    assert net.hidden.in_features == 32 * 7 * 7
    with torch.no_grad():
        policy = net.step(some_frames(2, 4), net.init_state(2), torch.ones(2, dtype=torch.bool))[0].softmax(-1)
    assert policy.max() < 1.1 / 18, "it begins as good as uniform"


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"channels": (4, 8)}, "channels="), ({"hidden": 0}, "hidden=0"), ({"memory": 300}, "memory=300: use 1 to 256")],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        ActorCriticConfig(**setting)


def test_only_what_sees_computes_in_half_precision():
    policy = ActorCritic(ActorCriticConfig(recurrent=True))
    frames, began = torch.randint(256, (2, 3, 4, 84, 84), dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert policy.features(frames[0]).dtype == torch.bfloat16
        step, unrolled = (
            policy.step(frames[0], policy.init_state(3), began[0]),
            policy.unroll(frames, policy.init_state(3), began),
        )
    assert {x.dtype for x in (*step, *unrolled)} == {torch.float32}
    assert torch.allclose(step[0], unrolled[0][0], atol=1e-4)


def test_frames_must_be_bytes():
    with pytest.raises(TypeError, match="float32: give them as uint8"):
        model(False).features(some_frames(1, 4).float())


# ---- draws


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(any), st.integers(0, 2**31 - 1))
def test_a_draw_inverts_the_cumulative_distribution(weights, seed):
    p = torch.tensor([weights], dtype=torch.float32) / sum(weights)
    drawn = Draws(3)(p, np.array([True]), np.array([seed])).item()
    u = np.random.default_rng((3, seed)).random()
    below = sum(weights[:drawn]) / sum(weights)
    assert weights[drawn] > 0
    assert below - 1e-6 <= u <= below + weights[drawn] / sum(weights) + 1e-6


def test_draws_follow_the_probabilities():
    p = torch.tensor([0.5, 0.0, 0.2, 0.3])
    draws, no = Draws(), np.zeros(2_000, bool)
    counts = torch.stack([draws(p.expand(2_000, 4), no, np.arange(2_000)) for _ in range(5)]).flatten().bincount()
    assert torch.allclose(counts / 10_000, p, atol=0.02)
    assert counts[1] == 0


def test_draws_are_an_episodes_own():
    p, seeds = torch.full((3, 18), 1 / 18), np.array([7, 8, 9])
    first = np.array([True, True, True])

    def ten(draws, rows, began=first):
        return [draws(p[rows], began[rows] & (t == 0), seeds[rows]).tolist() for t in range(10)]

    together = np.array(ten(Draws(), [0, 1, 2]))
    assert np.array_equal(together[:, 1:2], ten(Draws(), [1]))
    assert np.array_equal(together[:, [2, 0]], ten(Draws(), [2, 0]))
    assert len(np.unique(together, axis=1).T) == 3
    assert not np.array_equal(together, ten(Draws(1), [0, 1, 2])), "another policy draws otherwise"
    begun_again = Draws()
    assert np.array_equal(ten(begun_again, [0, 1, 2]), together)
    assert np.array_equal(ten(begun_again, [0, 1, 2]), together)


class Wavering(OpenLoop):
    """A demo's actions, every hundredth replaced by a draw."""

    def __init__(self, demo: demos.Demo, shared: bool = False):
        super().__init__(demo)
        self.draws, self.rng = Draws(), np.random.default_rng(0) if shared else None

    def act(self, observation: Observation) -> np.ndarray:
        actions = super().act(observation)
        if self.rng is None:
            p = torch.full((len(actions), 1_800), 1 / 1_800)
            drawn = self.draws(p, observation.began, observation.seeds).numpy()
        else:
            drawn = self.rng.integers(1_800, size=len(actions))
        return np.where(drawn < 18, drawn, actions)


def test_scores_of_a_policy_that_draws_do_not_depend_on_the_workers():
    make = partial(Wavering, min(demos.load(runs.data_dir("demos", "first_key.npz")), key=len))
    protocol = EvaluationProtocol(episodes=8, max_frames=480)
    one, three = (evaluate(make, protocol, workers)["scores"] for workers in (1, 3))
    assert one == three
    assert set(one) == {0, 100}, "there is something to differ"
    shared = partial(make, shared=True)
    tallies = [play_episodes(shared, protocol.seeds, protocol, width) for width in (1, 8)]
    assert tallies[0] != tallies[1], "draws from one generator for all do depend on the grouping"


# ---- acting from reset


def saved(tmp_path, recurrent: bool) -> partial:
    runs.save_weights(tmp_path / "p.safetensors", model(recurrent))
    return partial(ActorCriticPolicy, tmp_path / "p.safetensors")


@pytest.mark.parametrize("recurrent", [False, True])
@torch.no_grad()
def test_a_policy_stacks_frames_and_forgets_with_each_life(tmp_path, recurrent, monkeypatch):
    policy, calls = saved(tmp_path, recurrent)(greedy=True), []
    step = policy.model.step
    monkeypatch.setattr(policy.model, "step", lambda *given: [calls.append(given), step(*given)][1])
    frames = some_frames(8, 2).numpy()
    began, lost = np.zeros((8, 2), bool), np.zeros((8, 2), bool)
    began[0], lost[4, 1] = True, True
    taken = [policy.act(Observation(frames[t], began[t], lost[t], np.arange(2))) for t in range(8)]

    taken, seen = np.stack(taken, 1), torch.stack([frames for frames, _, _ in calls], 1)
    assert np.array_equal([forgets.numpy() for _, _, forgets in calls], began | lost)

    def same(row: int, life: slice) -> None:
        padded = np.concatenate([frames[life, row][:1]] * 3 + [frames[life, row]])
        stacks = torch.from_numpy(np.stack([padded[t : t + 4] for t in range(len(padded) - 3)]))
        assert torch.equal(seen[row, life], stacks)
        fresh = torch.arange(len(stacks))[:, None] == 0
        logits, _ = policy.model.unroll(stacks[:, None], policy.model.init_state(1), fresh)
        assert taken[row, life].tolist() == logits.argmax(-1)[:, 0].tolist()

    for row, life in [(0, slice(0, 8)), (1, slice(0, 4)), (1, slice(4, 8))]:
        same(row, life)
    assert len(set(taken.flatten().tolist())) > 1


@pytest.mark.parametrize("recurrent", [False, True])
def test_an_episode_is_played_alike_in_any_company(tmp_path, recurrent):
    make, protocol = saved(tmp_path, recurrent), EvaluationProtocol(episodes=3, max_frames=120)
    played = {}
    for width in (1, 3):

        class Recorded(ActorCriticPolicy):
            def act(self, observation, width=width):
                actions = super().act(observation)
                for seed, action in zip(observation.seeds.tolist(), actions.tolist(), strict=True):
                    played.setdefault((width, seed), []).append(action)
                return actions

        play_episodes(partial(Recorded, *make.args), protocol.seeds, protocol, width)
    for seed in protocol.seeds:
        assert played[1, seed] == played[3, seed]
        assert len(played[1, seed]) == 30
    assert played[1, 100_000] != played[1, 100_001]
