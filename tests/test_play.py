"""`python -m mzlib.play` as a user types it."""

import json

import imageio_ffmpeg
import pytest
import torch

from mzlib import play, runs
from mzlib.internal_rl import CodePolicy
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.runs import data_dir

KEYS = ["episodes", "mean", "median", "iqm", "first_life_mean", "first_key_rate", "rooms_max", "scores", "steps_per_s"]
KEYS += ["protocol"]


def said(capsys, *arguments: str) -> dict:
    play.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_demo_as_recorded(capsys, tmp_path):
    clip = tmp_path / "out.mp4"
    summary = said(capsys, "--demo", "first_key.npz#0", "--render", str(clip))
    assert set(KEYS) <= summary.keys()
    assert (summary["episodes"], summary["mean"], summary["first_key_rate"]) == (1, 100, 1)
    assert "recorded" in summary["protocol"]["what"]
    assert imageio_ffmpeg.count_frames_and_secs(str(clip))[0] == summary["steps"]


def test_the_best_is_the_highest_score(capsys):
    summary = said(capsys, "--demo", "best", "--max-steps", "3")
    assert summary["steps"] == 3
    assert play.find_demo("best").score >= 400


def test_episodes_from_reset(capsys, tmp_path):
    clip = tmp_path / "first.mp4"
    arguments = ("--episodes", "2", "--max-steps", "30", "--sticky", "0.1", "--seed", "7", "--workers", "1")
    summary = said(capsys, "--demo", "first_key.npz", *arguments, "--render", str(clip))
    assert set(KEYS) <= summary.keys()
    assert len(summary["scores"]) == summary["episodes"] == 2
    assert summary["protocol"]["sticky"] == 0.1
    assert summary["protocol"]["first_seed"] == 7
    assert summary["protocol"]["max_frames"] == 120
    assert imageio_ffmpeg.count_frames_and_secs(str(clip))[0] == 30


def test_the_table(capsys):
    play.main(["--demo", "first_key.npz#1", "--max-steps", "2"])
    out = capsys.readouterr().out
    assert "first_key.npz#1" in out
    assert "mean  0" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo", "nowhere.npz"], "nowhere.npz: no such demo file"),
        (["--demo", "first_key.npz#9999"], "holds demos 0 to"),
        (["--demo", "first_key.npz#x"], "holds demos 0 to"),
        (["--demo", "first_key.npz#"], "holds demos 0 to"),
        (["--demo", "#1"], "--demo '#1': best, FILE.npz"),
        (["--demo", ""], "--demo '': best, FILE.npz"),
        (["--episodes", "0"], "--episodes 0: at least 1"),
        (["--seed", "3"], "--seed 3: a demo is replayed as it was recorded"),
        (["--sticky", "0.0"], "--sticky 0.0: a demo is replayed as it was recorded"),
        (["--render", "out.gif"], "a name ending in .mp4"),
        (["--deterministic"], "--deterministic: a demo has nothing to draw"),
        (["--episodes", "1", "--sticky", "1.5"], "sticky=1.5"),
        (["--switch-rate", "5"], "--switch-rate 5: it is a metacontroller's"),
        (["--beta-threshold", "0.4"], "--beta-threshold 0.4: it is a metacontroller's"),
        (["--temperature", "0.4"], "--temperature 0.4: it is a backbone's"),
        (["--backbone", "shipped", "--temperature", "0"], "temperature=0"),
        (["--metacontroller", "m.safetensors", "--policy", "shipped"], "--metacontroller, --policy"),
        (["--agent", "a.safetensors", "--policy", "shipped"], "--agent, --policy"),
        (["--metacontroller", "nowhere.safetensors"], "nowhere.safetensors: not there"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message):
    with pytest.raises(SystemExit) as stopped:
        play.main(arguments)
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code


def test_the_shipped_backbone_plays_from_reset(capsys, tmp_path):
    play.main(["--backbone", "shipped", "--episodes", "2", "--max-steps", "5", "--workers", "1", "--json"])
    drawn = json.loads(capsys.readouterr().out)
    assert drawn["backbone"] == "backbone.safetensors"
    assert (drawn["episodes"], drawn["steps"]) == (2, 10)
    assert drawn["protocol"]["sticky"] == 0.25
    with pytest.raises(SystemExit, match=r"nothing\.safetensors"):
        play.main(["--backbone", str(tmp_path / "nothing.safetensors")])


def test_a_metacontroller_steers_the_shipped_backbone(capsys, tmp_path):
    backbone, weights = data_dir("weights", "backbone_places.safetensors"), tmp_path / "m.safetensors"
    torch.manual_seed(0)
    runs.save_weights(weights, Metacontroller(MetacontrollerConfig(128)), backbone=runs.weights_sha256(backbone))
    arguments = ("--metacontroller", str(weights), "--episodes", "2", "--max-steps", "6", "--workers", "1")
    summary = said(capsys, *arguments, "--switch-rate", "3", "--beta-threshold", "0.7")
    assert (summary["metacontroller"], summary["episodes"], summary["steps"]) == ("m.safetensors", 2, 12)
    for wrong, message in (
        (["--switch-rate", "-1"], "switch_rate=-1"),
        (["--beta-threshold", "7"], "beta_threshold=7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            play.main([*arguments, *wrong])
        assert message in stopped.value.code
    other = tmp_path / "other.safetensors"
    runs.save_weights(other, Metacontroller(MetacontrollerConfig(128)), backbone="another")
    with pytest.raises(SystemExit, match="belongs to backbone another"):
        play.main(["--metacontroller", str(other)])


def test_an_agent_chooses_the_codes(capsys, tmp_path):
    backbone, meta, agent = (
        data_dir("weights", "backbone_places.safetensors"),
        tmp_path / "m.safetensors",
        tmp_path / "a.safetensors",
    )
    torch.manual_seed(0)
    names = {"backbone": runs.weights_sha256(backbone)}
    runs.save_weights(meta, Metacontroller(MetacontrollerConfig(128)), **names)
    runs.save_weights(agent, CodePolicy(128, 8, 16), **names, metacontroller=runs.weights_sha256(meta))
    clip = tmp_path / "out.mp4"
    arguments = ("--agent", str(agent), "--episodes", "2", "--max-steps", "6", "--workers", "1", "--switch-rate", "3")
    steered = (*arguments, "--metacontroller", str(meta))
    summary = said(capsys, *steered, "--temperature", "0.25", "--deterministic", "--render", str(clip))
    assert (summary["agent"], summary["episodes"], summary["steps"]) == ("a.safetensors", 2, 12)
    assert imageio_ffmpeg.count_frames_and_secs(str(clip))[0] == 6
    runs.save_weights(meta, Metacontroller(MetacontrollerConfig(128)), **names)
    with pytest.raises(SystemExit, match="belongs to metacontroller"):
        play.main([*steered])
