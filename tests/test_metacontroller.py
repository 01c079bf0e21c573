"""The metacontroller against its equations: plain loop, causality, gradients, and the traps that others fell into."""

import numpy as np
import pytest
import torch

from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.dataset import pinpad_batch
from mzlib.meta import meta_loss
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig, annealed, matched, switches_match
from mzlib.pinpad import LAPTOP, expert_episodes

WIDTH, LENGTHS = 16, torch.tensor([9, 4, 7])


def small(**changes) -> Metacontroller:
    torch.manual_seed(0)
    return Metacontroller(MetacontrollerConfig(WIDTH, code_dim=3, controller_rank=2, **changes)).eval()


def residuals() -> torch.Tensor:
    return torch.randn(3, 9, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"switch_rate": 3}, {"always_open": True}, {"embedding": "step"}])
@torch.no_grad()
def test_forward_equals_the_equations_step_by_step(changes):
    meta, e = small(**changes), residuals()
    torch.manual_seed(5)
    found = meta(e, LENGTHS)
    torch.manual_seed(5)
    noise = torch.randn(3, 9, 3)
    s = meta.embedder(e, LENGTHS).expand(-1, 9, -1)
    history, z = torch.zeros(3, 32), torch.zeros(3, 3)
    for t in range(9):
        mean, log_std = meta.encoder(e[:, t, None], history[:, None], s[:, t, None])
        proposal = mean[:, 0] + log_std[:, 0].exp() * noise[:, t]
        beta, history = meta.step(e[:, t], history, z)
        if t == 0 or changes.get("always_open") or (changes.get("switch_rate") and t % 3 == 0):
            assert meta.forced(t)
            beta = torch.ones(3)
        z = beta[:, None] * proposal + (1 - beta[:, None]) * z
        kl = (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum(-1)[:, 0]
        controlled = e[:, t] + torch.einsum("bij,bj->bi", meta.hypernetwork.controller(z), e[:, t])
        for part, expected in zip(found, (controlled, beta, z, kl), strict=True):
            assert torch.allclose(part[:, t], expected, atol=1e-5)


@torch.no_grad()
def test_the_controller_is_a_matrix_of_the_given_rank():
    u = small().hypernetwork.controller(torch.randn(5, 3))
    assert u.shape == (5, WIDTH, WIDTH)
    assert (torch.linalg.matrix_rank(u) == 2).all()
    assert (u - torch.diag_embed(u.diagonal(dim1=1, dim2=2))).abs().max() > 1e-3, "not a gate"


@torch.no_grad()
def test_the_switch_is_causal_given_the_code_and_the_embedding_sees_the_future():
    meta, e = small(), residuals()
    changed = e.clone()
    changed[0, 6] += 1
    seen = [meta.switch.first_layer(x, torch.zeros(3, 9, 32)) for x in (e, changed)]
    proposal = torch.randn(3, 9, 3)
    beta, code = meta.integrate(proposal, seen[0])
    other_beta, other_code = meta.integrate(proposal, seen[1])
    assert torch.equal(beta[:, :6], other_beta[:, :6])
    assert torch.equal(code[:, :6], other_code[:, :6])
    assert not torch.equal(beta[0, 6:], other_beta[0, 6:])
    assert not torch.equal(meta.embedder(e, LENGTHS)[0], meta.embedder(changed, LENGTHS)[0])
    beyond = e.clone()
    beyond[1, 4:] += 1  # padding
    assert torch.equal(meta.embedder(e, LENGTHS), meta.embedder(beyond, LENGTHS))


def test_credit_flows_through_the_held_code():
    meta, e = small(), residuals()
    proposal = torch.randn(3, 9, 3, requires_grad=True)
    _, code = meta.integrate(proposal, meta.switch.first_layer(e, torch.zeros(3, 9, 32)))
    code[:, -1].sum().backward()
    assert (proposal.grad[:, 0] != 0).all(), "z at the end depends on the first proposal"


def test_gradient_reaches_every_part_through_the_frozen_upper_blocks():
    sizes = {
        "grid": LAPTOP.grid,
        "colours": LAPTOP.colours,
        "walls": LAPTOP.walls,
        "width": WIDTH,
        "depth": 2,
        "mlp_width": 32,
        "layer": 1,
    }
    backbone, meta = PinpadBackbone(PinpadBackboneConfig(**sizes)).requires_grad_(False), small()
    batch = pinpad_batch(expert_episodes(LAPTOP, 6, np.random.default_rng(0)))
    loss, nll, controlled = meta_loss(backbone, meta, batch, 0.0)
    loss.backward()
    assert torch.equal(loss, nll)
    without = {name for name, weight in meta.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert not without
    assert all(weight.grad is None for weight in backbone.parameters())
    torch.manual_seed(0)
    again, _, _ = meta_loss(backbone, meta, batch, 0.5)
    torch.manual_seed(0)
    _, nll, controlled = meta_loss(backbone, meta, batch, 0.5)
    assert torch.allclose(again, nll + 0.5 * controlled.kl[batch.valid].mean()), "summed over dimensions, at every step"


def test_the_kl_is_zero_for_the_prior_alone():
    meta = small()
    for weight in meta.encoder.layers[-1].parameters():
        torch.nn.init.zeros_(weight)
    assert not meta(residuals(), LENGTHS).kl.any()


@torch.no_grad()
def test_noise_on_the_switch_is_for_training_only():
    meta, e = small(switch_noise=True), residuals()
    proposal, seen = torch.randn(3, 9, 3), meta.switch.first_layer(e, torch.zeros(3, 9, 32))
    assert torch.equal(meta.integrate(proposal, seen)[0], meta.integrate(proposal, seen)[0])
    meta.train()
    assert not torch.equal(meta.integrate(proposal, seen)[0], meta.integrate(proposal, seen)[0])


@pytest.mark.parametrize(
    ("found", "true", "hits"),
    [([], [3], 0), ([3], [3], 1), ([2, 3, 4], [3], 1), ([3], [2, 4], 1), ([1, 5, 9], [2, 4, 8], 3), ([5], [3], 0)],
)
def test_matching_is_one_to_one(found, true, hits):
    assert matched(found, true, 1) == hits


def test_the_score_of_switches():
    goals = torch.tensor([[0, 0, 1, 1, 2, 2, -1, -1]])
    valid = goals >= 0
    beta = torch.tensor([[1, 0.05, 0.05, 0.95, 0.95, 0.3, 0.9, 0.9]])  # open at 3, a step late, and at 4
    score = switches_match(beta, goals, valid)
    assert (score["precision"], score["recall"], score["f1"]) == (1, 1, 1)
    assert (score["switches"], score["changes"]) == (2, 2)
    assert score["sharp"] == pytest.approx(4 / 5)
    assert switches_match(torch.zeros(1, 8), goals, valid)["f1"] == 0
    assert switches_match(torch.ones(1, 8), goals, valid)["precision"] == pytest.approx(2 / 5)


def test_annealing():
    points = (2, 0.0), (6, 0.4), (8, 0.1)
    values = [annealed(step, *points) for step in (0, 2, 4, 6, 7, 8, 9)]
    assert values == pytest.approx([0, 0, 0.2, 0.4, 0.25, 0.1, 0.1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"embedding": "token"}, "embedding='token'"), ({"switch_rate": -1}, "switch_rate=-1"),
     ({"switch_temperature": 0.0}, "switch_temperature=0.0")],
)  # fmt: skip
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MetacontrollerConfig(**changes)
