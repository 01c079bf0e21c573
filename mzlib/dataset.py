"""What models train on: episodes as batches of tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mzlib.pinpad import Episodes


class PinpadBatch(NamedTuple):
    """Pinpad episodes as tensors, cut to the longest; steps after an episode's end are not `valid`."""

    observations: Tensor  # (b, t, channels) uint8, compact
    actions: Tensor  # (b, t) uint8
    next_cells: Tensor  # (b, t) uint8: the agent's cell in o_{t+1}
    valid: Tensor  # (b, t) bool
    goals: Tensor  # (b, t) int8: the truth, for measuring only
    lengths: Tensor  # (b,) long


def pinpad_batch(episodes: Episodes, device: str | torch.device = "cpu") -> PinpadBatch:
    """Episodes as a batch on `device`."""
    steps = int(episodes.lengths.max())
    arrays = (episodes.observations[:, :steps], episodes.actions[:, :steps], episodes.positions[:, 1 : steps + 1])
    arrays += (np.arange(steps) < episodes.lengths[:, None], episodes.goals[:, :steps], episodes.lengths)
    return PinpadBatch(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
