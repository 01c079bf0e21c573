"""Figures of notebook 04: curves from stored rows, options over the map."""

import numpy as np
import pytest

from mzlib.demos import load
from mzlib.runs import data_dir
from mzlib.viz import reinforcement
from mzlib.viz.rooms import RoomMap, pictures_of_demos


def rows(agent: str, seed: int, successes: list[float]) -> list[dict[str, str]]:
    common = {"task": "three places", "agent": agent, "seed": str(seed), "episodes": "10", "options": "4"}
    return [common | {"step": str(100 * (i + 1)), "success": str(s)} for i, s in enumerate(successes)]


def test_curves_are_medians_of_seeds(monkeypatch):
    stored = rows("codes", 0, [0, 0.2, 0.4, 0.6]) + rows("codes", 1, [0.2, 0.4, 0.6, 0.8]) + rows("raw", 0, [0] * 4)
    longer = [row | {"task": "First key", "step": str(10 * int(row["step"]))} for row in stored]
    monkeypatch.setattr(reinforcement, "read_curve", {"internal_rl": stored, "from_reset": longer}.get)
    figure = reinforcement.curves_figure(bins=2)
    assert [axes.get_title() for axes in figure.axes] == ["unseen way over three places", "First key, from reset"]
    assert [max(axes.lines[0].get_xdata()) for axes in figure.axes] == [0.3, 3.0]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines if line.get_linewidth() == 2}
    assert lines["codes"] == pytest.approx([0.2, 0.6])
    assert lines["raw"] == pytest.approx([0, 0])


def test_means_weigh_by_episodes_and_leave_gaps():
    own = rows("codes", 0, [1.0, 0.0])
    own[0]["episodes"] = "30"
    assert reinforcement.means(own, 400, 2)[0] == pytest.approx(0.75)
    assert np.isnan(reinforcement.means(own, 400, 2)[1])


def test_legs_stand_in_order_with_all_that_was_held():
    rates = {"a to b, any code": 0.3, "a to b, the best": 0.9, "a to b, told": 0.95}
    rates |= {"b to c, any code": 0.1, "b to c, the best": 0.4, "b to c, told": 0.8}
    records = [{"name": f"{name}: arrives", "value": v, "interval": [v - 0.1, v + 0.1]} for name, v in rates.items()]
    axes = reinforcement.legs_figure(records).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b to c", "a to b"]
    drawn = {(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in axes.patches}
    assert drawn == {(1, 0.3), (1, 0.9), (1, 0.95), (0, 0.1), (0, 0.4), (0, 0.8)}
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3


def test_an_option_is_a_line_and_a_dot():
    room_map = RoomMap(pictures_of_demos(load(data_dir("demos", "first_key.npz"))[:1]))
    positions = [(1, 77 + i, 235) for i in range(6)] + [(23, 10, 10)]
    figure = reinforcement.options_figure(room_map, positions, [True, False, False, True, False, False, False])
    lines = figure.axes[0].lines
    assert len(lines) == 4
    assert lines[0].get_color() != lines[2].get_color()
    assert lines[2].get_xdata()[0] == lines[0].get_xdata()[-1], "ways join"
