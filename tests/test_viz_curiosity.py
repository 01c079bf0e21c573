"""Figures of surprise show what they are given; the stored training's only where there is one."""

import numpy as np
import pytest

from mzlib import demos
from mzlib.demos import from_actions
from mzlib.runs import data_dir, results
from mzlib.viz import curiosity


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """data/results with Go-Explore's curve alone."""
    monkeypatch.setattr(results, "data_dir", lambda *parts: tmp_path / parts[-1])
    rows = ("dynamic,0,900,0,1,9", "domain,0,1000,100,1,9", "domain,0,2000,400,2,20", "domain,1,1500,500,3,30")
    (tmp_path / "five_million.curve.csv").write_text("\n".join(("cells_kind,seed,step,score,rooms,cells", *rows)))
    return tmp_path


def lines(axes) -> list[tuple[list, list]]:
    return [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in axes.lines]


def test_curves_beside_each_other(stored):
    columns = "seed,step,wall_s,score,best_score,prediction_error,entropy\n"
    (stored / "rnd.curve.csv").write_text(columns + "0,10,1,,0,0.5,2.8\n0,20,2,50,400,0.4,2.7\n")
    own = [{"environment_steps": 5}, {"environment_steps": 9, "score": 1.0, "best_score": 100.0}]
    axes = curiosity.beside_figure(own).axes[0]
    assert lines(axes)[:2] == [([1000, 2000], [100, 400]), ([1500], [500])]
    assert lines(axes)[2:] == [([20], [400]), ([20], [50]), ([9], [100])], "rows without an episode are left out"
    assert len(axes.get_legend().get_texts()) == 4


def test_visited_rooms_come_first_and_bold():
    errors = {"before": {0: 9.0, 1: 8.0, 2: 7.0}, "after": {0: 5.0, 1: 0.1, 2: 4.0}}
    axes = curiosity.rooms_figure(errors, [1]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0", "2"]
    assert [label.get_fontweight() for label in axes.get_xticklabels()] == ["bold", "normal", "normal"]
    assert lines(axes) == [([0, 1, 2], [8, 9, 7]), ([0, 1, 2], [0.1, 5, 4])]


def test_first_entries_only():
    rooms = np.array([1, 1, 2, 1, 2, 0, 1])
    assert curiosity.first_entries(rooms) == [2, 5]
    axes = curiosity.way_figure(np.arange(1.0, 8.0), rooms).axes[0]
    assert [x[0] for x, _ in lines(axes)[1:]] == [2, 5]
    assert [text.get_text() for text in axes.texts] == ["2", "0"]


def test_the_clip_shows_surprise_so_far():
    demo = from_actions(np.array([0, 3, 3, 3, 4, 4, 4, 4]))
    clip = curiosity.surprise_clip(demo, np.array([0.1, 0.1, 0.1, 0.1, 10.0, 0.1, 0.1, 0.1]), every=2)
    bars = clip.frames[:, 210:]
    assert bars.shape[1:] == (curiosity.GRAPH_HEIGHT, 160, 3)
    assert clip.steps.tolist() == [0, 2, 4, 6, 7]
    lit = (bars != 24).any(-1).sum(1)  # (pictures, columns)
    assert [int(np.flatnonzero(row)[-1]) if row.any() else -1 for row in lit] == [0, 40, 80, 120, 140]
    assert lit[-1, 80] == curiosity.GRAPH_HEIGHT - 1
    assert lit[-1, 0] == 1


def test_stored_rooms_and_way(stored):
    rows = "0,100,1,0.5,1\n0,100,2,8,0\n0,200,1,0.1,1\n0,200,2,7,0\n"
    (stored / "rnd_rooms.curve.csv").write_text("seed,step,room,error,visited\n" + rows)
    errors, visited = curiosity.stored_rooms()
    assert errors == {"after 100 steps": {1: 0.5, 2: 8.0}, "after 200 steps": {1: 0.1, 2: 7.0}}
    assert visited == [1]
    (stored / "rnd_way.curve.csv").write_text("seed,step,room,error\n0,0,1,0.5\n0,1,2,9\n")
    found, rooms = curiosity.stored_way()
    assert (found.tolist(), rooms.tolist()) == ([0.5, 9], [1, 2])


def test_the_shipped_way_enters_many_rooms():
    way = demos.load(data_dir("demos", "rooms", "five_million.npz"))[1]
    rooms = np.array([emulator.facts.room for emulator, _, _ in demos.replay(way)])
    assert len(curiosity.first_entries(rooms)) >= 9
