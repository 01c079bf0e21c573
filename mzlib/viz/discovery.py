"""Figures of notebook 03's stored results."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mzlib.runs import read_results
from mzlib.segments import CONTROLS
from mzlib.viz.style import OKABE_ITO

TRUTHS = {"changes of goal": "changes of goal (places data)", "events": "events (ordinary demos)"}
NAMES = {"switch": "switch", "random": "at random", "even": "evenly", "actions": "at new actions"}


def matches_figure() -> Figure:
    """F1 of the switch's openings against both truths, beside as many steps chosen without knowing: the median of the
    seeds, each seed a dot, the interval as a line."""
    records = {record["name"]: record for record in read_results()["metacontroller"]}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axes, (truth, title) in zip(panels, TRUTHS.items(), strict=True):
        for place, who in enumerate(("switch", *CONTROLS)):
            record = records[f"Metacontroller: {who} against {truth}, f1"]
            colour = OKABE_ITO[1] if who == "switch" else "0.65"
            axes.bar(place, record["value"], color=colour, width=0.7)
            axes.plot([place] * 2, record["interval"], color="black", lw=1.2)
            dots = list(record["per_seed"].values())
            axes.plot([place] * len(dots), dots, ".", color="black", ms=5)
        axes.set(xticks=range(len(NAMES)), xticklabels=NAMES.values(), title=title, ylim=(0, 1))
        axes.grid(axis="x", visible=False)
    panels[0].set(ylabel="F1, within 2 steps")
    return figure
