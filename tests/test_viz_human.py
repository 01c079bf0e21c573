"""The report of a conversion as a figure, and deaths counted against made-up and real truth."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mzlib import agc, demos
from mzlib.dataset import FrameCache
from mzlib.runs import data_dir
from mzlib.viz.human import agreement, report_figure


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(1).integers(0, 18, 110).repeat(3)
    for number, demo in enumerate([*demos.load(data_dir("demos", "first_key.npz"))[:2], demos.from_actions(random)]):
        agc.export(demo, root, number)
    (root / "trajectories" / agc.GAME / "7.txt").write_text("")
    return root


def test_the_figure_says_what_was_taken_and_what_not(raw, tmp_path):
    report = agc.convert(raw, tmp_path, workers=1)
    figure = report_figure(report)
    axes = figure.axes
    said = " ".join(one.get_title() for one in axes)
    assert "1 rejected, 3 taken" in said
    assert sum(patch.get_height() for patch in axes[0].patches) == 3
    assert sum(bar.get_height() for bar in axes[2].patches) == pytest.approx(1)
    assert [label.get_text() for label in axes[4].get_yticklabels()] == ["the file is empty"]
    plt.close(figure)
    nothing = report_figure(agc.Report((), {"a": "a: a link"}))
    assert "offset in rows: actions ?, rewards ?" in nothing.axes[3].get_title()
    plt.close(nothing)


def test_deaths_against_the_truth(raw, tmp_path):
    agc.convert(raw, tmp_path / "converted", workers=1)
    found = FrameCache.build(agc.plays(tmp_path / "converted"), tmp_path / "found", workers=1)
    played = [*demos.load(data_dir("demos", "first_key.npz"))[:2]]
    played += [demos.from_actions(np.random.default_rng(1).integers(0, 18, 110).repeat(3))]
    true = FrameCache.build(played, tmp_path / "true", workers=1)
    table = agreement(found, true)
    assert (table["screen"]["death precision"], table["screen"]["death recall"]) == (1, 1)
    assert table["screen"]["step precision"] > 0.99 > table["terminal only"]["step precision"]
    assert table["terminal only"]["death recall"] < 0.5
    blind = agreement(replace(found, dying=np.zeros_like(found.dying), lives=np.full_like(found.lives, 6)), true)
    assert blind["screen"]["death recall"] == 0, "a signal that sees nothing is not praised"
    nervous = agreement(replace(found, dying=found.dying | (np.arange(len(found.dying)) % 20 == 0)), true)
    assert nervous["screen"]["death precision"] < 0.5
