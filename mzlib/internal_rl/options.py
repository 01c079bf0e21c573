"""Options on the real emulator: vector environments of codes or of raw actions, and whole episodes played in them."""

from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn.utils.rnn import pad_sequence

from mzlib.backbone import MontezumaVLM
from mzlib.internal_rl.tasks import Task
from mzlib.internal_rl.updates import Lived
from mzlib.metacontroller import Metacontroller
from mzlib.steering import CodeControl
from mzlib.trajectory import STACK
from mzlib.vecenv import Cause, VecEnv, VecEnvConfig


class Seen(NamedTuple):
    """What the m emulators of a half show."""

    observation: Tensor  # (m, …)
    due: Tensor  # (m,) bool: an action is asked for; elsewhere the option goes on, whatever is given
    fresh: Tensor  # (m,) bool: an episode begins


class ActionVectorEnv(gymnasium.vector.VectorEnv):
    """n emulators on one task: observation the last four frames (n, 4, 84, 84), action one of the game's; reward 1 as
    an episode ends in success, else 0. A lost life ends an episode.

    Beside gymnasium's `reset` and `step`: `begin`, and `send` and `receive` of one half, whose emulators run while the
    other half is acted on; `seen` holds what each half shows. The step that ends an episode shows the next one's
    beginning. Whatever is drawn comes from `generator`; the emulators' sticky generators are seeded by `config`, once.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    window = STACK  # time steps in an observation

    def __init__(self, config: VecEnvConfig, task: Task, seed: int = 0, device: str = "cpu"):
        if config.count < 2:
            raise ValueError(f"environments={config.count}: at least 2 are needed, they run in two halves")
        self.envs, self.task, self.num_envs, self.device = VecEnv(config), task, config.count, torch.device(device)
        self.halves, self.generator = self.envs.halves, torch.Generator().manual_seed(seed)
        self.seen: list[Seen] = []
        self.single_observation_space, self.single_action_space = self._spaces()
        spaces = self.single_observation_space, self.single_action_space
        self.observation_space, self.action_space = (batch_space(space, self.num_envs) for space in spaces)

    def _spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        frames = gymnasium.spaces.Box(0, 255, self.envs.frames.shape[1:], np.uint8)
        return frames, gymnasium.spaces.Discrete(18)

    def begin(self) -> None:
        """Begin an episode in every emulator."""
        self.envs.start([self.task.draw(self.generator) for _ in range(self.num_envs)])
        for i in range(self.num_envs):
            self.envs.supply(i, self.task.draw(self.generator))
        everyone = np.ones(self.num_envs, bool)
        self.seen = [self._see(half, everyone[rows]) for half, rows in enumerate(self.halves)]

    def send(self, half: int, actions: Tensor) -> None:
        """Let a half take its actions (m, …)."""
        self.envs.send(self._actions(half, actions).cpu().numpy(), half)

    def receive(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Wait for a half: rewards (m,) and which episodes ended (m,) bool; `seen` shows what followed."""
        self.envs.receive(half)
        rows = self.halves[half]
        ended, won = self.envs.ended[rows].copy(), self.envs.succeeded[rows]
        for i in np.flatnonzero(ended) + rows.start:
            self.envs.supply(i, self.task.draw(self.generator))
        self.seen[half] = self._see(half, ended)
        return (ended & won).astype(np.float32), ended

    @torch.no_grad()
    def _see(self, half: int, fresh: np.ndarray) -> Seen:
        frames = torch.from_numpy(self.envs.frames[self.halves[half]].copy()).to(self.device)
        return self._look(half, frames, torch.from_numpy(fresh).to(self.device))

    def _look(self, half: int, frames: Tensor, fresh: Tensor) -> Seen:
        return Seen(frames, torch.ones_like(fresh), fresh)

    def _actions(self, half: int, actions: Tensor) -> Tensor:
        return actions

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin everywhere; `info["due"]` (n,) tells where an action is asked for. seed: of `generator`."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.begin()
        return self._told()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of every emulator."""
        for half, rows in enumerate(self.halves):
            self.send(half, torch.as_tensor(np.asarray(actions)[rows]).to(self.device))
        rewards, ended = (np.concatenate(parts) for parts in zip(*map(self.receive, (0, 1)), strict=True))
        observation, info = self._told()
        truncated = self.envs.cause == Cause.LIMIT
        return observation, rewards, ended & ~truncated, truncated, info

    def _told(self) -> tuple[np.ndarray, dict]:
        observation, due, _ = (torch.cat(parts).cpu().numpy() for parts in zip(*self.seen, strict=True))
        return observation, {"due": due}

    def close_extras(self, **_) -> None:
        """End the emulators' processes."""
        self.envs.close()

    def state_dict(self) -> dict:
        """All that going on needs, as plain values, bytes and tensors."""
        return {
            "environments": self.envs.save(),
            "generator": self.generator.get_state(),
            "seen": [tuple(seen) for seen in self.seen],
        }

    def load_state_dict(self, state: dict) -> None:
        """Return to what `state_dict` gave."""
        self.envs.load(state["environments"])
        self.generator.set_state(state["generator"])
        self.seen = [Seen(*moved(seen, self.device)) for seen in state["seen"]]


