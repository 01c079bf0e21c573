"""The grid world's three trainings, tiny: one after the other, killed and resumed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mzlib import pinpad_study, runs
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.internal_rl import PriorCodes
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.pinpad_study import ExpertBatches, PinpadStudyConfig
from mzlib.runs import Run

TINY = PinpadStudyConfig(
    device="cpu", width=16, depth=2, layer=1, code_dim=3, controller_rank=2,
    kl_anneal_steps=2, backbone_steps=3, backbone_batch=8, meta_steps=3, meta_batch=8,
    rl_batch=8, rl_iterations=2, policy_width=16, evaluation_episodes=30,
)  # fmt: skip


def opened(folder, config=TINY) -> Run:
    return Run.open("05_go_explore", "smoke", config, folder, quiet=True)


def test_all_three_trainings_and_what_they_leave(tmp_path):
    with opened(tmp_path) as run:
        final = pinpad_study.run(TINY, run)
        assert pinpad_study.run(TINY, run) == final, "a finished run is not begun again"
        rows = run.metrics()
    assert [row["step"] for row in rows] == [3, 6, 7, 8]
    assert {"f1", "kl", "held_out_nll", "success", "episodes", "protocol"} <= final.keys()
    backbone, about = runs.load_weights(tmp_path / "backbone.safetensors", PinpadBackbone, PinpadBackboneConfig)
    assert backbone.config == TINY.backbone
    partner = {"backbone": about["sha256"]}
    meta, _ = runs.load_weights(
        tmp_path / "metacontroller.safetensors", Metacontroller, MetacontrollerConfig, **partner
    )
    assert meta.config == TINY.metacontroller


@pytest.mark.parametrize("where", ["meta_loss", "ControlledPinpad.act"])
def test_killed_then_resumed_equals_uninterrupted(tmp_path, monkeypatch, where):
    """Killed within the second training, or the third, when the rows of both before it are there already."""
    with opened(tmp_path / "whole") as run:
        final = pinpad_study.run(TINY, run)
        whole = run.metrics()
    owner, name = (pinpad_study, where) if "." not in where else (pinpad_study.ControlledPinpad, "act")
    real, calls = getattr(owner, name), iter(range(1_000))

    def dies(*arguments):
        if next(calls) == 1:
            raise InterruptedError
        return real(*arguments)

    monkeypatch.setattr(owner, name, dies)
    with opened(tmp_path / "killed") as run, pytest.raises(InterruptedError):
        pinpad_study.run(TINY, run)
    monkeypatch.setattr(owner, name, real)
    with opened(tmp_path / "killed") as run:
        assert pinpad_study.run(TINY, run) | {"wall_s": 0} == final | {"wall_s": 0}
        again = run.metrics()
    assert [{**row, "wall_s": 0} for row in again] == [{**row, "wall_s": 0} for row in whole]


def test_batches_follow_from_seed_stage_and_step():
    draw = ExpertBatches(TINY, 0, 8)
    tenth = draw(10)
    assert not torch.equal(tenth.lengths, draw(11).lengths)
    assert all(torch.equal(a, b) for a, b in zip(draw(10), tenth, strict=True))
    assert not torch.equal(ExpertBatches(TINY, 1, 8)(10).lengths, tenth.lengths)
    assert not torch.equal(ExpertBatches(replace(TINY, seed=1), 0, 8)(10).lengths, tenth.lengths)
    together = torch.cat([draw(step).lengths for step in range(8)])
    assert together.float().std() > tenth.lengths.float().std(), "a batch holds episodes of similar length"


@pytest.mark.parametrize("changes", [{"raw_actions": True}, {"cotrained": True}, {"always_open": True}])
def test_the_baselines_run(tmp_path, changes):
    config = replace(TINY, backbone_steps=1, meta_steps=1, rl_iterations=1, **changes)
    with opened(tmp_path, config) as run:
        final = pinpad_study.run(config, run)
    assert json.loads((tmp_path / "final.json").read_text()) == final
    if "cotrained" in changes:
        shipped, _ = runs.load_weights(tmp_path / "backbone.safetensors", PinpadBackbone, PinpadBackboneConfig)
        trained = torch.load(tmp_path / "checkpoints" / "metacontroller.pt", weights_only=True)["backbone"]
        for key, weight in shipped.state_dict().items():
            assert torch.equal(weight, trained[key].bfloat16().float()), "the backbone as co-trained"
    if "always_open" in changes:
        assert final["recall"] == 1
        assert final["f1"] < 0.5


def test_a_wrong_size_is_named():
    with pytest.raises(ValueError, match="size='huge': use one of quarters, laptop, paper"):
        PinpadStudyConfig(size="huge")


def test_the_success_rate_counts_every_episode_once(monkeypatch):
    monkeypatch.setattr(pinpad_study, "PLAYED_AT_ONCE", 4)
    played = []

    def play(pinpad):
        played.append(pinpad.observation)
        return SimpleNamespace(returns=torch.tensor([1.0] + [0.0] * (pinpad.count - 1)))

    assert pinpad_study.success_rate(TINY, play, 10) == 3 / 10
    assert [len(layouts) for layouts in played] == [4, 4, 2]
    assert not (played[0] == played[1]).all(), "each in a layout of its own"


def test_codes_from_the_prior_know_nothing():
    policy = PriorCodes(3)
    distribution, _ = policy.step(torch.full((20_000, 5), 7.0), policy.init_cache(20_000))
    codes = distribution.sample()
    assert codes.shape == (20_000, 3)
    assert codes.mean(0).abs().max() < 0.04
    assert (codes.std(0) - 1).abs().max() < 0.04


def test_alpha_goes_up_then_down_and_the_switch_sharpens_with_it():
    config = PinpadStudyConfig(kl_begin=0.001, kl_peak=0.4, kl_weight=0.2, kl_anneal_steps=400, switch_temperature=0.25)
    alphas = [pinpad_study.kl_weight_at(config, step) for step in (0, 100, 400, 600, 700, 800, 5_000)]
    assert alphas == pytest.approx([0.001, 0.001, 0.4, 0.4, 0.3, 0.2, 0.2])
    temperatures = [pinpad_study.switch_temperature_at(config, step) for step in (0, 600, 700, 800, 5_000)]
    assert temperatures == pytest.approx([0.5, 0.5, 0.375, 0.25, 0.25])
    level = replace(config, switch_temperature=1.0)
    assert pinpad_study.switch_temperature_at(level, 0) == 1
