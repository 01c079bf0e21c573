"""The layers against their equations written out step by step, and each parallel form against its step form."""

import io
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mzlib import layers
from mzlib.layers import (
    RGLRU,
    Attention,
    AttentionBlock,
    BidirectionalHawk,
    CausalConv,
    HawkBlock,
    RelativeBias,
    blocks,
    convolution,
    linear_scan,
    stacked_blocks,
)

WINDOW, WIDTH = 5, 8
STEPS = 4 * WINDOW + 2
close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)

BLOCKS = {
    "attention": lambda: Attention(WIDTH, 2, WINDOW, buckets=4),
    "attention block": lambda: AttentionBlock(WIDTH, 2, 12, WINDOW, buckets=4),
    "hawk": lambda: HawkBlock(WIDTH, 12, 3, 12),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def stirred(module):
    """Every parameter moved off its initial value, so that biases matter too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return module


def block_of(name):
    return stirred(BLOCKS[name]())


def some_resets(batch=4, steps=STEPS):
    """Row 0 never resets, row 1 resets at its first step, row 2 twice running, row 3 long after the window is full."""
    reset = torch.zeros(batch, steps, dtype=torch.bool)
    reset[1, [0, 7]] = reset[2, [3, 4]] = reset[3, [2 * WINDOW + 3]] = True
    return reset


@torch.no_grad()
def step_by_step(block, x, reset=None):
    cache, outputs = block.init_cache(len(x)), []
    for t in range(x.shape[1]):
        y, cache = block.step(x[:, t], cache, None if reset is None else reset[:, t])
        outputs.append(y)
    return torch.stack(outputs, 1)


def gradients(outputs, inputs):
    """Of a fixed random projection of `outputs`."""
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(outputs.shape, generator=generator).to(outputs)
    return torch.autograd.grad((outputs * weights).sum(), inputs)


# ---- the scan


def plain_scan(a, b, h0=None):
    h, states = torch.zeros_like(b[:, 0]) if h0 is None else h0, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1)


def scan_inputs(steps, dtype=torch.float32):
    a = torch.rand(3, steps, 5, dtype=dtype)
    a[0, ::3], a[1, 1::2] = 0.0, 1.0
    return [x.requires_grad_() for x in (a, torch.randn(3, steps, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype))]


def check_scan(scan, steps, with_h0=True):
    inputs = scan_inputs(steps)[: 3 if with_h0 else 2]
    expected, computed = plain_scan(*inputs), scan(*inputs)
    close(computed, expected)
    for got, wanted in zip(gradients(computed, inputs), gradients(expected, inputs), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("with_h0", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 4, 8, 13])
@pytest.mark.parametrize("steps", [1, 2, 7, 8, 61])
def test_the_scan_is_the_loop(steps, chunk, with_h0):
    check_scan(partial(linear_scan, chunk=chunk), steps, with_h0)


@pytest.mark.parametrize(
    "fault",
    [
        lambda a, b, h0: linear_scan(a, b),
        lambda a, b, h0: linear_scan(a.roll(-1, 1), b, h0),
        lambda a, b, h0: linear_scan(a.detach(), b, h0) + 0 * a,
        lambda a, b, h0: torch.cat([linear_scan(a[:, :8], b[:, :8], h0), linear_scan(a[:, 8:], b[:, 8:])], 1),
        lambda a, b, h0: linear_scan(a, b, h0.detach()) + 0 * h0.sum(),
    ],
    ids=["no h0", "a of the next step", "no gradient of a", "no carry across chunks", "no gradient of h0"],
)
def test_the_scan_check_sees_faults(fault):
    with pytest.raises(AssertionError):
        check_scan(fault, 16)


@pytest.mark.parametrize("chunk", [None, 3, 7])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_scan_gradient_by_finite_differences(steps, chunk):
    assert torch.autograd.gradcheck(partial(linear_scan, chunk=chunk), scan_inputs(steps, torch.float64))


@pytest.mark.parametrize("decay", [1e-6, 0.5, 1.0])
def test_the_scan_survives_products_that_underflow(decay):
    a, b = torch.full((1, 2000, 3), decay, requires_grad=True), torch.randn(1, 2000, 3)
    expected = plain_scan(a.double(), b.double()).float()
    for chunk in (None, 45):
        h = linear_scan(a, b, chunk=chunk)
        torch.testing.assert_close(h, expected, atol=1e-4, rtol=1e-5)
        assert gradients(h, [a])[0].isfinite().all()


def test_the_scan_takes_any_strides_and_gradient():
    a, b, _ = scan_inputs(9)
    swapped = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (a, b)]
    for chunk in (None, 4):
        sums = [torch.autograd.grad(linear_scan(*pair, chunk=chunk).sum(), pair) for pair in ((a, b), swapped)]
        for got, wanted in zip(*sums, strict=True):
            close(got, wanted)


def test_the_scan_refuses_unlike_inputs():
    a, b, _ = scan_inputs(4)
    for other in (b[:, :3], b.double()):
        with pytest.raises(ValueError, match="alike"):
            linear_scan(a, other)


# ---- RG-LRU


def plain_rglru(lru, u, reset=None, h0=None, power=8.0, scaled=True, forgets=True):
    """The equations, a step and a head at a time."""
    heads, part, _ = lru.gates.shape
    h, outputs = h0, []
    for t in range(u.shape[1]):
        parts = u[:, t].reshape(len(u), heads, part)
        gates = torch.stack([parts[:, k] @ lru.gates[k] + lru.gate_biases[k] for k in range(heads)], 1)
        i, r = (torch.sigmoid(gate).reshape(len(u), -1) for gate in (gates[..., :part], gates[..., part:]))
        a = torch.exp(-power * r * torch.log1p(torch.exp(lru.decay)))
        multiplier = torch.sqrt(1 - a**2) if scaled else torch.ones_like(a)
        begins = torch.full((len(u), 1), h is None)
        if reset is not None and forgets:
            begins = begins | reset[:, t, None]
        a, multiplier = torch.where(begins, 0.0, a), torch.where(begins, 1.0, multiplier)
        h = a * (torch.zeros_like(a) if h is None else h) + multiplier * i * u[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)


def check_rglru(reference):
    lru, u, reset = stirred(RGLRU(WIDTH, 2)), torch.randn(4, STEPS, WIDTH), some_resets()
    for h0 in (None, torch.randn(4, WIDTH)):
        for resets in (None, reset):
            y, last = lru(u, resets, h0)
            close(y, reference(lru, u, resets, h0))
            assert torch.equal(last, y[:, -1])


def test_rglru_is_its_equations():
    check_rglru(plain_rglru)


@pytest.mark.parametrize("fault", [{"scaled": False}, {"forgets": False}, {"power": 7.0}], ids=str)
def test_the_rglru_check_sees_faults(fault):
    with pytest.raises(AssertionError):
        check_rglru(partial(plain_rglru, **fault))


def test_rglru_gradients_are_those_of_the_equations():
    lru, u = stirred(RGLRU(WIDTH, 2)), torch.randn(4, STEPS, WIDTH, requires_grad=True)
    inputs = [u, *lru.parameters()]
    ours, theirs = lru(u, some_resets())[0], plain_rglru(lru, u, some_resets())
    for got, wanted in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reset", [None, some_resets()], ids=["one sequence", "resets"])
def test_rglru_goes_on_where_it_stopped(reset):
    lru, u = stirred(RGLRU(WIDTH, 2)), torch.randn(4, STEPS, WIDTH)
    whole, last = lru(u, reset)
    h, outputs = None, []
    for t in range(STEPS):
        y, h = lru.step(u[:, t], h, None if reset is None else reset[:, t])
        outputs.append(y)
    close(torch.stack(outputs, 1), whole)
    close(h, last)
    cut = [None if reset is None else part for part in some_resets().split([9, STEPS - 9], 1)]
    head, h = lru(u[:, :9], cut[0])
    close(torch.cat([head, lru(u[:, 9:], cut[1], h)[0]], 1), whole)


def test_rglru_decays_are_spread_as_published():
    strongest = torch.exp(-8 * F.softplus(RGLRU(4096, 8).decay))
    assert 0.43 <= strongest.min() < 0.44
    assert 0.98 < strongest.max() <= 0.9921
    assert strongest.std() > 0.1


def test_gradients_stay_finite_as_a_goes_to_1(monkeypatch):
    def finite():
        lru, u = RGLRU(WIDTH, 2), torch.randn(2, 6, WIDTH, requires_grad=True)
        lru.decay.data.fill_(-120.0)  # softplus gives 0 and a is 1 in float32
        return all(gradient.isfinite().all() for gradient in gradients(lru(u)[0], [u, *lru.parameters()]))

    assert finite()
    monkeypatch.setattr(layers._Root, "apply", torch.sqrt)
    assert not finite()


def test_the_root_has_a_bounded_slope():
    x = torch.tensor([0.0, 1e-12, 0.25, 4.0], requires_grad=True)
    root = layers._Root.apply(x)
    assert torch.equal(root, x.sqrt())
    close(torch.autograd.grad(root.sum(), x)[0], torch.tensor([1000.0, 1000.0, 1.0, 0.25]))


def test_bfloat16_inputs_keep_a_float32_state():
    lru, u = RGLRU(WIDTH, 2), torch.randn(2, 40, WIDTH).bfloat16()
    y, h = lru(u)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    close(h, lru(u.float())[1])
    y, h = lru.step(u[:, 0], h)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)


@every_block
def test_autocast_and_bfloat16_weights(name):
    block, x = BLOCKS[name](), torch.randn(2, STEPS, WIDTH)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        for rough in (block(x), step_by_step(block, x)):
            torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
    block = block.bfloat16()
    for rough in (block(x.bfloat16()), step_by_step(block, x.bfloat16())):
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    if name == "hawk":
        fresh = block.init_cache(2)
        for past, h, _ in (fresh, block.step(x[:, 0].bfloat16(), fresh)[1]):
            assert (past.dtype, h.dtype) == (torch.bfloat16, torch.float32)


# ---- convolution


def test_the_convolution_is_torchs():
    conv, x = stirred(CausalConv(WIDTH)), torch.randn(2, 9, WIDTH)
    for steps in (9, 2):
        padded = F.pad(x[:, :steps].transpose(1, 2), (3, 0))
        expected = F.conv1d(padded, conv.weight.flip(0).T[:, None], conv.bias, groups=WIDTH).transpose(1, 2)
        close(conv(x[:, :steps]), expected)


@pytest.mark.parametrize("reset", [None, some_resets()], ids=["one sequence", "resets"])
def test_the_convolution_by_steps(reset):
    conv, x = stirred(CausalConv(WIDTH)), torch.randn(4, STEPS, WIDTH)
    whole = conv(x, reset)
    close(step_by_step(conv, x, reset), whole)
    if reset is not None:
        close(whole[3, 2 * WINDOW + 3 :], conv(x[3:, 2 * WINDOW + 3 :])[0])
        with pytest.raises(AssertionError):
            close(step_by_step(conv, x), whole)


# ---- attention


def plain_attention(attention, x, valid=None, window=WINDOW, biased=True):
    """One row, head and step at a time."""
    query, key, value = (part.unflatten(-1, (attention.heads, -1)) for part in attention.qkv(x).chunk(3, -1))
    bias = attention.bias()
    seen = torch.zeros_like(query)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            js = [j for j in range(max(0, i - window + 1), i + 1) if valid is None or valid[b, j] or j == i]
            for head in range(attention.heads):
                logits = torch.stack([query[b, i, head] @ key[b, j, head] for j in js]) / math.sqrt(query.shape[-1])
                if biased:
                    logits = logits + torch.stack([bias[head, i - j] for j in js])
                seen[b, i, head] = logits.softmax(0) @ value[b, js, head]
    return attention.out(seen.flatten(2))


@torch.no_grad()
def test_attention_is_its_equations():
    attention, x = block_of("attention"), torch.randn(2, STEPS, WIDTH)
    close(attention(x), plain_attention(attention, x))
    close(attention(x[:, :3]), plain_attention(attention, x[:, :3]))
    valid = torch.rand(2, STEPS) < 0.6
    close(attention(x, valid=valid), plain_attention(attention, x, valid))
    for fault in ({"window": WINDOW - 1}, {"biased": False}):
        with pytest.raises(AssertionError):
            close(attention(x), plain_attention(attention, x, **fault))


def test_the_band():
    attention, x = block_of("attention"), torch.randn(1, STEPS, WIDTH)
    before = attention(x)
    x[:, 6] += torch.randn(WIDTH)
    changed = (attention(x) != before).any(-1)[0]
    assert changed.tolist() == [6 <= t < 6 + WINDOW for t in range(STEPS)]


def test_steps_that_are_not_valid_are_never_seen():
    block, x = block_of("attention block"), torch.randn(2, STEPS, WIDTH)
    valid = torch.arange(STEPS) >= torch.tensor([[3], [WINDOW + 2]])
    before = block(x, valid=valid)
    after = block(torch.where(valid[..., None], x, 100 * torch.randn_like(x)), valid=valid)
    assert torch.equal(after[valid], before[valid])
    assert after.isfinite().all()
    close(before[1, WINDOW + 2 :], block(x[1:, WINDOW + 2 :])[0])
    assert not torch.allclose(before[1, WINDOW + 2 :], block(x)[1, WINDOW + 2 :], atol=1e-3)


def test_buckets_are_exact_at_first_then_logarithmic():
    assert RelativeBias(2, 32, 20).bucket.tolist() == list(range(20))
    bucket = RelativeBias(2, 8, 64).bucket  # wide ones: 4 + log(distance / 4) / log(64 / 4) · 4
    assert bucket[:4].tolist() == [0, 1, 2, 3]
    assert bucket[[4, 7, 9, 15, 17, 31, 33, 63]].tolist() == [4, 4, 5, 5, 6, 6, 7, 7]
    assert bucket.diff().min() >= 0
    with pytest.raises(ValueError, match="buckets 1"):
        RelativeBias(2, 1, 64)


@pytest.mark.parametrize("steps", [1, 3, 6, 7, 15])
def test_the_band_of_biases(steps):
    bias = RelativeBias(2, 4, 6)
    by_distance, band = bias(), bias.band(steps)
    for i in range(steps):
        for j in range(steps):
            expected = by_distance[:, i - j] if 0 <= i - j < 6 else torch.full((2,), -math.inf)
            assert torch.equal(band[:, i, j], expected)


# ---- every block


@every_block
@pytest.mark.parametrize("reset", [None, some_resets()], ids=["one sequence", "resets"])
def test_parallel_form_equals_step_form(name, reset):
    block, x = block_of(name), torch.randn(4, STEPS, WIDTH)
    close(step_by_step(block, x, reset), block(x, reset))
    if reset is not None:
        with pytest.raises(AssertionError):
            close(step_by_step(block, x), block(x, reset))


@every_block
@torch.no_grad()
def test_several_steps_at_once_equal_step_by_step(name):
    block, x, reset = block_of(name), torch.randn(4, STEPS, WIDTH), torch.zeros(4, STEPS, dtype=torch.bool)
    reset[1, 2 * WINDOW + 1] = reset[2, 3] = True  # where a piece begins
    cache, outputs, at = block.init_cache(4), [], 0
    for steps in (3, WINDOW, 1, 2, WINDOW, WINDOW, 1):
        y, cache = block.extend(x[:, at : at + steps], cache, reset[:, at])
        outputs.append(y)
        at += steps
    assert at == STEPS
    close(torch.cat(outputs, 1), block(x, reset))


@every_block
def test_nothing_sees_the_future(name):
    block, x = block_of(name), torch.randn(4, STEPS, WIDTH)
    for t in (0, 4, STEPS - 1):
        changed = x.clone()
        changed[:, t] += torch.randn(WIDTH)
        for reset in (None, some_resets()):
            before, after = block(x, reset), block(changed, reset)
            assert torch.equal(after[:, :t], before[:, :t])
            assert (after[:, t] != before[:, t]).any(-1).all()


@every_block
def test_a_reset_forgets(name):
    """Outputs and gradients of two sequences end to end are those of the two apart."""
    block, x, cut = block_of(name), torch.randn(2, STEPS, WIDTH, requires_grad=True), WINDOW + 2
    reset = torch.zeros(2, STEPS, dtype=torch.bool)
    reset[:, cut] = True
    together, apart = block(x, reset), torch.cat([block(x[:, :cut]), block(x[:, cut:])], 1)
    close(together, apart)
    inputs = [x, *block.parameters()]
    for got, wanted in zip(gradients(together, inputs), gradients(apart, inputs), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError):
        close(block(x), apart)


@every_block
@torch.no_grad()
def test_caches_are_picked_by_rows(name):
    block, x, reset = block_of(name), torch.randn(4, STEPS, WIDTH), some_resets()
    cache = block.init_cache(4)
    for t in range(12):
        _, cache = block.step(x[:, t], cache, reset[:, t])
    assert all(tensor.shape[0] == 4 for tensor in cache)
    rows = torch.tensor([3, 1, 1])
    picked = tuple(tensor[rows] for tensor in cache)
    for t in range(12, STEPS):
        y, cache = block.step(x[:, t], cache, reset[:, t])
        y_picked, picked = block.step(x[rows, t], picked, reset[rows, t])
        close(y_picked, y[rows])


@pytest.mark.parametrize("make", [*BLOCKS.values(), lambda: BidirectionalHawk(WIDTH, 12, 3, 12)])
def test_weights_survive_saving(make):
    saved, loaded = stirred(make()), make()
    x = torch.randn(2, STEPS, WIDTH)
    inputs = (x, torch.tensor([STEPS, 3])) if isinstance(saved, BidirectionalHawk) else (x,)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    different, expected = loaded(*inputs), saved(*inputs)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for got, wanted, before in zip(loaded(*inputs), expected, different, strict=True):
        assert torch.equal(got, wanted)
        assert not torch.allclose(got, before, atol=1e-3)


def test_a_width_that_heads_do_not_divide_is_refused():
    for make in (partial(RGLRU, 10, 4), partial(Attention, 10, 4, WINDOW)):
        with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
            make()


# ---- the sequence embedding


def embedding():
    return stirred(BidirectionalHawk(WIDTH, 12, 3, 12)), torch.randn(3, 9, WIDTH), torch.tensor([9, 1, 5])


@pytest.mark.parametrize("filler", [100.0, math.nan])
def test_padding_never_influences(filler):
    embed, x, lengths = embedding()
    padding = torch.arange(9) >= lengths[:, None]
    filled = x.masked_fill(padding[..., None], filler)
    got, wanted = (torch.cat([part.flatten() for part in embed(given, lengths)]) for given in (filled, x))
    assert torch.equal(got, wanted)
    inputs = list(embed.parameters())
    for ours, theirs in zip(gradients(got, inputs), gradients(wanted, inputs), strict=True):
        assert torch.equal(ours, theirs)
    assert (embed(filled, lengths)[0][padding] == 0).all()
    with pytest.raises(AssertionError):
        close(embed(filled, torch.full((3,), 9))[1], embed(x, lengths)[1])


def test_each_row_is_embedded_as_if_alone():
    embed, x, lengths = embedding()
    per_step, final = embed(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = x[row : row + 1, :length]
        ahead, back = embed.forwards(alone)[0], embed.backwards(alone.flip(1))[0].flip(0)
        close(per_step[row, :length], torch.cat([ahead, back], -1))
        close(final[row], torch.cat([ahead[-1], back[0]]))


def test_one_half_sees_the_past_the_other_the_future():
    embed, x, lengths = embedding()
    changed = x.clone()
    changed[0, 4] += torch.randn(WIDTH)
    (before, final), (after, final_after) = embed(x, lengths), embed(changed, lengths)
    moved = (after != before)[0].unflatten(-1, (2, WIDTH)).any(-1)
    assert moved[:, 0].tolist() == [t >= 4 for t in range(9)]
    assert moved[:, 1].tolist() == [t <= 4 for t in range(9)]
    assert (final_after != final).any(-1).tolist() == [True, False, False]


def test_the_embedding_keeps_the_order():
    embed, x, lengths = embedding()
    swapped = x.clone()
    swapped[0, [2, 6]] = x[0, [6, 2]]
    halves = (embed(swapped, lengths)[1] - embed(x, lengths)[1])[0].unflatten(-1, (2, WIDTH)).abs().amax(-1)
    assert (halves > 1e-3).all()


@pytest.mark.parametrize("planes", [1, 4])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_convolution_over_blocks_is_the_convolution(planes, pixels):
    ours = convolution(planes, 5, 8, 4)
    plain = torch.nn.Conv2d(planes, 5, 8, 4)
    plain.load_state_dict(ours.state_dict())
    seen = torch.randint(256, (3, planes, 84, 84), dtype=torch.uint8)
    scaled = (seen / 255).requires_grad_()
    a, b = ours(seen if pixels else scaled), plain(scaled)
    assert torch.allclose(a, b, atol=1e-5)
    of = [torch.autograd.grad(out.square().sum(), list(conv.parameters())) for out, conv in ((a, ours), (b, plain))]
    assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-3) for x, y in zip(*of, strict=True))
    assert type(convolution(4, 5, 4, 2)) is torch.nn.Conv2d


def test_frames_are_cut_into_blocks_once_for_all_stacks():
    frames = torch.randint(256, (2, 9, 84, 84), dtype=torch.uint8)
    found = stacked_blocks(frames, 4, 2)
    assert found.shape == (2, 3, 64, 21, 21)
    for b in range(2):
        for s in range(3):
            assert torch.equal(found[b, s], blocks(frames[b : b + 1, 2 * s : 2 * s + 4])[0])
    assert torch.equal(
        stacked_blocks(frames[:, 1:5].transpose(2, 3), 4, 8)[:, 0], blocks(frames[:, 1:5].transpose(2, 3))
    )
