"""Options on the grid world: the frozen parts as an environment, its rollouts, and raw actions beside them."""

import copy

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from mzlib.backbone import PinpadBackbone
from mzlib.internal_rl.policies import CodePolicy, PriorCodes
from mzlib.internal_rl.updates import Lived
from mzlib.metacontroller import Metacontroller
from mzlib.pinpad import Pinpad, PinpadConfig


class ControlledPinpad:
    """n pinpads behind a frozen backbone, switch and hypernetwork: the option-level environment, one step at a time.

    `residual` (m, n_e) is e_t of the m episodes still under way, `rows` (m,) their numbers, `opened` (m,) bool whether
    a new code is due. Caches hold only episodes under way, so that a batch gets cheaper as its episodes end.
    """

    def __init__(self, backbone: PinpadBackbone, metacontroller: Metacontroller, threshold: float = 0.5):
        self.backbone, self.metacontroller, self.threshold = backbone, metacontroller, threshold
        self.generator: torch.Generator | None = None  # draws the actions; None: torch's own

    def reset(self, pinpad: Pinpad) -> None:
        """Begin the episodes of a freshly reset `pinpad`."""
        self.pinpad, self.t = pinpad, 0
        count, device = len(pinpad.observation), self.backbone.device
        self.rows = np.arange(count)
        self.caches = self.backbone.init_cache(count)
        self.history = torch.zeros(count, self.metacontroller.config.history_width, device=device)
        self.code = torch.zeros(count, self.metacontroller.config.code_dim, device=device)
        self._observe()

    def _observe(self) -> None:
        observations = torch.as_tensor(self.pinpad.observation[self.rows], device=self.code.device)
        self.residual = self.backbone.lower_step(observations, self.caches)
        switch, self.history = self.metacontroller.step(self.residual, self.history, self.code)
        self.opened = switch >= self.threshold
        if self.metacontroller.forced(self.t):
            self.opened = torch.ones_like(self.opened)

    def act(self, code: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take one environment step under codes (m, n_z); returns rewards (m,), terminated (m,) and truncated (m,).

        Episodes that ended leave `rows`.
        """
        controlled = self.metacontroller.hypernetwork(self.residual, code)
        logits = self.backbone.upper_step(controlled, self.caches).actions
        actions = np.zeros(len(self.pinpad.observation), np.uint8)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)
        actions[self.rows] = drawn[:, 0].cpu().numpy()
        rewards, terminated, truncated = (result[self.rows] for result in self.pinpad.step(actions))
        ended = terminated | truncated
        kept = torch.as_tensor(np.flatnonzero(~ended), device=code.device)
        self.rows, self.t = self.rows[~ended], self.t + 1
        self.code, self.history = code[kept], self.history[kept]
        if ended.any():
            self.caches = [tuple(entry[kept] for entry in cache) for cache in self.caches]
        if len(self.rows):
            self._observe()
        return rewards, terminated, truncated


@torch.no_grad()
def rollout(environment: ControlledPinpad, policy: CodePolicy | PriorCodes, pinpad: Pinpad) -> Lived:
    """Live the episodes of a freshly reset `pinpad`, all at once."""
    environment.reset(pinpad)
    count, horizon = len(environment.rows), pinpad.config.horizon
    device, width = environment.code.device, environment.residual.shape[1]
    residual = torch.zeros(count, horizon, width, device=device)
    codes = torch.zeros(count, horizon, environment.code.shape[1], device=device)
    chosen = torch.zeros(count, horizon, dtype=torch.bool, device=device)
    log_prob = torch.zeros(count, horizon, device=device)
    returns, lengths = np.zeros(count, np.float32), np.zeros(count, int)
    cache = policy.init_cache(count)
    for t in range(horizon):
        if not len(rows := environment.rows):
            break
        distribution, cache = policy.step(environment.residual, cache)
        drawn = distribution.sample()
        code = torch.where(environment.opened[:, None], drawn, environment.code)
        residual[rows, t], codes[rows, t], chosen[rows, t] = environment.residual, code, environment.opened
        log_prob[rows, t] = distribution.log_prob(code).sum(-1)
        rewards, terminated, truncated = environment.act(code)
        ended = terminated | truncated
        returns[rows] += rewards
        lengths[rows] = t + 1
        if ended.any():
            kept = torch.as_tensor(np.flatnonzero(~ended), device=device)
            cache = tuple(entry[kept] for entry in cache)
    return _lived(residual, codes, chosen, log_prob, returns, lengths)


def _lived(*arrays) -> Lived:
    """Cut to the longest episode."""
    *steps, returns, lengths = (torch.as_tensor(x, device=arrays[0].device) for x in arrays)
    return Lived(*(x[:, : int(lengths.max())] for x in steps), returns, lengths)


@torch.no_grad()
def raw_rollout(backbone: PinpadBackbone, pinpad: Pinpad) -> Lived:
    """Live the episodes of a freshly reset `pinpad` with actions drawn from the backbone itself."""
    count, horizon, device = len(pinpad.observation), pinpad.config.horizon, backbone.device
    rows, caches = np.arange(count), backbone.init_cache(count)
    observations = torch.zeros(count, horizon, backbone.config.channels, dtype=torch.uint8, device=device)
    actions = torch.zeros(count, horizon, dtype=torch.long, device=device)
    log_prob = torch.zeros(count, horizon, device=device)
    returns, lengths = np.zeros(count, np.float32), np.zeros(count, int)
    for t in range(horizon):
        if not len(rows):
            break
        seen = torch.as_tensor(pinpad.observation[rows], device=device)
        distribution = Categorical(logits=backbone.upper_step(backbone.lower_step(seen, caches), caches).actions)
        drawn = distribution.sample()
        observations[rows, t], actions[rows, t], log_prob[rows, t] = seen, drawn, distribution.log_prob(drawn)
        everyone = np.zeros(count, np.uint8)
        everyone[rows] = drawn.cpu().numpy()
        rewards, terminated, truncated = pinpad.step(everyone)
        ended = (terminated | truncated)[rows]
        returns[rows] += rewards[rows]
        lengths[rows] = t + 1
        if ended.any():
            kept = torch.as_tensor(np.flatnonzero(~ended), device=device)
            caches = [tuple(entry[kept] for entry in cache) for cache in caches]
        rows = rows[~ended]
    valid = torch.arange(horizon, device=device) < torch.as_tensor(lengths, device=device)[:, None]
    return _lived(observations, actions, valid, log_prob, returns, lengths)


class OptionEnv(gymnasium.Env):
    """The option-level environment as gymnasium knows it: observation e_t (n_e,), action z (n_z,); a step lasts until
    the option ends, its reward is what was won meanwhile, `info["steps"]` its length."""

    def __init__(
        self,
        backbone: PinpadBackbone,
        metacontroller: Metacontroller,
        config: PinpadConfig,
        task: tuple[int, ...] | None = None,
        threshold: float = 0.5,
    ):
        self.controlled = ControlledPinpad(backbone, metacontroller, threshold)
        self.config, self.task = config, task
        width, dim = backbone.config.width, metacontroller.config.code_dim
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = gymnasium.spaces.Box(-10, 10, (dim,), np.float32)  # the prior is N(0, I)

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Draw a layout and look at it."""
        super().reset(seed=seed)
        pinpad = Pinpad(self.config, 1)
        pinpad.reset_random(self.np_random, self.task)
        self.controlled.generator = torch.Generator(self.controlled.backbone.device)
        self.controlled.generator.manual_seed(int(self.np_random.integers(2**31)))
        self.controlled.reset(pinpad)
        return self._residual(), {}

    @torch.no_grad()
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Follow one code until the switch opens or the episode ends."""
        if not len(self.controlled.rows):
            raise gymnasium.error.ResetNeeded("no episode is in play; call reset")
        code = torch.as_tensor(action, dtype=torch.float32)[None].to(self.controlled.code.device)
        total, steps, over = 0.0, 0, False
        while not over:
            reward, terminated, truncated = (result.item() for result in self.controlled.act(code))
            total, steps = total + reward, steps + 1
            over = terminated or truncated or bool(self.controlled.opened[0])
        return self._residual(), total, terminated, truncated, {"steps": steps}

    def _residual(self) -> np.ndarray:
        """e of the episode; at its end the last one seen."""
        return self.controlled.residual[0].cpu().numpy().copy()


def raw_policy(backbone: PinpadBackbone) -> PinpadBackbone:
    """A copy of the backbone whose weights may be trained."""
    return copy.deepcopy(backbone).requires_grad_(True)
