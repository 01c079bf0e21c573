"""Notebook 03's stage, tiny but on real demos: the loss by hand, training, resuming, what is measured."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mzlib import agc, dataset, demos, meta, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.backbone.residuals import SequenceBatch, Sequences, action_logits, streams
from mzlib.dataset import FrameCache, WindowDataset
from mzlib.meta import MetaConfig, code_loss, position_loss
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.runs import Run, data_dir

SIZES = {"channels": 4, "width": 16, "depth": 3, "heads": 2, "mlp_width": 32, "layer": 1, "seq_len": 12}
TINY = MetaConfig(device="cpu", demo_limit=4, seq_len=24, stride=24, code_dim=3, controller_rank=2, kl_anneal_steps=3,
                  steps=8, batch_size=4, workers=1)  # fmt: skip


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path_factory.getbasetemp() / "meta"))  # one frame cache for all tests


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FrameCache:
    loaded = demos.load(data_dir("demos", "places", "plain.npz"))
    return FrameCache.build(loaded[:3], tmp_path_factory.mktemp("cache"), workers=1)


@pytest.fixture(scope="module")
def backbone() -> MontezumaVLM:
    torch.manual_seed(0)
    return MontezumaVLM(BackboneConfig(**SIZES)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sequences(cache, backbone, tmp_path_factory) -> Sequences:
    windows = WindowDataset(cache, [0, 1, 2], seq_len=24, stride=24, noop_subsample=False)
    return Sequences(windows, streams(backbone, cache, tmp_path_factory.mktemp("streams")))


def metacontroller(**changes) -> Metacontroller:
    torch.manual_seed(1)
    controller = Metacontroller(MetacontrollerConfig(16, code_dim=3, controller_rank=2, **changes))
    controller.hypernetwork.a.data *= 10  # so that codes make a difference
    return controller


def whole(sequences: Sequences) -> SequenceBatch:
    batch = sequences.batch(np.arange(len(sequences)))
    assert len(set(batch.lengths.tolist())) > 1, "padding there is"
    return batch


def test_the_loss_by_hand_step_by_step(sequences, backbone):
    """Each sequence alone, without padding, its actions' log-probabilities summed one by one."""
    batch, controller = whole(sequences), metacontroller().eval()
    torch.manual_seed(5)
    loss, nll, _ = code_loss(
        lambda e: action_logits(backbone, batch.stream, e), controller, batch.residual, batch, 0.3, switch_cost=0.2
    )
    torch.manual_seed(5)
    noise, sums = torch.randn(*batch.actions.shape, 3), np.zeros(4)
    for row, length in enumerate(batch.lengths.tolist()):
        e = batch.residual[row : row + 1, :length]
        embedding = controller.embedder(e, torch.tensor([length]))
        history, z = torch.zeros(1, 32), torch.zeros(1, 3)
        controlled = []
        for t in range(length):
            mean, log_std = controller.encoder(e[:, t, None], history[:, None], embedding)
            beta, history = controller.step(e[:, t], history, z)
            beta = 1.0 if t == 0 else beta
            sums[3] += float(torch.as_tensor(beta).detach())
            z = z + beta * (mean[:, 0] + log_std[:, 0].exp() * noise[row, t] - z)
            controlled.append(e[:, t] + (controller.hypernetwork.controller(z) @ e[:, t, :, None])[..., 0])
            sums[1] += (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum().item()
        logits = action_logits(backbone, batch.stream[row : row + 1, :length], torch.stack(controlled, 1))[0]
        taken = batch.actions[row, :length]
        sums[0] -= sum(logits[t].log_softmax(-1)[a].item() for t, a in enumerate(taken.tolist()))
        sums[2] += length
    assert nll.item() == pytest.approx(sums[0] / sums[2], rel=1e-4)
    assert loss.item() == pytest.approx((sums[0] + 0.3 * sums[1] + 0.2 * sums[3]) / sums[2], rel=1e-4)


def test_an_opening_costs_nothing_until_codes_mean_something():
    config = replace(TINY, kl_anneal_steps=100, switch_cost=0.4)
    at = [meta.switch_cost_at(config, step) for step in (0, 150, 225, 300, 1_000)]
    assert at == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    assert meta.kl_weight_at(config, 150) == config.kl_peak, "α is up before"


def test_a_dear_switch_shuts(sequences, backbone):
    batch, shares = whole(sequences), {}
    for cost in (0.0, 5.0):
        controller = metacontroller(switch_bias=1.0)
        optimiser = torch.optim.Adam(controller.switch.parameters(), 3e-2)
        for _ in range(25):
            loss, _, controlled = code_loss(
                lambda e: action_logits(backbone, batch.stream, e), controller, batch.residual, batch, 0.0, cost
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        shares[cost] = controlled.switch[:, 1:][batch.valid[:, 1:]].mean().item()
    assert shares[5.0] < 0.05 < 0.3 < shares[0.0]


def test_gradient_reaches_the_metacontroller_through_the_frozen_upper_blocks(sequences, backbone):
    before = [weight.clone() for weight in backbone.parameters()]
    batch, controller = whole(sequences), metacontroller()
    optimiser = torch.optim.Adam(controller.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss, nll, _ = code_loss(
            lambda e: action_logits(backbone, batch.stream, e), controller, batch.residual, batch, kl_weight=0.0
        )
        optimiser.zero_grad()
        loss.backward()
        assert not [name for name, weight in controller.named_parameters() if not weight.grad.any()]
        optimiser.step()
        losses.append(nll.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))


def test_the_position_loss_by_hand(sequences):
    batch, code = whole(sequences), torch.zeros(*sequences.batch(np.arange(len(sequences))).actions.shape, 3)
    read_out = torch.nn.Linear(3, 2)
    torch.nn.init.zeros_(read_out.weight)
    read_out.bias.data[:] = torch.tensor([-0.0375, 0.5375])  # (77, 235), the game's start
    plain, hinged = (position_loss(read_out, code, batch, hinge).item() for hinge in (False, True))
    x, y = batch.positions[batch.valid][:, 1:].double().T
    squares = ((x - 77) / 80) ** 2 + ((y - 235) / 80) ** 2
    assert plain == pytest.approx(squares.mean().item() / 2, rel=1e-4)
    assert hinged == pytest.approx((squares - 0.01).clamp(min=0).mean().item() / 2, rel=1e-4)
    near = batch._replace(positions=torch.tensor([1, 80, 238]).expand_as(batch.positions))
    assert position_loss(read_out, code, near, True).item() == 0
    assert position_loss(read_out, code, near, False).item() > 0


def test_codes_from_the_prior_are_taken_in_whole_or_not_at_all(sequences):
    controller, batch = metacontroller(switch_rate=7), whole(sequences)
    drawn = torch.randn(*batch.actions.shape, 3)
    with torch.no_grad():
        followed = controller.follow(batch.residual, drawn)
    opened = followed.switch >= 0.5
    assert opened[:, ::7].all()
    assert not opened.all(), "some steps hold a code"
    held = drawn[:, 0]
    for t in range(drawn.shape[1]):
        held = torch.where(opened[:, t, None], drawn[:, t], held)
        assert torch.allclose(followed.code[:, t], held, atol=1e-5)


def test_trained_measured_saved_and_killed_then_resumed(tmp_path, monkeypatch):
    with Run.open("03_metacontroller", "smoke", TINY, tmp_path / "whole", quiet=True) as run:
        final = meta.run(TINY, run)
        assert meta.run(TINY, run) == final, "a finished run is not begun again"
        assert run.metrics()[-1]["step"] == 8
    path = runs.upstream_weights("backbone", "shipped", "smoke", "02_bc")
    sha256 = runs.weights_sha256(path)
    loaded, about = runs.load_weights(
        tmp_path / "whole" / "metacontroller.safetensors", Metacontroller, MetacontrollerConfig, backbone=sha256
    )
    assert about["backbone"] == sha256 == final["backbone_sha256"]
    assert float(loaded.switch.temperature) == 0.25
    with pytest.raises(ValueError, match="belongs to backbone"):
        runs.load_weights(
            tmp_path / "whole" / "metacontroller.safetensors", Metacontroller, MetacontrollerConfig, backbone="other"
        )
    real, calls = meta.code_loss, iter(range(100))

    def dies(*arguments):
        if next(calls) == 5:
            raise InterruptedError
        return real(*arguments)

    opened = partial(Run.open, "03_metacontroller", "smoke", TINY, tmp_path / "killed", quiet=True)
    with monkeypatch.context() as patch, opened() as run:
        patch.setattr(meta, "code_loss", dies)
        patch.setattr(meta, "train", lambda *a, **k: runs.train(*a, **k, checkpoint_every=2))
        with pytest.raises(InterruptedError):
            meta.run(TINY, run)
    with opened() as run:
        again = meta.run(TINY, run)
    for key in ("nll", "kl", "f1", "prior_nll", "backbone_nll", "sha256"):
        assert again[key] == final[key], key


def test_what_was_held_out_of_the_backbone_is_held_out(monkeypatch):
    found = meta.upstream(TINY, "smoke")
    aside = {demo.seed for demo in dataset.training_demos("shipped", "smoke")}
    _, about = runs.load_weights(
        runs.upstream_weights("backbone", "shipped", "smoke", "02_bc"), MontezumaVLM, BackboneConfig
    )
    held = set(about["held_out"])
    assert held < aside
    for side, inside in ((found.training, False), (found.unseen, True)):
        seeds = side.seeds(np.arange(len(side)))
        assert [int(seed) in held for seed in seeds] == [inside] * len(seeds)
    monkeypatch.setattr(meta, "training_demos", lambda *_, **__: demos.load(data_dir("demos", "first_key.npz"))[:1])
    with pytest.raises(ValueError, match="0 held out; take the demos"):
        meta.upstream(replace(TINY, demo_limit=0), "smoke")


def test_human_play_has_no_positions_and_trains_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    monkeypatch.setenv("MZ_AGC", str(tmp_path / "agc"))
    for number, demo in enumerate(demos.load(data_dir("demos", "first_key.npz"))[:5]):
        agc.export(demo, tmp_path / "raw", number)
    agc.convert(tmp_path / "raw", agc.converted_folder(), workers=1)
    clone = MontezumaVLM(BackboneConfig(**SIZES))
    runs.save_weights(tmp_path / "smoke" / "02_bc" / "backbone.safetensors", clone, held_out=[1, 3])
    config = replace(TINY, source="agc", backbone="run", demo_limit=0)
    found = meta.upstream(config, "smoke")
    assert set(found.unseen.seeds(np.arange(len(found.unseen))).tolist()) == {1, 3}
    with Run.open("03_metacontroller", "smoke", config, tmp_path / "run", quiet=True) as run:
        assert np.isfinite(meta.run(config, run)["nll"])
    with pytest.raises(ValueError, match="source='agc', demos='shipped': .* take the demos"):
        meta.upstream(replace(config, backbone="shipped"), "smoke")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": 0}, "steps=0"), ({"batch_size": 0}, "batch_size=0"), ({"position_weight": -1.0}, "position_weight=-1"),
     ({"switch_cost": -0.1}, "switch_cost=-0.1"),
     ({"hinged_position_loss": True}, "position_weight above 0")],
)  # fmt: skip
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
    with pytest.raises(ValueError, match=r"batch_size=5: the demos give 4"):
        meta.rows_at([None] * 4, 5, 0)
