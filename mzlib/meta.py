"""Training the metacontroller on a frozen backbone: negative log-likelihood of the actions and α times the KL."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mzlib.backbone import PinpadBackbone
from mzlib.dataset import PinpadBatch
from mzlib.metacontroller import Controlled, Metacontroller


def meta_loss(
    backbone: PinpadBackbone, metacontroller: Metacontroller, batch: PinpadBatch, kl_weight: float
) -> tuple[Tensor, Tensor, Controlled]:
    """Mean over valid steps of −ln p(a_t | o_1:t, z_1:t) + α KL(N(μ_t, Σ_t) ‖ N(0, I)), its first term alone, and what
    the metacontroller did (Kobayashi et al. 2025, Eq. of D.2).

    The KL is charged at every step, whatever β is. The backbone's weights are frozen, yet the gradient flows through
    its upper blocks.
    """
    with torch.no_grad():
        residual = backbone.lower(batch.observations)
    controlled = metacontroller(residual, batch.lengths)
    logits = backbone.upper(controlled.residual).actions
    nll = F.cross_entropy(logits[batch.valid], batch.actions[batch.valid].long())
    return nll + kl_weight * controlled.kl[batch.valid].mean(), nll, controlled
