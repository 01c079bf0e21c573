"""The stage: PPO on episodes that begin on the demos, and the policy it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mzlib import demos, ppo, runs
from mzlib.demos import Demo
from mzlib.evaluate import SELECTION_SEED, EvaluationProtocol, evaluate
from mzlib.policies import ActorCritic, ActorCriticConfig, ActorCriticPolicy
from mzlib.ppo import PPOConfig, Rollout
from mzlib.robustify.curriculum import LABELS, Curriculum, CurriculumConfig, Tape, shortest, tapes
from mzlib.runs import Run, torch_threads, train
from mzlib.vecenv import Start, VecEnv, VecEnvConfig

NOOP_MAX = 30  # raw frames after a reset, as in evaluation
CHECKPOINT_EVERY = 10  # updates


@dataclass(frozen=True)
class RobustifyConfig:
    """Settings of one robustification; the defaults take ten demos of the first key back to reset on a CPU."""

    demos: str = "shipped"  # or "run": the best of the same profile's 05_go_explore
    goal: int = 100  # points at which the demos are cut: 100 the first key, 400 a door
    demo_count: int = 10  # the shortest
    seed: int = 0
    device: str = "auto"
    total_steps: int = 800_000
    # episodes
    environments: int = 64
    sticky: float = 0.25
    two_frame_maximum: bool = True  # in training; a policy is played with it
    lag: int = 60  # steps by which the demo's points may be late
    window: int = 10
    move: int = 6
    threshold: float = 0.2
    later: float = 0.0
    warm_up: int = 0  # of the demo's steps taken before the start, left out of the losses: fills a GRU's memory
    # the policy and PPO
    begin_with: str = ""  # weights of an earlier policy (.safetensors), such as one for a nearer goal
    recurrent: bool = False
    rollout: int = 64  # steps
    learning_rate: float = 0.0005
    clip: float = 0.2
    epochs: int = 3
    minibatches: int = 16
    entropy: float = 0.003
    gamma: float = 0.999
    lam: float = 0.95
    reward_scale: float = 0.01  # of a point
    imitation: float = 0.0  # weight of self-imitation on the demos' own steps, times 1 − success
    # from reset, at the end
    episodes: int = 0
    workers: int = field(default=0, metadata={"free": True})  # processes; 0: one a core

    def __post_init__(self):
        for name in ("goal", "demo_count", "total_steps", "environments", "rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 <= 100 * self.seed <= SELECTION_SEED - self.environments:
            raise ValueError(f"seed={self.seed}: emulators take the seeds from 100 · seed on, below {SELECTION_SEED}")
        if self.imitation and self.recurrent:
            raise ValueError("imitation: single steps of demos have no memory; set recurrent=false or imitation=0")

    @property
    def ppo(self) -> PPOConfig:
        """PPO's settings."""
        names = ("gamma", "lam", "clip", "epochs", "minibatches", "learning_rate", "entropy")
        return PPOConfig(**{name: getattr(self, name) for name in names})

    @property
    def curriculum(self) -> CurriculumConfig:
        """The curriculum's settings."""
        return CurriculumConfig(self.window, self.move, self.threshold, later=self.later)

    @property
    def vecenv(self) -> VecEnvConfig:
        """The environments' settings: a lost life ends an episode."""
        return VecEnvConfig(
            count=self.environments,
            workers=self.workers,
            seed=100 * self.seed,
            sticky=self.sticky,
            two_frame_maximum=self.two_frame_maximum,
            life_loss_ends=True,
            lag=self.lag,
        )


