"""Notebook 03's stage: train a metacontroller on the frozen Montezuma backbone. The loss is the grid world's too.

python -m mzlib.meta --profile full
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib import runs, segments
from mzlib.agc import Play
from mzlib.backbone import BackboneConfig, MontezumaVLM, PinpadBackbone
from mzlib.backbone.residuals import SequenceBatch, Sequences, action_logits, streams
from mzlib.dataset import FrameCache, PinpadBatch, WindowDataset, cache_folder, evenly, training_demos
from mzlib.demos import Demo
from mzlib.discovery import look, match, play_through
from mzlib.metacontroller import Controlled, Metacontroller, MetacontrollerConfig, annealed
from mzlib.runs import Run, stage_main, train

BODY = 8.0  # pixels: the width of her body
MIDDLE, SCALE = (80.0, 192.0), 80.0  # pixels: positions are normalised to about [-1, 1] around the screen's middle


@dataclass(frozen=True)
class MetaConfig:
    """Settings of one training."""

    backbone: str = "shipped"  # or "run": the same profile's 02_bc
    source: str = "demos"  # or "agc", "mine": that of the backbone
    demos: str = "shipped"
    demo_limit: int = 0  # so many to train on and a quarter as many held out, evenly picked; 0: all
    seed: int = 0
    device: str = "auto"
    # the data
    seq_len: int = 128  # steps, long enough for 2 to 4 changes of goal
    stride: int = 32  # steps between the ends of windows
    limit_trajs: float = 100.0  # the top per cent of demos by score
    noop_subsample: bool = True
    legs_only: bool = False  # the places data from the first leg on: a search's own ways are mostly noise
    # the metacontroller
    code_dim: int = 8
    controller_rank: int = 16
    embedding: str = "sequence"
    proposal_std: float = 0.14
    always_open: bool = False
    switch_rate: int = 0
    switch_bias: float = 1.0  # of its logit at first: more open than shut, or some goals' beginnings are never tried
    switch_temperature: float = 0.25  # in the end; 0.5 until α comes down from its peak
    # the loss
    kl_weight: float = 0.1  # α in the end
    kl_begin: float = 0.0005  # α for the first quarter of kl_anneal_steps
    kl_peak: float = 0.3  # α reached at kl_anneal_steps, and kept for half as long again
    kl_anneal_steps: int = 1_000
    switch_cost: float = 0.0  # c in the end, nats an opening; 0 is the paper's loss
    position_weight: float = 0.0  # of a linear read-out of her position from the code
    hinged_position_loss: bool = False  # misses by less than her body's width cost nothing
    # training
    steps: int = 3_000
    batch_size: int = 32
    lr: float = 0.003
    weight_decay: float = 0.03
    workers: int = field(default=0, metadata={"free": True})  # for replaying; 0: one a core

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("position_weight", "switch_cost"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more is needed")
        if self.hinged_position_loss and not self.position_weight:
            raise ValueError("hinged_position_loss=true: it needs a position_weight above 0")

    def metacontroller(self, residual_width: int) -> MetacontrollerConfig:
        """The metacontroller's size and kind."""
        names = ("code_dim", "controller_rank", "embedding", "proposal_std", "always_open", "switch_rate")
        sizes = {name: getattr(self, name) for name in (*names, "switch_bias", "switch_temperature")}
        return MetacontrollerConfig(residual_width, **sizes)


# ---- the loss


def code_loss(
    upper: Callable[[Tensor], Tensor],
    metacontroller: Metacontroller,
    residual: Tensor,
    batch,
    kl_weight: float,
    switch_cost: float = 0.0,
) -> tuple[Tensor, Tensor, Controlled]:
    """Mean over valid steps of −ln p(a_t | o_1:t, z_1:t) + α KL(N(μ_t, Σ_t) ‖ N(0, I)) + c β_t, its first term alone,
    and what the metacontroller did (Kobayashi et al. 2025, Eq. of D.2, where c = 0; a price of deciding anew as in Harb
    et al. 2018, Eq. 8).

    upper: ê (b, t, n_e) to logits (b, t, actions), frozen, yet the gradient flows through it. residual: e (b, t, n_e).
    batch: with actions and valid (b, t), lengths (b,). The KL is charged at every step, whatever β is.
    """
    controlled = metacontroller(residual, batch.lengths)
    nll = F.cross_entropy(upper(controlled.residual)[batch.valid], batch.actions[batch.valid].long())
    price = kl_weight * controlled.kl[batch.valid].mean() + switch_cost * controlled.switch[batch.valid].mean()
    return nll + price, nll, controlled


