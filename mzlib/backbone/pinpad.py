"""The grid world's backbone, on observations alone."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from mzlib.backbone.blocks import blocks_of, check_blocks

MOVES = 4


@dataclass(frozen=True)
class PinpadBackboneConfig:
    """Size of a pinpad backbone; defaults as in Kobayashi et al. 2025, Appendix D.1 (grid)."""

    grid: int = 7
    colours: int = 8
    walls: int = 4
    stem: str = "linear"  # on the one-hot observation, the paper's; or "egocentric", see EgocentricStem
    window: int = 100  # steps that attention reaches back: the horizon
    mixer: str = "transformer"  # or "hawk"
    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp_width: int = 512
    layer: int = 3  # l: the residual stream is read and written after so many blocks

    def __post_init__(self):
        if self.stem not in ("linear", "egocentric"):
            raise ValueError(f"stem={self.stem!r}: use linear or egocentric")
        check_blocks(self)

    @property
    def channels(self) -> int:
        """Planes of the one-hot observation: agent, colours, walls."""
        return 1 + self.colours + self.walls


class Prediction(NamedTuple):
    """What a pinpad backbone predicts from o_1:t."""

    actions: Tensor  # (b, t, 4) logits of a_t
    next_cells: Tensor  # (b, t, cells) logits of the agent's cell in o_{t+1}; all else in an observation stays


class LinearStem(nn.Module):
    """A linear layer on the one-hot observation, computed as the sum of the weight columns that it selects."""

    def __init__(self, config: PinpadBackboneConfig):
        super().__init__()
        cells = config.grid**2
        self.embed = nn.EmbeddingBag(config.channels * cells, config.width, mode="sum")
        nn.init.normal_(self.embed.weight, std=config.channels**-0.5)
        self.register_buffer("planes", torch.arange(config.channels) * cells, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """(b, t, channels) cell indices to (b, t, width)."""
        indices = observations.long() + self.planes
        return self.embed(indices.flatten(0, -2)).unflatten(0, observations.shape[:-1])

    def step(self, observations: Tensor, cache: tuple) -> tuple[Tensor, tuple]:
        """(b, channels) to (b, width); nothing is kept."""
        return self(observations[:, None])[:, 0], cache


class EgocentricStem(nn.Module):
    """A linear layer on where everything lies as seen from the agent: one-hot are the offset in rows and the offset in
    columns of each colour and wall, the pair of them for what is at most two cells away, and the agent's own row and
    column; walls are alike.

    A function of o_t as the paper's layer is, but one that shares what it learns between places: here that is the
    difference between minutes and hours of training. Without the pairs it walks into the colours in its way.
    """

    NEAR = 2

    def __init__(self, config: PinpadBackboneConfig):
        super().__init__()
        self.grid, offsets = config.grid, 2 * config.grid - 1
        self.own = nn.EmbeddingBag(2 * config.grid, config.width, mode="sum")
        self.others = nn.EmbeddingBag(2 * (config.colours + 1) * offsets, config.width, mode="sum")
        for table in (self.own, self.others):
            nn.init.normal_(table.weight, std=config.channels**-0.5)
        self.span = 2 * self.NEAR + 1
        self.near = nn.EmbeddingBag((config.colours + 1) * self.span**2 + 1, config.width, mode="sum", padding_idx=0)
        nn.init.zeros_(self.near.weight)
        plane = torch.arange(config.colours + config.walls).clamp(max=config.colours)
        across = config.colours + 1
        first = config.grid - 1 + offsets * torch.cat([plane, plane + across])  # of each plane: the agent's own place
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("plane", plane, persistent=False)

    def forward(self, observations: Tensor) -> Tensor:
        """(b, t, channels) cell indices to (b, t, width)."""
        row, column = observations.long() // self.grid, observations.long() % self.grid
        own = torch.stack([row[..., 0], self.grid + column[..., 0]], -1)
        down, right = row[..., 1:] - row[..., :1], column[..., 1:] - column[..., :1]
        others = torch.cat([down, right], -1) + self.first
        pair = 1 + (self.plane * self.span + down + self.NEAR) * self.span + right + self.NEAR
        near = torch.where((down.abs() <= self.NEAR) & (right.abs() <= self.NEAR), pair, 0)
        seen = self.own(own.flatten(0, -2)) + self.others(others.flatten(0, -2)) + self.near(near.flatten(0, -2))
        return seen.unflatten(0, observations.shape[:-1])

    def step(self, observations: Tensor, cache: tuple) -> tuple[Tensor, tuple]:
        """(b, channels) to (b, width); nothing is kept."""
        return self(observations[:, None])[:, 0], cache


class PinpadBackbone(nn.Module):
    """The autoregressive model p(a_t, o_{t+1} | o_1:t) of the grid world; its input is observations only, in compact
    form: (b, t, channels) cell indices."""

    def __init__(self, config: PinpadBackboneConfig):
        super().__init__()
        self.config = config
        cells = config.grid**2
        self.embedding = (EgocentricStem if config.stem == "egocentric" else LinearStem)(config)
        self.blocks = blocks_of(config)
        self.norm = nn.LayerNorm(config.width)
        self.action_head = nn.Linear(config.width, MOVES)
        self.cell_head = nn.Linear(config.width, cells)

    def lower(self, observations: Tensor) -> Tensor:
        """(b, t, channels) observations to the residual stream e (b, t, n_e) after block l."""
        residual = self.embedding(observations)
        for block in self.blocks[: self.config.layer]:
            residual = block(residual)
        return residual

    def upper(self, residual: Tensor) -> Prediction:
        """The residual stream after block l, (b, t, n_e), to predictions."""
        for block in self.blocks[self.config.layer :]:
            residual = block(residual)
        return self._predict(residual)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(b, t) ln p(a_t | o_1:t)."""
        return Categorical(logits=self(observations).actions).log_prob(actions)

    def forward(self, observations: Tensor) -> Prediction:
        """(b, t, channels) observations to predictions."""
        return self.upper(self.lower(observations))

    def residuals(self, observations: Tensor) -> list[Tensor]:
        """The residual stream after the embedding and after each block, depth + 1 times (b, t, n_e), for probes."""
        residuals = [self.embedding(observations)]
        for block in self.blocks:
            residuals.append(block(residuals[-1]))
        return residuals

    def _predict(self, residual: Tensor) -> Prediction:
        normed = self.norm(residual)
        return Prediction(self.action_head(normed), self.cell_head(normed))

    def init_cache(self, batch: int) -> list:
        """The stem's cache and one a block, for `lower_step` and `upper_step`, of nothing seen yet."""
        return [(), *(block.init_cache(batch) for block in self.blocks)]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_head.weight.device

    def lower_step(self, observations: Tensor, caches: list) -> Tensor:
        """(b, channels) to e_t (b, n_e); the lower blocks' entries of `caches` are replaced."""
        residual, caches[0] = self.embedding.step(observations, caches[0])
        for i in range(self.config.layer):
            residual, caches[i + 1] = self.blocks[i].step(residual, caches[i + 1])
        return residual

    def upper_step(self, residual: Tensor, caches: list) -> Prediction:
        """e_t (b, n_e), perhaps controlled, to predictions (b, …); the upper blocks' caches are replaced."""
        for i in range(self.config.layer, self.config.depth):
            residual, caches[i + 1] = self.blocks[i].step(residual, caches[i + 1])
        return self._predict(residual)


def clone_loss(
    prediction: Prediction, actions: Tensor, cells: Tensor, valid: Tensor, observation_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean over valid steps of −ln p(a_t | o_1:t) − λ ln p(o_{t+1} | o_1:t) (Kobayashi et al. 2025, Appendix C.1), and
    its first term alone.

    actions: (b, t). cells: (b, t), the agent's cell in o_{t+1}. valid: (b, t) bool. observation_weight: λ.
    """
    action_loss = F.cross_entropy(prediction.actions[valid], actions[valid].long())
    if not observation_weight:
        return action_loss, action_loss
    cell_loss = F.cross_entropy(prediction.next_cells[valid], cells[valid].long())
    return action_loss + observation_weight * cell_loss, action_loss
