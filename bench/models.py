"""Speeds of the models' parts as ratios to the plain way, kept here, of writing the same thing."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib.backbone import BackboneConfig, MontezumaVLM, PinpadBackbone, PinpadBackboneConfig
from mzlib.dataset import pinpad_batch
from mzlib.layers import CONVS, linear_scan
from mzlib.meta import meta_loss
from mzlib.metacontroller import Controlled, Metacontroller, MetacontrollerConfig
from mzlib.pinpad import LAPTOP, PAPER, expert_episodes
from mzlib.policies import ActorCritic, ActorCriticConfig


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    since = time.perf_counter()
    call()
    return time.perf_counter() - since


def speedup(ours: Callable[[], object], plain: Callable[[], object], seconds: float, reference: str) -> dict:
    """Plain time over our time, in turn: the median of at least three rounds."""
    ours(), plain()
    rounds, since = [], time.perf_counter()
    while len(rounds) < 3 or time.perf_counter() < since + seconds:
        rounds.append(seconds_of(plain) / seconds_of(ours))
    return {"value": statistics.median(rounds), "unit": "ratio", "reference": reference, "rounds": rounds[:12]}


def plain_scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence as one would write it first."""
    h, hs = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, 1)


def unbound_scan(a: Tensor, b: Tensor) -> Tensor:
    """The same with steps taken apart once, which spares autograd a full-size gradient a step."""
    h, hs = torch.zeros_like(b[:, 0]), []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        hs.append(h)
    return torch.stack(hs, 1)


def scan_speedups(seconds: float) -> dict[str, dict]:
    """Training (forward and backward) through the linear recurrence, batch 16, width 256."""
    results = {}
    for steps in (64, 512):
        a = torch.rand(16, steps, 256, requires_grad=True)
        b = torch.randn(16, steps, 256, requires_grad=True)

        def trained(scan, a=a, b=b) -> None:
            a.grad = b.grad = None
            scan(a, b).square().sum().backward()

        for suffix, plain in (("", plain_scan), ("_over_unbound", unbound_scan)):
            results[f"scan_speedup_{steps}{suffix}"] = speedup(
                lambda trained=trained: trained(linear_scan),
                lambda trained=trained, plain=plain: trained(plain),
                seconds / 4,
                plain.__doc__.split("\n")[0],
            )
    return results


def plain_forward(meta: Metacontroller, residual: Tensor, lengths: Tensor) -> Controlled:
    """The metacontroller with everything but the embedding in one loop over time, U formed as a matrix."""
    config, embedding = meta.config, meta.embedder(residual, lengths)
    history = residual.new_zeros(len(residual), config.history_width)
    code = residual.new_zeros(len(residual), config.code_dim)
    outputs = []
    for t in range(residual.shape[1]):
        e = residual[:, t]
        mean, log_std = (part[:, 0] for part in meta.encoder(e[:, None], history[:, None], embedding))
        proposal = mean + log_std.exp() * torch.randn_like(mean)
        switch, history = meta.step(e, history, code)
        switch = torch.ones_like(switch) if t == 0 else switch
        code = switch[:, None] * proposal + (1 - switch[:, None]) * code
        controlled = e + torch.einsum("bij,bj->bi", meta.hypernetwork.controller(code), e)
        kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        outputs.append((controlled, switch, code, kl))
    return Controlled(*(torch.stack(parts, 1) for parts in zip(*outputs, strict=True)))


def meta_steps_ratio(seconds: float) -> dict[str, dict]:
    """Training steps of the metacontroller at laptop size, the frozen backbone's blocks included."""
    sizes = {
        "grid": LAPTOP.grid,
        "colours": LAPTOP.colours,
        "walls": LAPTOP.walls,
        "width": 128,
        "depth": 4,
        "mlp_width": 256,
        "layer": 2,
    }
    backbone = PinpadBackbone(PinpadBackboneConfig(**sizes)).requires_grad_(False)
    meta = Metacontroller(MetacontrollerConfig(residual_width=128))
    batch = pinpad_batch(expert_episodes(LAPTOP, 64, np.random.default_rng(0)))

    def plain() -> None:
        with torch.no_grad():
            residual = backbone.lower(batch.observations)
        controlled = plain_forward(meta, residual, batch.lengths)
        logits = backbone.upper(controlled.residual).actions
        nll = F.cross_entropy(logits[batch.valid], batch.actions[batch.valid].long())
        (nll + 0.1 * controlled.kl[batch.valid].mean()).backward()

    ratio = speedup(lambda: meta_loss(backbone, meta, batch, 0.1)[0].backward(), plain, seconds, "one loop over time")
    return {"meta_steps_ratio": ratio}