class Backward:
    """Environments in play on the demos' steps, and PPO's updates from them.

    Used as a context; `state_dict` holds all that a resumed training needs besides policy and optimiser.
    """

    acting_threads: int | None = 1  # None: all

    def __init__(self, config: RobustifyConfig, policy: ActorCritic, chosen: Sequence[Demo]):
        self.config, self.policy = config, policy
        self.device = next(policy.parameters()).device
        fused = self.device.type != "mps"
        self.optimiser = torch.optim.Adam(policy.parameters(), config.learning_rate, eps=1e-5, fused=fused)
        self.tapes = tapes(chosen, config.workers or None, config.two_frame_maximum)
        self.curriculum = Curriculum(config.curriculum, [len(tape) for tape in self.tapes], config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.environments = VecEnv(config.vecenv)
        n, self.fresh = config.environments, True
        self.forced: list[list[int]] = [[] for _ in range(n)]  # the demo's actions that warm an episode up
        self.next_forced: list[list[int]] = [[] for _ in range(n)]
        self.began = torch.ones(n, dtype=torch.bool)
        self.memory = policy.init_state(n)
        self.demonstrated = Demonstrated(self.tapes, config) if config.imitation else None

    def __enter__(self) -> "Backward":
        return self

    def __exit__(self, *_) -> None:
        self.environments.close()

    def draw(self) -> tuple[Start, list[int]]:
        """Where an episode begins, and the demo's actions that lead on to its starting point."""
        demo, step = self.curriculum.draw()
        before = min(self.config.warm_up, step)
        noops = int(self.curriculum.rng.integers(NOOP_MAX + 1))
        tape = self.tapes[demo]
        start = tape.start(step - before, demo * LABELS + step, noops)
        return start, tape.actions[step - before : step].tolist()

    def begin(self) -> None:
        """The first episodes."""
        starts, self.forced = zip(*(self.draw() for _ in self.forced), strict=True)
        self.forced = list(self.forced)
        self.environments.start(starts)
        for i in range(len(self.forced)):
            self._supply(i)
        self.fresh = False

    def _supply(self, i: int) -> None:
        start, self.next_forced[i] = self.draw()
        self.environments.supply(i, start)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, Tensor, Tensor, Tensor, dict[str, float]]:
        """Play `rollout` steps in every environment: the rollout, rewards (t, b), values after (b,), ended (t, b), and
        what happened.

        The two halves take turns: the policy acts for one while the emulators step the other.
        """
        if self.fresh:
            self.begin()
        envs, steps, n = self.environments, self.config.rollout, self.config.environments
        frames = torch.zeros(steps, n, *envs.frames.shape[1:], dtype=torch.uint8)
        actions, log_probs = torch.zeros(steps, n, dtype=torch.long), torch.zeros(steps, n)
        values, rewards = torch.zeros(steps + 1, n), torch.zeros(steps, n)
        began, ended = torch.zeros(steps, n, dtype=torch.bool), torch.zeros(steps, n, dtype=torch.bool)
        weight, initial = torch.ones(steps, n), self.memory.clone()
        self.tally = {"episodes": 0, "succeeded": 0, "resets": 0, "reset_succeeded": 0}
        for t in range(steps + 1):
            for half, rows in enumerate(envs.halves):
                if t:
                    rewards[t - 1, rows] = torch.from_numpy(envs.receive(half) * np.float32(self.config.reward_scale))
                    ended[t - 1, rows] = torch.from_numpy(envs.ended[rows].copy())
                    self._ends(range(rows.start, rows.stop))
                seen = torch.from_numpy(envs.frames[rows]).to(self.device)
                with self.config.ppo.arithmetic(self.device):
                    logits, value, memory = self.policy.step(seen, self.memory[rows], self.began[rows].to(self.device))
                values[t, rows] = value[:, 0].cpu()
                if t == steps:
                    continue
                frames[t, rows], began[t, rows] = seen.cpu(), self.began[rows]
                self.memory[rows], self.began[rows] = memory, False
                log_p = logits.log_softmax(-1).cpu()
                taken = torch.multinomial(log_p.exp(), 1, generator=self.generator)[:, 0]
                for j, i in enumerate(range(rows.start, rows.stop)):
                    if self.forced[i]:
                        taken[j], weight[t, i] = self.forced[i].pop(0), 0
                actions[t, rows], log_probs[t, rows] = taken, log_p.gather(1, taken[:, None])[:, 0]
                envs.send(taken.numpy(), half)
        parts = (frames, actions, log_probs, values[:-1, :, None], began, initial, weight)
        return Rollout(*(x.to(self.device) for x in parts)), rewards, values, ended, self.tally

    def _ends(self, rows: range) -> None:
        """Tell the curriculum how episodes ended, and say where the next ones begin."""
        envs = self.environments
        for i in rows:
            if not envs.ended[i]:
                continue
            demo, step = divmod(int(envs.labels[i]), LABELS)
            succeeded = bool(envs.succeeded[i])
            if not self.forced[i]:  # else it died while it was led
                self.curriculum.record(demo, step, succeeded)
                self.tally["episodes"] += 1
                self.tally["succeeded"] += succeeded
                self.tally["resets"] += step == 0
                self.tally["reset_succeeded"] += step == 0 and succeeded
            self.forced[i] = self.next_forced[i]
            self.began[i] = True
            self._supply(i)

    def improve(self, share: float) -> dict[str, float]:
        """Play a rollout, update the policy on it, move the starts; share: of the training done, for the learning rate,
        which falls to a tenth of its own in the last half."""
        with torch_threads(self.acting_threads):
            rollout, rewards, values, ended, tally = self.collect()
        advantages, returns = ppo.gae(rewards, values, ended, self.config.gamma, self.config.lam)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, 0.1 + 1.8 * (1 - share))
        advantages, returns = advantages.to(self.device), returns.to(self.device)
        imitate = None
        if self.demonstrated is not None:
            weight = self.config.imitation * (1 - self.curriculum.success)
            imitate = partial(self.demonstrated.loss, self.policy, self.generator, weight)
        losses = ppo.update(
            self.policy, self.optimiser, rollout, advantages, returns, self.config.ppo, self.generator,
            auxiliary=imitate,
        )  # fmt: skip
        self.curriculum.move()
        return tally | {"success": self.curriculum.success, "earliest": list(self.curriculum.earliest)} | losses

    def state_dict(self) -> dict:
        """Plain values, bytes and tensors, for a checkpoint."""
        return {
            "fresh": self.fresh,
            "curriculum": self.curriculum.state_dict(),
            "generator": self.generator.get_state(),
            "environments": None if self.fresh else self.environments.save(),
            "forced": self.forced,
            "next_forced": self.next_forced,
            "began": self.began,
            "memory": self.memory,
        }

    def load_state_dict(self, state: dict) -> None:
        """Return to what `state_dict` gave."""
        self.curriculum.load_state_dict(state["curriculum"])
        self.generator.set_state(state["generator"])
        if not state["fresh"]:
            self.environments.load(state["environments"])
        for name in ("fresh", "forced", "next_forced"):
            setattr(self, name, state[name])
        self.began, self.memory = state["began"].clone(), state["memory"].to(self.device).clone()


