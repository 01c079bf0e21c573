"""Both backbones: parallel form equals step form, input is what it should be and no more, losses and cloning."""

import numpy as np
import pytest
import torch
from torch import nn

from mzlib.backbone import (
    BackboneConfig,
    MontezumaVLM,
    PinpadBackbone,
    PinpadBackboneConfig,
    clone_loss,
    montezuma_loss,
)
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


# ---- Montezuma

NARROW = {"width": 8, "heads": 2, "mlp_width": 12, "depth": 3, "layer": 1, "channels": 2, "seq_len": 16}
LAYOUTS = {
    "step": {"see_actions": True},
    "step, blind to actions": {},
    "step, 3 tokens": {"snapshot_tokens": 3, "see_actions": True},
    "step, hawk": {"mixer": "hawk", "see_actions": True},
    "seed": {"layout": "seed", "patch": 28, "see_actions": True},
    "seed, hawk": {"layout": "seed", "patch": 42, "mixer": "hawk"},
}
every_layout = pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)


def narrow(**changes) -> MontezumaVLM:
    torch.manual_seed(0)
    model = MontezumaVLM(BackboneConfig(**NARROW | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():  # everything matters: biases, distances, every frame
            weight += 0.2 * torch.randn_like(weight)
    return model


def footage(batch: int, steps: int, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames (b, t + 3 + extra, 84, 84) and previous actions (b, t)."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (batch, steps + 3 + extra, 84, 84), dtype=torch.uint8, generator=generator)
    previous = torch.randint(18, (batch, steps), generator=generator)
    previous[:, 0] = 18
    return frames, previous


@torch.no_grad()
def act(model: MontezumaVLM, frames, previous, caches, steps, reset=None):
    """e and logits (b, steps, …), step by step."""
    residual, logits = [], []
    for t in steps:
        begins = None if reset is None else reset[:, t]
        residual.append(model.lower_step(frames[:, t : t + 4], previous[:, t], caches, begins))
        logits.append(model.upper_step(residual[-1], caches).actions)
    return torch.stack(residual, 1), torch.stack(logits, 1)


@every_layout
@torch.no_grad()
def test_acting_equals_the_whole_history_at_once_past_200_steps(changes):
    model, (frames, previous) = narrow(**changes), footage(2, 208)
    e, logits = act(model, frames, previous, model.init_cache(2), range(208))
    assert torch.allclose(e, model.lower(frames, previous).e, atol=1e-4, rtol=0)
    assert torch.allclose(logits, model(frames, previous).actions, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["step", "step, 3 tokens", "step, hawk"])
@torch.no_grad()
def test_rows_are_reset_and_picked_out_on_their_own(name):
    model, (frames, previous) = narrow(**LAYOUTS[name]), footage(3, 12)
    reset, caches = torch.zeros(3, 12, dtype=torch.bool), model.init_cache(3)
    reset[1, 5] = True
    _, logits = act(model, frames, previous, caches, range(9), reset)
    assert torch.allclose(logits[::2], model(frames, previous).actions[::2, :9], atol=1e-5)
    assert torch.allclose(logits[1, 5:], model(frames[1:2, 5:], previous[1:2, 5:]).actions[0, :4], atol=1e-5)
    kept = [tuple(entry[[2]] for entry in cache) for cache in caches]
    _, logits = act(model, frames[2:], previous[2:], kept, range(9, 12))
    assert torch.allclose(logits, model(frames, previous).actions[2:, 9:], atol=1e-5)


@torch.no_grad()
def test_rows_out_of_step_are_refused_in_the_seed_layout():
    model, (frames, previous) = narrow(**LAYOUTS["seed"]), footage(2, 8)
    caches = model.init_cache(2)
    act(model, frames, previous, caches, range(3))
    with pytest.raises(ValueError, match="different places of a chunk"):
        model.lower_step(frames[:, :4], previous[:, 0], caches, torch.tensor([True, False]))
    _, logits = act(model, frames, previous, caches, range(8), torch.arange(8).expand(2, 8) == 0)
    assert torch.allclose(logits, model(frames, previous).actions, atol=1e-5), "all rows begin anew"


@every_layout
@torch.no_grad()
def test_each_step_sees_what_was_before_it_and_no_more(changes):
    model, (frames, previous) = narrow(**changes), footage(1, 16)
    before = model(frames, previous).actions[0]

    def first_changed(frames, previous):
        return (model(frames, previous).actions[0] - before).abs().amax(-1).gt(1e-6).nonzero()[:, 0].tolist()[:1]

    for at in (0, 5, 8, 11):
        darker = frames.clone()
        darker[:, at + 3] = 0  # the newest frame at step `at`
        looks = [t for t in range(at, 16) if t % model.config.every == 0]
        assert first_changed(darker, previous) == looks[:1], f"frame of step {at}"
        other = previous.clone()
        other[:, at] = (other[:, at] + 1) % 18
        assert first_changed(frames, other) == ([at] if model.config.see_actions else []), f"action before {at}"
    assert len(model.lower(frames, previous).e[0]) == 16


@torch.no_grad()
def test_a_snapshot_is_four_frames_in_order():
    for changes in LAYOUTS["step"], LAYOUTS["seed"]:
        model, (frames, _) = narrow(**changes), footage(1, 8)
        stem = model.stem(frames[:, :4], 1)
        assert torch.allclose(model._embed(frames, torch.zeros(1, 8).long(), None).embeddings[:, 0], stem, atol=1e-6)
        for i in range(4):
            other = frames.clone()
            other[:, i] = 0
            assert not torch.allclose(model.stem(other[:, :4], 1), stem, atol=1e-3), f"frame {i}"
        flipped = model.stem(frames[:, :4].flip(1), 1)
        assert not torch.allclose(flipped, stem, atol=1e-3)


@torch.no_grad()
def test_patches_are_squares_in_reading_order():
    stem, (frames, _) = narrow(**LAYOUTS["seed"]).stem, footage(1, 1)
    frames[:] = 0
    dark = stem(frames, 1)
    frames[:, :, 28:56, 56:] = 255
    changed = (stem(frames, 1) - dark).abs().amax(-1)[0, 0] > 1e-4
    assert changed.nonzero()[:, 0].tolist() == [5], "row 1, column 2 of 3 by 3"


@pytest.mark.parametrize("padding", [[0, 8, 16], [3, 13, 23]])
@every_layout
@torch.no_grad()
def test_padding_has_no_influence(changes, padding):
    model, (frames, previous), steps = narrow(**changes), footage(3, 24), 24
    other, others = frames.clone(), previous.clone()
    for row, count in enumerate(padding):
        other[row, :count], others[row, :count] = 255 - other[row, :count], 18
    padding = torch.tensor(padding)
    real = torch.arange(steps) >= padding[:, None]
    logits = model(frames, previous, padding).actions
    assert logits.isfinite().all()
    assert torch.allclose(model(other, others, padding).actions[real], logits[real], atol=1e-5)
    if not (padding % model.config.every).any():
        for row, count in enumerate(padding.tolist()):
            alone = model(frames[row : row + 1, count:], previous[row : row + 1, count:]).actions
            assert torch.allclose(logits[row, count:], alone[0], atol=1e-5)


def test_token_counts():
    seed, step = BackboneConfig(layout="seed"), BackboneConfig()
    assert (seed.tokens(64), seed.tokens(64, target=True), seed.window) == (352, 388, 352)
    assert (step.tokens(64), step.window) == (64, 64)
    assert BackboneConfig(snapshot_tokens=4).tokens(10) == 40
    model = MontezumaVLM(BackboneConfig(**NARROW | {"layout": "seed"}))
    stream = model.lower(*footage(1, 64, extra=1))
    assert stream.embeddings.shape == (1, 9, 36, 8), "nine snapshots"
    assert stream.embeddings[0, ..., 0].numel() + stream.e.shape[1] == 388
    assert stream.context[..., 0].numel() + stream.e.shape[1] == 352


def test_the_default_fits_the_repository():
    size = sum(weight.numel() for weight in MontezumaVLM(BackboneConfig()).parameters())
    assert 2 * size < 5e6, f"{2 * size} bytes in bfloat16"


@every_layout
def test_rewriting_e_changes_that_step_and_later_ones_and_passes_the_gradient_on(changes):
    model, (frames, previous) = narrow(**changes).requires_grad_(False), footage(2, 16)
    stream = model.lower(frames, previous)
    push = torch.zeros_like(stream.e).requires_grad_()
    before = model.upper(stream).actions
    logits = model.upper(stream._replace(e=stream.e + push)).actions
    logits[:, 6].square().sum().backward()
    reached = push.grad.abs().amax((0, 2)) > 0
    assert reached[[5, 6]].all()
    assert not reached[7:].any()
    shifted = stream.e.clone()
    shifted[:, 6, 0] += 1
    changed = (model.upper(stream._replace(e=shifted)).actions - before).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero()[0, 0] == 6


@torch.no_grad()
def test_a_controller_acts_alike_in_both_forms():
    for changes in LAYOUTS["step, 3 tokens"], LAYOUTS["seed"]:
        model, (frames, previous) = narrow(**changes), footage(1, 40)
        stream, caches = model.lower(frames, previous), model.init_cache(1)
        whole = model.upper(stream._replace(e=1.5 * stream.e)).actions
        for t in range(40):
            e = model.lower_step(frames[:, t : t + 4], previous[:, t], caches)
            assert torch.allclose(model.upper_step(1.5 * e, caches).actions, whole[:, t], atol=1e-4)


@every_layout
@torch.no_grad()
def test_residuals_are_those_at_the_action_positions(changes):
    model, (frames, previous) = narrow(**changes), footage(2, 16)
    residuals = model.residuals(frames, previous)
    assert len(residuals) == 4
    assert torch.equal(residuals[1], model.lower(frames, previous).e)
    assert torch.allclose(model.action_head(model.norm(residuals[3])), model(frames, previous).actions, atol=1e-6)


@pytest.mark.parametrize("extra", [0, 1])
@every_layout
@torch.no_grad()
def test_montezumas_loss_counts_valid_steps_only(changes, extra):
    model, (frames, previous) = narrow(**changes), footage(3, 24, extra)
    padding = torch.tensor([0, 8, 16])
    valid = torch.arange(24) >= padding[:, None]
    actions = torch.where(valid, previous.roll(-1, 1) % 18, 18)
    loss = montezuma_loss(model(frames, previous, padding), actions, valid, 0.5)
    other = frames.clone()
    for row, count in enumerate(padding.tolist()):
        other[row, :count] = 255 - other[row, :count]
    again = montezuma_loss(model(other, previous, padding), actions % 18, valid, 0.5)
    for ours, theirs in zip(loss, again, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(loss.total, loss.nll + 0.5 * loss.unexplained)
    ends, other = valid & (torch.arange(24) < 16), frames.clone()
    ends[2], other[:, 19:] = False, 0  # frames of steps 16 and later
    short, again = (montezuma_loss(model(x, previous, padding), actions, ends, 0.5) for x in (frames, other))
    assert torch.allclose(short.total, again.total, atol=1e-5), "what comes after the end is no target"
    blind = montezuma_loss(model(frames, previous, padding), actions, valid, 0.0)
    assert torch.equal(blind.total, loss.nll)


@torch.no_grad()
def test_the_unexplained_share_is_none_for_the_truth_and_one_for_the_mean():
    model, (frames, previous) = narrow(), footage(2, 8)
    prediction, valid = model(frames, previous), torch.ones(2, 8, dtype=torch.bool)
    snapshots = model.lower(frames, previous).embeddings
    assert torch.equal(prediction.target, snapshots[:, 1:])
    truth = snapshots.roll(-1, 1) - snapshots[:, 1:].mean((0, 1))
    truth = truth / truth[:, :-1].square().mean().sqrt()
    for guess, share in ((truth, 0.0), (torch.zeros_like(truth), 1.0)):
        loss = montezuma_loss(prediction._replace(next_embedding=guess), previous % 18, valid, 1.0)
        assert float(loss.unexplained) == pytest.approx(share, abs=1e-5)
    with pytest.raises(ValueError, match=r"obs_weight=1.0: needs a backbone with predict_next"):
        montezuma_loss(narrow(predict_next=False)(frames, previous), previous % 18, valid, 1.0)


def test_montezumas_backbone_learns_actions_and_next_embeddings():
    torch.manual_seed(0)
    model = MontezumaVLM(BackboneConfig(**NARROW | {"width": 16, "channels": 4}))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    frames = torch.zeros(1, 12, 84, 84, dtype=torch.uint8)
    actions, valid = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)
    for i in range(12):  # a block wanders to the right; the action says where it is
        frames[:, i, 40:52, 7 * i : 7 * i + 7] = 255
    for _ in range(120):
        loss = montezuma_loss(model(frames, torch.full((1, 8), 18)), actions, valid, 0.3)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert loss.nll < 0.1
    assert loss.accuracy == 1
    assert loss.unexplained < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "grid"}, "layout='grid': use step or seed"),
        ({"snapshot_tokens": 5}, "snapshot_tokens=5: use 1 to 4"),
        ({"patch": 16}, "patch=16: must divide"),
        ({"layout": "seed", "seq_len": 20}, "seq_len=20: must be a multiple of chunk=8"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"mixer": "lstm"}, "mixer='lstm'"),
        ({"layer": 4}, "layer=4: with depth=4"),
        ({"heads": 3}, "width=128"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**changes)