def meta_loss(
    backbone: PinpadBackbone, metacontroller: Metacontroller, batch: PinpadBatch, kl_weight: float
) -> tuple[Tensor, Tensor, Controlled]:
    """`code_loss` on the grid world."""
    with torch.no_grad():
        residual = backbone.lower(batch.observations)
    return code_loss(lambda e: backbone.upper(e).actions, metacontroller, residual, batch, kl_weight)


def position_loss(read_out: nn.Module, code: Tensor, batch: SequenceBatch, hinged: bool) -> Tensor:
    """Mean over valid steps of ‖p̂(z_t) − p_t‖² / 2, p_t her normalised position after the step; `hinged`: of each
    step's own max(0, ‖p̂(z_t) − p_t‖² − m²) / 2, m her body's width."""
    place = (batch.positions[..., 1:] - torch.tensor(MIDDLE, device=code.device)) / SCALE
    miss = (read_out(code) - place).square().sum(-1)
    if hinged:
        miss = (miss - (BODY / SCALE) ** 2).clamp(min=0)
    return miss[batch.valid].mean() / 2


# ---- the schedule, for settings named as in MetaConfig


def kl_weight_at(config, step: int) -> float:
    """α at a step: low, then quickly up to its peak, where only what is worth its price gets through and the switch
    learns to be shut; then down again, for codes that say more of what lies ahead of each opening."""
    up = config.kl_anneal_steps
    low, high = (up / 4, config.kl_begin), (up, config.kl_peak)
    return annealed(step, low, high, (1.5 * up, config.kl_peak), (2 * up, config.kl_weight))


def switch_temperature_at(config, step: int) -> float:
    """The switch's temperature at a step: from 0.5 (or its last, if higher) to its last while α comes down."""
    up, last = config.kl_anneal_steps, config.switch_temperature
    return annealed(step, (1.5 * up, max(0.5, last)), (2 * up, last))


def switch_cost_at(config, step: int) -> float:
    """c at a step: nothing before α has been up for a while, or no code would ever be tried; then up to its last."""
    up = config.kl_anneal_steps
    return annealed(step, (1.5 * up, 0.0), (3 * up, config.switch_cost))


def warm(learning_rate: float, step: int, steps: int) -> float:
    """The learning rate at a step: up within 100 steps, then down in a straight line, to a twentieth at the end."""
    return learning_rate * min((step + 1) / 100, max(0.05, 1 - step / steps))


