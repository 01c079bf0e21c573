"""Streams of a frozen backbone, computed once: equal to acting and to padded windows, and batched padding last."""

import numpy as np
import pytest
import torch

from mzlib import demos
from mzlib.backbone import BackboneConfig, MontezumaVLM, residuals
from mzlib.backbone.residuals import Sequences, action_logits, segment_stream, streams
from mzlib.dataset import EARLIER_FRAMES, PAD, FrameCache, WindowDataset, segments
from mzlib.runs import data_dir

SIZES = {"channels": 4, "width": 16, "depth": 3, "heads": 2, "mlp_width": 32, "layer": 1, "seq_len": 12}


def small(**changes) -> MontezumaVLM:
    torch.manual_seed(0)
    return MontezumaVLM(BackboneConfig(**SIZES | changes)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> FrameCache:
    loaded = demos.load(data_dir("demos", "places", "plain.npz"))
    later = [demo for demo in loaded if demo.goals[20] < 0]  # their first leg is not where they begin
    return FrameCache.build([min(loaded, key=len), *later[:2]], tmp_path_factory.mktemp("cache"), workers=1)


@pytest.mark.parametrize("changes", [{}, {"snapshot_tokens": 2}, {"see_actions": True}, {"mixer": "hawk"}])
def test_a_segments_stream_is_what_acting_gives(cache, changes):
    backbone = small(**changes)
    begin, end = segments(cache, 1)[0]
    end = min(end, begin + 30)
    stream = segment_stream(backbone, cache, 1, begin, end)
    caches, first = backbone.init_cache(1), int(cache.offsets[1]) + begin
    with torch.no_grad():
        for t in range(end - begin):
            steps = np.maximum(np.arange(t - EARLIER_FRAMES, t + 1), 0) + first
            seen = torch.from_numpy(cache.frames[steps + 1])[None]  # one demo before: a frame more
            previous = torch.tensor([PAD if t == 0 else int(cache.actions[first + t - 1])])
            e = backbone.lower_step(seen, previous, caches)
            assert torch.allclose(stream[t, -1], e[0], atol=1e-4), t
            logits = backbone.upper_step(e, caches).actions
            together = action_logits(backbone, stream[None, : t + 1], stream[None, : t + 1, -1])
            assert torch.allclose(together[0, t], logits[0], atol=1e-3)


def test_padding_at_the_beginning_changes_nothing(cache, tmp_path):
    """Short segments: the windows' front padding against the sequences' at the end."""
    backbone = small(seq_len=400)
    windows = WindowDataset(cache, [0, 1, 2], seq_len=400, stride=1_000, noop_subsample=False)
    sequences = Sequences(windows, streams(backbone, cache, tmp_path))
    rows = np.arange(len(sequences))
    padded, batch = windows.batch(rows), sequences.batch(rows)
    padding = (padded.actions == PAD).sum(1)
    assert len(set(padding.tolist())) > 1
    with torch.no_grad():
        reference = backbone(padded.frames, padded.previous, padding).actions
        found = action_logits(backbone, batch.stream, batch.residual)
    for row, (skip, length) in enumerate(zip(padding.tolist(), batch.lengths.tolist(), strict=True)):
        assert length == 400 - skip
        assert torch.allclose(found[row, :length], reference[row, skip:], atol=2e-2), "but for float16"
        for name in ("actions", "goals", "positions"):
            assert torch.equal(getattr(batch, name)[row, :length], getattr(padded, name)[row, skip:])
        assert not batch.valid[row, length:].any()
        assert batch.valid[row, :length].all()
        assert (batch.actions[row, length:] == PAD).all()


def test_streams_are_computed_once_for_a_backbone_and_its_demos(cache, tmp_path, monkeypatch):
    found = streams(small(), cache, tmp_path)
    used = [slice(cache.offsets[0] + b, cache.offsets[0] + e) for b, e in segments(cache, 0)]
    exact = torch.cat([segment_stream(small(), cache, 0, b, e) for b, e in segments(cache, 0)]).numpy()
    assert np.allclose(np.concatenate([found[rows] for rows in used]), exact, rtol=2e-3, atol=2e-3)
    monkeypatch.setattr(residuals, "segment_stream", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(streams(small(), cache, tmp_path), found)
    other = small()
    other.action_head.bias.data += 1
    with pytest.raises(pytest.fail.Exception):
        streams(other, cache, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1, "nothing unfinished stays"


def test_sequences_longer_than_a_window_are_cut(cache, tmp_path):
    windows = WindowDataset(cache, [1, 2], seq_len=20, stride=20, noop_subsample=False)
    sequences = Sequences(windows, streams(small(), cache, tmp_path))
    batch = sequences.batch(np.arange(len(sequences)))
    assert batch.lengths.max() == 20
    assert batch.residual.shape == (len(sequences), 20, 16)
    demo, _, last = windows.windows[0]
    assert torch.equal(batch.residual[0, 19], torch.from_numpy(sequences.stream[last, -1].astype(np.float32)))
    assert sequences.seeds(np.array([0]))[0] == cache.seed[demo]


def test_only_the_legs_if_asked_for(cache, tmp_path):
    windows = WindowDataset(cache, [0, 1, 2], seq_len=30, stride=10, noop_subsample=False)
    stream = streams(small(), cache, tmp_path)
    every, legs = Sequences(windows, stream), Sequences(windows, stream, legs_only=True)
    all_steps, leg_steps = (set(s.batch(np.arange(len(s))).goals.unique().tolist()) for s in (every, legs))
    assert all_steps - leg_steps <= {-1}
    batch = legs.batch(np.arange(len(legs)))
    assert (batch.goals[batch.valid] >= 0).all()
    assert {tuple(r) for r in legs.ranges[:, [0, 2]]} <= {tuple(r) for r in every.ranges[:, [0, 2]]}
    assert len(legs) < len(every)
    assert sorted(legs.order(3)) == list(range(len(legs)))
    cache.goals[:], known = -1, cache.goals.copy()
    try:
        with pytest.raises(ValueError, match="no demo names goals"):
            Sequences(windows, stream, legs_only=True)
    finally:
        cache.goals[:] = known


def test_the_seed_layout_is_refused(cache, tmp_path):
    backbone = MontezumaVLM(BackboneConfig(layout="seed", width=16, depth=2, heads=2, layer=1))
    with pytest.raises(ValueError, match="layout='seed'"):
        streams(backbone, cache, tmp_path)
