"""Policy-gradient pieces shared by the agents: advantages, the clipped loss, and updates over minibatches (Schulman et
al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mzlib.runs import fast_bfloat16


def batch_advantage(returns: Tensor) -> Tensor:
    """(b,) returns of whole episodes, normalised over the batch: (R − mean R) / (std R + 1e-3), no critic (Kobayashi et
    al. 2025, Appendix C.5)."""
    return (returns - returns.mean()) / (returns.std(correction=0) + 1e-3)


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The negative clipped surrogate, element by element (Schulman et al. 2017, Eq. 7)."""
    ratio = (log_prob - old_log_prob).clamp(max=20).exp()  # infinite, it would make the gradients nan
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def gae(rewards: Tensor, values: Tensor, ended: Tensor, gamma: float, lam: float | Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and returns (t, b) by generalised advantage estimation (Schulman et al. 2016, Eq. 16).

    A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, returns A_t + V_t; after a step that ended its episode neither
    V_{t+1} nor A_{t+1} counts. rewards: (t, b); values: (t + 1, b), those after the last step too; ended: (t, b) bool,
    all False for returns that episodes don't end. lam: or (t, b), a weight of its own for each A_{t+1}.
    """
    if len(values) != len(rewards) + 1 or ended.shape != rewards.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (rewards, values, ended))
        raise ValueError(f"rewards, values, ended are {shapes}: give (t, b), (t + 1, b), (t, b)")
    goes_on = (~ended).to(values.dtype)
    deltas = rewards + gamma * goes_on * values[1:] - values[:-1]
    advantages, advantage, carried = torch.empty_like(deltas), torch.zeros_like(values[0]), gamma * lam * goes_on
    for t in reversed(range(len(deltas))):
        advantages[t] = advantage = deltas[t] + carried[t] * advantage
    return advantages, advantages + values[:-1]


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO."""

    gamma: float = 0.999
    lam: float = 0.95
    clip: float = 0.2
    epochs: int = 3
    minibatches: int = 16
    learning_rate: float = 5e-4
    entropy: float = 0.003  # weight of the entropy
    value_weight: float = 0.5  # weight of ½ (V − R)², summed over the value heads
    max_grad_norm: float = 0.5
    bfloat16: bool | None = None  # the network's arithmetic; None: where it is faster than float32

    def __post_init__(self):
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 0 to 1")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("clip", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("entropy", "value_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    def arithmetic(self, device: torch.device | str) -> torch.autocast:
        """The context in which networks act and learn on this device."""
        half = fast_bfloat16(device) if self.bfloat16 is None else self.bfloat16
        return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half)


class Rollout(NamedTuple):
    """t steps of b environments, as the policy to be updated lived them."""

    frames: Tensor  # (t, b, 4, 84, 84) uint8, seen before acting
    actions: Tensor  # (t, b) long
    log_probs: Tensor  # (t, b) of the actions
    values: Tensor  # (t, b, heads)
    began: Tensor  # (t, b) bool: the frames are an episode's first
    state: Tensor  # (b, memory) before the first step
    weight: Tensor  # (t, b) float: of the step in all losses; 0 leaves it out


def _pick(x: Tensor, rows: Tensor, steps: bool) -> Tensor:
    """Of x (t, b, …) the environments `rows` (t, n, …), or with `steps` single ones of the t · b steps (1, n, …)."""
    return x.flatten(0, 1).index_select(0, rows)[None] if steps else x.index_select(1, rows)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Σ w x / Σ w, 0 if nothing has weight."""
    return (weight * x).sum() / weight.sum().clamp(min=1e-8)


def weighted_variance(x: Tensor, weight: Tensor) -> Tensor:
    """Σ w (x − mean)² / Σ w with the weighted mean."""
    return weighted_mean((x - weighted_mean(x, weight)).square(), weight)


def normalised(advantages: Tensor, weight: Tensor) -> Tensor:
    """Advantages less their weighted mean, over their weighted standard deviation."""
    return (advantages - weighted_mean(advantages, weight)) / (weighted_variance(advantages, weight).sqrt() + 1e-8)


def explained_variance(values: Tensor, returns: Tensor, weight: Tensor) -> float:
    """1 − Var(R − V) / Var R, weighted; NaN if the returns don't vary."""
    spread = weighted_variance(returns, weight)
    return (1 - weighted_variance(returns - values, weight) / spread).item() if spread > 0 else float("nan")


