"""Backbones: sequence models cloned from demonstrations, in a parallel form to train and a step form to act.

A backbone is cut after block l. `lower` gives the residual stream e_t there; `upper` turns it, as it is or rewritten by
a metacontroller, into predictions. The two forms agree. First the grid world's backbone, then Montezuma's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.layers import AttentionBlock, HawkBlock

MOVES = 4
SIDE, STACKED = 84, 4  # a frame's pixels each way; frames in a snapshot


def check_blocks(config) -> None:
    """ValueError for sizes of a stack of blocks that don't go together."""
    if config.mixer not in ("transformer", "hawk"):
        raise ValueError(f"mixer={config.mixer!r}: use transformer or hawk")
    if not 0 < config.layer < config.depth:
        raise ValueError(f"layer={config.layer}: with depth={config.depth} it must be 1 to {config.depth - 1}")
    if config.width % config.heads:
        raise ValueError(f"width={config.width}: must be a multiple of heads={config.heads}")


def blocks_of(config) -> nn.ModuleList:
    """`depth` blocks of the configuration's kind and size."""
    if config.mixer == "hawk":
        sizes = config.width, config.width, config.heads, config.mlp_width
        return nn.ModuleList(HawkBlock(*sizes) for _ in range(config.depth))
    sizes = config.width, config.heads, config.mlp_width, config.window
    return nn.ModuleList(AttentionBlock(*sizes) for _ in range(config.depth))


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


@dataclass(frozen=True)
class BackboneConfig:
    """Layout and size of a Montezuma backbone; the defaults train on a CPU.

    Layout "step": a snapshot before every action, by a conv stem, as `snapshot_tokens` tokens, the last of them the
    action position. Layout "seed": a snapshot before every chunk of `chunk` actions, as patch tokens, then the chunk's
    action positions.
    """

    layout: str = "step"  # or "seed"
    seq_len: int = 64  # actions whose tokens attention reaches back over
    see_actions: bool = False  # whether a_{t−1} is visible; copying it is the trap of cloning
    predict_next: bool = True  # predict the next snapshot's embedding too
    actions: int = 18
    snapshot_tokens: int = 1  # step layout
    channels: int = 32  # step layout: of the conv stem's first layer, the others have twice as many
    chunk: int = 8  # seed layout
    patch: int = 14  # seed layout: a patch's pixels each way
    mixer: str = "transformer"  # or "hawk", which remembers as long as it likes
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_width: int = 256
    layer: int = 2  # l: the residual stream is read and written after so many blocks

    def __post_init__(self):
        if self.layout not in ("step", "seed"):
            raise ValueError(f"layout={self.layout!r}: use step or seed")
        if not 1 <= self.snapshot_tokens <= 4:
            raise ValueError(f"snapshot_tokens={self.snapshot_tokens}: use 1 to 4")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: must be above 0")
        if self.patch < 1 or SIDE % self.patch:
            raise ValueError(f"patch={self.patch}: must divide a frame's {SIDE} pixels")
        if self.seq_len < 1 or self.seq_len % self.every:
            raise ValueError(f"seq_len={self.seq_len}: must be a multiple of chunk={self.every}, above 0")
        check_blocks(self)

    @property
    def every(self) -> int:
        """Actions from one snapshot to the next."""
        return self.chunk if self.layout == "seed" else 1

    @property
    def seen_tokens(self) -> int:
        """Tokens of one snapshot."""
        return (SIDE // self.patch) ** 2 if self.layout == "seed" else self.snapshot_tokens

    @property
    def context(self) -> int:
        """Tokens of one snapshot that are not action positions; they precede its `every` action positions."""
        return self.seen_tokens if self.layout == "seed" else self.snapshot_tokens - 1

    @property
    def window(self) -> int:
        """Tokens that attention reaches back over."""
        return self.tokens(self.seq_len)

    @property
    def unknown(self) -> int:
        """The id of a previous action that was not taken or is not known."""
        return self.actions

    def tokens(self, steps: int, target: bool = False) -> int:
        """Tokens of so many steps; with `target` the snapshot after them too, which is embedded but never attended."""
        return steps // self.every * (self.context + self.every) + target * self.seen_tokens


class ConvStem(nn.Module):
    """Three convolutions that keep space until the end, then a linear layer."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        first, later = config.channels, 2 * config.channels
        convs = nn.Conv2d(STACKED, first, 8, 4), nn.Conv2d(first, later, 4, 2), nn.Conv2d(later, later, 3)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())), nn.Flatten())
        self.out = nn.Linear(later * 7 * 7, config.snapshot_tokens * config.width)
        self.tokens = config.snapshot_tokens

    def forward(self, snapshots: Tensor) -> Tensor:
        """(n, 84, 84, 4) uint8 to (n, tokens, width)."""
        seen = snapshots.to(self.out.weight.dtype).div_(255).permute(0, 3, 1, 2)  # channels last: 1.6 times as fast
        return self.out(self.convs(seen)).unflatten(1, (self.tokens, -1))


class PatchStem(nn.Module):
    """A linear layer on each square patch, and an embedding of its place."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Linear(STACKED * config.patch**2, config.width)
        self.places = nn.Parameter(0.1 * torch.randn(config.seen_tokens, config.width))

    def forward(self, snapshots: Tensor) -> Tensor:
        """(n, 84, 84, 4) uint8 to (n, patches, width)."""
        grid = snapshots.unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch))
        patches = grid.transpose(2, 3).flatten(3).flatten(1, 2)  # (n, patches, 4 patch²)
        return self.embed(patches.to(self.places.dtype).div_(255)) + self.places


