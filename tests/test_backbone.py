"""The pinpad backbone: parallel form equals step form, its input is what the paper's is, cloning learns."""

import numpy as np
import pytest
import torch
from torch import nn

from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig, clone_loss
from mzlib.dataset import pinpad_batch
from mzlib.pinpad import LAPTOP, expert_episodes, one_hot

SMALL = {
    "grid": LAPTOP.grid,
    "colours": LAPTOP.colours,
    "walls": LAPTOP.walls,
    "width": 16,
    "depth": 3,
    "mlp_width": 32,
    "layer": 1,
}


def small(**changes) -> PinpadBackbone:
    torch.manual_seed(0)
    return PinpadBackbone(PinpadBackboneConfig(**SMALL | changes)).eval()


@pytest.fixture(scope="module")
def batch():
    return pinpad_batch(expert_episodes(LAPTOP, 12, np.random.default_rng(0)))


@pytest.mark.parametrize("changes", [{}, {"mixer": "hawk"}, {"window": 5}, {"stem": "egocentric"}])
@torch.no_grad()
def test_step_by_step_equals_all_at_once(batch, changes):
    backbone = small(**changes)
    residual, whole = backbone.lower(batch.observations), backbone(batch.observations)
    caches = backbone.init_cache(12)
    for t in range(batch.observations.shape[1]):
        e = backbone.lower_step(batch.observations[:, t], caches)
        assert torch.allclose(e, residual[:, t], atol=1e-5)
        step = backbone.upper_step(e, caches)
        assert torch.allclose(step.actions, whole.actions[:, t], atol=1e-5)
        assert torch.allclose(step.next_cells, whole.next_cells[:, t], atol=1e-5)


@torch.no_grad()
def test_the_embedding_is_a_linear_layer_on_the_one_hot_observation(batch):
    backbone = small()
    flat = torch.from_numpy(one_hot(LAPTOP, batch.observations.numpy()))
    assert torch.allclose(backbone.embedding(batch.observations), flat @ backbone.embedding.embed.weight, atol=1e-5)


@torch.no_grad()
def test_the_egocentric_stem_sees_offsets_from_the_agent(batch):
    backbone = small(stem="egocentric")
    grid, stem = LAPTOP.grid, backbone.embedding
    seen = batch.observations[:, :1].clone() % (grid - 1)  # the first row, so that all can move down one
    for channel in range(seen.shape[2]):
        other = seen.clone()
        other[..., channel] += grid
        assert not torch.allclose(stem(other), stem(seen)), f"channel {channel} matters"
    colour_as_wall = seen.clone()
    colour_as_wall[..., -2:] = seen[..., -2:].flip(-1)
    assert not torch.allclose(stem(colour_as_wall), stem(seen)), "colours and walls are told apart"
    stem.own.weight.zero_()
    assert torch.allclose(stem(seen + grid + 1), stem(seen), atol=1e-6), "all moved alike is the same sight"


@torch.no_grad()
def test_lower_and_upper_meet_after_the_layer(batch):
    backbone = small(layer=2)
    assert torch.equal(backbone.residuals(batch.observations)[2], backbone.lower(batch.observations))
    assert len(backbone.residuals(batch.observations)) == 4


def test_the_loss_counts_valid_steps_only(batch):
    backbone = small()
    prediction = backbone(batch.observations)
    loss, actions = clone_loss(prediction, batch.actions, batch.next_cells, batch.valid, 0.5)
    cells = nn.functional.cross_entropy(prediction.next_cells[batch.valid], batch.next_cells[batch.valid].long())
    assert torch.allclose(loss, actions + 0.5 * cells)
    wrong = torch.where(batch.valid, batch.actions, 3 - batch.actions)
    assert not batch.valid.all()
    assert torch.equal(clone_loss(prediction, wrong, batch.next_cells, batch.valid, 0.5)[0], loss)


def test_cloning_learns_the_expert():
    torch.manual_seed(0)
    backbone = PinpadBackbone(PinpadBackboneConfig(**SMALL | {"width": 32, "depth": 2}))
    optimiser = torch.optim.Adam(backbone.parameters(), 3e-3)
    batch = pinpad_batch(expert_episodes(LAPTOP, 4, np.random.default_rng(0)))
    for _ in range(150):
        loss, nll = clone_loss(backbone(batch.observations), batch.actions, batch.next_cells, batch.valid, 0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert nll < 0.05, "four episodes are learnt by heart"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "lstm"}, "mixer='lstm'"),
        ({"stem": "conv"}, "stem='conv'"),
        ({"layer": 3}, "layer=3: with depth=3"),
        ({"heads": 3}, "width=16"),
    ],
)
def test_a_wrong_size_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PinpadBackboneConfig(**SMALL | changes)
