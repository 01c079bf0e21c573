"""Curiosity: how wrong a trained network is about a random one, as a reward (Burda et al. 2018, RND)."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from mzlib import demos, runs
from mzlib.emulator import facts
from mzlib.layers import CONVS, convolution
from mzlib.trajectory import FRAME_SIZE

CLIP = 5.0  # normalised pixels are cut off at ±5
DEAD_PIXEL = 0.01  # least standard deviation of a pixel, of 255
MOMENTS_CHUNK = 256  # squares of so many bytes still add up exactly in float32
CHUNK = 1_024  # frames through the networks at once where no gradient is needed


class Moments:
    """Mean and variance of all that was seen so far, each batch merged in exactly (Chan et al. 1979); float64, on the
    CPU.

    `mean`, `variance`: of the shape given; before anything was seen 0 and 1.
    """

    def __init__(self, shape: tuple[int, ...] = ()):
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.variance = torch.ones(shape, dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Take in a batch (m, *shape) of any number type, on any device."""
        origin = batch[0] if batch.is_floating_point() else batch[0].float()
        sums, squares = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for some in batch.split(MOMENTS_CHUNK):  # five times as fast as torch.var_mean over the first axis
            apart = some - origin
            sums += apart.sum(0).cpu()
            squares += apart.square_().sum(0).cpu()
        mean = sums / len(batch)
        variance = (squares / len(batch) - mean.square()).clamp(min=0)
        mean += origin.cpu()
        total = self.count + len(batch)
        step = mean - self.mean
        share = len(batch) / total
        self.variance = (1 - share) * self.variance + share * variance + share * (1 - share) * step.square()
        self.mean, self.count = self.mean + share * step, total

    def state_dict(self) -> dict:
        """All of it."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        self.count, self.mean, self.variance = (state[name] for name in ("count", "mean", "variance"))


class RewardScale:
    """Divides rewards by the running standard deviation of their discounted return (Burda et al. 2018, §2.4).

    The return is filtered forwards, R ← γ R + r, for each of n environments and past their episodes' ends.
    """

    def __init__(self, gamma: float, environments: int):
        self.gamma, self.moments = gamma, Moments()
        self.returns = torch.zeros(environments, dtype=torch.float64)

    def __call__(self, rewards: Tensor) -> Tensor:
        """(t, n) rewards, scaled; the statistics take them in first."""
        filtered = []
        for reward in rewards.cpu().double():
            self.returns = self.gamma * self.returns + reward
            filtered.append(self.returns)
        self.moments.update(torch.cat(filtered))
        return rewards / max(self.moments.variance.sqrt().item(), 1e-8)

    def state_dict(self) -> dict:
        """All of it."""
        return {"returns": self.returns, "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        if state["returns"].shape != self.returns.shape:
            raise ValueError(f"{len(state['returns'])} environments' returns for {len(self.returns)}")
        self.returns = state["returns"]
        self.moments.load_state_dict(state["moments"])


def _convolutions(channels: tuple[int, ...], features: int) -> list[nn.Module]:
    layers, before, side = [], 1, FRAME_SIZE
    for after, (kernel, stride) in zip(channels, CONVS, strict=True):
        layers += [convolution(before, after, kernel, stride), nn.LeakyReLU()]
        before, side = after, (side - kernel) // stride + 1
    return [*layers, nn.Flatten(), nn.Linear(before * side**2, features)]


class Curiosity(nn.Module):
    """How new a frame x is: the mean over features of (f̂(x) − f(x))², f random and fixed, f̂ trained towards f on what
    has been seen (Burda et al. 2018, §2.2).

    Of the observation only the newest frame is looked at, less its mean, over its standard deviation by pixel, cut off
    at ±5; `frames` holds those statistics and is no part of the state dict. Both networks are initialised orthogonally,
    √2; the predictor has two layers more.
    """

    def __init__(self, channels: tuple[int, ...], features: int):
        super().__init__()
        self.frames = Moments((FRAME_SIZE, FRAME_SIZE))
        self.target = nn.Sequential(*_convolutions(channels, features)).requires_grad_(False)
        deeper = [nn.ReLU(), nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features)]
        self.predictor = nn.Sequential(*_convolutions(channels, features), *deeper)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def see(self, frames: Tensor) -> Tensor:
        """Normalise single frames (m, 84, 84) uint8 to (m, 1, 84, 84)."""
        scale = 1 / self.frames.variance.sqrt().clamp(min=DEAD_PIXEL)
        mean, scale = (x.float().to(frames.device) for x in (self.frames.mean, scale))
        return frames.float().sub_(mean).mul_(scale).clamp_(-CLIP, CLIP)[:, None]

    def error(self, frames: Tensor, target: Tensor) -> Tensor:
        """(m,) errors of predicting f of frames (m, 84, 84) uint8, which is given: (m, features)."""
        return self._error(self.see(frames), target)

    @torch.no_grad()
    def novelty(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Errors (m,) and targets (m, features) of any number of frames (m, 84, 84) uint8."""
        targets, errors = [], []
        for some in frames.split(CHUNK):
            seen = self.see(some)
            with torch.autocast(seen.device.type, torch.bfloat16, enabled=seen.is_cuda):
                targets.append(self.target(seen))
            errors.append(self._error(seen, targets[-1]))
        return torch.cat(errors), torch.cat(targets)

    def _error(self, seen: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=seen.is_cuda):
            predicted = self.predictor(seen)
        return (predicted.float() - target.float()).square().mean(-1)


