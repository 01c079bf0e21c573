"""The figure of the switch beside its controls shows the stored values."""

from mzlib.segments import CONTROLS
from mzlib.viz import discovery


def test_bars_are_the_stored_values(monkeypatch):
    heights = {}
    for truth in discovery.TRUTHS:
        for number, who in enumerate(("switch", *CONTROLS)):
            heights[f"Metacontroller: {who} against {truth}, f1"] = 0.8 - 0.1 * number - 0.05 * (truth == "events")
    records = [
        {"name": name, "value": value, "interval": [value - 0.1, value + 0.1], "per_seed": {"0": value, "1": value}}
        for name, value in heights.items()
    ]
    monkeypatch.setattr(discovery, "read_results", lambda: {"metacontroller": records})
    figure = discovery.matches_figure()
    drawn = [patch.get_height() for axes in figure.axes for patch in axes.patches]
    assert drawn == list(heights.values())
    assert [axes.get_title() for axes in figure.axes] == list(discovery.TRUTHS.values())
    assert discovery.NAMES.keys() == {"switch", *CONTROLS}


def test_the_curve_over_costs_is_the_stored_one(monkeypatch):
    names = ("switch_cost", "nll_and_kl", "backbone_nll", "open", "precision", "recall", "f1")
    stored = [[0.0, 0.16, 0.17, 0.2, 0.5, 0.9, 0.7], [0.25, 0.15, 0.17, 0.1, 0.8, 0.9, 0.85]]
    rows = [dict(zip(names, map(str, row), strict=True)) for row in stored]
    monkeypatch.setattr(discovery, "read_curve", lambda name: {"metacontroller_costs": rows}[name])
    price, often, right = discovery.costs_figure().axes
    assert price.lines[0].get_ydata().tolist() == [0.16, 0.15]
    assert price.lines[1].get_ydata().tolist() == [0.17, 0.17]
    assert often.lines[0].get_ydata().tolist() == [20, 10]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.5, 0.8], [0.9, 0.9], [0.7, 0.85]]
