"""Montezuma's backbone: snapshots and actions interleaved, in two layouts of one model."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.backbone.blocks import blocks_of, check_blocks
from mzlib.layers import CONVS, convolution, stacked_blocks
from mzlib.trajectory import FRAME_SIZE, STACK


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
        if self.patch < 1 or FRAME_SIZE % self.patch:
            raise ValueError(f"patch={self.patch}: must divide a frame's {FRAME_SIZE} pixels")
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
        return (FRAME_SIZE // self.patch) ** 2 if self.layout == "seed" else self.snapshot_tokens

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
        widths = pairwise((STACK, first, later, later))
        convs = [convolution(*width, *kernel) for width, kernel in zip(widths, CONVS, strict=True)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())), nn.Flatten())
        self.out = nn.Linear(later * 7 * 7, config.snapshot_tokens * config.width)
        self.tokens = config.snapshot_tokens

    def forward(self, frames: Tensor, every: int) -> Tensor:
        """Frames (b, t, 84, 84) uint8 to (b, snapshots, tokens, width): four in a row, at every `every`-th."""
        seen = stacked_blocks(frames, STACK, every)
        found = self.convs[1:](self.convs[0].over(seen.flatten(0, 1)))
        return self.out(found).view(*seen.shape[:2], self.tokens, -1)


class PatchStem(nn.Module):
    """A linear layer on each square patch, and an embedding of its place."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Linear(STACK * config.patch**2, config.width)
        self.places = nn.Parameter(0.1 * torch.randn(config.seen_tokens, config.width))

    def forward(self, frames: Tensor, every: int) -> Tensor:
        """Frames (b, t, 84, 84) uint8 to (b, snapshots, patches, width): four in a row, at every `every`-th."""
        snapshots = frames.unfold(1, STACK, every)  # (b, snapshots, 84, 84, 4)
        grid = snapshots.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches = grid.transpose(3, 4).flatten(4).flatten(2, 3)  # (b, snapshots, patches, 4 patch²)
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
        if frames.shape[1] - steps not in (STACK - 1, STACK):
            raise ValueError(
                f"{frames.shape[1]} frames for {steps} steps: give {steps + 3}, or {steps + 4} with a target"
            )
        if steps % config.every:
            raise ValueError(f"{steps} steps: with layout seed they must be a multiple of chunk={config.chunk}")
        embeddings = self.stem(frames, config.every)
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
        seen = self.stem(frames, config.every)[:, 0] if place == 0 else None
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
