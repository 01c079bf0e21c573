"""The blocks that sequence models are made of, each in two forms: all steps at once, and step by step with a cache.

`block(x, reset)` reads (b, t, d) from a fresh start; `block.step(x, cache, reset)` reads (b, d) and returns the same
output for that step and the next cache; `block.extend` does so for the next few steps. `reset` marks the steps that
begin a new sequence: nothing before them is remembered. A cache is a tuple of tensors whose first dimension is the
batch: `tuple(x[rows] for x in cache)` picks rows. A step may write into the cache it is given: to come back to a cache,
clone it. Act under `torch.no_grad()`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MAX_ROOT_SLOPE = 1000.0  # bound on the derivative of √ in the RG-LRU

Cache = tuple[Tensor, ...]


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, chunk: int | None = None) -> Tensor:
    """h_t = a_t h_{t−1} + b_t for all t, differentiable once.

    a, b: (b, t, d) float32 or float64; h0: (b, d), zeros if None. Returns (b, t, d).
    chunk: chunks of this many steps run side by side, which takes 3 chunk + 2 t / chunk operations in place of t.
    None: √t on an accelerator, where the number of operations counts; t on a CPU, where memory traffic counts.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"a is {tuple(a.shape)} {a.dtype}, b {tuple(b.shape)} {b.dtype}: they must be alike")
    if h0 is None:
        h0 = torch.zeros_like(b[:, 0])
    steps = b.shape[1]
    chunk = chunk or (steps if b.device.type == "cpu" else math.isqrt(steps - 1) + 1)
    if missing := -steps % chunk:
        a, b = (F.pad(x, (0, 0, 0, missing)) for x in (a, b))
        return _LinearScan.apply(a, b, h0, chunk)[:, :steps]
    return _LinearScan.apply(a, b, h0, chunk)


class _LinearScan(torch.autograd.Function):
    """The gradient of a scan is a scan in reversed time: g_t = ∂h_t + a_{t+1} g_{t+1}; ∂b = g, ∂a_t = g_t h_{t−1}."""

    @staticmethod
    def forward(ctx, a, b, h0, chunk):
        h = torch.empty_like(b)
        _scan(*(_by_place(x, chunk) for x in (a, b)), h0, _by_place(h, chunk))
        ctx.save_for_backward(a, h, h0)
        ctx.chunk = chunk
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        a, h, h0 = ctx.saved_tensors
        g = torch.empty_like(h)
        first, *others = _by_place(a, ctx.chunk)
        after_last = F.pad(first[:, 1:], (0, 0, 0, 1))  # a_{t+1} at a chunk's last place is the next chunk's first
        grads, results = (_by_place(x, ctx.chunk)[::-1] for x in (grad, g))
        _scan([after_last, *reversed(others)], grads, torch.zeros_like(h0), results, backwards=True)
        grad_a = torch.empty_like(h)
        torch.mul(g[:, 0], h0, out=grad_a[:, 0])
        torch.mul(g[:, 1:], h[:, :-1], out=grad_a[:, 1:])
        return grad_a, g, a[:, 0] * g[:, 0], None


