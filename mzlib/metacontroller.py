"""The metacontroller: reads a frozen backbone's residual stream, finds codes for what is being pursued, and writes
low-rank controllers into the stream (Kobayashi et al. 2025, Appendix D.2).

    h_t = GRU(e_t, h_{t−1})                      history          causal
    s = f_emb(e_1:T)                             embedding        sees the future
    μ_t, Σ_t = f_enc(e_t, h_{t−1}, s)            encoder          z̃_t ~ N(μ_t, Σ_t)
    β_t = f_switch(e_t, h_{t−1}, z_{t−1})        switch           causal; β_1 = 1
    z_t = β_t z̃_t + (1 − β_t) z_{t−1}            integrator       z_0 = 0
    ê_t = e_t + U_t e_t, U_t = f_hyp(z_t)        hypernetwork     U of rank r
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.layers import BidirectionalHawk

BELOW_ONE = 1 - 2.0**-24  # in float32


@dataclass(frozen=True)
class MetacontrollerConfig:
    """Sizes and kind of a metacontroller; sizes as in Kobayashi et al. 2025, Tables A9 and A10."""

    residual_width: int = 256  # n_e
    code_dim: int = 8  # n_z
    controller_rank: int = 16  # r
    history_width: int = 32  # n_h
    embedding_width: int = 32  # n_s
    encoder_width: int = 64
    switch_width: int = 64
    hypernet_width: int = 32
    embedding: str = "sequence"  # s is one vector a sequence, or a vector a "step"
    always_open: bool = False  # β ≡ 1: a new code at every step
    proposal_std: float = 0.14  # σ at the start; with 1 nothing gets through, and the KL closes the channel for good
    switch_rate: int = 0  # force a refresh, β = 1, every so many steps; 0: never
    switch_bias: float = 0.0  # of the switch's logit at the start
    switch_temperature: float = 1.0
    switch_noise: bool = False  # add logistic noise to the logit in training (Gumbel-sigmoid)

    def __post_init__(self):
        if self.embedding not in ("sequence", "step"):
            raise ValueError(f"embedding={self.embedding!r}: use sequence or step")
        if self.switch_rate < 0:
            raise ValueError(f"switch_rate={self.switch_rate}: steps between forced refreshes are needed, 0 for none")
        for name in ("switch_temperature", "proposal_std"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")


class SequenceEmbedder(nn.Module):
    """f_emb: what happens in the whole sequence, future included.

    One order-keeping vector a sequence (the end states of a recurrent block run forwards and of one run backwards),
    or with `embedding="step"` a vector a step.
    """

    def __init__(self, config: MetacontrollerConfig):
        super().__init__()
        self.per_step = config.embedding == "step"
        width = 2 * config.embedding_width
        self.enter = nn.Linear(config.residual_width, width)
        self.blocks = BidirectionalHawk(width, width, 4, 2 * width)
        self.leave = nn.Linear(2 * width, config.embedding_width)

    def forward(self, residual: Tensor, lengths: Tensor) -> Tensor:
        """e (b, t, n_e) and lengths (b,) to s (b, t or 1, n_s)."""
        steps, ends = self.blocks(self.enter(residual), lengths)
        return self.leave(steps if self.per_step else ends[:, None])


class Encoder(nn.Module):
    """f_enc: the proposal N(μ_t, Σ_t), Σ diagonal."""

    def __init__(self, config: MetacontrollerConfig):
        super().__init__()
        seen = config.residual_width + config.history_width + config.embedding_width
        self.layers = nn.Sequential(
            nn.Linear(seen, config.encoder_width), nn.ReLU(), nn.Linear(config.encoder_width, 2 * config.code_dim)
        )
        nn.init.constant_(self.layers[-1].bias[config.code_dim :], math.log(config.proposal_std))

    def forward(self, residual: Tensor, before: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """e, h_{t−1} and s, all (b, t, …), to μ and ln σ, both (b, t, n_z)."""
        embedding = embedding.expand(-1, residual.shape[1], -1)
        mean, log_std = self.layers(torch.cat([residual, before, embedding], -1)).chunk(2, -1)
        return mean, log_std.clamp(-6, 2)


class Switch(nn.Module):
    """f_switch: whether a new code is taken in, β_t in [0, 1].

    Its first layer is cut in two: the share of e_t and h_{t−1} is known for all steps at once, that of z_{t−1} is not.
    """

    def __init__(self, config: MetacontrollerConfig):
        super().__init__()
        self.seen = nn.Linear(config.residual_width + config.history_width, config.switch_width)
        self.code = nn.Linear(config.code_dim, config.switch_width, bias=False)
        self.out = nn.Linear(config.switch_width, 1)
        nn.init.constant_(self.out.bias, config.switch_bias)
        self.register_buffer("temperature", torch.tensor(config.switch_temperature))  # training may lower it

    def first_layer(self, residual: Tensor, before: Tensor) -> Tensor:
        """The share of e_t and h_{t−1} in the hidden layer, (b, …, switch_width)."""
        return self.seen(torch.cat([residual, before], -1))

    def forward(self, seen: Tensor, code: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """β (b, 1), from `first_layer` (b, switch_width) and z_{t−1} (b, n_z)."""
        logit = self.out(F.relu(seen + self.code(code)))
        beta = torch.sigmoid((logit + noise) / self.temperature)
        return beta.clamp(max=BELOW_ONE)  # which rounding alone makes 1: a threshold of 1 is never reached


class Hypernetwork(nn.Module):
    """f_hyp: code to controller U = A B, of rank r; applied without ever forming a matrix a step.

    A and B are linear in the hidden layer w(z): A = Σ_k w_k A_k, B likewise (w_0 = 1), so B e = Σ_k w_k (B_k e) is one
    product with all B_k side by side, then a sum; A the other way round.
    """

    def __init__(self, config: MetacontrollerConfig):
        super().__init__()
        self.rank, terms = config.controller_rank, config.hypernet_width + 1
        self.hidden = nn.Linear(config.code_dim, config.hypernet_width)
        self.b = nn.Parameter(torch.randn(config.residual_width, terms * self.rank) * config.residual_width**-0.5)
        self.a = nn.Parameter(torch.randn(terms * self.rank, config.residual_width) * 0.1 * (terms * self.rank) ** -0.5)

    def weights(self, code: Tensor) -> Tensor:
        """w (…, 1 + hypernet_width) of a code (…, n_z)."""
        return F.pad(F.relu(self.hidden(code)), (1, 0), value=1.0)

    def forward(self, residual: Tensor, code: Tensor) -> Tensor:
        """e (…, n_e) and z (…, n_z) to ê = e + U e."""
        weights = self.weights(code)
        projected = (residual @ self.b).unflatten(-1, (-1, self.rank))
        low = torch.einsum("...k,...kr->...r", weights, projected)
        spread = (weights[..., None] * low[..., None, :]).flatten(-2)
        return residual + spread @ self.a

    def controller(self, code: Tensor) -> Tensor:
        """U (…, n_e, n_e) as a matrix, for looking at; ê = e + U e."""
        weights = self.weights(code)
        a = torch.einsum("...k,krd->...dr", weights, self.a.unflatten(0, (-1, self.rank)))
        b = torch.einsum("...k,dkr->...rd", weights, self.b.unflatten(1, (-1, self.rank)))
        return a @ b


class Controlled(NamedTuple):
    """What the metacontroller made of a batch of sequences."""

    residual: Tensor  # ê (b, t, n_e)
    switch: Tensor  # β (b, t)
    code: Tensor  # z (b, t, n_z)
    kl: Tensor  # KL(N(μ_t, Σ_t) ‖ N(0, I)) (b, t), summed over code dimensions


class Metacontroller(nn.Module):
    """All pieces together; `forward` for training and looking, `begin` and `step` for acting without the future."""

    def __init__(self, config: MetacontrollerConfig):
        super().__init__()
        self.config = config
        self.history = nn.GRU(config.residual_width, config.history_width, batch_first=True)
        self.embedder = SequenceEmbedder(config)
        self.encoder = Encoder(config)
        self.switch = Switch(config)
        self.hypernetwork = Hypernetwork(config)

    def forward(self, residual: Tensor, lengths: Tensor) -> Controlled:
        """e (b, t, n_e) with lengths (b,) to ê, β, z and KL; steps beyond a length mean nothing."""
        history, _ = self.history(residual)
        before = F.pad(history, (0, 0, 1, 0))[:, :-1]
        mean, log_std = self.encoder(residual, before, self.embedder(residual, lengths))
        proposal = mean + log_std.exp() * torch.randn_like(mean)
        switch, code = self.integrate(proposal, self.switch.first_layer(residual, before))
        kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        return Controlled(self.hypernetwork(residual, code), switch, code, kl)

    def follow(self, residual: Tensor, proposal: Tensor, threshold: float = 0.5) -> Controlled:
        """All steps of what acting does: e (b, t, n_e) under codes (b, t, n_z), each taken in where β ≥ threshold and
        held until the next; no KL."""
        history, _ = self.history(residual)
        before = F.pad(history, (0, 0, 1, 0))[:, :-1]
        switch, code = self.integrate(proposal, self.switch.first_layer(residual, before), threshold)
        return Controlled(self.hypernetwork(residual, code), switch, code, torch.zeros_like(switch))

    def integrate(self, proposal: Tensor, seen: Tensor, threshold: float | None = None) -> tuple[Tensor, Tensor]:
        """β (b, t) and z (b, t, n_z) of proposals z̃ (b, t, n_z); the gradient flows through z_{t−1} (Eq. of D.2).

        seen: (b, t, switch_width), the switch's first layer. What does not depend on z_{t−1} is computed beforehand:
        this loop is the only one over time. threshold: take a proposal in whole from this β on, else not at all.
        """
        config = self.config
        if config.always_open:
            return torch.ones(proposal.shape[:2], device=proposal.device), proposal
        code, open_ = torch.zeros_like(proposal[:, 0]), torch.ones_like(proposal[:, 0, :1])
        switches, codes = [], []
        for t, (proposed, known) in enumerate(zip(proposal.unbind(1), seen.unbind(1), strict=True)):
            if self.forced(t):
                switch = open_
            else:
                noise = 0.0
                if config.switch_noise and self.training:
                    noise = torch.logit(torch.rand_like(open_), eps=1e-6)
                switch = self.switch(known, code, noise)
            taken = switch if threshold is None else (switch >= threshold).to(code.dtype)
            code = code + taken * (proposed - code)
            switches.append(switch)
            codes.append(code)
        return torch.cat(switches, 1), torch.stack(codes, 1)

    def forced(self, t: int) -> bool:
        """Whether β_t is 1 in any case: at the first step, with β ≡ 1, and every `switch_rate` steps."""
        config = self.config
        return t == 0 or config.always_open or (config.switch_rate > 0 and t % config.switch_rate == 0)

    def step(self, residual: Tensor, history: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """One causal step: (β_t (b,), h_t (b, n_h)) from e_t (b, n_e), h_{t−1} (b, n_h) and z_{t−1} (b, n_z).

        `forced` is the caller's to ask. The encoder has no part in it: z_t comes from a policy or the prior.
        """
        switch = self.switch(self.switch.first_layer(residual, history), code)[:, 0]
        _, after = self.history(residual[:, None], history[None].contiguous())
        return switch, after[0]


def annealed(step: int, *points: tuple[float, float]) -> float:
    """α, or the switch's temperature, at a step: straight lines between points (step, value), level outside them."""
    return float(np.interp(step, *zip(*points, strict=True)))