class Stream(NamedTuple):
    """The residual stream of a batch; `stream._replace(e=…)` rewrites it at the action positions."""

    e: Tensor  # (b, t, n_e) at the action positions
    context: Tensor  # (b, snapshots, context, n_e) at all other positions, empty if there are none
    reset: Tensor | None  # (b, tokens) bool: where a row begins, its padding being over
    embeddings: Tensor  # (b, snapshots, seen_tokens, n_e) by the stem, of all snapshots that the frames held


class FramePrediction(NamedTuple):
    """What a Montezuma backbone predicts; embeddings are None in the step form and without `predict_next`."""

    actions: Tensor  # (b, t, 18) logits of a_t
    next_embedding: Tensor | None = None  # (b, snapshots, seen_tokens, n_e): the next one, standardised
    target: Tensor | None = None  # likewise, what it was, raw, no gradient; one snapshot less if the frames end with t


class MontezumaVLM(nn.Module):
    """The autoregressive model p(a_t, o_{t+1} | o_1:t), or | o_1:t, a_1:t−1, of Montezuma's Revenge from gray frames.

    frames: (b, t + 3, 84, 84) uint8, three earlier ones first: step i sees frames[i : i + 4]. One more at the end, if
    there is one, serves as a target only. previous: (b, t) long, a_{t−1} or `config.unknown`. padding: (b,) long, steps
    at the front of each row to ignore, the frames up to that of the last of them too, but for the three that the
    first real step sees. Padding within a chunk leaves the rest of the chunk without its snapshot.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.stem = (PatchStem if config.layout == "seed" else ConvStem)(config)
        if config.see_actions:
            self.previous = nn.Embedding(config.actions + 1, config.width)
            nn.init.normal_(self.previous.weight, std=0.1)
        if config.layout == "seed":
            self.places = nn.Parameter(0.1 * torch.randn(config.chunk, config.width))
        self.blocks = blocks_of(config)
        self.norm = nn.LayerNorm(config.width)
        self.action_head = nn.Linear(config.width, config.actions)
        if config.predict_next:
            self.next_places = nn.Parameter(0.1 * torch.randn(config.seen_tokens, config.width))
            self.next_head = nn.Sequential(
                nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, config.width)
            )
            nn.init.zeros_(self.next_head[2].weight)  # at first it predicts the mean
            nn.init.zeros_(self.next_head[2].bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_head.weight.device

    def lower(self, frames: Tensor, previous: Tensor, padding: Tensor | None = None) -> Stream:
        """The residual stream after block l."""
        return self._run(self._embed(frames, previous, padding), self.blocks[: self.config.layer])

    def upper(self, stream: Stream) -> FramePrediction:
        """The residual stream after block l, perhaps rewritten, to predictions."""
        e, every = self._run(stream, self.blocks[self.config.layer :]).e, self.config.every
        normed = self.norm(e)
        actions = self.action_head(normed)
        if not self.config.predict_next:
            return FramePrediction(actions)
        after = normed[:, every - 1 :: every, None] + self.next_places  # (b, snapshots, seen_tokens, n_e)
        return FramePrediction(actions, self.next_head(after), stream.embeddings[:, 1:].detach())

    def forward(self, frames: Tensor, previous: Tensor, padding: Tensor | None = None) -> FramePrediction:
        """Frames and previous actions to predictions."""
        return self.upper(self.lower(frames, previous, padding))

    def residuals(self, frames: Tensor, previous: Tensor, padding: Tensor | None = None) -> list[Tensor]:
        """e (b, t, n_e) after the embedding and after each block, depth + 1 times, for probes."""
        streams = [self._embed(frames, previous, padding)]
        for block in self.blocks:
            streams.append(self._run(streams[-1], [block]))
        return [stream.e for stream in streams]

    def _embed(self, frames: Tensor, previous: Tensor, padding: Tensor | None) -> Stream:
        config, steps = self.config, previous.shape[1]
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames are {frames.dtype}: give them as uint8, 0 to 255")
        if frames.shape[1] - steps not in (STACKED - 1, STACKED):
            raise ValueError(
                f"{frames.shape[1]} frames for {steps} steps: give {steps + 3}, or {steps + 4} with a target"
            )
        if steps % config.every:
            raise ValueError(f"{steps} steps: with layout seed they must be a multiple of chunk={config.chunk}")
        snapshots = frames.unfold(1, STACKED, config.every)  # (b, snapshots, 84, 84, 4)
        embeddings = self.stem(snapshots.flatten(0, 1)).unflatten(0, snapshots.shape[:2])
        seen = embeddings[:, : steps // config.every]
        if config.layout == "seed":
            context, e = seen, self.places.expand(*seen.shape[:2], -1, -1).flatten(1, 2)
        else:
            context, e = seen[:, :, :-1], seen[:, :, -1]
        if config.see_actions:
            e = e + self.previous(previous)
        return Stream(e, context, None if padding is None else self._reset(padding, steps), embeddings)

    def _reset(self, padding: Tensor, steps: int) -> Tensor:
        """(b, tokens) bool: the first token of each row's first real step."""
        config = self.config
        within = padding % config.every
        first = config.tokens(padding) + torch.where(within > 0, config.context + within, 0)
        return torch.arange(config.tokens(steps), device=padding.device) == first[:, None]

    def _run(self, stream: Stream, blocks) -> Stream:
        """The stream after `blocks`, all tokens of a snapshot in one line: context, then action positions."""
        (snapshots, context), every = stream.context.shape[1:3], self.config.every
        tokens = torch.cat([stream.context, stream.e.unflatten(1, (snapshots, every))], 2).flatten(1, 2)
        for block in blocks:
            tokens = block(tokens, stream.reset)
        tokens = tokens.unflatten(1, (snapshots, -1))
        return stream._replace(e=tokens[:, :, context:].flatten(1, 2), context=tokens[:, :, :context])

    def init_cache(self, batch: int) -> list:
        """How many steps were taken (b,) long and one cache a block, for `lower_step` and `upper_step`, of nothing seen
        yet."""
        count = torch.zeros(batch, dtype=torch.long, device=self.device)
        return [(count,), *(block.init_cache(batch) for block in self.blocks)]

    def lower_step(self, frames: Tensor, previous: Tensor, caches: list, reset: Tensor | None = None) -> Tensor:
        """The last four frames (b, 4, 84, 84) uint8, the newest last, and a_{t−1} (b,) to e_t (b, n_e); entries of
        `caches` are replaced. reset: (b,) bool, rows that begin anew.

        What is not an action position passes through the upper blocks here too. In the seed layout all rows must be at
        the same place of a chunk, and frames are looked at only as one begins.
        """
        config, (count,) = self.config, caches[0]
        if reset is not None:
            count = count.masked_fill(reset, 0)
        begins, place = count == 0, int(count[0]) % config.every
        if config.every > 1 and (count % config.every != place).any():
            raise ValueError("rows are at different places of a chunk: in the seed layout reset all of them at once")
        caches[0] = (count + 1,)
        begins = begins if begins.any() else None
        seen = self.stem(frames.permute(0, 2, 3, 1)) if place == 0 else None
        if config.layout == "seed":
            context, e = seen, self.places[place].expand(len(frames), -1)
        else:
            context, e = seen[:, :-1], seen[:, -1]
        if place == 0 and config.context:
            for i, block in enumerate(self.blocks, start=1):
                context, caches[i] = block.extend(context, caches[i], begins)
            begins = None
        if config.see_actions:
            e = e + self.previous(previous)
        return self._step(e, caches, range(config.layer), begins)

    def upper_step(self, e: Tensor, caches: list) -> FramePrediction:
        """e_t (b, n_e), perhaps controlled, to logits (b, 18); the upper blocks' caches are replaced."""
        begins = caches[0][0] == 1
        begins = None if self.config.context or not begins.any() else begins
        e = self._step(e, caches, range(self.config.layer, self.config.depth), begins)
        return FramePrediction(self.action_head(self.norm(e)))

    def _step(self, e: Tensor, caches: list, which: range, begins: Tensor | None) -> Tensor:
        for i in which:
            e, caches[i + 1] = self.blocks[i].step(e, caches[i + 1], begins)
        return e


