"""Figures of notebook 00: layouts, probes, switches over time, codes, learning curves."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from mzlib.internal_rl import Lived
from mzlib.pinpad import PAD_RGB, Episodes, Pinpad, PinpadConfig, render
from mzlib.runs import read_curve
from mzlib.viz.style import OKABE_ITO


def episode_figure(config: PinpadConfig, episodes: Episodes, row: int, pictures: int = 6) -> Figure:
    """One expert episode as a strip of pictures, each titled with its step and the subgoal in pursuit."""
    length = int(episodes.lengths[row])
    steps = np.linspace(0, length, pictures).round().astype(int)
    observations = episodes.take(np.array([row])).observations[0]
    figure, axes = plt.subplots(1, pictures, figsize=(1.7 * pictures, 2.1))
    for one, step in zip(axes, steps, strict=True):
        one.imshow(render(config, observations[step]), interpolation="antialiased")
        goal = episodes.goals[row, step] if step < length else None
        one.set_title(f"step {step}, " + ("done" if goal is None else f"subgoal {goal}"), fontsize=9)
        one.set(xticks=[], yticks=[])
        one.grid(False)
    return figure


def layers_figure(probe: Sequence[float], success: Mapping[int, float]) -> Figure:
    """By layer: how well a linear probe reads the subgoal, how often supervised controllers compose to the new task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
    left.plot(range(len(probe)), probe, "o-")
    left.set(xlabel="after block", ylabel="probe accuracy", ylim=(0, 1), xticks=range(len(probe)))
    right.bar([str(layer) for layer in success], list(success.values()), color=OKABE_ITO[2])
    right.set(xlabel="controlled after block", ylabel="success, unseen task", ylim=(0, 1))
    return figure


def switch_figure(switch: np.ndarray, goals: np.ndarray, lengths: np.ndarray, episodes: int = 24) -> Figure:
    """β of some episodes as rows, dark where open; the true changes of subgoal as marks."""
    episodes = min(episodes, len(lengths))
    shown = np.where(np.arange(switch.shape[1]) < lengths[:episodes, None], switch[:episodes], np.nan)
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.14 * episodes))
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    changed = goals[:episodes, 1:] != goals[:episodes, :-1]
    changed &= np.arange(1, goals.shape[1]) < lengths[:episodes, None]
    rows, steps = np.nonzero(changed)
    axes.scatter(steps + 1, rows, marker="|", s=60, color=OKABE_ITO[5], label="true change of subgoal")
    axes.set(xlabel="step", ylabel="episode", yticks=[])
    axes.grid(False)
    axes.legend(loc="upper right", fontsize=9)
    figure.colorbar(image, label="switch β", pad=0.01)
    return figure