class OptionVectorEnv(ActionVectorEnv):
    """n emulators behind a frozen backbone, switch and hypernetwork: observation e_t (n, n_e), action z (n, n_z).

    A step is a step of the emulators. A code is taken in where `due` says that the option before has ended (β ≥
    threshold, or forced, in the state after its last action; or a new episode), and held until the next.
    """

    window = 1

    def __init__(
        self,
        config: VecEnvConfig,
        task: Task,
        backbone: MontezumaVLM,
        metacontroller: Metacontroller,
        threshold: float = 0.5,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        self.backbone, self.temperature, self.metacontroller = backbone, temperature, metacontroller
        super().__init__(config, task, seed, backbone.device)
        self.caches = [backbone.init_cache(rows.stop - rows.start) for rows in self.halves]
        self.controls = [CodeControl(metacontroller, None, threshold) for _ in self.halves]

    def _spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        width, dim = self.backbone.config.width, self.metacontroller.config.code_dim
        residual = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        return residual, gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float32)

    def _look(self, half: int, frames: Tensor, fresh: Tensor) -> Seen:
        previous = torch.full((len(frames),), self.backbone.config.unknown, device=self.device)
        residual = self.backbone.lower_step(frames, previous, self.caches[half], fresh)
        self.controls[half].look(residual, fresh)
        return Seen(residual, self.controls[half].opened, fresh)

    @torch.no_grad()
    def _actions(self, half: int, actions: Tensor) -> Tensor:
        controlled = self.controls[half].take(self.seen[half].observation, actions)
        logits = self.backbone.upper_step(controlled, self.caches[half]).actions
        return draw(Categorical(logits=logits / self.temperature), self.generator)

    def state_dict(self) -> dict:
        """As of the base class, with caches and codes in force."""
        names = ("code", "history", "steps", "switch", "opened")
        controls = [{name: getattr(control, name) for name in names} for control in self.controls]
        return super().state_dict() | {"caches": self.caches, "controls": controls}

    def load_state_dict(self, state: dict) -> None:
        """Return to what `state_dict` gave."""
        super().load_state_dict(state)
        self.caches = moved(state["caches"], self.device)
        for control, saved in zip(self.controls, state["controls"], strict=True):
            for name, value in saved.items():
                setattr(control, name, value.to(self.device))


def draw(distribution: Distribution, generator: torch.Generator) -> Tensor:
    """A sample of a categorical (b,) or normal (b, d) distribution; drawn on the CPU, on all devices the same."""
    if isinstance(distribution, Categorical):
        return torch.multinomial(distribution.probs.cpu(), 1, generator=generator)[:, 0].to(distribution.probs.device)
    noise = torch.randn(distribution.mean.shape, generator=generator)
    return distribution.mean + distribution.stddev * noise.to(distribution.mean.device)


class Episode(NamedTuple):
    """One whole episode; fields as of `Lived`, without its first axis."""

    observation: Tensor
    action: Tensor
    chosen: Tensor
    log_prob: Tensor
    reward: float  # at the end
    row: int  # the emulator that it was played on


