"""Backbones: sequence models cloned from demonstrations, in a parallel form to train and a step form to act.

A backbone is cut after block l. `lower` gives the residual stream e_t there; `upper` turns it, as it is or rewritten by
a metacontroller, into predictions. The two forms agree.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.layers import AttentionBlock, HawkBlock

MOVES = 4


@dataclass(frozen=True)
class PinpadBackboneConfig:
    """Size of a pinpad backbone; defaults as in Kobayashi et al. 2025, Appendix D.1 (grid)."""

    grid: int = 7
    colours: int = 8
    walls: int = 4
    stem: str = "linear"  # on the one-hot observation, the paper's; or "layout", see LayoutStem
    stem_width: int = 64
    stem_depth: int = 6
    window: int = 100  # steps that attention reaches back: the horizon
    mixer: str = "transformer"  # or "hawk"
    width: int = 256
    depth: int = 6
    heads: int = 4
    mlp_width: int = 512
    layer: int = 3  # l: the residual stream is read and written after so many blocks

    def __post_init__(self):
        if self.mixer not in ("transformer", "hawk"):
            raise ValueError(f"mixer={self.mixer!r}: use transformer or hawk")
        if self.stem not in ("linear", "layout"):
            raise ValueError(f"stem={self.stem!r}: use linear or layout")
        if not 0 < self.layer < self.depth:
            raise ValueError(f"layer={self.layer}: with depth={self.depth} it must be 1 to {self.depth - 1}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}: must be a multiple of heads={self.heads}")

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


class LayoutStem(nn.Module):
    """A residual convolutional network over the layout, read at the agent's cell.

    A function of o_t as the linear layer is, but one that shares what it learns between cells and is computed once an
    episode, for pads and walls stay where they are: it learns the way to each pad in a tenth of the linear layer's
    time, which is what makes a laptop's size possible.
    """

    def __init__(self, config: PinpadBackboneConfig):
        super().__init__()
        self.config = config
        width, planes = config.stem_width, config.colours + 2  # each colour, all walls, and where the grid is
        sizes = [planes] + [width] * config.stem_depth
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(sizes))
        self.out = nn.Linear(width, config.width)
        plane = torch.arange(config.colours + config.walls).clamp(max=config.colours)
        self.register_buffer("plane", plane, persistent=False)

    def features(self, layouts: Tensor) -> Tensor:
        """(b, colours + walls) cells to what each cell knows of its surroundings, (b, cells, stem_width)."""
        grid, colours = self.config.grid, self.config.colours
        board = torch.zeros(len(layouts), colours + 2, grid**2, device=layouts.device)
        board[:, -1] = 1
        board[torch.arange(len(layouts), device=layouts.device)[:, None], self.plane, layouts.long()] = 1
        x = board.unflatten(2, (grid, grid)).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.convs[0](x))
        for conv in self.convs[1:]:
            x = x + F.relu(conv(x))
        return x.flatten(2).transpose(1, 2)

    def forward(self, observations: Tensor) -> Tensor:
        """(b, t, channels) cell indices, each row of one layout, to (b, t, width)."""
        return self._at(self.features(observations[:, 0, 1:]), observations[..., 0])

    def step(self, observations: Tensor, cache: tuple) -> tuple[Tensor, tuple]:
        """(b, channels) to (b, width); kept are the layout's features, once seen."""
        cache = cache or (self.features(observations[:, 1:]),)
        return self._at(cache[0], observations[:, None, 0])[:, 0], cache

    def _at(self, features: Tensor, agents: Tensor) -> Tensor:
        return self.out(features.take_along_dim(agents.long()[..., None], 1))


class PinpadBackbone(nn.Module):
    """The autoregressive model p(a_t, o_{t+1} | o_1:t) of the grid world; its input is observations only, in compact
    form: (b, t, channels) cell indices."""

    def __init__(self, config: PinpadBackboneConfig):
        super().__init__()
        self.config = config
        cells = config.grid**2
        self.embedding = (LayoutStem if config.stem == "layout" else LinearStem)(config)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.action_head = nn.Linear(config.width, MOVES)
        self.cell_head = nn.Linear(config.width, cells)

    def _block(self) -> nn.Module:
        config = self.config
        if config.mixer == "hawk":
            return HawkBlock(config.width, config.width, config.heads, config.mlp_width)
        return AttentionBlock(config.width, config.heads, config.mlp_width, config.window)

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
