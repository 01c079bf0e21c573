"""Notebook 00's figures show what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mzlib.pinpad import LAPTOP, expert_episodes
from mzlib.viz import pinpad


@pytest.fixture(scope="module")
def episodes():
    return expert_episodes(LAPTOP, 5, np.random.default_rng(0))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_an_episode_from_its_first_to_its_last_picture(episodes):
    axes = pinpad.episode_figure(LAPTOP, episodes, 2, pictures=4).axes
    titles = [one.get_title() for one in axes]
    assert titles[0] == f"step 0, subgoal {episodes.goals[2, 0]}"
    assert titles[-1] == f"step {episodes.lengths[2]}, done"


def test_switches_with_a_mark_at_every_true_change(episodes):
    switch = np.random.default_rng(0).random(episodes.goals.shape)
    axes = pinpad.switch_figure(switch, episodes.goals, episodes.lengths).axes[0]
    marks = axes.collections[0].get_offsets()
    assert len(marks) == 5 * 3, "four subgoals an episode"
    for step, row in marks.astype(int):
        assert episodes.goals[row, step] != episodes.goals[row, step - 1]
    shown = axes.images[0].get_array()
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[0].sum() == LAPTOP.horizon - episodes.lengths[0]


def test_layers_codes_and_curves():
    left, right = pinpad.layers_figure([0.2, 0.5, 0.9], {1: 0.3, 2: 0.8}).axes
    assert left.lines[0].get_ydata().tolist() == [0.2, 0.5, 0.9]
    assert [bar.get_height() for bar in right.patches] == [0.3, 0.8]
    goals = np.array([0, 0, 1, 2])
    (axes,) = pinpad.codes_figure(np.random.default_rng(0).normal(size=(4, 3)), goals).axes
    assert [len(group.get_offsets()) for group in axes.collections] == [2, 1, 1]
    seeds = [(np.arange(3) * 512, np.array(success)) for success in ([0, 0.2, 0.4], [0, 0.6, 0.8], [0, 0.1, 0.9])]
    (axes,) = pinpad.curves_figure({"internal RL": seeds}).axes
    assert axes.lines[-1].get_ydata().tolist() == [0, 0.2, 0.8], "the median"
