"""Internal RL: options end where they should, codes are held, the frozen parts stay frozen, the update learns."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from mzlib import internal_rl
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.internal_rl import CodePolicy, ControlledPinpad, InternalRLConfig, OptionEnv
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.pinpad import LAPTOP, Pinpad
from mzlib.ppo import batch_advantage, clipped_loss

WIDTH, COUNT = 16, 24
WORLD = replace(LAPTOP, horizon=60)


def parts(mixer: str = "transformer", **changes) -> tuple[PinpadBackbone, Metacontroller]:
    torch.manual_seed(0)
    sizes = {
        "grid": WORLD.grid,
        "colours": WORLD.colours,
        "walls": WORLD.walls,
        "width": WIDTH,
        "depth": 2,
        "mlp_width": 32,
        "layer": 1,
    }
    backbone = PinpadBackbone(PinpadBackboneConfig(mixer=mixer, **sizes)).requires_grad_(False)
    meta = Metacontroller(MetacontrollerConfig(WIDTH, code_dim=3, **changes)).requires_grad_(False).eval()
    meta.switch.code.weight.mul_(8)  # a switch that opens now and then
    meta.switch.seen.weight.mul_(4)
    return backbone, meta


def fresh(count: int = COUNT, seed: int = 0) -> Pinpad:
    pinpad = Pinpad(WORLD, count)
    pinpad.reset_random(np.random.default_rng(seed), task=WORLD.post_training_task)
    return pinpad


@pytest.mark.parametrize("mixer", ["transformer", "hawk"])
@torch.no_grad()
def test_cached_acting_equals_computing_everything_again(mixer):
    backbone, meta = parts(mixer)
    pinpad, environment = fresh(), ControlledPinpad(backbone, meta)
    environment.reset(pinpad)
    seen = [pinpad.observation]
    codes, opened_so_far = torch.zeros(COUNT, 0, 3), 0
    for t in range(12):
        rows = environment.rows
        observations = torch.from_numpy(np.stack(seen, 1)[rows])
        e = backbone.lower(observations)
        assert torch.allclose(e[:, -1], environment.residual, atol=1e-5)
        history = meta.history(e)[0]
        before = history[:, -2] if t else torch.zeros(len(rows), 32)
        last = codes[rows, -1] if t else torch.zeros(len(rows), 3)
        beta = meta.switch(meta.switch.first_layer(e[:, -1], before), last)[:, 0]
        sure = (beta - 0.5).abs() > 1e-4
        expected = (beta >= 0.5) | (t == 0)
        assert torch.equal(environment.opened[sure], expected[sure]), "β_t is tested on o_t, with z_{t−1}"
        opened_so_far += int(environment.opened.sum()) if t else 0
        drawn = torch.where(environment.opened[:, None], torch.randn(len(rows), 3), last)
        everyone = torch.zeros(COUNT, 3)
        everyone[rows] = drawn
        codes = torch.cat([codes, everyone[:, None]], 1)
        environment.act(drawn)
        seen.append(pinpad.observation)
    assert 0 < opened_so_far < 11 * COUNT, "the switch both opens and stays closed"


def test_a_rollout_holds_codes_and_counts_rewards():
    backbone, meta = parts()
    policy = CodePolicy(WIDTH, 3, 16)
    lived = internal_rl.rollout(ControlledPinpad(backbone, meta), policy, fresh())
    assert lived.chosen[:, 0].all()
    for i, length in enumerate(lived.lengths):
        for t in range(1, length):
            assert lived.chosen[i, t] or torch.equal(lived.action[i, t], lived.action[i, t - 1])
        assert not lived.chosen[i, length:].any()
    with torch.no_grad():
        again = policy(lived.observation).log_prob(lived.action).sum(-1)
    assert torch.allclose(again[lived.chosen], lived.log_prob[lived.chosen], atol=1e-4), "step form equals parallel"
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(lived.action).sum(-1)
    assert torch.allclose(again, prior, atol=1e-5), "the policy begins as the prior"


def test_an_open_switch_makes_every_step_an_option():
    backbone, meta = parts(always_open=True)
    lived = internal_rl.rollout(ControlledPinpad(backbone, meta), CodePolicy(WIDTH, 3, 16), fresh())
    assert lived.chosen.sum(1).tolist() == lived.lengths.tolist()


def test_the_update_makes_rewarded_codes_likelier_and_leaves_the_frozen_parts():
    backbone, meta = parts()
    policy, environment = CodePolicy(WIDTH, 3, 16), ControlledPinpad(backbone, meta)
    optimiser = torch.optim.Adam(policy.parameters(), 3e-3)
    frozen = [weight.clone() for part in (backbone, meta) for weight in part.parameters()]
    for _ in range(25):
        lived = internal_rl.rollout(environment, policy, fresh(64))
        returns = (lived.action[:, 0, 0] > 0.5).float()  # a stand-in reward whose best code is known
        internal_rl.update(policy, None, optimiser, lived._replace(returns=returns), InternalRLConfig())
    assert returns.mean() > 0.8, "a third at the start"
    now = [weight for part in (backbone, meta) for weight in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))


def test_raw_actions_learn_by_the_same_update():
    """Some 20 to 40 updates do it, whatever the seed; from a quarter."""
    backbone, _ = parts()
    policy = internal_rl.raw_policy(backbone)
    optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(80):
        lived = internal_rl.raw_rollout(policy, fresh(64))
        again = torch.distributions.Categorical(logits=policy(lived.observation).actions).log_prob(lived.action)
        assert torch.allclose(again[lived.chosen], lived.log_prob[lived.chosen], atol=1e-4)
        returns = (lived.action[:, 0] == 2).float()
        internal_rl.update(policy, None, optimiser, lived._replace(returns=returns), InternalRLConfig())
        if returns.mean() > 0.7:
            break
    assert returns.mean() > 0.7
    assert not torch.equal(policy.action_head.weight, backbone.action_head.weight)


@pytest.mark.filterwarnings("ignore:.*Box")  # codes are N(0, I) by nature
def test_the_option_environment_is_a_gymnasium_environment():
    backbone, meta = parts()
    env = OptionEnv(backbone, meta, WORLD, WORLD.post_training_task)
    check_env(env, skip_render_check=True)
    env.reset(seed=3)
    steps, over = 0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        over, steps = terminated or truncated, steps + info["steps"]
        assert reward == 0
        assert over or env.controlled.opened[0]
    assert steps == env.controlled.t
    assert terminated != truncated
    assert steps == WORLD.horizon or terminated
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_advantages_and_the_clipped_loss():
    advantage = batch_advantage(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert advantage.tolist() == pytest.approx([-0.25 / (0.1875**0.5 + 1e-3)] * 3 + [0.75 / (0.1875**0.5 + 1e-3)])
    assert not batch_advantage(torch.zeros(4)).any()
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.5])
    found = clipped_loss(ratio.log(), torch.zeros(5), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]), 0.2)
    assert found.tolist() == pytest.approx([-0.5, -1.0, -1.2, 0.8, 1.5])
    far = torch.tensor([500.0, 500.0, -500.0, -500.0], requires_grad=True)
    clipped_loss(far, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()
    assert far.grad.isfinite().all(), "a ratio beyond float32"
