"""Figures of the search show the values that they are given."""

import itertools

import numpy as np
import pytest

from mzlib import demos
from mzlib.runs import data_dir
from mzlib.viz import exploration

ROWS = [
    {"cells_kind": kind, "seed": seed, "step": step, "score": score, "rooms": rooms}
    for kind, seed, step, score, rooms in (
        ("domain", "0", "1000000", "100", "1"),
        ("domain", "0", "2000000", "400", "4"),
        ("domain", "1", "1500000", "700", "2"),
        ("dynamic", "0", "2000000", "50", "1"),
    )
]


def test_a_curve_holds_its_last_value():
    values = exploration.value_at(np.array([0, 9, 10, 15, 30]), np.array([[10, 2.0], [20, 5.0]]))
    assert values.tolist() == [0, 0, 2, 2, 5]


def test_a_line_is_the_median_of_the_seeds():
    axes = exploration.kinds_figure(ROWS).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["domain", "dynamic"]
    domain, dynamic = (np.asarray(line.get_ydata()) for line in axes.lines)
    assert (domain[0], domain[-1], dynamic[-1]) == (0, 550, 50), "400 and 700 have the median 550"
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == (0, 700)


@pytest.mark.parametrize(("last", "shown", "unit"), [(200_000, 200, "thousands"), (100_000_000, 100, "millions")])
def test_growth_of_a_short_and_a_long_search(last, shown, unit):
    rows = [{"step": "0", "score": "0", "rooms": "1", "cells": "1"}]
    rows.append({"step": str(last), "score": "400", "rooms": "3", "cells": "70"})
    score, rooms, cells = exploration.growth_figure(rows).axes
    assert score.get_xlabel() == f"steps ({unit})"
    assert score.lines[0].get_xdata().tolist() == [0, shown]
    assert [axes.lines[0].get_ydata()[-1] for axes in (score, rooms, cells)] == [400, 3, 70]


def test_gates_are_drawn_closed_and_open():
    demo = demos.load(data_dir("demos", "far", "points_2500.npz"))[2]
    emulator = next(itertools.islice(demos.replay(demo), 205, None))[0]
    closed, opened = (axes.images[0].get_array() for axes in exploration.gates_figure(emulator).axes)
    lit, dark = (int(np.asarray(picture).any(-1).sum()) for picture in (closed, opened))
    assert 200 < lit - dark < 260, "six beams less"
    assert emulator.facts.gates_open


def test_a_way_over_the_pyramid_is_coloured_by_its_steps():
    demo = demos.load(data_dir("demos", "far", "points_6500.npz"))[0]
    axes = exploration.pyramid_figure(demo).axes[0]
    (way,) = axes.collections
    assert way.get_array().tolist() == list(range(len(demo) - 1))
    height, width, _ = axes.images[0].get_array().shape
    assert (height, width) == (4 * 210, 5 * 160), "the pyramid's right half"
    vertices = np.concatenate([path.vertices for path in way.get_paths() if len(path.vertices)])
    assert np.nanmin(vertices) > 0
    assert (np.nanmax(vertices, 0) < (width, height)).all()


def test_parts_of_a_step_stand_end_to_end():
    names = ("domain cells: emulator", "downscaled cells: emulator", "domain cells: cell", "downscaled cells: cell")
    records = [
        {"name": exploration.STEP_PART + name, "value": value}
        for name, value in zip(names, (500, 510, 5, 60), strict=True)
    ]
    axes = exploration.step_costs_figure([*records, {"name": "Go-Explore: other", "value": 9}]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [500, 510, 5, 60]
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([0, 0, 500, 510])
