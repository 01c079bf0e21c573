"""Figures of notebook 01 on human play: what a conversion made of the files, and how well deaths are seen."""

import textwrap
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mzlib.agc import LAGS, OWN_ACTION_LAG, Report
from mzlib.dataset import FrameCache, segments
from mzlib.emulator import ACTIONS
from mzlib.viz.clips import FRAME_RATE
from mzlib.viz.style import OKABE_ITO

ANIMATION = 14  # steps from a death to where the game's end may say so


def report_figure(report: Report) -> Figure:
    """Scores, lengths, actions, the alignment test, and what was rejected, by reason."""
    panels = [["scores", "lengths"], ["actions", "actions"], ["alignment", "rejected"]]
    figure, axes = plt.subplot_mosaic(panels, figsize=(9, 7.6), layout="constrained")
    found = report.converted
    axes["scores"].hist([one.score for one in found], bins=20, color=OKABE_ITO[0])
    axes["scores"].set(xlabel="score, points", ylabel="trajectories")
    axes["lengths"].hist([one.rows / FRAME_RATE for one in found], bins=20, color=OKABE_ITO[0])
    axes["lengths"].set(xlabel="length, seconds", ylabel="trajectories")
    actions = np.sum([one.actions for one in found], axis=0)
    axes["actions"].bar(range(len(ACTIONS)), actions / max(actions.sum(), 1), color=OKABE_ITO[4])
    axes["actions"].set_xticks(range(len(ACTIONS)), ACTIONS, rotation=60, ha="right", fontsize=8)
    axes["actions"].set(ylabel="share of all frames")
    draw_alignment(axes["alignment"], report)
    draw_rejected(axes["rejected"], report)
    return figure


def draw_alignment(axes: Axes, report: Report) -> None:
    """How much of the motion between two screens each row's action explains, and the emulator's own best row."""
    alignment = report.alignment
    axes.plot(LAGS, 100 * alignment.explained, marker=".", color=OKABE_ITO[0])
    axes.axvline(OWN_ACTION_LAG, color=OKABE_ITO[1], lw=1, ls="--", label="where the emulator has it")
    told = ("?" if offset is None else offset for offset in (alignment.action_offset, alignment.reward_offset))
    axes.set_title("offset in rows: actions {}, rewards {}".format(*told), fontsize=10)
    axes.set(xlabel="row of the action, from the screen on", ylabel="motion explained, %")
    axes.set_ylim(0, 130 * max(alignment.explained.max(), 0.01))  # room for the legend
    axes.legend(fontsize=8, loc="upper right")


def draw_rejected(axes: Axes, report: Report) -> None:
    """How many were rejected, by reason: what comes after the file's name, numbers left out."""
    kinds = Counter(_kind(reason) for reason in report.rejected.values()).most_common(8)
    axes.barh([textwrap.fill(kind, 22) for kind, _ in kinds], [count for _, count in kinds], color=OKABE_ITO[5])
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(f"{len(report.rejected)} rejected, {len(report.converted)} taken", fontsize=10)
    axes.set(xlabel="files")


def _kind(reason: str) -> str:
    said = reason.partition(": ")[2] or reason
    words = "".join("#" if letter.isdigit() else letter for letter in said).split()
    while "##" in (text := " ".join(words)):
        words = text.replace("##", "#").split()
    return textwrap.shorten(text, 60, placeholder=" …")


def agreement(found: FrameCache, true: FrameCache) -> dict[str, dict[str, float]]:
    """Precision and recall of the deaths and of the steps in which she acts, found against true: once by the screen,
    once by the naive rule that only the game's end is a death.

    The caches hold the same play, `found` from files, `true` from replays. A death counts if it is found within a
    step; by the naive rule if the end follows before the animation would be over.
    """
    masks: dict[str, list] = {"screen": [], "terminal only": [], "true": []}
    deaths = {name: Counter() for name in ("screen", "terminal only")}
    for i in range(len(true)):
        steps = int(true.offsets[i + 1] - true.offsets[i])
        over = np.flatnonzero(found.lives[found.offsets[i] : found.offsets[i + 1]] == 0)
        naive = int(over[0]) if len(over) else steps
        ways = {"screen": segments(found, i), "terminal only": [(0, naive)], "true": segments(true, i)}
        for name, way in ways.items():
            mask = np.zeros(steps, bool)
            for begin, end in way:
                mask[begin:end] = True
            masks[name].append(mask)
        known = [end for _, end in ways["true"] if end < steps]
        for name, within in (("screen", 1), ("terminal only", ANIMATION)):
            said = [end for _, end in ways[name] if end < steps]
            hits = sum(any(abs(end - one) <= within for one in known) for end in said)
            deaths[name] += Counter(hits=hits, said=len(said), known=len(known))
    joined = {name: np.concatenate(mask) for name, mask in masks.items()}
    table = {}
    for name, count in deaths.items():
        both = (joined[name] & joined["true"]).sum()
        table[name] = {
            "death precision": count["hits"] / count["said"] if count["said"] else float("nan"),
            "death recall": count["hits"] / count["known"] if count["known"] else float("nan"),
            "step precision": float(both / joined[name].sum()),
            "step recall": float(both / joined["true"].sum()),
        }
    return table
