"""Figures of cloning show what they are given."""

import numpy as np
import pytest
import torch

from mzlib.dataset import PAD, WindowBatch
from mzlib.runs import results
from mzlib.viz import cloning
from mzlib.viz.rooms import RoomMap


def test_windows_dots_and_padding():
    actions = torch.tensor([[PAD, 3, 3, 4], [2, 2, 2, 2]])
    change = torch.tensor([[False, False, False, True], [False] * 4])
    batch = WindowBatch(*(None,) * 7)._replace(actions=actions, change=change)
    axes, bar = cloning.windows_figure(batch).axes
    assert axes.images[0].get_array().tolist() == [[3, 1, 1, 2], [0, 0, 0, 0]]
    assert axes.collections[0].get_offsets().tolist() == [[3, 0]]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["UP", "RIGHT", "LEFT", "(padding)"]


def test_unsure_figure_leaves_out_rooms_without_a_picture():
    room_map = RoomMap({1: np.zeros((210, 160, 3), np.uint8)})
    positions = np.array([(1, 77, 235), (1, 20, 148), (0, 140, 235)])
    axes = cloning.unsure_figure(room_map, positions, np.array([0.9, 0.1, 2.0])).axes[0]
    assert axes.collections[0].get_array().tolist() == pytest.approx([0.1, 0.9]), "the most unsure on top"


def test_stored_curves_by_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "data_dir", lambda *parts: tmp_path / parts[-1])
    rows = "step layout,0,200,1.5,2.5\nstep layout,0,400,1.25,2.25\nseed layout,0,200,3,4\n"
    (tmp_path / "a.curve.csv").write_text("variant,seed,step,nll,change_nll\n" + rows)
    left, right = cloning.curves_figure("a").axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[1.5, 1.25], [3]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[2.5, 2.25], [4]]
    assert [line.get_label() for line in right.lines] == ["step layout", "seed layout"]
