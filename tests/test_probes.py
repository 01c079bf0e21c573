"""Probes and supervised controllers on small cases whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig
from mzlib.dataset import pinpad_batch
from mzlib.pinpad import LAPTOP, QUARTERS, SINGLE, Pinpad, PinpadConfig, expert_episodes
from mzlib.probes import (
    SupervisedControllers,
    at_layer,
    expert_nll,
    play_supervised,
    probe_accuracy,
    probe_by_layer,
)


def small() -> PinpadBackbone:
    torch.manual_seed(0)
    sizes = {"grid": SINGLE.grid, "colours": SINGLE.colours, "walls": SINGLE.walls, "window": SINGLE.horizon}
    return PinpadBackbone(PinpadBackboneConfig(**sizes, width=32, depth=3, mlp_width=64, layer=1))


def test_a_probe_reads_what_is_there_and_only_that():
    torch.manual_seed(0)
    goals = torch.randint(3, (600,))
    told = torch.randn(600, 8) + 4 * torch.nn.functional.one_hot(goals, 8)
    assert probe_accuracy(told[:400], goals[:400], told[400:], goals[400:]) > 0.95
    blind = torch.randn(600, 8)
    assert probe_accuracy(blind[:400], goals[:400], blind[400:], goals[400:]) < 0.5


def test_a_probe_for_every_layer():
    backbone = small()
    train, test = (pinpad_batch(expert_episodes(SINGLE, 40, np.random.default_rng(seed))) for seed in (0, 1))
    accuracies = probe_by_layer(backbone, train, test)
    assert len(accuracies) == 4
    assert all(0 < accuracy < 1 for accuracy in accuracies)


@torch.no_grad()
def test_another_layer_is_the_same_model():
    backbone, observations = small(), torch.zeros(1, 3, 6, dtype=torch.uint8)
    cut = at_layer(backbone, 2)
    assert (cut.config.layer, backbone.config.layer) == (2, 1)
    assert torch.equal(cut.lower(observations), backbone.residuals(observations)[2])
    assert cut.blocks[0] is backbone.blocks[0]


def test_supervised_controllers_are_matrices_that_learn_while_the_backbone_stays():
    backbone = small().requires_grad_(False)
    before = [weight.clone() for weight in backbone.parameters()]
    controllers = SupervisedControllers(4, 32, 4)
    e, goals = torch.randn(5, 32), torch.tensor([0, 1, 2, 3, 0])
    u = controllers.a @ controllers.b
    assert torch.allclose(controllers(e, goals), e + torch.einsum("bij,bj->bi", u[goals], e), atol=1e-5)
    optimiser = torch.optim.Adam(controllers.parameters(), 1e-2)
    batch = pinpad_batch(expert_episodes(SINGLE, 16, np.random.default_rng(0)))
    losses = []
    for _ in range(30):
        loss = controllers.loss(backbone, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))


@pytest.mark.parametrize("task", [(0,), (0, 1, 2, 3)])
def test_success_is_the_games(task):
    """A backbone that always moves right succeeds exactly where that leads onto the pad."""
    backbone = small()
    torch.nn.init.zeros_(backbone.action_head.weight)
    backbone.action_head.bias.data[:] = torch.tensor([-50.0, -50.0, -50.0, 50.0])
    pinpad, same = Pinpad(SINGLE, 50), Pinpad(SINGLE, 50)
    for game in (pinpad, same):
        game.reset_random(np.random.default_rng(0), task)
    won = play_supervised(backbone, SupervisedControllers(4, 32, 2), pinpad)
    expected = np.zeros(50, bool)
    for _ in range(SINGLE.horizon):
        expected |= same.step(np.full(50, 3))[0] > 0
    assert np.array_equal(won, expected)
    assert won.any() == (len(task) == 1)


def test_the_least_nll_there_can_be():
    """On four cells with a wall, the first move is a coin's toss if both pads lie beside the start, else certain."""
    sizes = {"subgoals": ((0,), (1,)), "grid": 2, "colours": 2, "walls": 1}
    corner = PinpadConfig(tasks=((0,), (1,)), post_training_task=(0,), **sizes)
    episodes = expert_episodes(corner, 400, np.random.default_rng(0))
    blind, told = expert_nll(corner, episodes)
    assert told == 0
    assert (episodes.lengths == 1).all()
    beside = episodes.layouts.start + episodes.layouts.wall_cells[:, 0] == 3  # the wall lies across
    assert 0.3 < beside.mean() < 0.7
    assert blind == pytest.approx(np.log(2) * beside.mean())
    episodes = expert_episodes(LAPTOP, 200, np.random.default_rng(0))
    blind, told = expert_nll(LAPTOP, episodes)
    gain = (blind - told) * episodes.lengths.mean()
    assert gain < np.log(len(LAPTOP.tasks)) + 1e-9, "no more than which of the tasks it is"
    assert gain > np.log(len(LAPTOP.tasks)) - 0.5


def test_without_ties_only_the_task_is_left_to_guess():
    often = replace(QUARTERS, tasks=((0, 1), (0, 1), (0, 1), (0, 2)))
    episodes = expert_episodes(often, 2_000, np.random.default_rng(0))
    blind, told = expert_nll(often, episodes)
    assert told == 0
    nats = blind * episodes.lengths.mean()
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert nats == pytest.approx(entropy, abs=0.05), "as often as a task is listed, so likely it is"
