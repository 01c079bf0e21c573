"""Cloning, tiny but on real demos: trained, killed and resumed, split over processes, measured, acting."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mzlib import agc, bc, demos, runs
from mzlib.backbone import MontezumaVLM
from mzlib.bc import BCConfig, ClonePolicy
from mzlib.dataset import PAD, FrameCache, WindowDataset
from mzlib.evaluate import EvaluationProtocol, Observation, play_episodes
from mzlib.runs import REPO, Run, data_dir

TINY = BCConfig(device="cpu", demo_limit=4, seq_len=16, stride=24, width=16, depth=2, heads=2, layer=1, batch_size=3,
                epochs=2.0, workers=1)  # fmt: skip


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path_factory.getbasetemp() / "bc"))  # one frame cache for all tests


def opened(folder, config=TINY) -> Run:
    return Run.open("02_bc", "smoke", config, folder, quiet=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FrameCache:
    loaded = demos.load(data_dir("demos", "first_key.npz"))[:3]
    return FrameCache.build(loaded, tmp_path_factory.mktemp("cache"), workers=1)


def test_trained_measured_saved_and_killed_then_resumed(tmp_path, monkeypatch):
    with opened(tmp_path / "whole") as run:
        final = bc.run(TINY, run)
        assert bc.run(TINY, run) == final, "a finished run is not begun again"
        rows = run.metrics()
    assert {"nll", "accuracy", "change_nll", "change_accuracy", "majority", "previous", "sha256"} <= final.keys()
    assert rows[-1]["nll"] < rows[0]["nll"]
    real, calls = bc.montezuma_loss, iter(range(1_000))

    def dies(*arguments):
        if next(calls) == 4:
            raise InterruptedError
        return real(*arguments)

    with monkeypatch.context() as patch, opened(tmp_path / "killed") as run:
        patch.setattr(bc, "montezuma_loss", dies)
        patch.setattr(bc, "train", lambda *a, **k: runs.train(*a, **k, checkpoint_every=2))
        with pytest.raises(InterruptedError):
            bc.run(TINY, run)
    calls = iter(range(1_000))

    def counts(*arguments):
        next(calls)
        return real(*arguments)

    with monkeypatch.context() as patch, opened(tmp_path / "killed") as run:
        patch.setattr(bc, "montezuma_loss", counts)
        again = bc.run(TINY, run)
    assert next(calls) == final["steps"] - 4, "resumed after step 4, not begun anew"
    for key in ("nll", "change_nll", "accuracy", "sha256"):
        assert again[key] == final[key], key


def test_parts_of_a_batch_add_up_to_it(cache):
    windows = WindowDataset(cache, [0, 1], seq_len=16, stride=5)
    gradients = []
    for accumulate in (1, 3):
        config = replace(TINY, accumulate=accumulate, batch_size=7)
        torch.manual_seed(0)
        take = bc.Updates(config, MontezumaVLM(config.backbone), windows, 10)
        take.optimiser.step, take.half = lambda: None, False
        values = take(0)
        gradients.append([p.grad.clone() for p in take.backbone.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert values["train_nll"] > 0


def test_a_batch_larger_than_the_data_is_named(cache):
    windows = WindowDataset(cache, [0], seq_len=16, stride=50)
    config = replace(TINY, batch_size=1_000)
    with pytest.raises(ValueError, match=r"batch_size=1000: the demos give \d+ windows"):
        bc.Updates(config, MontezumaVLM(config.backbone), windows, 10)


def test_a_measure_counts_each_valid_step_once(cache):
    windows = WindowDataset(cache, [0], seq_len=16, stride=16, noop_subsample=False)
    backbone = MontezumaVLM(TINY.backbone)
    found = bc.measure(backbone, windows, batch_size=3)
    batch = windows.batch(np.arange(len(windows)))
    with torch.no_grad():
        log_p = backbone(batch.frames, batch.previous, bc.padding_of(batch)).actions.log_softmax(-1)
    nll = -log_p.gather(-1, batch.actions.clamp(max=17)[..., None])[..., 0]
    assert found["nll"] == pytest.approx(nll[batch.valid].mean().item(), rel=1e-4)
    assert found["change_nll"] == pytest.approx(nll[batch.change].mean().item(), rel=1e-4)
    assert (batch.actions == PAD).any(), "padding there is, and it does not count"


def test_baselines_by_hand(cache):
    windows = WindowDataset(cache, [0, 1, 2], seq_len=8, stride=8, noop_subsample=False)
    found = bc.baselines(windows, windows)
    batch = windows.batch(np.arange(len(windows)))
    actions = batch.actions[batch.valid].numpy()
    assert found["majority"] == pytest.approx(np.bincount(actions).max() / len(actions))
    assert found["change_previous"] == 0
    assert found["previous"] < 1


@pytest.mark.parametrize("layout", ["step", "seed"])
def test_acting_equals_the_parallel_form(tmp_path, layout):
    """Greedy play by the policy, its caches begun anew with each life, against the whole history seen at once."""
    config = replace(TINY, layout=layout).backbone
    torch.manual_seed(3)
    backbone = MontezumaVLM(config).eval()
    runs.save_weights(tmp_path / "b.safetensors", backbone)
    policy = ClonePolicy(tmp_path / "b.safetensors", greedy=True)
    backbone = policy.backbone
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 16, 84, 84), np.uint8)
    began = np.zeros((2, 16), bool)
    began[:, 0] = True
    life_lost = np.zeros((2, 16), bool)
    life_lost[1, 8] = True
    taken = []
    for t in range(16):
        taken.append(policy.act(Observation(frames[:, t], began[:, t], life_lost[:, t], np.arange(2))))
    taken = np.stack(taken, 1)

    def parallel(seen: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(np.concatenate([seen[:1]] * 3 + [seen]))[None]
        previous = torch.full((1, seen.shape[1] - 3), PAD)
        with torch.no_grad():
            return backbone(seen, previous).actions[0].argmax(-1).numpy()

    assert np.array_equal(taken[0], parallel(frames[0]))
    assert np.array_equal(taken[1, :8], parallel(frames[1, :8]))
    assert np.array_equal(taken[1, 8:], parallel(frames[1, 8:]))


def test_playing_from_reset(tmp_path):
    runs.save_weights(tmp_path / "b.safetensors", MontezumaVLM(TINY.backbone))
    protocol = EvaluationProtocol(episodes=2, max_frames=40)
    tallies = play_episodes(lambda: ClonePolicy(tmp_path / "b.safetensors"), protocol.seeds, protocol)
    assert [tally["steps"] for tally in tallies] == [10, 10]


def test_two_processes_train_as_one(tmp_path):
    settings = {"device": "cpu", "demo_limit": 4, "seq_len": 16, "stride": 24, "width": 16, "heads": 2, "batch_size": 4}
    settings |= {"epochs": 1.0, "workers": 1}
    rows = {}
    for count in (1, 2):
        start = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if count == 2 else []
        folder = str(tmp_path / str(count))
        command = [sys.executable, *start, "-m", "mzlib.bc", "--profile", "smoke", "--folder", folder]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "1", "MZ_RUNS": str(tmp_path / "runs")}
        subprocess.run(command, check=True, cwd=REPO, env=environment, capture_output=True, timeout=300)
        rows[count] = [json.loads(line) for line in (tmp_path / str(count) / "metrics.jsonl").read_text().splitlines()]
    assert len(rows[1]) == len(rows[2]) > 0
    for one, two in zip(rows[1], rows[2], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)


@pytest.mark.parametrize("source", ["agc", "mine"])
def test_other_sources_are_cloned_likewise(source, tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    monkeypatch.setenv("MZ_AGC", str(tmp_path / "agc"))
    config = replace(TINY, source=source, demo_limit=3, epochs=0.3)
    with pytest.raises(FileNotFoundError, match=f"source='{source}'"):
        bc.data(config, "smoke")
    for number, demo in enumerate(demos.load(data_dir("demos", "first_key.npz"))[:4]):
        agc.export(demo, tmp_path / "raw", number)
        demos.save(tmp_path / "mine" / f"{number:04d}.npz", [demo])
    agc.convert(tmp_path / "raw", agc.converted_folder(), workers=1)
    cache, training, unseen = bc.data(config, "smoke")
    assert len(cache) == 3
    assert not set(training.demo_indices) & set(unseen.demo_indices)
    assert (cache.positions[:, 0] == agc.UNKNOWN).all() == (source == "agc")
    with opened(tmp_path / "run", config) as run:
        final = bc.run(config, run)
    assert np.isfinite(final["nll"])
    with pytest.raises(ValueError, match="rollouts=true: they go with source=demos"):
        bc.data(replace(config, rollouts=True), "smoke")
    with pytest.raises(ValueError, match="source='human': use one of demos, agc, mine"):
        bc.data(replace(config, source="human"), "smoke")
