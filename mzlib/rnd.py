"""Notebook 07's stage: PPO whose second reward is surprise, the error of predicting a random network (Burda et al.
2018, RND).

python -m mzlib.rnd --profile full
"""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import Tensor

from mzlib import ppo, runs
from mzlib.curiosity import Curiosity, PredictorLoss, RewardScale, novelty_by_room
from mzlib.emulator import ACTIONS, FRAMES_PER_ACTION, GAMES
from mzlib.evaluate import EVALUATION_SEED, SELECTION_SEED, EvaluationProtocol, evaluate
from mzlib.policies import ActorCritic, ActorCriticConfig, ActorCriticPolicy
from mzlib.ppo import PPOConfig
from mzlib.runs import Run, stage_main, torch_threads, train
from mzlib.trajectory import FRAME_SIZE, STACK

EXTRINSIC, INTRINSIC = 0, 1  # the value heads
NOOP_MAX = 30  # raw frames before an episode
TRAINING_SEEDS = SELECTION_SEED  # emulator seeds are below
SCORES_KEPT = 100  # episodes that the training score is a mean of


@dataclass(frozen=True)
class RNDConfig:
    """Settings of one training; the defaults but for sizes are the paper's."""

    game: str = "montezuma_revenge"
    seed: int = 0
    device: str = "auto"
    environments: int = 32
    total_steps: int = 1_000_000  # of all environments together; the warm-up comes on top
    sticky: float = 0.25
    max_steps: int = 4_500  # of an episode
    # PPO
    rollout: int = 128  # steps between updates
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-4
    clip: float = 0.1
    entropy: float = 0.001
    lam: float = 0.95
    gamma: float = 0.999
    channels: tuple[int, ...] = (16, 32, 32)  # of the convolutions: actor-critic, target and predictor
    hidden: int = 256
    # curiosity
    intrinsic_gamma: float = 0.99
    extrinsic_weight: float = 2.0
    intrinsic_weight: float = 1.0
    features: int = 512  # outputs of target and predictor
    predictor_share: float = 0.25  # of each minibatch, what the predictor learns from
    warmup_rollouts: int = 50  # of random actions, for the frames' statistics
    # what is kept
    milestones: int = 8  # moments at which weights are kept and looked at
    episodes: int = 0  # from reset, on selection seeds at each milestone and on evaluation seeds at the end
    checkpoint_every: int = field(default=50, metadata={"free": True})  # updates
    compile: bool = field(default=False, metadata={"free": True})  # the actor-critic, by torch.compile
    threads: int = field(default=0, metadata={"free": True})  # of the emulators; 0: one a core
    workers: int = field(default=0, metadata={"free": True})  # processes that play the episodes; 0: one a core

    def __post_init__(self):
        if self.game not in GAMES:
            raise ValueError(f"game={self.game!r} is not covered; use one of {', '.join(GAMES)}")
        if self.environments < 2 or self.environments % 2:
            raise ValueError(f"environments={self.environments}: an even number is needed, they run in two halves")
        for name in ("rollout", "max_steps", "features", "milestones", "checkpoint_every", "warmup_rollouts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not 0 < self.predictor_share <= 1 or not 0 <= self.sticky < 1 or not 0 <= self.intrinsic_gamma < 1:
            found = f"predictor_share={self.predictor_share}, sticky={self.sticky}"
            raise ValueError(f"{found}, intrinsic_gamma={self.intrinsic_gamma}: shares and probabilities are needed")
        if self.total_steps < self.steps_per_update:
            least = self.steps_per_update
            raise ValueError(f"total_steps={self.total_steps}: one rollout of all environments is {least} steps")
        _ = self.ppo, self.policy

    @property
    def steps_per_update(self) -> int:
        """Environment steps between updates."""
        return self.rollout * self.environments

    @property
    def updates(self) -> int:
        """How many updates there will be."""
        return self.total_steps // self.steps_per_update

    @property
    def ppo(self) -> PPOConfig:
        """PPO's settings; its γ is that of the extrinsic return."""
        names = ("gamma", "lam", "clip", "epochs", "minibatches", "learning_rate", "entropy")
        return PPOConfig(**{name: getattr(self, name) for name in names})

    @property
    def policy(self) -> ActorCriticConfig:
        """The actor-critic's size: one value head for each reward."""
        return ActorCriticConfig(channels=self.channels, hidden=self.hidden, value_heads=2)


# ---- playing


def vector_environment(config: RNDConfig, count: int) -> AtariVectorEnv:
    """`count` emulators in C++ threads; nothing is left to the class's defaults, which clip rewards, press fire at
    reset and have no sticky actions.

    An observation is (count, 1, 84, 84) uint8, a step's single frame; rewards are points. An episode ends with the game
    or after max_steps, no-ops not counted; the step that ends one returns the next one's first frame, so that every
    step is a step of some episode.
    """
    return AtariVectorEnv(
        config.game,
        num_envs=count,
        batch_size=0,  # all at once, in order
        num_threads=config.threads or os.cpu_count(),
        thread_affinity_offset=-1,
        max_num_frames_per_episode=config.max_steps * FRAMES_PER_ACTION,
        repeat_action_probability=config.sticky,
        full_action_space=True,
        continuous=False,
        continuous_action_threshold=0.5,
        autoreset_mode=AutoresetMode.SAME_STEP,
        img_height=FRAME_SIZE,
        img_width=FRAME_SIZE,
        grayscale=True,
        stack_num=1,
        frameskip=FRAMES_PER_ACTION,
        maxpool=True,
        noop_max=NOOP_MAX,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=False,
    )


class Played(NamedTuple):
    """t steps of n environments."""

    frames: Tensor  # (t + 1, n, 4, 84, 84) uint8: stacks, those after the last step too
    actions: Tensor  # (t, n) long
    log_probs: Tensor  # (t, n)
    values: Tensor  # (t + 1, n, 2)
    rewards: Tensor  # (t, n) points
    ended: Tensor  # (t, n) bool: the step ended its episode
    began: Tensor  # (t, n) bool: the stack is an episode's first


class Players:
    """Plays rollouts in two halves in turn: while one half's emulators run, the policy acts for the other.

    Stacks are made here, as `policies.ActorCriticPolicy` makes them: an episode's first frame fills its stack. halves:
    two vector environments of equal size.
    """

    def __init__(self, config: RNDConfig, policy: ActorCritic, halves: tuple[AtariVectorEnv, AtariVectorEnv]):
        self.config, self.policy, self.halves = config, policy, halves
        self.device = policy.policy_head.bias.device
        steps, count = config.rollout, config.environments
        self.rows = (slice(0, count // 2), slice(count // 2, count))
        stacks = torch.zeros(steps + 1, count, FRAME_SIZE, FRAME_SIZE, STACK, dtype=torch.uint8, device=self.device)
        self.frames = stacks.permute(0, 1, 4, 2, 3)  # lies in memory as convolutions want it: twice as fast to read
        self.actions = torch.zeros(steps, count, dtype=torch.long, device=self.device)
        self.log_probs = torch.zeros(steps, count, device=self.device)
        self.values = torch.zeros(steps + 1, count, 2, device=self.device)
        self.rewards = np.zeros((steps, count), np.float32)
        self.ended = np.zeros((steps, count), bool)
        self.first = np.ones(count, bool)  # the next step's stacks are episodes' first ones
        self.fresh = True  # they lie at place 0 of `frames`, not at the end of the last rollout
        self.running = np.zeros(count)  # scores of the episodes under way
        self.finished: list[float] = []  # scores of those that ended since it was last emptied

    def reset(self, seed: int) -> None:
        """Begin new episodes; emulators are seeded with `seed` and the numbers after it."""
        for half, rows in zip(self.halves, self.rows, strict=True):
            frame, _ = half.reset(seed=seed + rows.start)
            self.frames[0, rows] = torch.from_numpy(frame).to(self.device)
        self.first[:], self.fresh, self.running[:] = True, True, 0

    def random_frames(self, rng: np.random.Generator) -> Tensor:
        """(t · n, 84, 84) uint8: single frames of a rollout of random actions, begun where the last one ended."""
        seen = []
        for _ in range(self.config.rollout):
            for half, rows in zip(self.halves, self.rows, strict=True):
                half.send(rng.integers(len(ACTIONS), size=rows.stop - rows.start))
            seen += [half.recv()[0] for half in self.halves]
        return torch.from_numpy(np.concatenate(seen))[:, 0]

    @torch.no_grad()
    def rollout(self) -> Played:
        """Play; what is returned is overwritten by the next rollout."""
        steps = self.config.rollout
        if not self.fresh:
            self.frames[0] = self.frames[steps]
        self.fresh = False
        began = np.empty_like(self.ended)
        began[0] = self.first
        for number in range(2):
            self._act(number, 0)
        for t in range(steps):
            for number in range(2):
                self._receive(number, t)
                self._act(number, t + 1)
        began[1:] = self.ended[:-1]
        self.first = self.ended[-1].copy()
        rewards, ended, began = (torch.from_numpy(x).to(self.device) for x in (self.rewards, self.ended, began))
        return Played(self.frames, self.actions, self.log_probs, self.values, rewards, ended, began)

    def _act(self, number: int, t: int) -> None:
        """Value a half's stacks at step t and, but for those after the last step, send it on its way."""
        rows = self.rows[number]
        stacks = self.frames[t, rows]
        state, began = self.policy.init_state(len(stacks)), stacks.new_zeros(len(stacks), dtype=torch.bool)
        with self.config.ppo.arithmetic(self.device):
            logits, values, _ = self.policy.step(stacks, state, began)
        self.values[t, rows] = values.float()
        if t == self.config.rollout:
            return
        log_p = logits.float().log_softmax(-1)
        actions = torch.multinomial(log_p.exp(), 1)
        self.halves[number].send(actions[:, 0].cpu().numpy())
        self.actions[t, rows], self.log_probs[t, rows] = actions[:, 0], log_p.gather(-1, actions)[:, 0]

    def _receive(self, number: int, t: int) -> None:
        """Take in what step t led a half to."""
        rows = self.rows[number]
        frame, rewards, terminated, truncated, _ = self.halves[number].recv()
        ended = terminated | truncated
        frame = torch.from_numpy(frame).to(self.device)
        after = self.frames[t + 1, rows]
        after[:, :-1] = self.frames[t, rows, 1:]
        after[:, -1:] = frame
        if ended.any():
            begins = torch.from_numpy(ended).to(self.device)
            after[begins] = frame[begins].expand(-1, STACK, -1, -1)
        self.rewards[t, rows], self.ended[t, rows] = rewards, ended
        running = self.running[rows]
        running += rewards
        self.finished += running[ended].tolist()
        running[ended] = 0


# ---- learning


class Progress:
    """What has happened so far, beyond the weights."""

    def __init__(self):
        self.values = {"steps": 0, "warmup_steps": 0, "episodes": 0, "best_score": 0.0, "first_points_step": -1}
        self.values["scores"] = []  # of the last episodes

    def state_dict(self) -> dict:
        """All of it."""
        return dict(self.values)

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        self.values = {name: state[name] for name in self.values}


class Learner:
    """Actor-critic, curiosity and their optimiser; `parts` is all that a checkpoint holds."""

    def __init__(self, config: RNDConfig):
        self.config, self.device = config, runs.pick_device(config.device)
        self.policy = ActorCritic(config.policy).to(self.device)
        self.curiosity = Curiosity(config.channels, config.features).to(self.device)
        if config.compile:
            self.policy.features = torch.compile(self.policy.features)
        weights = [*self.policy.parameters(), *self.curiosity.predictor.parameters()]
        self.optimiser = torch.optim.Adam(weights, config.learning_rate, fused=self.device != "mps")
        self.scale = RewardScale(config.intrinsic_gamma, config.environments)
        self.progress = Progress()
        self.parts = {"policy": self.policy, "curiosity": self.curiosity, "optimiser": self.optimiser}
        self.parts |= {"frame_moments": self.curiosity.frames, "scale": self.scale, "progress": self.progress}

    def intrinsic_rewards(self, played: Played) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards (t, n) before scaling, of the single frames that the steps led to, with those frames (t · n, 84, 84)
        and their targets.

        The frames enter the statistics first: rewards and the predictor's training then see them alike, and the
        targets need computing once.
        """
        frames = played.frames[1:, :, -1].flatten(0, 1)
        self.curiosity.frames.update(frames)
        errors, targets = self.curiosity.novelty(frames)
        return errors.view_as(played.rewards), frames, targets

    def advantages(self, played: Played, intrinsic: Tensor) -> tuple[Tensor, Tensor]:
        """A = w_ext A_ext + w_int A_int (t, n), and returns (t, n, 2). intrinsic: (t, n), scaled.

        Points count by their sign only, and up to the episode's end; curiosity goes on past it (Burda et al. 2018,
        §2.3).
        """
        config, never = self.config, torch.zeros_like(played.ended)
        extrinsic, points = ppo.gae(
            played.rewards.sign(), played.values[..., EXTRINSIC], played.ended, config.gamma, config.lam
        )
        curious, surprise = ppo.gae(intrinsic, played.values[..., INTRINSIC], never, config.intrinsic_gamma, config.lam)
        total = config.extrinsic_weight * extrinsic + config.intrinsic_weight * curious
        return total, torch.stack([points, surprise], -1)

    def update(self, played: Played) -> dict[str, float]:
        """One update of policy and predictor; what to log."""
        config = self.config
        raw, frames, targets = self.intrinsic_rewards(played)
        advantages, returns = self.advantages(played, self.scale(raw))
        state = self.policy.init_state(config.environments)
        rollout = ppo.Rollout(
            played.frames[:-1],
            played.actions,
            played.log_probs,
            played.values[:-1],
            played.began,
            state,
            torch.ones_like(played.log_probs),
        )
        loss = PredictorLoss(self.curiosity, frames, targets, config.minibatches, config.predictor_share)
        found = ppo.update(self.policy, self.optimiser, rollout, advantages, returns, config.ppo, auxiliary=loss)
        found["prediction_error"] = raw.mean().item()
        found["intrinsic_value"] = played.values[..., INTRINSIC].mean().item()
        return found | {"predictor_loss": found.pop("auxiliary_loss")}

    def count(self, played: Played, finished: list[float]) -> dict[str, float]:
        """Take the rollout's steps, points and finished episodes into account; what to log of them."""
        values, rewarded = self.progress.values, (played.rewards > 0).any(1).nonzero()
        if values["first_points_step"] < 0 and len(rewarded):
            values["first_points_step"] = values["steps"] + (int(rewarded[0, 0]) + 1) * self.config.environments
        values["steps"] += self.config.steps_per_update
        values["episodes"] += len(finished)
        values["scores"] = [*values["scores"], *finished][-SCORES_KEPT:]
        values["best_score"] = max([values["best_score"], *finished])
        row = {"environment_steps": values["steps"], "episodes": values["episodes"]}
        row |= {"points": played.rewards.sum().item(), "best_score": values["best_score"]}
        return row | ({"score": float(np.mean(values["scores"]))} if values["scores"] else {})


# ---- the stage


def load_curiosity(config: RNDConfig, checkpoint: Path) -> Curiosity:
    """The curiosity that a checkpoint of a training with this configuration holds, on the CPU."""
    curiosity = Curiosity(config.channels, config.features)
    runs.load_training(checkpoint, {"curiosity": curiosity, "frame_moments": curiosity.frames})
    return curiosity


def play(config: RNDConfig, weights: Path, first_seed: int) -> dict:
    """The policy from reset on `episodes` seeds, as `evaluate` sums them up: a life lost is no new beginning."""
    protocol = EvaluationProtocol(
        game=config.game,
        sticky=config.sticky,
        noop_max=NOOP_MAX,
        max_frames=config.max_steps * FRAMES_PER_ACTION,
        episodes=config.episodes,
        first_seed=first_seed,
    )
    with torch_threads():  # a policy that plays takes one
        return evaluate(partial(ActorCriticPolicy, weights, forgets_lives=False), protocol, config.workers)


def milestone_updates(config: RNDConfig) -> list[int]:
    """The numbers of updates after which weights are kept: `milestones` of them, evenly, the last one always."""
    return sorted({max(1, round(config.updates * k / config.milestones)) for k in range(1, config.milestones + 1)})


def milestone(config: RNDConfig, run: Run, learner: Learner) -> dict:
    """Keep the weights, play from reset if asked, look at every room; what to log of it."""
    steps, row = learner.progress.values["steps"], {}
    weights = run.checkpoints / f"policy-{steps}.safetensors"
    runs.save_weights(weights, learner.policy, steps=steps)
    kept = {name: learner.parts[name] for name in ("curiosity", "frame_moments")}
    runs.save_training(run.checkpoints / f"curiosity-{steps}.pt", steps, kept)
    if config.episodes:
        played = play(config, weights, SELECTION_SEED)
        names = ("mean", "first_key_rate", "rooms_max", "visited")
        row["selection"] = {"steps": steps} | {name: played[name] for name in names}
    looks = [old["selection"] for old in [*run.metrics(), row] if "selection" in old]
    best = max(looks, key=lambda look: (look["mean"], look["rooms_max"]))["steps"] if looks else steps
    copy_weights(run.checkpoints / f"policy-{best}", run.checkpoints / "best")
    if config.game == "montezuma_revenge":
        row["room_novelty"] = novelty_by_room(learner.curiosity)
    return row


def copy_weights(weights: Path, to: Path) -> None:
    """Copy a .safetensors file and its JSON; both names without suffix."""
    for suffix in (".safetensors", ".json"):
        runs.write_atomic(to.with_name(to.name + suffix), weights.with_name(weights.name + suffix).read_bytes())


def run(config: RNDConfig, run: Run) -> dict:
    """Train, keep milestones and the best of them, play; resumed where it left off.

    A resumed training has its weights, optimiser, statistics and counts back exactly, and begins new episodes: a vector
    environment's emulators can't be saved. Hence it isn't the one that would have come without the interruption.
    """
    if run.final is not None:
        return run.final
    runs.seed_everything(config.seed)
    learner = Learner(config)
    halves = tuple(vector_environment(config, config.environments // 2) for _ in range(2))
    players = Players(config, learner.policy, halves)
    keep, begun = milestone_updates(config), False

    def update(step: int) -> dict[str, float]:
        nonlocal begun
        if not begun:
            rng = np.random.default_rng((config.seed, step))
            seeds = TRAINING_SEEDS - config.environments
            players.reset(int(rng.integers(seeds)))
            if not learner.curiosity.frames.count:
                for _ in range(config.warmup_rollouts):
                    learner.curiosity.frames.update(players.random_frames(rng))
                learner.progress.values["warmup_steps"] = config.warmup_rollouts * config.steps_per_update
                players.reset(int(rng.integers(seeds)))
            begun = True
        with torch_threads(1):
            played = players.rollout()
        row = learner.count(played, players.finished) | learner.update(played)
        players.finished.clear()
        return row | (milestone(config, run, learner) if step + 1 in keep else {})

    every = config.checkpoint_every
    train(run, "rnd", config.updates, update, learner.parts, checkpoint_every=every, headline="score")
    copy_weights(run.checkpoints / "best", run.folder / "policy")
    values = learner.progress.values
    found = {name: values[name] for name in ("steps", "warmup_steps", "episodes", "best_score")}
    found |= {"first_points_step": values["first_points_step"] if values["first_points_step"] >= 0 else None}
    scored = [row["score"] for row in run.metrics() if "score" in row]
    found["training_score"] = scored[-1] if scored else None
    protocol = {"training": "points by their sign, no end with a life, scores are the game's points"}
    if config.episodes:
        played = play(config, run.folder / "policy.safetensors", EVALUATION_SEED)
        found |= {name: value for name, value in played.items() if name not in ("protocol", "steps", "episodes")}
        protocol |= played["protocol"]
    return run.finish(**found, parameters=sum(p.numel() for p in learner.policy.parameters()), protocol=protocol)


if __name__ == "__main__":
    stage_main("rnd", "07_rnd", RNDConfig, run)
