"""Cloning's speed: how far the loader is ahead of training, and what share of the machine's matmuls training uses."""

import statistics
import time
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.cloning import settings
from bench.models import seconds_of
from mzlib import bc
from mzlib.backbone import MontezumaVLM

DEMOS, ROUNDS, SQUARE = 40, 5, 2_048


def cloning(seconds: float) -> dict[str, dict]:
    """`loader_headroom` (windows/s loaded over windows/s trained) and `bc_flops_utilisation` (model FLOP/s over those
    of a large float32 matrix product), the median of rounds in turn; the `full` profile's backbone and batches."""
    config = settings(demo_limit=DEMOS, held_out=0.2)
    _, training, _ = bc.data(config, "full")
    backbone = MontezumaVLM(config.backbone)
    take, square = bc.Updates(config, backbone, training, 10**6), torch.randn(SQUARE, SQUARE)
    with FlopCounterMode(display=False) as counter:
        take(0)
    flops, product, step = counter.get_total_flops(), 2 * SQUARE**3, 0
    headroom, share = [], []
    torch.mm(square, square)
    end = time.perf_counter() + seconds
    while len(headroom) < ROUNDS or time.perf_counter() < end:
        step += 1
        loading = seconds_of(partial(training.batch, take.rows(step)))
        trained = seconds_of(partial(take, step))
        peak = product / min(seconds_of(lambda: torch.mm(square, square)) for _ in range(3))
        headroom.append(trained / loading)
        share.append(flops / trained / peak)
    return {
        "loader_headroom": {"value": statistics.median(headroom), "unit": "ratio", "rounds": headroom},
        "bc_flops_utilisation": {"value": statistics.median(share), "unit": "ratio", "rounds": share},
        "bc_windows_per_s": {"value": config.batch_size / trained, "unit": "windows/s"},
    }
