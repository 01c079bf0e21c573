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