def test_wrong_frames_are_named():
    frames, previous = footage(1, 4)
    with pytest.raises(ValueError, match="7 frames for 2 steps: give 5, or 6"):
        narrow()(frames, previous[:, :2])
    with pytest.raises(ValueError, match="4 steps: with layout seed they must be a multiple of chunk=8"):
        narrow(**LAYOUTS["seed"])(frames, previous)
    with pytest.raises(TypeError, match=r"frames are torch.float32: give them as uint8"):
        narrow()(frames / 255, previous)


def test_what_is_near_is_seen_as_a_pair():
    """With only the table of pairs left, two layouts differ just where something is within two cells."""
    stem = PinpadBackbone(PinpadBackboneConfig(**SMALL | {"stem": "egocentric"})).embedding
    for table in (stem.own, stem.others):
        torch.nn.init.zeros_(table.weight)
    torch.nn.init.normal_(stem.near.weight[1:])
    grid = LAPTOP.grid
    agent = 6 * grid + 6
    far = torch.tensor([agent, 0, 1, 2, 3, 4, 5], dtype=torch.uint8)
    assert (stem(far[None]) == 0).all()
    seen = []
    for down, right in [(0, 1), (1, 0), (-1, 0), (2, 2), (3, 0), (0, -3)]:
        moved = far.clone()
        moved[1] = agent + down * grid + right
        seen.append(stem(moved[None])[0])
    assert all((one != 0).any() for one in seen[:4])
    assert all((one == 0).all() for one in seen[4:])
    assert not torch.equal(seen[0], seen[1])