def offset(config: PinpadConfig, observations: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """(n, 2): how many cells to the right, and how many up, the goal's pad lies as seen from the agent.

    observations: (n, channels) compact. goals: (n,), with one pad a subgoal.
    """
    pads = np.array([subgoal[0] for subgoal in config.subgoals])[goals]
    agent, pad = observations[:, 0].astype(int), observations[np.arange(len(pads)), 1 + pads].astype(int)
    return np.stack([pad % config.grid - agent % config.grid, agent // config.grid - pad // config.grid], 1)


def codes_figure(codes: np.ndarray, goals: np.ndarray, offsets: np.ndarray) -> Figure:
    """The plane of codes, coloured by the true subgoal, and by the direction and the distance at which its pad lies.

    codes: (n, 2). goals: (n,). offsets: (n, 2), see `offset`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), sharey=True)
    for goal in np.unique(goals):
        axes[0].scatter(*codes[goals == goal].T, s=6, alpha=0.6, label=f"pad {goal}", color=PAD_RGB[goal] / 255)
    axes[0].set(ylabel="second", title="which goal")
    axes[0].legend(fontsize=8, markerscale=2)
    degrees = np.degrees(np.arctan2(offsets[:, 1], offsets[:, 0]))
    shown = axes[1].scatter(*codes.T, s=6, alpha=0.6, c=degrees, cmap="twilight", vmin=-180, vmax=180)
    axes[1].set(title="in which direction")
    figure.colorbar(shown, label="degrees, 0 to the right", ticks=[-180, -90, 0, 90, 180])
    shown = axes[2].scatter(*codes.T, s=6, alpha=0.6, c=np.abs(offsets).sum(1), cmap="viridis")
    axes[2].set(title="how far")
    figure.colorbar(shown, label="cells")
    for one in axes:
        one.set(xlabel="code, first dimension")
    return figure


def where_codes_lead(pinpad: Pinpad, lived: Lived, task: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each leg of `task`, of the finished episodes that came so far: the codes (n, n_z) chosen as it began, and the
    pads (n,) that they led to, -1 for none."""
    begun, at = lived.chosen.cumsum(1), pinpad.observation
    on = at[:, 1 : 1 + pinpad.config.colours] == at[:, :1]  # the wrong pad that ended it, if any
    ended, legs = np.where(on.any(1), on.argmax(1), -1), []
    for leg, pad in enumerate(task):
        rows = np.flatnonzero((pinpad.progress >= leg) & (begun[:, -1] > leg).numpy())
        first = (begun[rows] > leg).int().argmax(1)
        legs.append((lived.action[rows, first].numpy(), np.where(pinpad.progress > leg, pad, ended)[rows]))
    return legs


def options_figure(legs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """The plane of codes, a panel a leg, coloured by the pad that they led to; grey for none.

    legs: by title, see `where_codes_lead`.
    """
    figure, axes = plt.subplots(1, len(legs), figsize=(3.7 * len(legs), 3.3), sharex=True, sharey=True)
    for one, (title, (codes, pads)) in zip(axes, legs.items(), strict=True):
        for pad in np.unique(pads):
            colour, label = ("0.7", "none") if pad < 0 else (PAD_RGB[pad] / 255, f"pad {pad}")
            share = np.mean(pads == pad)
            one.scatter(*codes[pads == pad].T, s=6, alpha=0.6, color=colour, label=f"{label}: {share:.0%}")
        one.set(xlabel="code, first dimension", title=title)
        one.legend(fontsize=8, markerscale=2)
    axes[0].set(ylabel="second")
    return figure


def median_by_step(name: str, column: str) -> dict[int, float]:
    """Of a stored curve, the median over seeds at each step that has values."""
    values = {}
    for row in read_curve(name):
        if row[column]:
            values.setdefault(int(row["step"]), []).append(float(row[column]))
    return {step: float(np.median(numbers)) for step, numbers in values.items()}


def learning_curves(name: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Of a stored curve, for each agent and seed (episodes, success)."""
    curves = {}
    for row in read_curve(name):
        points = curves.setdefault(row["agent"], {}).setdefault(row["seed"], [])
        points.append((float(row["step"]), float(row["success"])))
    return {agent: [tuple(np.array(points).T) for points in seeds.values()] for agent, seeds in curves.items()}


def annealing_figure(name: str, agent: str = "internal RL") -> Figure:
    """Over the metacontroller's training, a thin line a seed: α, then KL, NLL and F1 of the switch."""
    panels = (("kl_weight", "weight α of the KL"), ("kl", "KL, nats an episode"), ("held_out_nll", "NLL, nats a step"))
    panels += (("f1", "F1 of the switch"),)
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.6))
    rows = [row for row in read_curve(name) if row["agent"] == agent]
    for seed in sorted({row["seed"] for row in rows}):
        own = [
            {key: float(value) for key, value in row.items() if key != "agent"} for row in rows if row["seed"] == seed
        ]
        every = own[-1]["step"] - own[-2]["step"] if len(own) > 1 else own[0]["step"]  # logged so often
        steps = [row["step"] - own[0]["step"] + every for row in own]
        for one, (key, label) in zip(axes, panels, strict=True):
            one.plot(steps, [row[key] for row in own], ".-", label=f"seed {seed}", lw=1)
            one.set(xlabel="gradient step", title=label)
    axes[1].set(yscale="log")
    axes[3].set(ylim=(0, 1.02))
    axes[3].legend(fontsize=9)
    return figure


def rate_distortion_figure(name: str, agents: Mapping[str, str]) -> Figure:
    """Distortion (held-out NLL) against rate (KL) as α rises and falls again in training, a line a seed.

    agents: of the stored curve -> their label. A point marks the training's end.
    """
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    for (agent, label), colour in zip(agents.items(), OKABE_ITO, strict=False):
        rows = [row for row in read_curve(name) if row["agent"] == agent]
        for seed in sorted({row["seed"] for row in rows}):
            rate, distortion = np.array(
                [(float(row["kl"]), float(row["held_out_nll"])) for row in rows if row["seed"] == seed]
            ).T
            axes.plot(rate, distortion, color=colour, linewidth=0.8, alpha=0.7)
            axes.plot(rate[-1:], distortion[-1:], "o", color=colour, label=label if seed == rows[0]["seed"] else None)
    axes.set(xscale="log", xlabel="KL, nats an episode (rate)", ylabel="NLL, nats a step (distortion)")
    axes.legend(fontsize=9)
    return figure


def curves_figure(curves: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Success over episodes, a thin line a seed and the median bold, for each agent."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for (name, seeds), colour in zip(curves.items(), OKABE_ITO, strict=False):
        for episodes, success in seeds:
            axes.plot(episodes / 1000, success, color=colour, alpha=0.3, linewidth=0.8)
        shortest = min(len(success) for _, success in seeds)
        middle = np.median([success[:shortest] for _, success in seeds], axis=0)
        axes.plot(seeds[0][0][:shortest] / 1000, middle, color=colour, linewidth=2, label=name)
    best = max(float(success.max()) for seeds in curves.values() for _, success in seeds)
    axes.set(xlabel="episodes (thousands)", ylabel="success on the unseen task", ylim=(0, min(1.02, 1.5 * best)))
    axes.legend(fontsize=9)
    return figure
