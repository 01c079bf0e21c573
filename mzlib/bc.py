"""Notebook 02's stage: clone the demonstrations with an autoregressive backbone.

python -m mzlib.bc --profile full
torchrun --nproc-per-node 2 -m mzlib.bc --profile smoke     the same global batch on two processes
"""

import hashlib
import math
import os
import sys
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mzlib import runs
from mzlib.agc import Play
from mzlib.backbone import BackboneConfig, MontezumaVLM, montezuma_loss
from mzlib.dataset import (
    PAD,
    FrameCache,
    WindowBatch,
    WindowDataset,
    cache_folder,
    split_by_seed,
    training_demos,
)
from mzlib.demos import Demo
from mzlib.emulator import ACTIONS
from mzlib.evaluate import SELECTION_SEED, EvaluationProtocol, evaluate
from mzlib.policies import ClonePolicy
from mzlib.runs import Run, stage_main, train


@dataclass(frozen=True)
class BCConfig:
    """Settings of one cloning."""

    source: str = "demos"  # or "agc": human play, converted; "mine": your own games
    demos: str = "shipped"  # or "places": those that name goals; "run": the best of the same profile's 05_go_explore
    rollouts: bool = False  # with "shipped": also the robustified policies' own episodes
    seed: int = 0
    device: str = "auto"
    # the data
    seq_len: int = 64
    stride: int = 16  # steps between the ends of windows
    limit_trajs: float = 100.0  # the top per cent of demos by score
    noop_subsample: bool = True
    held_out: float = 0.1  # of the search seeds
    demo_limit: int = 0  # so many demos, evenly picked; 0: all
    # the backbone
    layout: str = "step"
    see_actions: bool = False
    mixer: str = "transformer"
    channels: int = 16  # of the conv stem's first layer
    width: int = 128
    depth: int = 4
    heads: int = 4
    layer: int = 2
    # training
    epochs: float = 4.0
    batch_size: int = 32  # windows, over all processes
    accumulate: int = 1  # gradients of so many parts of a batch are added up
    lr: float = 6e-4
    warmup_steps: int = 100
    weight_decay: float = 0.03
    obs_weight: float = 0.0
    # acting, on selection seeds at the end
    episodes: int = 0
    workers: int = field(default=0, metadata={"free": True})  # for replaying and playing; 0: one a core

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone's size."""
        names = ("layout", "see_actions", "mixer", "channels", "width", "depth", "heads", "layer", "seq_len")
        sizes = {name: getattr(self, name) for name in names} | {"mlp_width": 2 * self.width}
        return BackboneConfig(predict_next=self.obs_weight > 0, **sizes)


def demonstrations(config: BCConfig, profile: str) -> list[Demo | Play]:
    """What to clone: with "shipped" also the places data, and `rollouts` if asked for."""
    return training_demos(config.demos, profile, config.rollouts, config.demo_limit, config.source)


def data(config: BCConfig, profile: str) -> tuple[FrameCache, WindowDataset, WindowDataset]:
    """The replayed demos, and their windows to train on and held out."""
    folder = cache_folder(config.demos, config.rollouts, config.demo_limit, config.source)
    cache = FrameCache.build(demonstrations(config, profile), folder, config.workers or None)
    make = partial(WindowDataset, cache, seq_len=config.seq_len, stride=config.stride, seed=config.seed)
    kept, unseen = split_by_seed(cache, config.held_out)
    training = make(kept, limit_trajs=config.limit_trajs, noop_subsample=config.noop_subsample)
    return cache, training, make(unseen, noop_subsample=False)


def measure(backbone: MontezumaVLM, windows: WindowDataset, batch_size: int = 32, limit: int = 100) -> dict[str, float]:
    """Held-out NLL and accuracy over all valid steps, and over change points: where the action differs from the last.

    At most `limit` batches, evenly picked.
    """
    count = math.ceil(len(windows) / batch_size)
    sums = np.zeros((2, 3))  # all, change points × −ln p, right, steps
    device = next(backbone.parameters()).device
    backbone.eval()
    with torch.no_grad():
        for number in np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)):
            rows = np.arange(number * batch_size, min((number + 1) * batch_size, len(windows)))
            batch = to(windows.batch(rows), device)
            log_p = backbone(batch.frames, batch.previous, padding_of(batch)).actions.float().log_softmax(-1)
            nll = -log_p.gather(-1, batch.actions.clamp(max=len(ACTIONS) - 1)[..., None])[..., 0]
            right = log_p.argmax(-1) == batch.actions
            for row, mask in enumerate((batch.valid, batch.change)):
                sums[row] += [nll[mask].sum().item(), right[mask].sum().item(), mask.sum().item()]
    backbone.train()
    (nll, accuracy), (change_nll, change_accuracy) = (s[:2] / max(s[2], 1) for s in sums)
    return {"nll": nll, "accuracy": accuracy, "change_nll": change_nll, "change_accuracy": change_accuracy}