class Episodes:
    """Plays a policy in a vector environment, and keeps every episode that ends until `take` asks for them.

    Episodes under way go on over updates; the policy's log-probabilities are those as it was when it chose.
    """

    def __init__(self, env: ActionVectorEnv, policy: nn.Module):
        self.env, self.policy = env, policy
        self.caches = [policy.init_cache(rows.stop - rows.start) for rows in env.halves]
        self.steps = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)  # of the episodes under way
        self.buffers: dict[str, Tensor] = {}  # (n, steps, …) of the episodes under way
        self.finished: list[Episode] = []

    @torch.no_grad()
    def play(self, steps: int) -> None:
        """So many steps in every emulator; the policy acts for one half while the other half's emulators run."""
        if not self.env.seen:
            self.env.begin()
        for t in range(steps + 1):
            for half, rows in enumerate(self.env.halves):
                if t:
                    self._receive(half, rows)
                if t < steps:
                    self._act(half, torch.arange(rows.start, rows.stop, device=self.env.device))

    def _act(self, half: int, rows: Tensor) -> None:
        observation, due, fresh = self.env.seen[half]
        distribution, self.caches[half] = self.policy.step(observation, self.caches[half], fresh)
        action = draw(distribution, self.env.generator)
        self.env.send(half, action)
        log_prob = distribution.log_prob(action)
        log_prob = log_prob.sum(-1) if log_prob.ndim > 1 else log_prob  # over a code's dimensions
        self._keep("observation", rows, observation if self.env.window > 1 else observation[:, None])
        for name, values in (("action", action), ("chosen", due), ("log_prob", log_prob)):
            self._keep(name, rows, values[:, None])

    def _keep(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Write values (m, w, …) to the next step's place and the w − 1 after it."""
        window = values.shape[1]
        if name not in self.buffers:
            longest = self.env.envs.config.max_steps + window - 1
            self.buffers[name] = values.new_zeros(self.env.num_envs, longest, *values.shape[2:])
        places = self.steps[rows, None] + torch.arange(window, device=rows.device)
        self.buffers[name][rows[:, None], places] = values

    def _receive(self, half: int, rows: slice) -> None:
        rewards, ended = self.env.receive(half)
        self.steps[rows] += 1
        for i in np.flatnonzero(ended):
            row = int(rows.start + i)
            steps = int(self.steps[row])
            parts = [self.buffers[name][row, :steps].clone() for name in ("action", "chosen", "log_prob")]
            observation = self.buffers["observation"][row, : steps + self.env.window - 1].clone()
            self.finished.append(Episode(observation, *parts, float(rewards[i]), row))
            self.steps[row] = 0

    def take(self, least: int = 1) -> Lived | None:
        """The episodes that have ended since the last time, if there are so many."""
        if len(self.finished) < least:
            return None
        observation, action, chosen, log_prob, reward, _ = zip(*self.finished, strict=True)
        self.finished = []
        padded = (pad_sequence(parts, batch_first=True) for parts in (observation, action, chosen, log_prob))
        lengths = torch.tensor([len(steps) for steps in chosen], device=self.env.device)
        return Lived(*padded, torch.tensor(reward, device=self.env.device), lengths)

    def success(self, episodes: int, steps: int = 32) -> np.ndarray:
        """(episodes,) rewards of new episodes, as many from each emulator, so that short ones count no more often."""
        each = -(-episodes // self.env.num_envs)
        rewards: list[list[float]] = [[] for _ in range(self.env.num_envs)]
        while min(map(len, rewards)) < each:
            self.play(steps)
            for episode in self.finished:
                rewards[episode.row].append(episode.reward)
            self.finished = []
        return np.array([row[:each] for row in rewards]).T.flatten()[:episodes]

    def state_dict(self) -> dict:
        """All that going on needs, as plain values, bytes and tensors."""
        used = int(self.steps.max()) + self.env.window - 1
        return {
            "environment": self.env.state_dict(),
            "caches": self.caches,
            "steps": self.steps,
            "buffers": {name: buffer[:, :used].clone() for name, buffer in self.buffers.items()},
            "finished": [tuple(episode) for episode in self.finished],
        }

    def load_state_dict(self, state: dict) -> None:
        """Return to what `state_dict` gave."""
        device = self.env.device
        self.env.load_state_dict(state["environment"])
        self.caches = moved(state["caches"], device)
        self.steps = state["steps"].to(device)
        self.finished = [Episode(*moved(episode, device)) for episode in state["finished"]]
        for name, saved in state["buffers"].items():
            window = self.env.window if name == "observation" else 1
            longest = self.env.envs.config.max_steps + window - 1
            self.buffers[name] = saved.new_zeros(len(saved), longest, *saved.shape[2:], device=device)
            self.buffers[name][:, : saved.shape[1]] = saved.to(device)


def moved(value: object, device: torch.device) -> object:
    """The same with all tensors in lists and tuples on a device."""
    if isinstance(value, list | tuple):
        return type(value)(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value
