"""Policies over codes and over raw actions, in a parallel form to train and a step form to act; a critic."""

import copy
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from mzlib import runs
from mzlib.backbone import MontezumaVLM
from mzlib.evaluate import Observation
from mzlib.layers import HawkBlock
from mzlib.steering import CodeControl, ControlledPolicy, prior_policy
from mzlib.trajectory import STACK


@dataclass(frozen=True)
class CodePolicyConfig:
    """A code policy's size."""

    residual_width: int
    code_dim: int
    width: int = 256
    bound: float | None = None  # of the mean, in the prior's standard deviations; None: none


class CodePolicy(nn.Module):
    """π(z_t | e_1:t): one recurrent block, then a diagonal Gaussian that begins as the codes' prior N(0, I)."""

    def __init__(self, residual_width: int, code_dim: int, width: int = 256, bound: float | None = None):
        super().__init__()
        self.config = CodePolicyConfig(residual_width, code_dim, width, bound)
        self.enter = nn.Linear(residual_width, width)
        self.block = HawkBlock(width, width, 4, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.mean = nn.Linear(width, code_dim)
        nn.init.zeros_(self.mean.weight)
        nn.init.zeros_(self.mean.bias)
        self.log_std = nn.Parameter(torch.zeros(code_dim))

    def forward(self, residual: Tensor) -> Normal:
        """The distribution of z at every step of e (b, t, n_e)."""
        return self._distribution(self.block(self.enter(residual)))

    def log_prob(self, residual: Tensor, code: Tensor) -> Tensor:
        """(b, t) ln π(z_t | e_1:t) of codes (b, t, n_z)."""
        return self(residual).log_prob(code).sum(-1)

    def residual(self, residual: Tensor) -> Tensor:
        """e (b, t, n_e), what a critic reads: here the observation itself."""
        return residual

    def step(self, residual: Tensor, cache: tuple, reset: Tensor | None = None) -> tuple[Normal, tuple]:
        """The distribution of z_t from e_t (b, n_e) and what went before; reset: (b,) bool, rows that begin anew."""
        hidden, cache = self.block.step(self.enter(residual), cache, reset)
        return self._distribution(hidden), cache

    def _distribution(self, hidden: Tensor) -> Normal:
        mean, bound = self.mean(self.norm(hidden)), self.config.bound
        return Normal(mean if bound is None else bound * torch.tanh(mean / bound), self.log_std.exp())

    def init_cache(self, batch: int) -> tuple:
        """The cache of a policy that has seen nothing."""
        return self.block.init_cache(batch, self.log_std.device)


class PriorCodes:
    """Codes from the prior N(0, I), whatever was seen: a policy that knows nothing, for `rollout`."""

    def __init__(self, code_dim: int):
        self.mean, self.std = torch.zeros(code_dim), torch.ones(code_dim)

    def init_cache(self, batch: int) -> tuple:
        """Nothing is remembered."""
        return ()

    def step(self, residual: Tensor, cache: tuple) -> tuple[Normal, tuple]:
        """N(0, I) for each of e_t (b, n_e)."""
        return Normal(*(x.to(residual.device).expand(len(residual), -1) for x in (self.mean, self.std))), cache


class ActionPolicy(nn.Module):
    """π(a_t | o_1:t): a copy of the Montezuma backbone, all of whose weights are trained, or those after block l only.

    Observations are frames as `MontezumaVLM` takes them, (b, t + 3, 84, 84) uint8.
    """

    def __init__(self, backbone: MontezumaVLM, temperature: float = 1.0, upper_only: bool = False):
        super().__init__()
        self.backbone, self.temperature = copy.deepcopy(backbone).requires_grad_(not upper_only), temperature
        if upper_only:
            for part in (*self.backbone.blocks[backbone.config.layer :], self.backbone.norm, self.backbone.action_head):
                part.requires_grad_(True)

    def forward(self, frames: Tensor) -> Categorical:
        """The distribution of a at every step."""
        return self._distribution(self.backbone(frames, self._previous(len(frames), frames.shape[1] - STACK + 1)))

    def log_prob(self, frames: Tensor, action: Tensor) -> Tensor:
        """(b, t) ln π(a_t | o_1:t) of actions (b, t)."""
        return self(frames).log_prob(action)

    def residual(self, frames: Tensor) -> Tensor:
        """e (b, t, n_e)."""
        return self.backbone.lower(frames, self._previous(len(frames), frames.shape[1] - STACK + 1)).e

    def step(self, frames: Tensor, cache: list, reset: Tensor | None = None) -> tuple[Categorical, list]:
        """The distribution of a_t from the last four frames (b, 4, 84, 84) and what went before."""
        residual = self.backbone.lower_step(frames, self._previous(len(frames)), cache, reset)
        return self._distribution(self.backbone.upper_step(residual, cache)), cache

    def _previous(self, *shape: int) -> Tensor:
        return torch.full(shape, self.backbone.config.unknown, device=self.backbone.device)

    def _distribution(self, prediction) -> Categorical:
        return Categorical(logits=prediction.actions / self.temperature)

    def init_cache(self, batch: int) -> list:
        """The cache of a policy that has seen nothing."""
        return self.backbone.init_cache(batch)


class Critic(nn.Module):
    """V(e_1:t), apart from the policy's weights: one recurrent block, then a number that begins as 0."""

    def __init__(self, residual_width: int, width: int = 256):
        super().__init__()
        self.enter, self.block = nn.Linear(residual_width, width), HawkBlock(width, width, 4, 2 * width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        nn.init.zeros_(self.out[1].weight)
        nn.init.zeros_(self.out[1].bias)

    def forward(self, residual: Tensor) -> Tensor:
        """e (b, t, n_e) to values (b, t)."""
        return self.out(self.block(self.enter(residual)))[..., 0]


# ---- a trained code policy at play


class AgentControl(CodeControl):
    """Codes from a code policy: drawn, with `greedy` its mean, taken in where the switch opens."""

    def __init__(self, prior: CodeControl, policy: CodePolicy, greedy: bool = False):
        super().__init__(prior.metacontroller, self._codes, prior.threshold)
        self.noise, self.policy, self.greedy, self.cache = prior.source, policy, greedy, None

    def __call__(self, residual: Tensor, fresh: Tensor, observation: Observation) -> Tensor:
        """ê (n, n_e)."""
        self.cache = self.policy.init_cache(len(residual)) if self.cache is None else self.cache
        self.distribution, self.cache = self.policy.step(residual, self.cache, fresh)
        return super().__call__(residual, fresh, observation)

    def _codes(self, rows: np.ndarray, observation: Observation) -> np.ndarray:
        mean, std = self.distribution.mean[rows].numpy(), self.distribution.stddev[rows].numpy()
        return mean if self.greedy else mean + std * self.noise(rows, observation)


def load_agent(weights: Path, backbone: Path, metacontroller: Path) -> CodePolicy:
    """A code policy; ValueError if it was trained with another backbone or metacontroller."""
    belongs = {"backbone": runs.weights_sha256(backbone), "metacontroller": runs.weights_sha256(metacontroller)}
    policy, _ = runs.load_weights(weights, lambda config: CodePolicy(*astuple(config)), CodePolicyConfig, **belongs)
    return policy.requires_grad_(False).eval()


def agent_policy(backbone: Path, metacontroller: Path, agent: Path, greedy: bool = False, **settings):
    """Plays as a code policy chooses; settings: as of `steering.prior_policy`."""
    policy: ControlledPolicy = prior_policy(backbone, metacontroller, greedy=greedy, **settings)
    policy.control = AgentControl(policy.control, load_agent(agent, backbone, metacontroller), greedy)
    return policy
