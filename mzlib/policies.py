"""Who acts from reset: actor-critics over stacked frames, feed-forward or with a GRU, and the cloned backbone."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mzlib import runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.layers import CONVS, convolution
from mzlib.trajectory import FRAME_SIZE, STACK


@dataclass(frozen=True)
class ActorCriticConfig:
    """An actor-critic's size."""

    recurrent: bool = False
    channels: tuple[int, ...] = (16, 32, 32)  # of the three convolutions
    hidden: int = 256
    actions: int = 18
    value_heads: int = 1  # one for each kind of return
    memory: int = 256  # width of the GRU, if recurrent

    def __post_init__(self):
        if len(self.channels) != len(CONVS) or min(self.channels) < 1:
            raise ValueError(f"channels={self.channels}: give three numbers, each at least 1")
        for name in ("hidden", "actions", "value_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 1 <= self.memory <= 256:
            raise ValueError(f"memory={self.memory}: use 1 to 256")


def _orthogonal(layer: nn.Module, gain: float = math.sqrt(2)) -> nn.Module:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class ActorCritic(nn.Module):
    """π(a_t | o_≤t) and the values of o_≤t: three convolutions (Mnih et al. 2015), a linear layer, perhaps a GRU.

    frames: (…, 4, 84, 84) uint8, the newest last. state: (b, memory), the GRU's, or (b, 0) without one. began: (b,)
    bool, an episode begins with these frames: what was remembered before is dropped. Gradients flow back to the
    `state` given to `unroll`: detached, that is where backpropagation through time is cut off. Under autocast the
    convolutions and the linear layer compute in half precision, GRU and heads never.
    Initialised orthogonally, √2, policy head 0.01, value heads 1 (Andrychowicz et al. 2021, §3.2).
    """

    def __init__(self, config: ActorCriticConfig):
        super().__init__()
        self.config = config
        layers, before, side = [], STACK, FRAME_SIZE
        for channels, (kernel, stride) in zip(config.channels, CONVS, strict=True):
            layers += [_orthogonal(convolution(before, channels, kernel, stride)), nn.ReLU()]
            before, side = channels, (side - kernel) // stride + 1
        self.convs = nn.Sequential(*layers, nn.Flatten())
        self.hidden = _orthogonal(nn.Linear(before * side**2, config.hidden))
        if config.recurrent:
            self.gru = nn.GRUCell(config.hidden, config.memory)
            for weight, bias in ((self.gru.weight_ih, self.gru.bias_ih), (self.gru.weight_hh, self.gru.bias_hh)):
                for gate in weight.data.chunk(3):
                    nn.init.orthogonal_(gate)
                nn.init.zeros_(bias)
        width = config.memory if config.recurrent else config.hidden
        self.policy_head = _orthogonal(nn.Linear(width, config.actions), 0.01)
        self.value_head = _orthogonal(nn.Linear(width, config.value_heads), 1.0)

    def init_state(self, batch: int) -> Tensor:
        """The state of b episodes that have seen nothing."""
        width = self.config.memory if self.config.recurrent else 0
        return torch.zeros(batch, width, device=self.policy_head.bias.device)

    def features(self, frames: Tensor) -> Tensor:
        """(n, 4, 84, 84) uint8 to (n, hidden)."""
        if frames.dtype != torch.uint8:
            raise TypeError(f"frames are {frames.dtype}: give them as uint8, 0 to 255")
        return F.relu(self.hidden(self.convs(frames)))

    def step(self, frames: Tensor, state: Tensor, began: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (b, 4, 84, 84) to logits (b, a), values (b, heads) and the next state."""
        x = self.features(frames)
        with torch.autocast(frames.device.type, enabled=False):
            x = x.float()
            if self.config.recurrent:
                x = state = self._remember(x, state, began)
            return self.policy_head(x), self.value_head(x), state

    def unroll(self, frames: Tensor, state: Tensor, began: Tensor) -> tuple[Tensor, Tensor]:
        """What `step` gives for each of t steps: frames (t, b, 4, 84, 84), began (t, b) to logits (t, b, a), values (t,
        b, heads)."""
        x = self.features(frames.flatten(0, 1)).unflatten(0, began.shape)
        with torch.autocast(frames.device.type, enabled=False):
            x = x.float()
            if self.config.recurrent:
                states = []
                for x_t, began_t in zip(x.unbind(), began.unbind(), strict=True):
                    state = self._remember(x_t, state, began_t)
                    states.append(state)
                x = torch.stack(states)
            return self.policy_head(x), self.value_head(x)

    def _remember(self, x: Tensor, state: Tensor, began: Tensor) -> Tensor:
        return self.gru(x, state.masked_fill(began[:, None], 0))


class Draws:
    """Draws actions from a generator of each episode's own, so that they don't depend on what else is played beside.

    seed: of the policy; a generator is begun from it and the episode's seed. Probabilities must not depend on the
    company either: a network's do by their last digits, which changes a draw in some ten million.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.generators: dict[int, np.random.Generator] = {}  # by row

    def __call__(self, probabilities: Tensor, began: np.ndarray, seeds: np.ndarray) -> Tensor:
        """(n,) actions, one from each row of (n, a), by inverting the cumulative distribution; began, seeds: (n,) as in
        `evaluate.Observation`."""
        for row, (anew, seed) in enumerate(zip(began.tolist(), seeds.tolist(), strict=True)):
            if anew or row not in self.generators:
                self.generators[row] = np.random.default_rng((self.seed, seed))
        drawn = torch.tensor([[self.generators[row].random()] for row in range(len(seeds))], dtype=torch.float64)
        cumulative = probabilities.double().cumsum(-1)
        return (drawn * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)


class ActorCriticPolicy:
    """Acts from reset as the actor-critic does, an `evaluate.Policy`: actions drawn, or `greedy` the likeliest.

    As an episode begins, and with `forgets_lives` a life, its first frame fills the stack and nothing is remembered.
    weights: as `runs.save_weights` wrote them. seed: of the draws, with each episode's own.
    """

    sees_frames = True

    def __init__(self, weights: Path, greedy: bool = False, seed: int = 0, forgets_lives: bool = True):
        torch.set_num_threads(1)
        self.forgets_lives = forgets_lives
        self.model = runs.load_weights(weights, ActorCritic, ActorCriticConfig)[0].eval()
        self.greedy, self.draws = greedy, Draws(seed)
        self.stack: Tensor | None = None  # (n, 4, 84, 84)

    @torch.no_grad()
    def act(self, observation) -> np.ndarray:
        """(n,) actions. observation: an `evaluate.Observation` of the same n episodes every time, or of n that all
        begin."""
        frames = torch.from_numpy(observation.frames)[:, None]
        fresh = torch.from_numpy(observation.began | (observation.life_lost & self.forgets_lives))
        if self.stack is None or fresh.all():
            self.stack, self.state = frames.repeat(1, STACK, 1, 1), self.model.init_state(len(frames))
        self.stack = torch.cat([self.stack[:, 1:], frames], 1)
        self.stack[fresh] = frames[fresh]
        logits, _, self.state = self.model.step(self.stack, self.state, fresh)
        if self.greedy:
            return logits.argmax(-1).numpy()
        return self.draws(logits.softmax(-1), observation.began, observation.seeds).numpy()


class ClonePolicy:
    """Acts as the clone does: actions drawn from its predictions, or `greedy` the likeliest; each life begins anew.

    weights: as `save_weights` wrote them. temperature: of the draw; 0.5 scored more than 1 on 32 selection episodes.
    seed: of the draws, with each episode's own.
    """

    sees_frames = True

    def __init__(self, weights: Path, greedy: bool = False, temperature: float = 0.5, seed: int = 0):
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be above 0; --deterministic takes the likeliest action")
        torch.set_num_threads(1)
        self.backbone = runs.load_weights(weights, MontezumaVLM, BackboneConfig)[0].eval()
        self.greedy, self.temperature = greedy, temperature
        self.draws = Draws(seed)
        self.groups: list[tuple[slice, list]] | None = None  # rows and their caches

    @torch.no_grad()
    def act(self, observation) -> np.ndarray:
        """(n,) actions. observation: an `evaluate.Observation` of the same n episodes every time."""
        frames = torch.from_numpy(observation.frames)
        fresh = torch.from_numpy(observation.began | observation.life_lost)
        unknown = self.backbone.config.unknown
        if self.groups is None:
            count = len(frames)
            self.stack, self.previous = frames[:, None].repeat(1, STACK, 1, 1), torch.full((count,), unknown)
            size = 1 if self.backbone.config.layout == "seed" else count  # its chunks begin when a life does
            rows = [slice(at, at + size) for at in range(0, count, size)]
            self.groups = [(some, self.backbone.init_cache(size)) for some in rows]
        self.stack = torch.cat([self.stack[:, 1:], frames[:, None]], 1)
        self.stack[fresh] = frames[fresh, None]
        self.previous[fresh] = unknown
        lower = self.backbone.lower_step
        residual = torch.cat([lower(self.stack[r], self.previous[r], caches, fresh[r]) for r, caches in self.groups])
        residual = self.controlled(residual, fresh, observation)
        logits = torch.cat([self.backbone.upper_step(residual[r], caches).actions for r, caches in self.groups])
        if self.greedy:
            self.previous = logits.argmax(-1)
        else:
            self.previous = self.draws((logits / self.temperature).softmax(-1), observation.began, observation.seeds)
        return self.previous.numpy().copy()

    def controlled(self, residual: Tensor, fresh: Tensor, observation) -> Tensor:
        """e (n, n_e) as the upper blocks are to see it; fresh: (n,) bool, rows that begin anew."""
        return residual
