"""Updates from whole episodes of options: the paper's critic-free estimator, and PPO with a critic on the options'
timescale; how much either estimate varies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.ppo import batch_advantage, clipped_loss, gae, normalised

PARTS = 8  # of a minibatch, alike in length: less padding


@dataclass(frozen=True)
class InternalRLConfig:
    """Settings of one reinforcement; defaults as in Kobayashi et al. 2025, Appendix C.5 and D.3 (grid)."""

    epochs: int = 2
    minibatches: int = 4
    clip: float = 0.2
    learning_rate: float = 3e-5
    max_norm: float = 1.0  # of the gradient
    beta_threshold: float = 0.5
    gamma: float = 0.999  # a step's; with a critic only
    lam: float = 0.95  # an option's
    value_weight: float = 0.5

    def __post_init__(self):
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 0 to 1")
        for name in ("clip", "learning_rate", "max_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")


class Lived(NamedTuple):
    """A batch of whole episodes, rewarded at their ends only; beyond a length all is zeros."""

    observation: Tensor  # e (b, t, n_e), or frames (b, t + 3, 84, 84)
    action: Tensor  # codes (b, t, n_z), or actions (b, t)
    chosen: Tensor  # (b, t) bool: an option began, its code was drawn; with raw actions every step
    log_prob: Tensor  # (b, t) of the action where chosen
    returns: Tensor  # (b,)
    lengths: Tensor  # (b,)

    def seen(self, rows: Tensor | slice, steps: int) -> Tensor:
        """What these episodes saw in their first `steps` steps."""
        return self.observation[rows, : steps + self.observation.shape[1] - self.chosen.shape[1]]


def descend(
    parameters: Iterable[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    chosen: Tensor,
    losses: Callable[[Tensor, int], Tensor],
    config: InternalRLConfig,
) -> None:
    """Gradient steps over shuffled minibatches of episodes. losses: (rows (n,), steps) to (n, steps), of which those
    where `chosen` (b, t) count, each alike."""
    parameters = list(parameters)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(chosen)).to(chosen.device).chunk(config.minibatches):
            optimiser.zero_grad()
            mean_loss(chosen, rows, losses).backward()
            nn.utils.clip_grad_norm_(parameters, config.max_norm)
            optimiser.step()


def mean_loss(chosen: Tensor, rows: Tensor, losses: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The mean of `losses` over what was chosen in these episodes; read no further than to the last choice."""
    needed = (chosen * torch.arange(1, chosen.shape[1] + 1, device=chosen.device)).amax(1)
    total = 0.0
    for part in rows[needed[rows].argsort()].chunk(PARTS):
        steps = int(needed[part].max())
        total = total + losses(part, steps)[chosen[part, :steps]].sum()
    return total / chosen[rows].sum()


@torch.no_grad()
def residuals(policy: nn.Module, lived: Lived) -> Tensor:
    """e (b, t, n_e) of all episodes, what a critic reads."""
    steps = lived.chosen.shape[1]
    rows = torch.arange(len(lived.chosen), device=lived.chosen.device).split(PARTS)
    return torch.cat([policy.residual(lived.seen(some, steps)) for some in rows])


def option_advantages(lived: Lived, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (b, t) where chosen, by GAE from option to option: for one of l steps
    δ = Σ_i γ^i r_{t+i} + γ^l V_{t+l} − V_t, A_t = δ + γ^l λ A_{t+l}. values: (b, t).

    That is GAE over the steps with λ = 1 within an option, where the values cancel out.
    """
    step, last = torch.arange(values.shape[1], device=values.device), lived.lengths[:, None] - 1
    rewards = torch.where(step == last, lived.returns[:, None], 0.0)
    within = torch.where(F.pad(lived.chosen[:, 1:], (0, 1)), lam, 1.0)
    found = gae(rewards.T, F.pad(values, (0, 1)).T, (step == last).T, gamma, within.T)
    return tuple(x.T for x in found)


@torch.no_grad()
def estimate(
    policy: nn.Module, critic: nn.Module | None, lived: Lived, config: InternalRLConfig
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Advantages (b, t): without a critic the episode's normalised return for each of its options, with one normalised
    GAE; and what the critic learns from, e (b, t, n_e) and its targets (b, t)."""
    if critic is None:
        return batch_advantage(lived.returns)[:, None].expand_as(lived.log_prob), None, None
    residual = residuals(policy, lived)
    advantage, target = option_advantages(lived, critic(residual), config.gamma, config.lam)
    return normalised(advantage, lived.chosen.to(advantage.dtype)), residual, target


def update(
    policy: nn.Module,
    critic: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    lived: Lived,
    config: InternalRLConfig,
) -> None:
    """One round of PPO on a batch of episodes."""
    advantage, residual, target = estimate(policy, critic, lived, config)

    def losses(rows: Tensor, steps: int) -> Tensor:
        log_prob = policy.log_prob(lived.seen(rows, steps), lived.action[rows, :steps])
        loss = clipped_loss(log_prob, lived.log_prob[rows, :steps], advantage[rows, :steps], config.clip)
        if critic is None:
            return loss
        miss = critic(residual[rows, :steps]) - target[rows, :steps]
        return loss + config.value_weight * 0.5 * miss.square()

    parameters = [weight for group in optimiser.param_groups for weight in group["params"]]
    descend(parameters, optimiser, lived.chosen, losses, config)


def gradient_noise(
    policy: nn.Module, critic: nn.Module | None, batches: Sequence[Lived], config: InternalRLConfig
) -> dict[str, float]:
    """How much the policy's gradient differs from batch to batch of episodes of one and the same policy.

    variance: the trace of its covariance. signal: the squared length of its mean, less the share that is variance, so
    that it can be below 0. ratio: variance over signal, comparable between policies of different weights; infinite
    without a signal. ValueError for fewer than 2 batches.
    """
    if len(batches) < 2:
        raise ValueError(f"batches: {len(batches)} given; at least 2 are needed to see a variance")
    gradients = []
    for lived in batches:
        advantage, _, _ = estimate(policy, critic, lived, config)
        policy.zero_grad()

        def losses(rows: Tensor, steps: int, lived: Lived = lived, advantage: Tensor = advantage) -> Tensor:
            log_prob = policy.log_prob(lived.seen(rows, steps), lived.action[rows, :steps])
            return -advantage[rows, :steps] * log_prob

        mean_loss(lived.chosen, torch.arange(len(lived.chosen), device=lived.chosen.device), losses).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    policy.zero_grad()
    gradients = torch.stack(gradients)
    variance = gradients.var(0).sum().item()
    signal = gradients.mean(0).square().sum().item() - variance / len(batches)
    return {"variance": variance, "signal": signal, "ratio": variance / signal if signal > 0 else float("inf")}