def descend(parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step, the gradient's norm at most 1."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


# ---- the stage


class Upstream(NamedTuple):
    """What a training builds on."""

    backbone: MontezumaVLM  # frozen
    sha256: str  # of its weights
    training: Sequences
    unseen: Sequences  # windows side by side, none twice
    demos: list[Demo | Play]  # of both; a sequence's number of its demo counts in these


def upstream(config: MetaConfig, profile: str) -> Upstream:
    """The backbone, and the demos' sequences to train on and held out: of the seeds that the backbone never saw."""
    path = runs.upstream_weights("backbone", config.backbone, profile, "02_bc")
    backbone, about = runs.load_weights(path, MontezumaVLM, BackboneConfig)
    backbone = backbone.to(runs.pick_device(config.device)).requires_grad_(False).eval()
    chosen, held_out = training_demos(config.demos, profile, source=config.source), set(about["held_out"])
    folder = cache_folder(config.demos, limit=config.demo_limit, source=config.source)
    if config.demo_limit:
        kept, aside = ([demo for demo in chosen if (demo.seed in held_out) == side] for side in (False, True))
        chosen = evenly(kept, config.demo_limit) + evenly(aside, -(-config.demo_limit // 4))
        folder = folder.with_name(f"{folder.name}-split")
    kept, aside = ([i for i, demo in enumerate(chosen) if (demo.seed in held_out) == side] for side in (False, True))
    if not kept or not aside:
        raise ValueError(f"source={config.source!r}, demos={config.demos!r}: {len(kept)} of the seeds that {path.name} "
                         f"was trained on, {len(aside)} held out; take the demos that it was trained on")  # fmt: skip
    cache = FrameCache.build(chosen, folder, config.workers or None)
    training = WindowDataset(cache, kept, config.seq_len, config.limit_trajs, config.noop_subsample,
                             seed=config.seed, stride=config.stride)  # fmt: skip
    unseen = WindowDataset(cache, aside, config.seq_len, noop_subsample=False, stride=config.seq_len)
    stream = streams(backbone, cache, runs.runs_root() / "cache" / "streams")
    sides = (Sequences(windows, stream, config.legs_only) for windows in (training, unseen))
    return Upstream(backbone, about["sha256"], *sides, chosen)


def rows_at(sequences: Sequences, size: int, step: int) -> np.ndarray:
    """The windows of a training step's batch: every epoch in an order of its own."""
    if size > len(sequences):
        raise ValueError(f"batch_size={size}: the demos give {len(sequences)} windows; take 1 to as many")
    epoch, place = divmod(step, len(sequences) // size)
    return sequences.order(epoch)[place * size : (place + 1) * size]


def some_rows(sequences: Sequences, count: int) -> np.ndarray:
    """At most `count` windows, evenly picked."""
    return np.unique(np.linspace(0, len(sequences) - 1, min(count, len(sequences))).round().astype(int))


def run(config: MetaConfig, run: Run) -> dict:
    """Train, measure, save; resumed where it left off."""
    if run.final is not None:
        return run.final
    runs.seed_everything(config.seed)
    backbone, sha256, training, unseen, _ = upstream(config, run.profile)
    device = backbone.device
    metacontroller = Metacontroller(config.metacontroller(backbone.config.width)).to(device)
    read_out = nn.Linear(config.code_dim, 2).to(device)
    parameters = [*metacontroller.parameters(), *read_out.parameters()]
    optimiser = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay)
    every, looked_at = max(1, min(200, config.steps // 4)), some_rows(unseen, 64)

    def update(step: int) -> dict[str, float] | None:
        optimiser.param_groups[0]["lr"] = warm(config.lr, step, config.steps)
        weight, cost = kl_weight_at(config, step), switch_cost_at(config, step)
        metacontroller.switch.temperature.fill_(switch_temperature_at(config, step))
        batch = training.batch(rows_at(training, config.batch_size, step), device)
        loss, nll, controlled = code_loss(
            lambda e: action_logits(backbone, batch.stream, e), metacontroller, batch.residual, batch, weight, cost
        )
        values = {"train_nll": nll.item(), "kl_weight": weight, "switch_cost": cost}
        if config.position_weight:
            position = position_loss(read_out, controlled.code, batch, config.hinged_position_loss)
            loss = loss + config.position_weight * position
            values["position_loss"] = position.item()
        descend(parameters, optimiser, loss)
        if (step + 1) % every and step + 1 < config.steps:
            return None
        return values | look(play_through(backbone, metacontroller, unseen, looked_at), unseen)

    parts = {"metacontroller": metacontroller, "read_out": read_out, "optimiser": optimiser}
    train(run, "metacontroller", config.steps, update, parts, headline="f1")
    own = runs.save_weights(run.folder / "metacontroller.safetensors", metacontroller, backbone=sha256)
    torch.manual_seed(config.seed)
    played = play_through(backbone, metacontroller, unseen, np.arange(len(unseen)))
    return run.finish(
        **look(played, unseen),
        intervals={name: found["interval"] for name, found in match(played, unseen).items()},
        sha256=own,
        backbone_sha256=sha256,
        windows=len(training),
        held_out_windows=len(unseen),
        parameters=sum(p.numel() for p in metacontroller.parameters()),
        protocol={"held out": "search seeds", "matching": f"one to one within {segments.TOLERANCE} steps, in legs"},
    )


if __name__ == "__main__":
    stage_main("meta", "03_metacontroller", MetaConfig, run)