class Demonstrated:
    """The demos' own steps and returns, to imitate (Oh et al. 2018, self-imitation learning)."""

    BATCH = 128

    def __init__(self, replays: Sequence[Tape], config: RobustifyConfig):
        self.replays, self.arithmetic = replays, config.ppo.arithmetic
        self.index = np.array([(demo, step) for demo, tape in enumerate(replays) for step in range(len(tape))])
        self.returns = [discounted(np.diff(tape.points) * config.reward_scale, config.gamma) for tape in replays]

    def loss(self, policy: ActorCritic, generator: torch.Generator, weight: float) -> Tensor:
        """(R − V)₊ (−ln π(a) + ½ · 0.01 (R − V)₊) over drawn steps, times `weight` (Oh et al. 2018, Eq. 1 to 3)."""
        device = next(policy.parameters()).device
        drawn = self.index[torch.randint(len(self.index), (self.BATCH,), generator=generator).numpy()].tolist()
        frames = torch.from_numpy(np.stack([self.replays[demo].stack(step) for demo, step in drawn])).to(device)
        actions = torch.tensor([int(self.replays[demo].actions[step]) for demo, step in drawn], device=device)
        returns = torch.tensor([self.returns[demo][step] for demo, step in drawn], device=device)
        began = torch.ones_like(actions, dtype=bool)
        with self.arithmetic(device):
            logits, values, _ = policy.step(frames, policy.init_state(self.BATCH), began)
        surplus = (returns - values[:, 0]).clamp(min=0)
        chosen = logits.log_softmax(-1).gather(1, actions[:, None])[:, 0]
        return weight * (-chosen * surplus.detach() + 0.005 * surplus.square()).mean()


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """(T,) float32: the discounted sum of rewards from each step on."""
    returns, later = np.zeros(len(rewards), np.float32), 0.0
    for t in reversed(range(len(rewards))):
        returns[t] = later = rewards[t] + gamma * later
    return returns


def first_policy(config: RobustifyConfig) -> tuple[ActorCritic, int]:
    """A new policy, or the one to begin with, and the environment steps that were spent on it."""
    sizes = ActorCriticConfig(config.recurrent)
    if not config.begin_with:
        return ActorCritic(sizes), 0
    policy, about = runs.load_weights(runs.given_path(config.begin_with), ActorCritic, ActorCriticConfig)
    if policy.config != sizes:
        raise ValueError(f"begin_with={config.begin_with!r}: {policy.config}, wanted is {sizes}; set recurrent alike")
    return policy, about.get("environment_steps", 0)


def run(config: RobustifyConfig, run: Run) -> dict:
    """Take the demos back to reset, save the policy, play it from reset on selection seeds; resumed where it left
    off."""
    if run.final is not None:
        return run.final
    runs.seed_everything(config.seed)
    chosen = shortest(demos.upstream(config.demos, run.profile), config.goal, config.demo_count)
    policy, earlier = first_policy(config)
    policy = policy.to(runs.pick_device(config.device))
    a_rollout = config.rollout * config.environments
    iterations = max(1, config.total_steps // a_rollout)
    with Backward(config, policy, chosen) as backward:

        def update(iteration: int) -> dict[str, float]:
            values = backward.improve(iteration / iterations)
            return {"environment_steps": (iteration + 1) * a_rollout} | values

        parts = {"policy": policy, "optimiser": backward.optimiser, "backward": backward}
        train(run, "policy", iterations, update, parts, checkpoint_every=CHECKPOINT_EVERY, headline="success")
        earliest = backward.curriculum.earliest
    steps = iterations * a_rollout
    sha256 = runs.save_weights(run.folder / "policy.safetensors", policy, environment_steps=earlier + steps)
    found = {"demos": len(chosen), "demo_steps": [len(demo) for demo in chosen], "earliest": earliest}
    if config.episodes:
        protocol = EvaluationProtocol(episodes=config.episodes, first_seed=SELECTION_SEED)
        played = evaluate(partial(ActorCriticPolicy, run.folder / "policy.safetensors"), protocol, config.workers)
        names = ("mean", "first_life_mean", "first_key_rate", "first_life_key_rate")
        found |= {name: played[name] for name in names}
    return run.finish(
        **found,
        sha256=sha256,
        steps=steps,
        upstream_steps=earlier,
        protocol={"training": "sticky, a lost life ends an episode", "acting": "from reset, selection seeds"},
    )
