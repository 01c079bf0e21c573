"""What a backbone knows about subgoals, the truth at hand: linear probes, and a controller trained for each subgoal.

The first two of the checks that lead to discovery (Kobayashi et al. 2025, sections 3.1 and 3.2): if a probe can't read
the subgoal, or a supervised controller can't write it, no metacontroller will find it.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.backbone import PinpadBackbone
from mzlib.dataset import PinpadBatch
from mzlib.pinpad import Episodes, Layouts, Pinpad, PinpadConfig, legs_of, plan


def at_layer(backbone: PinpadBackbone, layer: int) -> PinpadBackbone:
    """The same backbone, weights shared, cut after another block."""
    cut = copy.copy(backbone)
    cut.config = replace(backbone.config, layer=layer)
    return cut


def probe_accuracy(train: Tensor, train_goals: Tensor, test: Tensor, test_goals: Tensor, steps: int = 100) -> float:
    """Held-out accuracy of a linear softmax classifier of the goal, features standardised, fitted by L-BFGS.

    train, test: (steps, d). goals: (steps,).
    """
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    classes = int(max(train_goals.max(), test_goals.max())) + 1
    weight = torch.zeros(classes, train.shape[1] + 1, requires_grad=True, device=train.device)
    optimiser = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = F.linear(train, weight[:, :-1], weight[:, -1])
        loss = F.cross_entropy(logits, train_goals) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    found = F.linear(test, weight[:, :-1], weight[:, -1]).argmax(-1)
    return float((found == test_goals).float().mean())


def probe_by_layer(backbone: PinpadBackbone, train: PinpadBatch, test: PinpadBatch) -> list[float]:
    """Accuracy of reading the subgoal in pursuit from the embedding and from the residual stream after each block."""
    with torch.no_grad():
        seen, unseen = backbone.residuals(train.observations), backbone.residuals(test.observations)
    goals, unseen_goals = train.goals[train.valid].long(), test.goals[test.valid].long()
    return [
        probe_accuracy(x[train.valid], goals, y[test.valid], unseen_goals) for x, y in zip(seen, unseen, strict=True)
    ]


class SupervisedControllers(nn.Module):
    """One low-rank controller U = A B for each subgoal: ê = e + U_g e (Kobayashi et al. 2025, section 3.2)."""

    def __init__(self, goals: int, width: int, rank: int):
        super().__init__()
        self.a = nn.Parameter(0.1 * torch.randn(goals, width, rank) * rank**-0.5)
        self.b = nn.Parameter(torch.randn(goals, rank, width) * width**-0.5)

    def forward(self, residual: Tensor, goals: Tensor) -> Tensor:
        """e (..., n_e) under the controllers of goals (...)."""
        low = torch.einsum("...rd,...d->...r", self.b[goals], residual)
        return residual + torch.einsum("...dr,...r->...d", self.a[goals], low)

    def nll(self, upper: Callable[[Tensor], Tensor], residual: Tensor, goals: Tensor, actions: Tensor) -> Tensor:
        """Mean −ln p of actions (b, t) under the controllers of goals (b, t), over steps whose goal is 0 or above; the
        others are left uncontrolled. upper: ê (b, t, n_e) to logits."""
        known = goals >= 0
        controlled = torch.where(known[..., None], self(residual, goals.long().clamp(min=0)), residual)
        return F.cross_entropy(upper(controlled)[known], actions[known].long())

    def loss(self, backbone: PinpadBackbone, batch: PinpadBatch) -> Tensor:
        """`nll` of the expert's actions on the grid world."""
        with torch.no_grad():
            residual = backbone.lower(batch.observations)
        goals = torch.where(batch.valid, batch.goals, -1)
        return self.nll(lambda e: backbone.upper(e).actions, residual, goals, batch.actions)


@torch.no_grad()
def play_supervised(backbone: PinpadBackbone, controllers: SupervisedControllers, pinpad: Pinpad) -> np.ndarray:
    """(n,) bool: which episodes of a freshly reset `pinpad` succeed when the controller of the true subgoal is set at
    every step."""
    rows, caches = np.arange(pinpad.count), backbone.init_cache(pinpad.count)
    won = np.zeros(pinpad.count, bool)
    device = backbone.device
    while len(rows):
        residual = backbone.lower_step(torch.as_tensor(pinpad.observation[rows], device=device), caches)
        controlled = controllers(residual, torch.as_tensor(pinpad.goal[rows], device=device).long())
        probabilities = backbone.upper_step(controlled, caches).actions.softmax(-1)
        actions = np.zeros(pinpad.count, np.uint8)
        actions[rows] = torch.multinomial(probabilities, 1)[:, 0].cpu().numpy()
        won |= pinpad.step(actions)[0] > 0
        kept = np.flatnonzero(~pinpad.done[rows])
        if len(kept) < len(rows):
            picked = torch.as_tensor(kept, device=device)
            caches = [tuple(entry[picked] for entry in cache) for cache in caches]
        rows = rows[kept]
    return won


def expert_nll(config: PinpadConfig, episodes: Episodes) -> tuple[float, float]:
    """The least mean −ln p(a_t) on clean expert episodes of `config.tasks`: (from observations alone, told the task).

    What is left when the task is known are the expert's ties. Without it the best guess is Bayes': each task weighs by
    how likely it makes what was seen so far. The difference is all that codes can bring.
    """
    often = Counter(config.tasks)
    config = replace(config, tasks=tuple(often))
    known = legs_of(config, np.arange(len(often)))[0, :, :-1]
    true = (episodes.tasks[:, None] == known).all(-1)  # (n, tasks)
    copies = np.repeat(np.arange(len(episodes)), len(known))
    tasks, layouts = (
        np.tile(np.arange(len(known)), len(episodes)),
        Layouts(*(cells[copies] for cells in episodes.layouts)),
    )
    game, paths = Pinpad(config, len(tasks)), plan(config, tasks, layouts)
    game.reset(tasks, layouts)
    weight = (paths.lengths.sum(1) <= config.horizon).reshape(true.shape) * np.array([*often.values()], float)
    nll, told = [], []
    for t in range(int(episodes.lengths.max())):
        playing, action = t < episodes.lengths, episodes.actions[copies, t]
        optimal = paths.optimal(game.progress, game.observation[:, 0])
        if config.first_tie:
            optimal = optimal * (optimal.cumsum(0) == 1)
        likely = optimal[action, np.arange(game.count)] / np.maximum(optimal.sum(0), 1)
        likely = (likely * ~game.done).reshape(true.shape)
        guess = (weight * likely).sum(1) / weight.sum(1)
        nll.append(-np.log(guess[playing]))
        told.append(-np.log(likely[true][playing]))
        weight = np.where(playing[:, None], weight * likely, 1.0)
        game.step(action)
    return float(np.concatenate(nll).mean()), float(np.concatenate(told).mean())
