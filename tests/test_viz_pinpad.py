"""Notebook 00's figures show what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mzlib.internal_rl import Lived
from mzlib.pinpad import LAPTOP, Layouts, Pinpad, PinpadConfig, expert_episodes
from mzlib.runs import results
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
    offsets = np.array([(3, 0), (0, 2), (-1, 0), (-2, -2)])
    which, where, far, *_ = pinpad.codes_figure(np.random.default_rng(0).normal(size=(4, 2)), goals, offsets).axes
    assert [len(group.get_offsets()) for group in which.collections] == [2, 1, 1]
    assert where.collections[0].get_array().tolist() == [0, 90, 180, -135]
    assert far.collections[0].get_array().tolist() == [3, 2, 1, 4]
    seeds = [(np.arange(3) * 512, np.array(success)) for success in ([0, 0.2, 0.4], [0, 0.6, 0.8], [0, 0.1, 0.9])]
    (axes,) = pinpad.curves_figure({"internal RL": seeds}).axes
    assert axes.lines[-1].get_ydata().tolist() == [0, 0.2, 0.8], "the median"


def test_where_codes_lead_leg_by_leg():
    config = PinpadConfig(((0, 1),), (0, 1), ((0,), (1,), (2,)), grid=3, colours=3, walls=0)
    game = Pinpad(config, 3)
    # .0.
    # 1x2   x: the agent
    # ...
    game.reset(np.array([(0, 1)] * 3), Layouts.of(config, np.tile(np.array([4, 1, 3, 5], np.uint8), (3, 1))))
    code = torch.arange(6.0).reshape(3, 2)
    for actions in ([0, 3, 1], [2, 0, 1], [1, 0, 1]):  # up, left, down; right; down for good
        game.step(np.array(actions))
    lived = Lived(
        torch.zeros(3, 3, 1),
        torch.stack([code, code + 10, code + 20], 1),
        torch.tensor([[True, True, False], [True, False, False], [True, False, False]]),
        torch.zeros(3, 3),
        torch.tensor([1.0, 0, 0]),
        torch.tensor([3, 1, 3]),
    )
    (first, reached), (second, then) = pinpad.where_codes_lead(game, lived, (0, 1))
    assert first.tolist() == code.tolist()
    assert reached.tolist() == [0, 2, -1]
    assert (second.tolist(), then.tolist()) == ([[10, 11]], [1])
    start, after = pinpad.options_figure({"first": (first, reached), "then": (second, then)}).axes
    assert [len(group.get_offsets()) for group in start.collections] == [1, 1, 1]
    assert after.get_legend().get_texts()[0].get_text() == "pad 1: 100%"


def test_offsets_point_from_the_agent_to_the_pad():
    grid = LAPTOP.grid
    agent, pads = 5 * grid + 5, [5 * grid + 9, 2 * grid + 5, 5 * grid + 1, 9 * grid + 5, 0]  # right, up, left, down
    observations = np.array([[agent, *pads, 1]] * 4, np.uint8)
    found = pinpad.offset(LAPTOP, observations, np.arange(4))
    assert found.tolist() == [[4, 0], [0, 3], [-4, 0], [0, -4]]


def test_stored_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "data_dir", lambda *parts: tmp_path / parts[-1])
    (tmp_path / "a.curve.csv").write_text("agent,seed,step,success\nx,0,1,0.5\nx,1,1,0.7\nx,2,1,0.9\nx,0,2,\n")
    assert pinpad.median_by_step("a", "success") == {1: 0.7}
    (tmp_path / "b.curve.csv").write_text("agent,seed,step,success\nx,0,1,0\nx,0,2,1\ny,0,1,0.25\n")
    curves = pinpad.learning_curves("b")
    assert [curve.tolist() for curve in curves["x"][0]] == [[1, 2], [0, 1]]
    assert list(curves) == ["x", "y"]
    rows = "".join(
        f"internal RL,{seed},{step},{10.0**-step},{step / 9},{step},0.4\n" for seed in (0, 1) for step in (1, 2)
    )
    (tmp_path / "c.curve.csv").write_text("agent,seed,step,kl_weight,f1,kl,held_out_nll\n" + rows)
    alpha, *_, f1 = pinpad.annealing_figure("c").axes
    assert [line.get_ydata().tolist() for line in alpha.lines] == [[0.1, 0.01]] * 2
    assert [line.get_ydata().tolist() for line in f1.lines] == [[1 / 9, 2 / 9]] * 2
