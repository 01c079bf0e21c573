"""PPO's pieces against plain definitions, and whole updates that learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from mzlib.policies import ActorCritic, ActorCriticConfig
from mzlib.ppo import PPOConfig, Rollout, explained_variance, gae, normalised, update
from mzlib.runs import fast_bfloat16

SMALL = {"channels": (4, 8, 8), "hidden": 32, "memory": 32}
FAST = PPOConfig(gamma=0.3, minibatches=4, learning_rate=2e-3, bfloat16=False)


def drawn(seed: int, steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(steps + 1, batch, generator=rng, dtype=torch.float64)
    rewards = torch.randn(steps, batch, generator=rng, dtype=torch.float64)
    return rewards, values, torch.rand(steps, batch, generator=rng) < 0.2


SHAPES = st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 3), st.floats(0, 1)


@settings(deadline=None, max_examples=40)
@given(*SHAPES, st.floats(0, 1))
def test_gae_is_the_discounted_sum_of_errors(seed, steps, batch, gamma, lam):
    rewards, values, ended = drawn(seed, steps, batch)
    advantages, returns = gae(rewards, values, ended, gamma, lam)
    for b in range(batch):
        for t in range(steps):
            total, factor = 0.0, 1.0
            for k in range(t, steps):
                after = 0.0 if ended[k, b] else values[k + 1, b].item()
                total += factor * (rewards[k, b].item() + gamma * after - values[k, b].item())
                factor *= gamma * lam
                if ended[k, b]:
                    break
            assert advantages[t, b].item() == pytest.approx(total, abs=1e-9)
    assert torch.equal(returns, advantages + values[:-1])


@settings(deadline=None, max_examples=40)
@given(*SHAPES)
def test_with_lambda_one_returns_are_monte_carlo(seed, steps, batch, gamma):
    rewards, values, ended = drawn(seed, steps, batch)
    found = gae(rewards, values, ended, gamma, 1.0)[1]
    expected = values[-1]
    for t in reversed(range(steps)):
        expected = rewards[t] + gamma * torch.where(ended[t], 0.0, expected)
        assert torch.allclose(found[t], expected, atol=1e-9)


def test_returns_that_episodes_do_not_end():
    rewards, values, _ = drawn(0, 8, 2)
    ended = torch.zeros(8, 2, dtype=torch.bool)
    ended[3] = True
    ends, goes_on = (gae(rewards, values, x, 0.9, 0.8)[0] for x in (ended, torch.zeros_like(ended)))
    assert torch.equal(ends[4:], goes_on[4:])
    assert (ends[:4] != goes_on[:4]).all()
    with pytest.raises(ValueError, match=r"\(8, 2\), \(8, 2\), \(8, 2\): give"):
        gae(rewards, values[:-1], ended, 0.9, 0.8)


def test_advantages_are_normalised_over_what_has_weight():
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    found = normalised(torch.tensor([1.0, 3.0, 1e6, 1.0, 3.0]), weight)
    assert found[weight > 0].tolist() == pytest.approx([-1, 1, -1, 1])
    assert not normalised(torch.ones(4), torch.ones(4)).any()


def test_explained_variance():
    returns, weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 99.0]), torch.tensor([1.0, 1, 1, 1, 0])
    assert explained_variance(returns, returns, weight) == 1
    assert explained_variance(torch.full((5,), 1.5), returns, weight) == 0
    assert explained_variance(-returns, returns, weight) == pytest.approx(-3)
    assert np.isnan(explained_variance(returns, torch.ones(5), weight))


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"gamma": 1.2}, "gamma=1.2: use 0 to 1"), ({"minibatches": 0}, "minibatches=0"), ({"clip": 0}, "clip=0")],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**setting)


# ---- updates


def lived(recurrent: bool, heads: int = 1, steps: int = 6, batch: int = 8) -> tuple[ActorCritic, Rollout]:
    torch.manual_seed(0)
    policy = ActorCritic(ActorCriticConfig(recurrent, actions=4, value_heads=heads, **SMALL))
    torch.nn.init.orthogonal_(policy.policy_head.weight, 3)  # no longer nearly uniform
    frames = torch.randint(256, (steps, batch, 4, 84, 84), dtype=torch.uint8)
    began, state = torch.rand(steps, batch) < 0.2, policy.init_state(batch).normal_()
    with torch.no_grad():
        logits, values = policy.unroll(frames, state, began)
        actions = Categorical(logits=logits).sample()
        log_probs = Categorical(logits=logits).log_prob(actions)
    return policy, Rollout(frames, actions, log_probs, values, began, state, torch.ones(steps, batch))


def updated(policy: ActorCritic, rollout: Rollout, config: PPOConfig = FAST, advantages=None, **changes):
    """What an update with these returns, and found, did to a copy of the weights."""
    torch.manual_seed(1)
    copy = ActorCritic(policy.config)
    copy.load_state_dict(policy.state_dict())
    advantages = torch.randn(rollout.actions.shape) if advantages is None else advantages
    returns = changes.pop("returns", rollout.values + advantages[..., None])
    optimiser = torch.optim.SGD(copy.parameters(), config.learning_rate)
    found = update(copy, optimiser, rollout, advantages, returns, config, torch.Generator().manual_seed(0), **changes)
    return copy, found


@pytest.mark.parametrize("recurrent", [False, True])
def test_one_update_follows_the_gradient_written_out(recurrent):
    """The whole batch as the one minibatch, acted on by a policy that was a little different."""
    policy, rollout = lived(recurrent, heads=2)
    config = replace(FAST, epochs=1, minibatches=1, max_grad_norm=1e9, learning_rate=0.1, entropy=0.1)
    advantages = torch.randn(6, 8)
    weight = (torch.rand(6, 8) < 0.7).float()
    returns = torch.randn(6, 8, 2)
    rollout = rollout._replace(weight=weight, log_probs=rollout.log_probs + 0.3 * torch.randn(6, 8))
    copy, found = updated(policy, rollout, config, advantages, returns=returns)
    logits, values = policy.unroll(rollout.frames, rollout.state, rollout.began)
    now, chosen = Categorical(logits=logits), weight > 0
    a = advantages[chosen]
    a = (a - a.mean()) / a.std(correction=0)
    value_loss = ((values - returns) ** 2)[chosen].sum(-1).mean() / 2
    ratio = (now.log_prob(rollout.actions) - rollout.log_probs).exp()[chosen]
    clipped = (ratio > 1.2) & (a > 0) | (ratio < 0.8) & (a < 0)
    assert 0 < clipped.sum() < len(a), "some steps are clipped: they give no gradient"
    policy_loss = -(ratio * a)[~clipped].sum() / len(a)
    (policy_loss + 0.5 * value_loss - 0.1 * now.entropy()[chosen].mean()).backward()
    for old, new in zip(policy.parameters(), copy.parameters(), strict=True):
        assert torch.allclose(new, old - 0.1 * old.grad, atol=1e-5)
    assert found["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert found["entropy"] == pytest.approx(now.entropy()[chosen].mean().item(), rel=1e-4)
    assert found["approx_kl"] == pytest.approx((ratio - 1 - ratio.log()).mean().item(), rel=1e-4)
    assert found["clip_fraction"] == pytest.approx(((ratio < 0.8) | (ratio > 1.2)).float().mean().item())


@pytest.mark.parametrize("recurrent", [False, True])
def test_steps_without_weight_teach_nothing(recurrent):
    policy, rollout = lived(recurrent)
    weight = torch.ones(6, 8)
    weight[2:4] = 0
    wild = torch.randn(6, 8)
    tame = wild.clone()
    wild[2:4] = 1e4
    found = [
        updated(policy, rollout._replace(weight=w), advantages=a)[0].hidden.weight
        for w, a in [(weight, wild), (weight, tame), (torch.ones(6, 8), wild), (torch.zeros(6, 8), wild)]
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-5)
    assert torch.equal(found[3], policy.hidden.weight)


@pytest.mark.parametrize("recurrent", [False, True])
def test_every_sample_once_an_epoch(recurrent, monkeypatch):
    policy, rollout = lived(recurrent)
    seen, unroll = [], ActorCritic.unroll

    def watched(self, frames, state, began):
        seen.append(frames)
        return unroll(self, frames, state, began)

    monkeypatch.setattr(ActorCritic, "unroll", watched)
    updated(policy, rollout, replace(FAST, epochs=1, minibatches=3))
    assert {frames.shape[:2] for frames in seen} == ({(6, 3), (6, 2)} if recurrent else {(1, 16)})
    sums = [frames.flatten(0, 1).long().sum((1, 2, 3)) for frames in seen]
    assert torch.equal(torch.cat(sums).sort()[0], rollout.frames.flatten(0, 1).long().sum((1, 2, 3)).sort()[0])


def test_entropy_by_step_and_a_further_loss():
    policy, rollout = lived(False)
    same = updated(policy, rollout, entropy=torch.full((6, 8), FAST.entropy))[0].policy_head.weight
    assert torch.equal(same, updated(policy, rollout)[0].policy_head.weight)
    other = updated(policy, rollout, entropy=torch.linspace(0, 1, 48).view(6, 8))[0].policy_head.weight
    assert not torch.allclose(other, same, atol=1e-6)
    calls = []

    def auxiliary():
        calls.append(1)
        return torch.tensor(2.0, requires_grad=True)

    assert updated(policy, rollout, auxiliary=auxiliary)[1]["auxiliary_loss"] == 2
    assert len(calls) == FAST.epochs * FAST.minibatches


def test_an_update_repeats_with_its_generator():
    policy, rollout = lived(True)
    first, again = (updated(policy, rollout) for _ in range(2))
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters(), strict=True))


@pytest.mark.parametrize("recurrent", [False, True])
def test_half_precision_is_a_coarser_update(recurrent):
    policy, rollout = lived(recurrent)
    full, half, again = (updated(policy, rollout, replace(FAST, bfloat16=b)) for b in (False, True, None))
    assert again[1] == (half if fast_bfloat16("cpu") else full)[1]
    assert full[1] != half[1]
    assert half[1]["value_loss"] == pytest.approx(full[1]["value_loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half[0].parameters())


def test_what_an_update_refuses():
    for recurrent, kind in [(False, "48 steps"), (True, "8 environments")]:
        with pytest.raises(ValueError, match=f"minibatches=50: the rollout has {kind}; take at most as many"):
            updated(*lived(recurrent), replace(FAST, minibatches=50))
    with pytest.raises(ValueError, match=r"returns are \(6, 8, 1\), the values \(6, 8, 2\)"):
        updated(*lived(False, heads=2), returns=torch.zeros(6, 8))


def cue_frames(cues: torch.Tensor, steps: int) -> torch.Tensor:
    """(t, b, 4, 84, 84): black, but for the first, of which a third is white: which one is the cue."""
    frames = torch.zeros(steps, len(cues), 4, 84, 84, dtype=torch.uint8)
    frames[0] = 255 * (torch.arange(84) // 28 == cues[:, None])[:, None, None]
    return frames


def learn(recurrent: bool, steps: int, rounds: int, batch: int = 64) -> float:
    """Train on episodes of `steps` whose last action earns 1 if it names the cue; the last rounds' share of right
    ones."""
    torch.manual_seed(0)
    policy = ActorCritic(ActorCriticConfig(recurrent, actions=3, **SMALL))
    optimiser = torch.optim.Adam(policy.parameters(), FAST.learning_rate)
    began, right = torch.zeros(steps, batch, dtype=torch.bool), []
    began[0] = True
    for _ in range(rounds):
        cues = torch.randint(3, (batch,))
        frames, state = cue_frames(cues, steps), torch.randn_like(policy.init_state(batch))
        with torch.no_grad():
            logits, values = policy.unroll(frames, state, began)
            actions = Categorical(logits=logits).sample()
            log_probs = Categorical(logits=logits).log_prob(actions)
        rewards, ended = torch.zeros(steps, batch), torch.zeros(steps, batch, dtype=torch.bool)
        rewards[-1], ended[-1] = (actions[-1] == cues).float(), True
        right.append(rewards[-1].mean().item())
        after = torch.cat([values[..., 0], torch.zeros(1, batch)])
        advantages, returns = gae(rewards, after, ended, FAST.gamma, FAST.lam)
        rollout = Rollout(frames, actions, log_probs, values, began, state, torch.ones(steps, batch))
        update(policy, optimiser, rollout, advantages, returns, FAST)
    return float(np.mean(right[-3:]))


def test_a_bandit_is_learnt():
    assert learn(False, 1, 12) > 0.9, "a third by chance"


def test_a_cue_is_remembered_by_the_gru_only():
    assert learn(True, 5, 14) > 0.9
    assert learn(False, 5, 6) < 0.6, "what was seen four steps ago can't be known without memory"