def update(
    policy: nn.Module,
    optimiser: torch.optim.Optimizer,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    generator: torch.Generator | None = None,
    entropy: Tensor | None = None,
    auxiliary: Callable[[], Tensor] | None = None,
) -> dict[str, float]:
    """Update the actor-critic on a rollout; returns means over the minibatches, and the first value head's explained
    variance before the update.

    Minibatches are of steps, or of environments in whole sequences if the policy is recurrent, drawn on the CPU by
    `generator`. Advantages are normalised within each. advantages: (t, b); returns: (t, b), or (t, b, heads); entropy:
    (t, b), the weight of each step's entropy in place of the configuration's; auxiliary: a further loss, added in each
    minibatch.
    """
    steps, device = not policy.config.recurrent, rollout.frames.device
    count = rollout.actions.numel() if steps else rollout.actions.shape[1]
    if count < config.minibatches:
        kind = "steps" if steps else "environments"
        raise ValueError(f"minibatches={config.minibatches}: the rollout has {count} {kind}; take at most as many")
    returns = returns[..., None] if returns.ndim == 2 else returns
    if returns.shape != rollout.values.shape:
        shapes = f"{tuple(returns.shape)}, the values {tuple(rollout.values.shape)}"
        raise ValueError(f"returns are {shapes}: give one for each")
    entropy = torch.full_like(advantages, config.entropy) if entropy is None else entropy
    sums: dict[str, Tensor] = {}
    for _ in range(config.epochs):
        for rows in torch.randperm(count, generator=generator).to(device).tensor_split(config.minibatches):
            state = rollout.state[:0] if steps else rollout.state[rows].detach()
            parts = {name: _pick(x, rows, steps) for name, x in rollout._asdict().items() if name != "state"}
            batch = Rollout(state=state, **parts)
            advantage, target, bonus = (_pick(x, rows, steps) for x in (advantages, returns, entropy))
            with config.arithmetic(device):
                logits, values = policy.unroll(batch.frames, state, batch.began)
            loss, found = _losses(logits.float(), values.float(), batch, advantage, target, bonus, config)
            if auxiliary is not None:
                found["auxiliary_loss"] = auxiliary()
                loss = loss + found["auxiliary_loss"]
            optimiser.zero_grad()
            loss.backward()
            found["grad_norm"] = nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            optimiser.step()
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.detach()
    means = {name: value.item() / (config.epochs * config.minibatches) for name, value in sums.items()}
    return means | {"explained_variance": explained_variance(rollout.values[..., 0], returns[..., 0], rollout.weight)}


def _losses(
    logits: Tensor,
    values: Tensor,
    batch: Rollout,
    advantage: Tensor,
    target: Tensor,
    bonus: Tensor,
    config: PPOConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a minibatch, and its parts, each a weighted mean over steps."""
    log_p = logits.log_softmax(-1)
    log_prob = log_p.gather(-1, batch.actions[..., None])[..., 0]
    log_ratio, weight = log_prob - batch.log_probs, batch.weight
    policy = clipped_loss(log_prob, batch.log_probs, normalised(advantage, weight), config.clip)
    value = 0.5 * (values - target).square().sum(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    loss = weighted_mean(policy + config.value_weight * value - bonus * entropy, weight)
    with torch.no_grad():
        parts = {"policy_loss": policy, "value_loss": value, "entropy": entropy}
        parts["approx_kl"] = log_ratio.exp() - 1 - log_ratio  # Schulman's k3 estimate of KL(old ‖ new)
        parts["clip_fraction"] = ((log_ratio.exp() - 1).abs() > config.clip).float()
        return loss, {name: weighted_mean(part, weight) for name, part in parts.items()}