def switches_match(switch: Tensor, goals: Tensor, valid: Tensor, tolerance: int = 1, threshold: float = 0.5) -> dict:
    """How well the switch's openings match true changes of goal, one to one within `tolerance` steps, first steps
    excluded.

    switch: β (b, t). goals: (b, t). valid: (b, t) bool. Returns precision, recall, f1, switches and changes an episode.
    """
    valid = valid[:, 1:] & valid[:, :-1]
    opened = (switch[:, 1:] > threshold) & valid
    changed = (goals[:, 1:] != goals[:, :-1]) & valid
    hits = sum(
        matched(opening.nonzero()[:, 0].tolist(), change.nonzero()[:, 0].tolist(), tolerance)
        for opening, change in zip(opened, changed, strict=True)
    )
    found, true = int(opened.sum()), int(changed.sum())
    precision, recall = hits / max(found, 1), hits / max(true, 1)
    decided = ((switch[:, 1:] < 0.1) | (switch[:, 1:] > 0.9))[valid].float()
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / max(found + true, 1),
        "switches": found / len(switch),
        "changes": true / len(switch),
        "sharp": float(decided.mean()),
    }


def matched(found: list[int], true: list[int], tolerance: int) -> int:
    """How many of the sorted `found` and `true` times pair up one to one within `tolerance`: greedy from the left,
    which is the most."""
    hits = i = j = 0
    while i < len(found) and j < len(true):
        if abs(found[i] - true[j]) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif found[i] < true[j]:
            i += 1
        else:
            j += 1
    return hits
