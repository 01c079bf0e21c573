"""What a frozen backbone's lower half makes of demos, computed once; and sequences of it to train on."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mzlib.backbone.montezuma import MontezumaVLM, Stream
from mzlib.dataset import PAD, FrameCache, WindowDataset, segments
from mzlib.runs import atomic_path
from mzlib.trajectory import STACK

EARLIER = STACK - 1


class SequenceBatch(NamedTuple):
    """Sequences of a segment's steps, first step first, cut to the longest; steps beyond a length are padding."""

    stream: Tensor  # (b, t, tokens, n_e): after block l, the action position last
    actions: Tensor  # (b, t) long, PAD where padding
    valid: Tensor  # (b, t) bool
    goals: Tensor  # (b, t) long, -1 unknown; never an input of a model
    positions: Tensor  # (b, t, 3) int: room, x, y after the step; -1 where padding
    lengths: Tensor  # (b,) long

    @property
    def residual(self) -> Tensor:
        """e (b, t, n_e)."""
        return self.stream[:, :, -1]


def check_layout(backbone: MontezumaVLM) -> None:
    """ValueError unless every step of the backbone has a residual stream of its own."""
    if backbone.config.layout != "step":
        raise ValueError(f"layout={backbone.config.layout!r}: codes are found in a backbone of layout step; train one")


@torch.no_grad()
def segment_stream(backbone: MontezumaVLM, cache: FrameCache, demo: int, begin: int, end: int) -> Tensor:
    """(end − begin, tokens, n_e): the stream after block l at each step of a segment, as acting since `begin` gives it.

    begin, end: steps of the demo.
    """
    first = int(cache.offsets[demo]) + begin
    seen = cache.frames[first + demo : first + demo + end - begin]
    frames = np.concatenate([np.repeat(seen[:1], EARLIER, 0), seen])
    previous = np.append(PAD, cache.actions[first : first + end - begin - 1]).astype(int)
    device = backbone.device
    stream = backbone.lower(torch.from_numpy(frames)[None].to(device), torch.from_numpy(previous)[None].to(device))
    return torch.cat([stream.context, stream.e[:, :, None]], 2)[0]


def streams(backbone: MontezumaVLM, cache: FrameCache, folder: Path) -> np.ndarray:
    """(steps, tokens, n_e) float16: `segment_stream` of every step that belongs to a segment, else zeros;
    memory-mapped from a file in `folder`, which is written if it isn't there.

    The float16's rounding is below 0.1 % of e.
    """
    check_layout(backbone)
    digest = hashlib.sha256(repr(backbone.config).encode())
    played = cache.offsets, cache.seed, cache.actions, cache.positions, cache.rewards
    for array in (*played, *(weight.cpu().numpy() for weight in backbone.state_dict().values())):
        digest.update(array.tobytes())
    path = Path(folder) / f"streams-{digest.hexdigest()[:16]}.npy"
    if not path.exists():
        steps = np.zeros((int(cache.offsets[-1]), backbone.config.snapshot_tokens, backbone.config.width), np.float16)
        for demo in range(len(cache)):
            for begin, end in segments(cache, demo):
                rows = slice(cache.offsets[demo] + begin, cache.offsets[demo] + end)
                steps[rows] = segment_stream(backbone, cache, demo, begin, end).cpu().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, steps)
    return np.load(path, mmap_mode="r")


class Sequences:
    """The windows of a `WindowDataset` as sequences of a frozen backbone's stream, padding last.

    A sequence that begins within a segment has e_t as acting since the segment's beginning gives it; the upper blocks
    see only what is in the sequence. legs_only: of the steps whose goal is known, and no others: what precedes a
    trajectory's first leg is seen by the lower half alone. ValueError if none is.
    """

    def __init__(self, windows: WindowDataset, stream: np.ndarray, legs_only: bool = False):
        self.windows, self.stream = windows, stream
        demo, begin, last = windows.windows.T
        if legs_only:
            goals, offsets = windows.cache.goals, windows.cache.offsets
            legs = [np.append(np.flatnonzero(goals[a:b] >= 0), b - a)[0] for a, b in pairwise(offsets)]
            begin = np.maximum(begin, offsets[demo] + np.array(legs)[demo])
        self.ranges = np.stack([demo, np.maximum(begin, last - windows.seq_len + 1), last], 1)[last >= begin]
        if not len(self.ranges):
            raise ValueError(f"legs_only={legs_only}: no demo names goals; take the places data")

    def __len__(self) -> int:
        return len(self.ranges)

    def order(self, epoch: int) -> np.ndarray:
        """(len(self),) the sequences in an epoch's order, which follows from the windows' seed and the epoch alone."""
        return np.random.default_rng([self.windows.seed, epoch]).permutation(len(self))

    def steps(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(steps (n, t) of the cache, lengths (n,)) of these windows; beyond a length its last step is repeated."""
        _, first, last = self.ranges[np.asarray(rows, int)].T
        lengths = last - first + 1
        return np.minimum(first[:, None] + np.arange(lengths.max()), last[:, None]), lengths

    def batch(self, rows: Sequence[int], device: str | torch.device = "cpu") -> SequenceBatch:
        """These windows."""
        cache, (steps, lengths) = self.windows.cache, self.steps(rows)
        there = np.arange(steps.shape[1]) < lengths[:, None]
        arrays = (
            self.stream[steps].astype(np.float32),
            np.where(there, cache.actions[steps], PAD).astype(int),
            there,
            np.where(there, cache.goals[steps], -1).astype(int),
            np.where(there[..., None], cache.positions[steps].astype(np.int32), -1),
            lengths,
        )
        return SequenceBatch(*(torch.from_numpy(array).to(device) for array in arrays))

    def seeds(self, rows: Sequence[int]) -> np.ndarray:
        """(n,) the seed of each window's demo: windows of one seed are not independent."""
        return self.windows.cache.seed[self.ranges[np.asarray(rows, int), 0]]


def action_logits(backbone: MontezumaVLM, stream: Tensor, residual: Tensor) -> Tensor:
    """(b, t, 18) from the upper half: stream (b, t, tokens, n_e) with e (b, t, n_e) at its action positions."""
    unseen = stream.new_zeros(len(stream), stream.shape[1], backbone.config.seen_tokens, stream.shape[-1])
    return backbone.upper(Stream(residual, stream[:, :, :-1], None, unseen)).actions
