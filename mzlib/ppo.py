"""Policy-gradient pieces shared by the agents: advantages and the clipped loss."""

import torch
from torch import Tensor


def batch_advantage(returns: Tensor) -> Tensor:
    """(b,) returns of whole episodes, normalised over the batch: (R − mean R) / (std R + 1e-3), no critic (Kobayashi et
    al. 2025, Appendix C.5)."""
    return (returns - returns.mean()) / (returns.std(correction=0) + 1e-3)


def clipped_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The negative clipped surrogate, element by element (Schulman et al. 2017, Eq. 7)."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
