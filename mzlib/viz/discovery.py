"""Figures of notebook 03's stored results."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mzlib.runs import read_curve, read_results
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


def costs_figure() -> Figure:
    """What an opening may cost: NLL + KL beside the frozen backbone's NLL, how often the switch opens, and how right it
    is, on the walks that the cost was chosen by."""
    rows = [{name: float(value) for name, value in row.items()} for row in read_curve("metacontroller_costs")]
    costs = [f"{row['switch_cost']:g}" for row in rows]
    figure, (price, often, right) = plt.subplots(1, 3, figsize=(10, 2.8))
    price.plot(costs, [row["nll_and_kl"] for row in rows], "o-", color=OKABE_ITO[1], label="with codes, NLL + KL")
    price.plot(costs, [row["backbone_nll"] for row in rows], "--", color="0.4", label="backbone alone, NLL")
    price.set(ylabel="nats a step")
    often.plot(costs, [100 * row["open"] for row in rows], "o-", color=OKABE_ITO[2])
    often.set(ylabel="steps with β > ½, %", ylim=(0, None))
    for place, name in enumerate(("precision", "recall", "f1")):
        right.plot(costs, [row[name] for row in rows], "o-", color=OKABE_ITO[place + 3], label=name.replace("f1", "F1"))
    right.set(ylabel="against changes of goal", ylim=(0, 1.05))
    for axes in (price, often, right):
        axes.set(xlabel="cost c of an opening, nats")
    for axes in (price, right):
        axes.legend(fontsize=8)
    return figure