def plain_unroll(policy: ActorCritic, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, a) and values (n, heads) from frames (n, 4, 84, 84), their memory laid out as it comes."""
    hidden = plain_features(policy, frames)
    return policy.policy_head(hidden), policy.value_head(hidden)


def plain_features(policy: ActorCritic, frames: Tensor) -> Tensor:
    """`policy.features`, one library convolution after another in float32."""
    with torch.autocast(frames.device.type, enabled=False):
        x = frames.float() / 255
        for (_, stride), layer in zip(CONVS, (m for m in policy.convs if isinstance(m, nn.Conv2d)), strict=True):
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, stride))
        return F.relu(policy.hidden(x.flatten(1)))


def ppo_learner_ratio(seconds: float) -> dict[str, dict]:
    """The learner: minibatches of 256 of 4,096 samples, forward, backward and Adam, on one thread."""
    policy, rows = ActorCritic(ActorCriticConfig()), torch.randperm(4_096)
    optimiser = torch.optim.Adam(policy.parameters(), 5e-4)
    frames = torch.randint(256, (4_096, 4, 84, 84), dtype=torch.uint8)
    actions, began, state = torch.randint(18, (4_096,)), torch.zeros(1, 256, dtype=torch.bool), policy.init_state(0)

    def epoch(forward: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        for some in rows.split(256):
            logits, values = forward(frames[some])
            optimiser.zero_grad()
            (F.cross_entropy(logits.flatten(0, -2), actions[some]) + values.square().mean()).backward()
            optimiser.step()

    def autocast(some: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(out.float() for out in ours(some))

    def ours(some: Tensor) -> tuple[Tensor, Tensor]:
        return policy.unroll(some[None], state, began)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = partial(plain_unroll, policy)
    found = speedup(lambda: epoch(ours), lambda: epoch(plain), seconds / 2, "frames in the order of their axes")
    half = speedup(lambda: epoch(autocast), lambda: epoch(ours), seconds / 4, "the package's float32")
    speed = {"value": len(rows) / seconds_of(lambda: epoch(ours)), "unit": "samples/s, one thread"}
    torch.set_num_threads(threads)
    return {"ppo_learner_ratio": found, "ppo_learner_bfloat16_ratio": half, "ppo_learner_samples_per_s": speed}


@torch.no_grad()
def recomputed_logits(model: MontezumaVLM, frames: Tensor, previous: Tensor) -> Tensor:
    """The last step's logits from the whole window over again.

    frames: (b, t + 3, 84, 84), previous: (b, t), from the beginning of a chunk to now, a window at most.
    """
    every, steps = model.config.every, previous.shape[1]
    missing = -steps % every  # the rest of the chunk is not seen by what comes before it
    frames = F.pad(frames, (0, 0, 0, 0, 0, missing))
    return model(frames, F.pad(previous, (0, missing))).actions[:, steps - 1]


@torch.no_grad()
def act_cached_speedup(seconds: float) -> dict[str, dict]:
    """Acting through one chunk after a full window, seed layout, batch 16."""
    config = BackboneConfig(layout="seed", see_actions=True, predict_next=False)
    model, every, window = MontezumaVLM(config).eval(), config.every, config.seq_len
    frames = torch.randint(256, (16, window + every + 3, 84, 84), dtype=torch.uint8)
    previous = torch.randint(18, (16, window + every))
    caches = model.init_cache(16)

    def cached(steps: range) -> None:
        for t in steps:
            model.upper_step(model.lower_step(frames[:, t : t + 4], previous[:, t], caches), caches)

    def plain() -> None:
        for t in chunk:
            recomputed_logits(model, frames[:, every : t + 4], previous[:, every : t + 1])

    chunk = range(window, window + every)
    cached(range(window))
    return {"act_cached_speedup": speedup(lambda: cached(chunk), plain, seconds, "the window over again at every step")}


def expert_speed(seconds: float) -> dict[str, dict]:
    """Expert episodes/s of the paper's grid world, in this process."""
    rng, made, since = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() < since + seconds:
        made += len(expert_episodes(PAPER, 4_096, rng))
    return {"expert_episodes_per_s": {"value": made / (time.perf_counter() - since), "unit": "episodes/s, one process"}}


def models(seconds: float) -> dict[str, dict]:
    """All of these."""
    torch.set_num_threads(os.cpu_count())
    backbones = scan_speedups(seconds) | meta_steps_ratio(seconds) | act_cached_speedup(seconds)
    return backbones | ppo_learner_ratio(seconds) | expert_speed(seconds / 4)