def baselines(training: WindowDataset, unseen: WindowDataset) -> dict[str, float]:
    """What needs no frames: the training windows' commonest action, and what follows the previous action most often."""
    batches = [training.batch(np.arange(i, min(i + 256, len(training)))) for i in range(0, len(training), 256)]
    table = np.ones((PAD + 1, len(ACTIONS)))  # previous → action, one of each assumed
    for batch in batches:
        np.add.at(table, (batch.previous[batch.valid].numpy(), batch.actions[batch.valid].numpy()), 1)
    log_p = np.log(table / table.sum(1, keepdims=True))
    majority = int(table.sum(0).argmax())
    found = {name: [] for name in ("majority", "previous", "change_majority", "change_previous", "previous_nll")}
    for i in range(0, len(unseen), 256):
        batch = unseen.batch(np.arange(i, min(i + 256, len(unseen))))
        for prefix, mask in (("", batch.valid), ("change_", batch.change)):
            actions, previous = batch.actions[mask].numpy(), batch.previous[mask].numpy()
            found[f"{prefix}majority"].append(actions == majority)
            found[f"{prefix}previous"].append(actions == previous)
            if not prefix:
                found["previous_nll"].append(-log_p[previous, actions])
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def to(batch: WindowBatch, device: str | torch.device) -> WindowBatch:
    """The batch on a device."""
    return WindowBatch(*(x.to(device, non_blocking=True) for x in batch))


def padding_of(batch: WindowBatch) -> Tensor:
    """(b,) how many padded steps a window begins with."""
    return (batch.actions == PAD).sum(1)


def learning_rate(config: BCConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    share = min(1.0, step / steps)
    decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
    return config.lr * min((step + 1) / max(config.warmup_steps, 1), decay)


class Updates:
    """One gradient step at a time; what it draws follows from the step alone."""

    def __init__(self, config: BCConfig, backbone: MontezumaVLM, training: WindowDataset, steps: int):
        if not 1 <= config.batch_size <= len(training):
            raise ValueError(
                f"batch_size={config.batch_size}: the demos give {len(training)} windows; take 1 to as many"
            )
        self.config, self.backbone, self.training, self.steps = config, backbone, training, steps
        self.device = runs.pick_device(config.device)
        self.half = runs.fast_bfloat16(self.device)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        decayed = [p for p in backbone.parameters() if p.ndim > 1]
        others = [p for p in backbone.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, config.lr)
        self.epoch, self.order = -1, None

    def rows(self, step: int) -> np.ndarray:
        """The windows of a step's batch: every epoch in an order of its own."""
        a_epoch = len(self.training) // self.config.batch_size
        epoch, place = divmod(step, a_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.training.order(epoch)
        return self.order[place * self.config.batch_size : (place + 1) * self.config.batch_size]

    def __call__(self, step: int) -> dict[str, float]:
        """Take the step; mean training loss, NLL and accuracy over the global batch."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, step, self.steps)
        self.optimiser.zero_grad()
        own = self.rows(step)[self.rank :: self.world]
        parts = [to(self.training.batch(rows), self.device) for rows in np.array_split(own, config.accumulate)]
        valid = torch.stack([part.valid.sum() for part in parts]).sum().float()
        if self.world > 1:
            torch.distributed.all_reduce(valid)
        totals = torch.zeros(3, device=self.device)
        for batch in parts:
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
                prediction = self.backbone(batch.frames, batch.previous, padding_of(batch))
                loss = montezuma_loss(prediction, batch.actions, batch.valid, config.obs_weight)
            share = batch.valid.sum() / valid  # so that parts and processes together are one batch
            (loss.total * share).backward()
            totals += torch.stack([loss.total.detach(), loss.nll.detach(), loss.accuracy]) * share
        if self.world > 1:
            for parameter in self.backbone.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
            torch.distributed.all_reduce(totals)
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), 1.0)
        self.optimiser.step()
        return dict(zip(("loss", "train_nll", "train_accuracy"), totals.tolist(), strict=True))


def run(config: BCConfig, run: Run) -> dict:
    """Train, measure, save; resumed where it left off."""
    if run.final is not None:
        return run.final
    runs.seed_everything(config.seed)
    cache, training, unseen = data(config, run.profile)
    backbone = MontezumaVLM(config.backbone).to(runs.pick_device(config.device))
    steps = max(1, int(config.epochs * (len(training) // config.batch_size)))
    take = Updates(config, backbone, training, steps)
    every = max(1, min(200, steps // 4))

    def update(step: int) -> dict[str, float] | None:
        values = take(step)
        if (step + 1) % every and step + 1 < steps:
            return None
        return values | measure(backbone, unseen)

    train(run, "backbone", steps, update, {"backbone": backbone, "optimiser": take.optimiser}, headline="nll")
    aside = np.unique(cache.seed[unseen.demo_indices])
    sha256 = runs.save_weights(run.folder / "backbone.safetensors", backbone, held_out=aside.tolist())
    found = measure(backbone, unseen, limit=10**9) | baselines(training, unseen)
    if config.episodes:
        protocol = EvaluationProtocol(episodes=config.episodes, first_seed=SELECTION_SEED)
        played = evaluate(partial(ClonePolicy, run.folder / "backbone.safetensors"), protocol, config.workers)
        found |= {name: played[name] for name in ("mean", "first_life_mean", "first_key_rate")}
    return run.finish(
        **found,
        sha256=sha256,
        windows=len(training),
        keep_rate=training.keep_rate,
        parameters=sum(p.numel() for p in backbone.parameters()),
        protocol={"held out": "search seeds", "acting": "sticky 0.25, 0 to 30 no-ops, selection seeds, whole game"},
    )


def main() -> None:
    """The command line; under torchrun every process but the first keeps its run folder aside."""
    arguments = sys.argv[1:]
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if rank := torch.distributed.get_rank():
            own = hashlib.sha256(repr(arguments).encode()).hexdigest()[:12]
            arguments += ["--folder", str(runs.runs_root() / ".ranks" / f"{own}-{rank}")]
    stage_main("bc", "02_bc", BCConfig, run, arguments)


if __name__ == "__main__":
    main()
