"""Figures of robustification show what they are given, stored or of a run, and do without what is not stored."""

import numpy as np
import pytest
import torch

from mzlib import demos, robustify
from mzlib.emulator import ACTIONS
from mzlib.evaluate import EvaluationProtocol
from mzlib.robustify import RobustifyConfig
from mzlib.runs import Run, results, write_curve
from mzlib.viz import robustify as figures
from mzlib.viz.rooms import RoomMap

ROWS = [
    {"agent": "a", "seed": 0, "step": 100, "success": 0.5, "reset_success": "", "earliest_0": 9, "earliest_1": 7},
    {"agent": "a", "seed": 0, "step": 200, "success": 0.75, "reset_success": 0.25, "earliest_0": 3, "earliest_1": 0},
    {"agent": "a", "seed": 1, "step": 100, "success": 0.25, "reset_success": "", "earliest_0": 8, "earliest_1": 6},
    {"agent": "b", "seed": 0, "step": 100, "success": 1.0, "reset_success": 1.0, "earliest_0": 5, "earliest_1": ""},
]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """An empty folder of results in place of the shipped one."""
    for module in (results, figures):
        monkeypatch.setattr(module, "data_dir", lambda *parts: tmp_path.joinpath(*parts[1:]))
    return tmp_path


def test_nothing_stored(stored):
    assert figures.stored_curves() == {}


def test_stored_curves_by_agent_and_seed(stored):
    write_curve("robustify", ROWS)
    curves = figures.stored_curves()
    assert list(curves) == [("a", 0), ("a", 1), ("b", 0)]
    assert curves["a", 0].earliest.tolist() == [[9, 7], [3, 0]]
    assert curves["b", 0].earliest.tolist() == [[5]], "one demo only"
    assert curves["a", 0].reset_success.tolist() == pytest.approx([np.nan, 0.25], nan_ok=True)
    left, right = figures.reset_figure(curves).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[9, 3], [8], [5]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.25], [], [1.0]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b"], "an agent is named once"
    colours = [line.get_color() for line in left.lines]
    assert colours[0] == colours[1] != colours[2]


def test_a_line_a_demo_and_no_success_from_reset_before_there_was_one():
    curve = figures.Curve(np.array([1000, 2000]), np.array([[9, 7], [3, 0]]), np.array([0.5, 1]), np.full(2, np.nan))
    left, right = figures.curriculum_figure(curve).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[9, 3], [7, 0]]
    assert left.lines[0].get_xdata().tolist() == [1, 2]
    assert len(right.lines) == 1
    assert len(figures.curriculum_figure(curve._replace(reset_success=np.array([np.nan, 1]))).axes[1].lines) == 2


def test_rings_lie_on_the_window():
    demo = demos.from_actions(np.full(12, ACTIONS.index("RIGHT")))
    axes = figures.starts_figure(demo, first=8, window=10).axes[0]
    points, rings = (found.get_offsets() for found in axes.collections)
    assert len(points) == 12
    assert np.array_equal(rings, points[8:])
    facts = demos.start(demo).facts
    assert (
        points[0].tolist() == RoomMap({1: np.zeros((210, 160, 3), np.uint8)}).xy([1], [facts.x], [facts.y])[0].tolist()
    )
    assert points[-1][0] > points[0][0], "a start is where the player stands before that action"
    assert axes.get_legend().get_texts()[0].get_text() == "starts 8 to 11"


def test_success_by_start_leaves_white_what_is_unknown():
    figure = figures.success_figure([1, 0], [[[], [True, False], [True]], [[False], []]])
    shown = figure.axes[0].images[0].get_array()
    assert shown.mask.tolist() == [[True, False, False], [False, True, True]]
    assert shown.filled(-1).tolist() == [[-1, 0.5, 1], [0, -1, -1]]
    marks, ends = (found.get_offsets().tolist() for found in figure.axes[0].collections[:2])
    assert marks == [[1, 0], [0, 1]]
    assert ends == [[2.5, 0], [1.5, 1]]


def test_the_clipped_loss_is_flat_beyond_its_edges():
    better, worse = (line.get_ydata() for line in figures.clip_figure(0.2).axes[0].lines[:2])
    ratio = np.linspace(0.4, 1.6, 121)
    assert np.ptp(better[ratio > 1.201]) < 1e-6
    assert np.ptp(worse[ratio < 0.799]) < 1e-6
    assert np.allclose(better[ratio < 1.2], -ratio[ratio < 1.2], atol=1e-5)


def test_a_run_tells_its_curve_its_starts_and_its_play(tmp_path):
    config = RobustifyConfig(
        demo_count=2, total_steps=2 * 64, environments=8, rollout=8, epochs=1, minibatches=2, workers=1, device="cpu"
    )
    with Run.open("06_robustify", "quick", config, tmp_path / "run", quiet=True) as run:
        final = robustify.run(config, run)
        curve = figures.Curve.of_metrics(run.metrics())
        earliest, remembered = figures.remembered(run)
    assert curve.steps.tolist() == [64, 128]
    assert curve.earliest[-1].tolist() == earliest == final["earliest"]
    assert [len(points) for points in remembered] == final["demo_steps"]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        clip = figures.episode_clip(run.folder / "policy.safetensors", EvaluationProtocol(max_frames=40), greedy=True)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert len(clip) == 10