class PredictorLoss:
    """The predictor's loss in each minibatch: the mean error of a share of as many frames.

    An epoch's minibatches are parts of an order of their own; policy and predictor have no weights in common, so
    which of their samples meet does not matter. frames: (m, 84, 84) uint8; targets: (m, features).
    """

    def __init__(self, curiosity: Curiosity, frames: Tensor, targets: Tensor, minibatches: int, share: float):
        self.curiosity, self.frames, self.targets = curiosity, frames, targets
        self.minibatches, self.share = minibatches, share
        self.parts: list[Tensor] = []

    def __call__(self) -> Tensor:
        if not self.parts:
            self.parts = list(torch.randperm(len(self.frames)).tensor_split(self.minibatches))
        rows = self.parts.pop()
        rows = rows[: max(1, round(self.share * len(rows)))].to(self.frames.device)
        frames, targets = (x.index_select(0, rows) for x in (self.frames, self.targets))
        return self.curiosity.error(frames, targets).mean()


def novelty(curiosity: Curiosity, frames: np.ndarray) -> np.ndarray:
    """(t,) the prediction error of single frames (t, 84, 84) uint8."""
    device = next(curiosity.parameters()).device
    return curiosity.novelty(torch.from_numpy(frames).to(device))[0].cpu().numpy()


@cache
def room_frames(each: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Frames (m, 84, 84) uint8 and the rooms (m,) that they show: `each` of every room on the shipped ways of
    Go-Explore's searches, evenly picked among those of a living player."""
    shown, rooms = [], []
    for demo in demos.load(runs.data_dir("demos", "rooms", "five_million.npz")):
        way = demos.record(demo)
        read = [facts(ram) for ram in way.ram]
        alive = np.array([not now.dying for now in read])
        shown.append(way.frames[alive])
        rooms.append(np.array([now.room for now in read])[alive])
    shown, rooms = np.concatenate(shown), np.concatenate(rooms)
    places = [np.flatnonzero(rooms == room) for room in np.unique(rooms)]
    picked = [some[np.unique(np.linspace(0, len(some) - 1, each).round().astype(int))] for some in places]
    chosen = np.concatenate(picked)
    return shown[chosen], rooms[chosen]


def novelty_by_room(curiosity: Curiosity) -> dict[int, float]:
    """Room of Montezuma → median prediction error of its frames, most of which an agent has never seen."""
    frames, rooms = room_frames()
    errors = novelty(curiosity, frames)
    return {int(room): float(np.median(errors[rooms == room])) for room in np.unique(rooms)}
