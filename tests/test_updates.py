"""Updates: advantages from option to option, minibatch means, how much a gradient varies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib.internal_rl import CodePolicy, Critic, InternalRLConfig, gradient_noise
from mzlib.internal_rl.updates import Lived, descend, estimate, mean_loss, option_advantages, residuals, update
from mzlib.ppo import batch_advantage


def lived(lengths: list[int], seed: int = 0, rate: float = 0.3) -> Lived:
    """Episodes of these lengths, options beginning at random, codes from the prior, some of them rewarded."""
    rng, longest = torch.Generator().manual_seed(seed), max(lengths)
    there = torch.arange(longest) < torch.tensor(lengths)[:, None]
    chosen = (torch.rand(len(lengths), longest, generator=rng) < rate) & there
    chosen[:, 0] = True
    residual = torch.randn(len(lengths), longest, 6, generator=rng) * there[..., None]
    code = torch.randn(len(lengths), longest, 2, generator=rng)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(code).sum(-1)
    returns = (torch.rand(len(lengths), generator=rng) < 0.5).float()
    return Lived(residual, code, chosen, log_prob, returns, torch.tensor(lengths))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=4), st.integers(0, 999), st.floats(0.5, 1.0), st.floats(0.0, 1.0)
)
def test_advantages_go_from_option_to_option(lengths, seed, gamma, lam):
    """Against the definition, option by option: δ_k = R_k + γ^l V_{k+1} − V_k, A_k = δ_k + γ^l λ A_{k+1}."""
    batch = lived(lengths, seed)
    values = torch.randn(batch.chosen.shape)
    advantages, returns = option_advantages(batch, values, gamma, lam)
    for i, length in enumerate(lengths):
        starts = np.flatnonzero(batch.chosen[i].numpy()).tolist()
        later, next_value = 0.0, 0.0
        for begin, end in reversed(list(zip(starts, [*starts[1:], length], strict=True))):
            reward = gamma ** (end - begin - 1) * batch.returns[i].item() if end == length else 0.0
            value, discount = values[i, begin].item(), gamma ** (end - begin)
            later = reward + discount * next_value - value + discount * lam * later
            next_value = value
            assert advantages[i, begin].item() == pytest.approx(later, abs=1e-4)
            assert returns[i, begin].item() == pytest.approx(later + value, abs=1e-4)


def test_values_within_an_option_cancel_out():
    batch = lived([12, 7])
    values = torch.randn(2, 12)
    disturbed = torch.where(batch.chosen, values, values + 5)
    found = [option_advantages(batch, v, 0.9, 0.8)[0][batch.chosen] for v in (values, disturbed)]
    assert torch.allclose(*found, atol=1e-4)
    every_step = batch._replace(chosen=torch.arange(12) < batch.lengths[:, None])
    assert not torch.allclose(found[0], option_advantages(every_step, values, 0.9, 0.8)[0][batch.chosen], atol=1e-2)


def test_a_mean_over_parts_is_the_mean_over_all_that_was_chosen():
    batch = lived([3, 20, 9, 14, 5, 11])
    weights = torch.randn(6, 20, requires_grad=True)
    rows = torch.tensor([4, 1, 3])
    loss = mean_loss(batch.chosen, rows, lambda some, steps: weights[some, :steps] ** 2)
    assert loss.item() == pytest.approx((weights[rows] ** 2)[batch.chosen[rows]].mean().item(), abs=1e-5)


def test_every_episode_counts_once_an_epoch():
    batch, seen = lived([5] * 10), []
    weight = torch.nn.Parameter(torch.zeros(1))

    def losses(rows, steps):
        seen.extend(rows.tolist())
        return weight * torch.ones(len(rows), steps)

    config = InternalRLConfig(epochs=2, minibatches=3)
    descend([weight], torch.optim.SGD([weight], 0.1), batch.chosen, losses, config)
    assert sorted(seen) == sorted(2 * list(range(10)))


def test_without_a_critic_an_episodes_options_share_its_return():
    batch = lived([4, 9, 6])
    found, _, _ = estimate(CodePolicy(6, 2, 8), None, batch, InternalRLConfig())
    assert torch.equal(found, batch_advantage(batch.returns)[:, None].expand(3, 9))


def test_a_critic_learns_and_the_policy_reaches_for_what_is_rewarded():
    torch.manual_seed(0)
    policy, critic = CodePolicy(6, 2, 16), Critic(6, 16)
    optimiser = torch.optim.Adam([*policy.parameters(), *critic.parameters()], 3e-3)
    config = InternalRLConfig(gamma=1.0, lam=0.9)
    won = []
    for seed in range(40):
        batch = lived([8] * 48, seed)
        distribution = policy(batch.observation)
        code = distribution.sample()
        returns = (code[:, 0, 0] > 0.5).float()  # the first code decides
        batch = batch._replace(action=code, log_prob=distribution.log_prob(code).sum(-1).detach(), returns=returns)
        update(policy, critic, optimiser, batch, config)
        won.append(returns.mean().item())
    assert np.mean(won[:4]) < 0.5
    assert np.mean(won[-4:]) > 0.7
    assert critic(residuals(policy, batch))[:, 0].mean().item() == pytest.approx(np.mean(won[-10:]), abs=0.2)


@pytest.mark.parametrize("critic", [None, Critic(6, 8)])
def test_the_gradients_noise(critic):
    torch.manual_seed(0)
    policy, config = CodePolicy(6, 2, 8), InternalRLConfig()
    batches = [lived([10] * 16, seed) for seed in range(6)]
    same = gradient_noise(policy, critic, batches[:1] * 3, config)
    assert same["variance"] == pytest.approx(0, abs=1e-9)
    assert same["ratio"] == pytest.approx(0, abs=1e-6)
    few = gradient_noise(policy, critic, batches, config)
    joined = [Lived(*(torch.cat(x) for x in zip(*(lived([10] * 16, 10 * k + j) for j in range(8)), strict=True)))
              for k in range(6)]  # fmt: skip
    many = gradient_noise(policy, critic, joined, config)
    assert many["variance"] < 0.4 * few["variance"], "an eighth is expected of batches eight times as large"
    assert all(weight.grad is None for weight in policy.parameters())
    with pytest.raises(ValueError, match="at least 2"):
        gradient_noise(policy, critic, batches[:1], config)


def test_wrong_settings_are_named():
    for wrong in ({"epochs": 0}, {"gamma": 1.5}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            replace(InternalRLConfig(), **wrong)
