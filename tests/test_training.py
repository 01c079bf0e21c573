"""The training loop resumes exactly; weights come back as they were, and only with their partner."""

import numpy as np
import pytest
import torch

from mzlib import runs
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.runs import Run


class Stopped(Exception):
    """Stands for a kill."""


def regression(run: Run, steps: int, die_at: int | None = None) -> list[float]:
    """Fit a line with noise from torch's generator; returns the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimiser = torch.optim.AdamW(model.parameters(), 0.05)

    def update(step: int) -> dict[str, float]:
        if step == die_at:
            raise Stopped
        x = torch.from_numpy(np.random.default_rng((7, step)).normal(size=(8, 3)).astype(np.float32))
        loss = ((model(x + 0.1 * torch.randn(8, 3)) - x.sum(1, keepdim=True)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    runs.train(run, "line", steps, update, {"model": model, "optimiser": optimiser}, first=100, checkpoint_every=5)
    return torch.cat([weight.flatten() for weight in model.parameters()]).tolist()


def opened(folder) -> Run:
    return Run.open("05_go_explore", "smoke", {"seed": 0}, folder, quiet=True)


def test_killed_then_resumed_equals_uninterrupted(tmp_path):
    with opened(tmp_path / "whole") as run:
        whole, rows = regression(run, 20), run.metrics()
    with opened(tmp_path / "killed") as run, pytest.raises(Stopped):
        regression(run, 20, die_at=13)
    with opened(tmp_path / "killed") as run:
        assert regression(run, 20) == whole
        assert [(row["step"], row["loss"]) for row in run.metrics()] == [(row["step"], row["loss"]) for row in rows]
    assert [row["step"] for row in rows] == list(range(101, 121))


def test_the_stop_button_leaves_a_resumable_run(tmp_path, monkeypatch, capsys):
    with opened(tmp_path / "whole") as run:
        whole = regression(run, 20)
    with opened(tmp_path / "stopped") as run:
        original = run.log

        def log(step, **values):
            original(step, **values)
            if step == 107:
                import signal

                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(run, "log", log)
        with pytest.raises(KeyboardInterrupt):
            regression(run, 20)
    assert "stopped at step 7; run again to resume" in capsys.readouterr().out
    with opened(tmp_path / "stopped") as run:
        assert regression(run, 20) == whole


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:300], lambda b: b"\0" * len(b)])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    with opened(tmp_path / "run") as run:
        regression(run, 5)
        path = run.checkpoints / "line.pt"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=r"^line.pt: not a readable checkpoint .* remove it to begin anew$"):
            regression(run, 5)


def small() -> PinpadBackbone:
    torch.manual_seed(1)
    return PinpadBackbone(PinpadBackboneConfig(grid=4, colours=2, walls=0, width=8, depth=2, mlp_width=8, layer=1))


def test_weights_come_back(tmp_path):
    model, path = small().bfloat16().float(), tmp_path / "backbone.safetensors"
    sha = runs.save_weights(path, model, steps=3)
    loaded, about = runs.load_weights(path, PinpadBackbone, PinpadBackboneConfig)
    assert loaded.config == model.config
    assert (about["steps"], about["sha256"]) == (3, sha)
    observations = torch.zeros(1, 2, 3, dtype=torch.uint8)
    assert torch.equal(loaded(observations).actions, model(observations).actions)


def test_weights_of_another_partner_or_damaged_are_refused(tmp_path):
    path = tmp_path / "meta.safetensors"
    runs.save_weights(path, small(), backbone="abc")
    runs.load_weights(path, PinpadBackbone, PinpadBackboneConfig, backbone="abc")
    with pytest.raises(ValueError, match=r"meta.safetensors: belongs to backbone abc, not xyz"):
        runs.load_weights(path, PinpadBackbone, PinpadBackboneConfig, backbone="xyz")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="not the weights that meta.json describes"):
        runs.load_weights(path, PinpadBackbone, PinpadBackboneConfig)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="meta.safetensors: not there"):
        runs.load_weights(path, PinpadBackbone, PinpadBackboneConfig)