def _by_place(x: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """For each place in a chunk, that step of every chunk: `chunk` views (b, chunks, d)."""
    return x.unflatten(1, (-1, chunk)).unbind(2)


def _scan(a, b, h: Tensor, out, backwards: bool = False) -> None:
    """Fill `out`, where a, b, out are sequences by place of (b, chunks, d), in the order of the recurrence.

    h: (b, d), what the first chunk begins with; `backwards`: the last chunk is the first.
    """
    begins = h[:, None]
    if (chunks := b[0].shape[1]) > 1:
        ends, factors = b[0].clone(), a[0].clone()  # each chunk's end is ends + factors · begins
        for a_place, b_place in zip(a[1:], b[1:], strict=True):
            torch.addcmul(b_place, a_place, ends, out=ends)
            factors.mul_(a_place)
        begins = torch.empty_like(ends)
        for number in reversed(range(chunks)) if backwards else range(chunks):
            begins[:, number] = h
            h = torch.addcmul(ends[:, number], factors[:, number], h)
    h = begins
    for a_place, b_place, out_place in zip(a, b, out, strict=True):
        h = torch.addcmul(b_place, a_place, h, out=out_place)


class _Root(torch.autograd.Function):
    """√x whose derivative is at most MAX_ROOT_SLOPE, so that it stays finite as x → 0."""

    @staticmethod
    def forward(ctx, x):
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (root,) = ctx.saved_tensors
        return grad / (2 * root).clamp(min=1 / MAX_ROOT_SLOPE)


class RGLRU(nn.Module):
    """Real-gated linear recurrent unit: h_t = a_t h_{t−1} + √(1 − a_t²) i_t u_t, h_t = i_t u_t as a sequence begins
    (De et al. 2024, §2.4).

    i and r are sigmoid gates, block-diagonal: each head reads its own part of u. ln a = −8 r softplus(Λ).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        part = _part(width, heads)
        self.gates = nn.Parameter(torch.randn(heads, part, 2 * part) / math.sqrt(part))
        self.gate_biases = nn.Parameter(torch.zeros(heads, 2 * part))
        decay = torch.empty(width).uniform_(0.9, 0.999)  # to the power 8, so at r = 1: a in [0.43, 0.99]
        self.decay = nn.Parameter(torch.expm1(-decay.log()).log())  # Λ: softplus(Λ) = −ln decay

    def forward(self, u: Tensor, reset: Tensor | None = None, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(y (b, t, d) in u's dtype, h at the last step (b, d) float32).

        u: (b, t, d); reset: (b, t) bool; h0: (b, d), the state before the first step; None: the sequence begins here.
        """
        if reset is None:
            reset = torch.zeros(u.shape[:2], dtype=torch.bool, device=u.device)
        if h0 is None:
            reset = F.pad(reset[:, 1:], (1, 0), value=True)
        parts = u.to(self.gates.dtype).unflatten(-1, (len(self.gates), -1))  # (b, t, heads, d / heads)
        gates = torch.einsum("bthi,hij->bthj", parts, self.gates) + self.gate_biases
        i, r = (gate.flatten(2) for gate in gates.float().sigmoid().chunk(2, -1))
        log_a = -8 * F.softplus(self.decay.float()) * r
        log_a = log_a.masked_fill(reset[..., None], -math.inf)  # at a reset a = 0, √(1 − a²) = 1
        scale = _Root.apply(-torch.expm1(2 * log_a))
        h = linear_scan(log_a.exp(), scale * i * u.float(), None if h0 is None else h0.float())
        return h.to(u.dtype), h[:, -1]

    def step(self, u: Tensor, h: Tensor | None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(y (b, d), h (b, d)) of one step. u: (b, d); h: None: the sequence begins here; reset: (b,) bool."""
        y, h = self(u[:, None], None if reset is None else reset[:, None], h)
        return y[:, 0], h


class CausalConv(nn.Module):
    """Depthwise convolution over the present and the `kernel` − 1 past steps of the same sequence."""

    def __init__(self, width: int, kernel: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel, width) / math.sqrt(kernel))  # weight[k] is for k steps ago
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """(b, t, d). x: (b, t, d); reset: (b, t) bool."""
        y = torch.addcmul(self.bias, x, self.weight[0])
        sequence = None if reset is None else reset.cumsum(1)[..., None]
        for ago in range(1, min(len(self.weight), x.shape[1])):
            past = F.pad(x[:, :-ago], (0, 0, ago, 0))
            if sequence is not None:
                past = past.masked_fill(sequence != F.pad(sequence[:, :-ago], (0, 0, ago, 0)), 0.0)
            y = torch.addcmul(y, past, self.weight[ago])
        return y

    def step(self, x: Tensor, past: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(y (b, d), past) of one step. x: (b, d); past: (b, kernel − 1, d), the latest last; reset: (b,) bool."""
        if reset is not None:
            past = past.masked_fill(reset[:, None, None], 0.0)
        seen = torch.cat([past, x[:, None]], 1)
        return (seen * self.weight.flip(0)).sum(1) + self.bias, seen[:, 1:]

    def init_cache(self, batch: int, device=None, dtype=None) -> Tensor:
        """(batch, kernel − 1, d) of zeros."""
        kernel, width = self.weight.shape
        return self.weight.new_zeros(batch, kernel - 1, width, device=device, dtype=dtype)


class HawkBlock(nn.Module):
    """Pre-norm recurrent block W_o(RGLRU(conv(W_x x)) ⊙ GeLU(W_y x)) and pre-norm ReLU MLP, each added to its input
    (De et al. 2024, §2).

    Cache: past inputs of the convolution, state (b, lru_width) float32, `fresh` (b,) bool: no step seen so far.
    """

    def __init__(self, width: int, lru_width: int, heads: int, mlp_width: int, kernel: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w_x, self.w_y = nn.Linear(width, lru_width), nn.Linear(width, lru_width)
        self.conv, self.lru = CausalConv(lru_width, kernel), RGLRU(lru_width, heads)
        self.w_o = nn.Linear(lru_width, width)
        self.mlp = _mlp(width, mlp_width)

    def forward(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """(b, t, d). x: (b, t, d); reset: (b, t) bool."""
        normed = self.norm(x)
        recurrent, _ = self.lru(self.conv(self.w_x(normed), reset), reset)
        return self._output(x, normed, recurrent)

    def step(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, d), cache) of one step. x: (b, d); reset: (b,) bool."""
        past, h, fresh = cache
        reset = fresh if reset is None else reset | fresh
        normed = self.norm(x)
        u, past = self.conv.step(self.w_x(normed), past, reset)
        recurrent, h = self.lru.step(u, h, reset)
        return self._output(x, normed, recurrent), (past, h, torch.zeros_like(fresh))

    def extend(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, m, d), cache) of m steps. x: (b, m, d); reset: (b,) bool, before the first."""
        outputs = []
        for x_step in x.unbind(1):
            y, cache = self.step(x_step, cache, reset)
            outputs.append(y)
            reset = None
        return torch.stack(outputs, 1), cache

    def _output(self, x: Tensor, normed: Tensor, recurrent: Tensor) -> Tensor:
        x = x + self.w_o(recurrent * F.gelu(self.w_y(normed)))
        return x + self.mlp(x)

    def init_cache(self, batch: int, device=None, dtype=None) -> Cache:
        """The cache of `batch` fresh sequences; device and dtype: the weights', if None."""
        past = self.conv.init_cache(batch, device, dtype)
        h = torch.zeros(batch, past.shape[2], device=past.device)
        return past, h, torch.ones(batch, dtype=torch.bool, device=past.device)


class BidirectionalHawk(nn.Module):
    """One Hawk block reads a sequence forwards, another backwards: an embedding of the whole that keeps its order."""

    def __init__(self, width: int, lru_width: int, heads: int, mlp_width: int):
        super().__init__()
        self.forwards, self.backwards = (HawkBlock(width, lru_width, heads, mlp_width) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(per step (b, t, 2 d), final (b, 2 d)): both directions side by side.

        x: (b, t, d); lengths: (b,) int, 1..t: the steps beyond are padding, which influences nothing and gives zeros.
        final: the forward output at the last step and the backward output at the first.
        """
        place = torch.arange(x.shape[1], device=x.device)
        padding = (place >= lengths[:, None])[..., None]
        mirrored = ((lengths[:, None] - 1 - place) % x.shape[1])[..., None]  # padding stays at the end
        x = x.masked_fill(padding, 0.0)
        ahead = self.forwards(x)
        back = self.backwards(x.take_along_dim(mirrored, 1)).take_along_dim(mirrored, 1)
        last = ahead.take_along_dim((lengths - 1)[:, None, None], 1)[:, 0]
        return torch.cat([ahead, back], -1).masked_fill(padding, 0.0), torch.cat([last, back[:, 0]], -1)


class RelativeBias(nn.Module):
    """Learned bias of the attention logits by head and distance into the past (Raffel et al. 2020, §2.1).

    Half of the buckets hold one distance each, the others logarithmically wider ranges up to `window`; a window of no
    more than `buckets` has a bucket for every distance.
    """

    def __init__(self, heads: int, buckets: int, window: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(heads, buckets))
        distance = torch.arange(window)
        if buckets < 2:
            raise ValueError(f"buckets {buckets}: at least 2 are needed")
        if window > buckets:
            exact = buckets // 2
            growth = (distance.clamp(min=exact) / exact).log() / math.log(window / exact)
            wide = exact + (growth * (buckets - exact)).long().clamp(max=buckets - exact - 1)
            distance = torch.where(distance < exact, distance, wide)
        self.register_buffer("bucket", distance, persistent=False)

    def forward(self) -> Tensor:
        """(heads, window): the bias by distance."""
        return self.weight[:, self.bucket]

    def band(self, steps: int) -> Tensor:
        """(heads, steps, steps): the bias from each step (row) to each step of its window, −inf elsewhere."""
        bias = self()[:, :steps]
        line = F.pad(bias.flip(1), (steps - bias.shape[1], steps - 1), value=-math.inf)
        return line.unfold(1, steps, 1).flip(1)  # row i begins at steps − 1 − i, so column j has distance i − j


class Attention(nn.Module):
    """Causal self-attention of each step to the last `window` steps, itself among them.

    Cache: keys and values (b, places, d), step p of a sequence at place p mod window, and the number of steps (b,) int.
    Places grow with the longest sequence, up to the window.
    """

    def __init__(self, width: int, heads: int, window: int, buckets: int = 32):
        super().__init__()
        self.heads, self.part, self.window = heads, _part(width, heads), window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = RelativeBias(heads, buckets, window)

    def forward(self, x: Tensor, reset: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(b, t, d). x: (b, t, d); reset: (b, t) bool; valid: (b, t) bool, False for steps that no other may see."""
        steps = x.shape[1]
        mask = self.bias.band(steps)
        if reset is not None:
            sequence = reset.cumsum(1)
            mask = mask.masked_fill((sequence[:, :, None] != sequence[:, None])[:, None], -math.inf)
        if valid is not None:
            others = ~torch.eye(steps, dtype=torch.bool, device=x.device)
            mask = mask.masked_fill((~valid[:, None] & others)[:, None], -math.inf)
        return self._attend(*self.qkv(x).chunk(3, -1), mask)

    def step(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, d), cache) of one step. x: (b, d); reset: (b,) bool."""
        keys, values, count = cache
        if reset is not None:
            count = count.masked_fill(reset, 0)
        place = count % self.window
        query, key, value = self.qkv(x)[:, None].chunk(3, -1)
        keys, values = self._with_places(keys, values, int(place.max()) + 1)
        row = torch.arange(len(x), device=x.device)
        keys[row, place], values[row, place] = key[:, 0].to(keys.dtype), value[:, 0].to(values.dtype)
        distance = (place[:, None] - torch.arange(keys.shape[1], device=x.device)) % self.window
        mask = self.bias()[:, distance].masked_fill(distance > count[:, None], -math.inf).transpose(0, 1)
        return self._attend(query, keys, values, mask[:, :, None])[:, 0], (keys, values, count + 1)

    def extend(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, m, d), cache) of m steps, at most a window. x: (b, m, d); reset: (b,) bool, before the first."""
        keys, values, count = cache
        if reset is not None:
            count = count.masked_fill(reset, 0)
        step = torch.arange(x.shape[1], device=x.device)
        query, key, value = self.qkv(x).chunk(3, -1)
        key, value = key.to(keys.dtype), value.to(values.dtype)
        ago = (count[:, None] - 1 - torch.arange(keys.shape[1], device=x.device)) % self.window  # (b, places)
        distance = ago[:, None] + 1 + step[:, None]  # (b, m, places)
        unseen = (distance >= self.window) | (ago >= count[:, None])[:, None]
        past = self.bias()[:, distance.clamp(max=self.window - 1)].masked_fill(unseen, -math.inf).transpose(0, 1)
        mask = torch.cat([past, self.bias.band(len(step)).expand(len(x), -1, -1, -1)], 3)
        y = self._attend(query, torch.cat([keys, key], 1), torch.cat([values, value], 1), mask)
        place = (count[:, None] + step) % self.window
        keys, values = self._with_places(keys, values, int(place.max()) + 1)
        row = torch.arange(len(x), device=x.device)[:, None]
        keys[row, place], values[row, place] = key, value
        return y, (keys, values, count + len(step))

    def _with_places(self, keys: Tensor, values: Tensor, needed: int) -> tuple[Tensor, Tensor]:
        """Both with at least the `needed` places, doubled if not, up to the window."""
        if (more := needed - keys.shape[1]) > 0:
            more = min(max(more, keys.shape[1]), self.window - keys.shape[1])
            keys, values = F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))
        return keys, values

    def init_cache(self, batch: int, device=None, dtype=None) -> Cache:
        """The cache of `batch` fresh sequences; device and dtype: the weights', if None."""
        shape = batch, min(self.window, 8), self.out.in_features
        keys = self.out.weight.new_zeros(shape, device=device, dtype=dtype)
        return keys, torch.zeros_like(keys), torch.zeros(batch, dtype=torch.long, device=keys.device)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(b, queries, d); mask: added to the logits, ([b,] heads, queries, keys)."""
        query, keys, values = (x.unflatten(-1, (self.heads, self.part)).transpose(1, 2) for x in (query, keys, values))
        seen = F.scaled_dot_product_attention(query, keys, values, mask)
        return self.out(seen.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Pre-norm attention and pre-norm ReLU MLP, each added to its input. Cache: the attention's."""

    def __init__(self, width: int, heads: int, mlp_width: int, window: int, buckets: int = 32):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads, window, buckets)
        self.mlp = _mlp(width, mlp_width)

    def forward(self, x: Tensor, reset: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(b, t, d). x: (b, t, d); reset, valid: (b, t) bool, as in `Attention`."""
        x = x + self.attention(self.norm(x), reset, valid)
        return x + self.mlp(x)

    def step(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, d), cache) of one step. x: (b, d); reset: (b,) bool."""
        y, cache = self.attention.step(self.norm(x), cache, reset)
        x = x + y
        return x + self.mlp(x), cache

    def extend(self, x: Tensor, cache: Cache, reset: Tensor | None = None) -> tuple[Tensor, Cache]:
        """(y (b, m, d), cache) of m steps, at most a window. x: (b, m, d); reset: (b,) bool, before the first."""
        y, cache = self.attention.extend(self.norm(x), cache, reset)
        x = x + y
        return x + self.mlp(x), cache

    def init_cache(self, batch: int, device=None, dtype=None) -> Cache:
        """The cache of `batch` fresh sequences; device and dtype: the weights', if None."""
        return self.attention.init_cache(batch, device, dtype)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    # LayerNorm: on a CPU RMSNorm has no fused kernel and takes three times as long
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


def _part(width: int, heads: int) -> int:
    """Each head's part of the width."""
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    return width // heads


# ---- what sees

CONVS = ((8, 4), (4, 2), (3, 1))  # kernel and stride (Mnih et al. 2015)


def blocks(x: Tensor) -> Tensor:
    """(n, c, h, w) to (n, 16 c, h / 4, w / 4): the pixels of each 4 × 4 block as channels, these last in memory."""
    n, c, h, w = x.shape
    words = x.dtype == torch.uint8  # a block's row moves as one word: four times as fast
    parts = x.contiguous().view(torch.int32)[..., None] if words else x.unflatten(-1, (w // 4, 4))
    moved = parts.unflatten(2, (h // 4, 4)).permute(0, 2, 4, 1, 3, 5).contiguous()
    return (moved.view(x.dtype) if words else moved).view(n, h // 4, w // 4, 16 * c).permute(0, 3, 1, 2)


def stacked_blocks(frames: Tensor, depth: int, every: int) -> Tensor:
    """The blocks of `depth` frames in a row, at every `every`-th: (b, t, h, w) uint8 to (b, s, 16 depth, h / 4, w / 4).

    Each frame is cut up once, however many stacks show it.
    """
    each = blocks(frames.flatten(0, 1)[:, None]).permute(0, 2, 3, 1)  # (b t, h / 4, w / 4, 16)
    words = each.view(torch.int64).unflatten(0, frames.shape[:2]).unfold(1, depth, every).transpose(-1, -2).contiguous()
    return words.view(torch.uint8).flatten(-2).permute(0, 1, 4, 2, 3)


class BlockConv2d(nn.Conv2d):
    """The first convolution, kernel 8 and stride 4, computed over 4 × 4 blocks as channels: the same sums, in half the
    time. Of uint8 pixels 255 counts as 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) uint8 or float, h and w multiples of 4."""
        return self.over(blocks(x))

    def over(self, x: Tensor) -> Tensor:
        """The same from `blocks(x)`."""
        weight = self.weight
        if x.dtype == torch.uint8:
            kind, weight = x.device.type, weight / 255
            x = x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype)
        return F.conv2d(x, blocks(weight), self.bias)


def convolution(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    """One of CONVS."""
    kind = BlockConv2d if (kernel, stride) == CONVS[0] else nn.Conv2d
    return kind(before, after, kernel, stride)
