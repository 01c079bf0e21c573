"""Running statistics against plain references; a predictor that learns what it is shown, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib.curiosity import Curiosity, Moments, PredictorLoss, RewardScale, novelty, novelty_by_room, room_frames

SMALL = ((4, 8, 8), 16)


def small() -> Curiosity:
    torch.manual_seed(0)
    return Curiosity(*SMALL)


def gray(level: int, count: int = 8) -> torch.Tensor:
    """Frames of stripes about a gray level."""
    stripes = torch.arange(84) // 12 % 2 * 40 + level
    return stripes.to(torch.uint8).expand(count, 84, 84).clone()


# ---- running statistics


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31), st.floats(0, 1e4))
def test_moments_of_pieces_are_those_of_the_whole(sizes, seed, offset):
    rng, moments = np.random.default_rng(seed), Moments((3,))
    pieces = [rng.normal(offset, 2.0, (size, 3)) for size in sizes]
    for piece in pieces:
        moments.update(torch.from_numpy(piece))
    whole = np.concatenate(pieces)
    assert moments.count == len(whole)
    assert np.allclose(moments.mean, whole.mean(0), rtol=1e-9)
    assert np.allclose(moments.variance, whole.var(0), rtol=1e-6, atol=1e-9)


def test_moments_of_pixels():
    moments, rng = Moments((84, 84)), np.random.default_rng(0)
    frames = rng.integers(256, size=(50, 84, 84), dtype=np.uint8)
    frames[:, 0, 0] = 170
    for some in np.split(frames, 5):
        moments.update(torch.from_numpy(some))
    assert np.allclose(moments.mean, frames.mean(0), atol=1e-3)
    assert np.allclose(moments.variance, frames.astype(float).var(0), rtol=1e-4, atol=1e-6)
    assert Moments((2,)).variance.tolist() == [1, 1], "nothing seen"


def returns_written_out(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """R_t = Σ_k γ^k r_{t−k} (t, n), each sum for itself."""
    return np.array([
        [sum(gamma**k * rewards[t - k, n] for k in range(t + 1)) for n in range(rewards.shape[1])]
        for t in range(len(rewards))
    ])  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4), st.floats(0, 0.99))
def test_rewards_are_divided_by_the_std_of_their_return_filtered_forwards(seed, steps, count, gamma):
    rewards = np.random.default_rng(seed).exponential(3.0, (2 * steps, count)) + 0.1
    scale = RewardScale(gamma, count)
    first = scale(torch.from_numpy(rewards[:steps]))
    second = scale(torch.from_numpy(rewards[steps:]))
    returns = returns_written_out(rewards, gamma)
    if returns[:steps].std() > 1e-6:
        assert np.allclose(first, rewards[:steps] / returns[:steps].std(), rtol=1e-6)
    assert np.allclose(second, rewards[steps:] / returns.std(), rtol=1e-6)


def test_the_filter_runs_forwards_and_over_rollouts():
    rewards = torch.tensor([[1.0], [0.0], [0.0], [5.0]], dtype=torch.float64)
    scale, backwards, forgetful = RewardScale(0.9, 1), RewardScale(0.9, 1), RewardScale(0.9, 1)
    found = torch.cat([scale(rewards), scale(rewards)])
    backwards(rewards.flip(0))
    assert not torch.allclose(found[4:], backwards(rewards.flip(0)).flip(0))
    forgetful(rewards)
    forgetful.returns.zero_()
    assert not torch.allclose(found[4:], forgetful(rewards))


def test_statistics_come_back_exactly():
    scale, moments = RewardScale(0.99, 3), Moments((2,))
    scale(torch.rand(5, 3))
    moments.update(torch.rand(7, 2))
    again, other = RewardScale(0.99, 3), Moments((2,))
    again.load_state_dict(scale.state_dict())
    other.load_state_dict(moments.state_dict())
    rewards, batch = torch.rand(4, 3), torch.rand(5, 2)
    assert torch.equal(scale(rewards), again(rewards))
    moments.update(batch), other.update(batch)
    assert moments.state_dict()["count"] == other.count == 12
    assert torch.equal(moments.mean, other.mean)
    assert torch.equal(moments.variance, other.variance)
    with pytest.raises(ValueError, match="3 environments' returns for 2"):
        RewardScale(0.99, 2).load_state_dict(scale.state_dict())


# ---- the networks


def test_frames_are_normalised_by_pixel_and_cut_off():
    curiosity = small()
    frames = torch.stack([gray(100)[0], gray(110)[0], gray(120)[0]])
    frames[:, 0, 0] = 7  # never changes
    curiosity.frames.update(frames)
    seen = curiosity.see(frames)
    expected = np.array([-1, 0, 1]) / np.sqrt(2 / 3)
    assert seen.shape == (3, 1, 84, 84)
    assert np.allclose(seen[:, 0, 5, 5], expected, atol=1e-4)
    assert seen[:, 0, 0, 0].abs().max() < 0.01
    odd = frames[1:2].clone()
    odd[0, 0, 0], odd[0, 9, 9] = 8, 255
    assert curiosity.see(odd)[0, 0, 0, 0] == 5
    assert curiosity.see(odd)[0, 0, 9, 9] == 5
    assert curiosity.see(gray(0)).min() == -5


def test_the_target_stays_and_only_the_predictor_learns():
    curiosity = small()
    curiosity.frames.update(torch.cat([gray(100), gray(120)]))
    before = {name: value.clone() for name, value in curiosity.state_dict().items()}
    optimiser = torch.optim.Adam(curiosity.parameters(), 1e-3)
    curiosity.error(gray(100), torch.zeros(8, 16)).mean().backward()
    optimiser.step()
    changed = {name.split(".")[0] for name, value in curiosity.state_dict().items() if not value.equal(before[name])}
    assert changed == {"predictor"}
    layers = [sum(isinstance(x, torch.nn.Linear | torch.nn.Conv2d) for x in net) for net in (curiosity.target,
              curiosity.predictor)]  # fmt: skip
    assert layers == [4, 6]
    assert sum(isinstance(x, torch.nn.LeakyReLU) for x in curiosity.target) == 3


def test_the_error_is_the_mean_square_over_features():
    curiosity, frames = small(), torch.cat([gray(60), gray(200)])
    curiosity.frames.update(frames)
    with torch.no_grad():
        seen = curiosity.see(frames)
        target, predicted = curiosity.target(seen).numpy(), curiosity.predictor(seen).numpy()
        errors, targets = curiosity.novelty(frames)
    assert np.allclose(errors, ((target - predicted) ** 2).mean(1), rtol=1e-5)
    assert np.allclose(targets, target, rtol=1e-5)
    assert np.allclose(novelty(curiosity, frames.numpy()), errors)
    assert torch.allclose(curiosity.error(frames, targets), errors, rtol=1e-5)


def test_error_falls_on_a_visited_room_and_stays_high_in_the_others():
    curiosity, (frames, rooms) = small(), room_frames()
    seen, unseen = frames[rooms == 1], frames[rooms != 1]
    curiosity.frames.update(torch.from_numpy(seen))
    before = [np.median(novelty(curiosity, some)) for some in (seen, unseen)]
    optimiser = torch.optim.Adam(curiosity.predictor.parameters(), 1e-3)
    visited = torch.from_numpy(seen)
    loss = PredictorLoss(curiosity, visited, curiosity.novelty(visited)[1], minibatches=2, share=1.0)
    for _ in range(60):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    after = [np.median(novelty(curiosity, some)) for some in (seen, unseen)]
    assert after[0] < 0.5 * before[0]
    assert after[1] > 10 * before[0]


def test_a_share_of_each_minibatch_and_no_frame_twice_an_epoch(monkeypatch):
    curiosity, frames = small(), torch.zeros(40, 84, 84, dtype=torch.uint8)
    frames[:, 0, 0] = torch.arange(40)
    targets, seen = torch.arange(40.0)[:, None].expand(40, 16), []

    def watched(some, target):
        assert torch.equal(some[:, 0, 0].float(), target[:, 0]), "frames with their own targets"
        seen.append(target[:, 0].tolist())
        return target.sum(1)

    monkeypatch.setattr(curiosity, "error", watched)
    loss = PredictorLoss(curiosity, frames, targets, minibatches=4, share=0.3)
    for _ in range(8):
        loss()
    assert [len(rows) for rows in seen] == [3] * 8
    epochs = [{row for rows in seen[at : at + 4] for row in rows} for at in (0, 4)]
    assert [len(rows) for rows in epochs] == [12, 12]
    assert epochs[0] != epochs[1]


# ---- rooms


def test_rooms_of_the_shipped_ways():
    frames, rooms = room_frames()
    assert frames.shape[1:] == (84, 84)
    assert frames.dtype == np.uint8
    counts = dict(zip(*np.unique(rooms, return_counts=True), strict=True))
    assert len(counts) >= 17
    assert {0, 1, 2, 5, 23} <= counts.keys()
    assert max(counts.values()) == 24
    first = frames[rooms == 1].astype(float)
    others = [frames[rooms == room].astype(float).mean(0) for room in counts if room != 1]
    spread = np.abs(first - first.mean(0)).mean()
    assert min(np.abs(first.mean(0) - other).mean() for other in others) > 2 * spread, "rooms look different"


def test_novelty_by_room_is_low_where_the_statistics_and_the_predictor_come_from():
    curiosity = small()
    frames, rooms = room_frames()
    curiosity.frames.update(torch.from_numpy(frames[rooms == 1]))
    found = novelty_by_room(curiosity)
    assert found.keys() == set(rooms.tolist())
    assert min(found, key=found.get) == 1