class CloneLoss(NamedTuple):
    """The loss of a Montezuma backbone and its parts, all scalars."""

    total: Tensor
    nll: Tensor  # mean −ln p(a_t)
    accuracy: Tensor  # how often the likeliest action is a_t
    unexplained: Tensor  # mean squared error of the next embedding over its variance: 1 if only the mean is known


def montezuma_loss(prediction: FramePrediction, actions: Tensor, valid: Tensor, obs_weight: float) -> CloneLoss:
    """Mean over valid steps of −ln p(a_t), plus `obs_weight` times the unexplained share of the next embeddings.

    actions: (b, t); valid: (b, t) bool. A next snapshot counts if the action before it and the step that begins with
    it, if any, are valid.
    """
    logits, taken = prediction.actions[valid], actions[valid].long()
    nll, accuracy = F.cross_entropy(logits, taken), (logits.argmax(-1) == taken).float().mean()
    if not obs_weight:
        return CloneLoss(nll, nll, accuracy, torch.full_like(nll, torch.nan))
    if prediction.target is None:
        raise ValueError(f"obs_weight={obs_weight}: needs a backbone with predict_next, and all steps at once")
    every = valid.shape[1] // prediction.next_embedding.shape[1]
    known = valid[:, every - 1 :: every].clone()
    known[:, :-1] &= valid[:, every::every]
    known = known[:, : prediction.target.shape[1]]
    target = prediction.target[known]  # (snapshots, seen_tokens, n_e)
    target = target - target.mean(0)
    target = target / target.square().mean().sqrt().clamp(min=1e-6)
    unexplained = F.mse_loss(prediction.next_embedding[:, : known.shape[1]][known], target)
    return CloneLoss(nll + obs_weight * unexplained, nll, accuracy, unexplained)
