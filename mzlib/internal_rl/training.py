"""The stage: reinforcement of a code policy, or of the backbone's own actions, on one of Montezuma's tasks."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from mzlib import runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.backbone.residuals import check_layout
from mzlib.evaluate import SELECTION_SEED, bootstrap_interval
from mzlib.internal_rl.options import ActionVectorEnv, Episodes, OptionVectorEnv
from mzlib.internal_rl.policies import ActionPolicy, CodePolicy, Critic
from mzlib.internal_rl.tasks import Task
from mzlib.internal_rl.updates import InternalRLConfig, update
from mzlib.metacontroller import Metacontroller
from mzlib.places import GOALS
from mzlib.runs import Run, train
from mzlib.steering import load_metacontroller
from mzlib.vecenv import VecEnvConfig

CHECKPOINT_EVERY = 10  # iterations
CODE_BOUND = 3.0  # of a code policy's mean: further out lie codes that the metacontroller was never trained with


@dataclass(frozen=True)
class ReinforceConfig:
    """Settings of one reinforcement; the baselines too.

    acts "actions" is raw-action RL from the same backbone; estimator "none" leaves the policy as it begins: with codes
    those from the prior, with actions the clone as it is. switch_rate 1 is β ≡ 1; with beta_threshold 1 only
    switch_rate opens the switch.
    """

    backbone: str = "shipped"  # or "run": the same profile's 02_bc; or a .safetensors file
    metacontroller: str = "shipped"  # likewise, 03_metacontroller
    seed: int = 0
    device: str = "auto"
    # the task
    places: tuple[int, ...] = ()  # from where the places data is at the first one to the others in order
    points: int = 100  # without places: to be won from reset
    max_steps: int = 300  # of an episode
    sticky: float = 0.25
    # who acts
    acts: str = "codes"  # or "actions"
    temperature: float = 0.5  # of the backbone's actions
    beta_threshold: float = 0.5
    switch_rate: int | None = None  # a new code every so many steps at least; None: as trained
    policy_width: int = 256  # of code policy and critic
    upper_only: bool = False  # raw actions: of the backbone only what comes after block l is trained
    # learning
    estimator: str = "episode"  # the paper's, critic-free; "gae": PPO with a critic; "none"
    total_steps: int = 300_000  # emulator steps of all environments together
    environments: int = 64
    rollout: int = 64  # steps of each environment between updates
    batch: int = 32  # an update waits for so many episodes to have ended
    learning_rate: float = 3e-4
    epochs: int = 2
    minibatches: int = 4
    clip: float = 0.2
    gamma: float = 0.999
    lam: float = 0.95
    # what is known at the end
    episodes: int = 0  # of the task, on selection seeds
    upstream_steps: int = 0  # emulator steps that the demos and the backbone have cost, for the account
    workers: int = field(default=0, metadata={"free": True})  # processes; 0: one a core

    def __post_init__(self):
        for name, allowed in (("acts", ("codes", "actions")), ("estimator", ("episode", "gae", "none"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use {' or '.join(allowed)}")
        if len(self.places) == 1 or not set(self.places) <= set(range(len(GOALS))):
            raise ValueError(f"places={self.places}: give two or more of 0 to {len(GOALS) - 1}, or none")
        for name in ("points", "rollout", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: must be above 0")
        if self.total_steps < self.steps_per_iteration:
            least = self.steps_per_iteration
            raise ValueError(f"total_steps={self.total_steps}: one rollout of all environments is {least} steps")
        if not 0 <= 100 * self.seed <= SELECTION_SEED - self.environments:
            raise ValueError(f"seed={self.seed}: emulators take the seeds from 100 · seed on, below {SELECTION_SEED}")
        _ = self.updates, self.vecenv(0)

    @property
    def steps_per_iteration(self) -> int:
        """Emulator steps of a rollout."""
        return self.rollout * self.environments

    @property
    def updates(self) -> InternalRLConfig:
        """The updates' settings."""
        names = ("epochs", "minibatches", "clip", "learning_rate", "beta_threshold", "gamma", "lam")
        return InternalRLConfig(**{name: getattr(self, name) for name in names})

    def vecenv(self, first_seed: int) -> VecEnvConfig:
        """The emulators' settings."""
        shared = {name: getattr(self, name) for name in ("workers", "sticky", "max_steps")}
        return VecEnvConfig(count=self.environments, seed=first_seed, life_loss_ends=True, **shared)


class Upstream(NamedTuple):
    """What a reinforcement builds on, frozen."""

    backbone: MontezumaVLM
    metacontroller: Metacontroller | None  # None for raw actions
    sha256: dict[str, str]  # of their weights


def upstream(config: ReinforceConfig, profile: str) -> Upstream:
    """Backbone and metacontroller; ValueError for a pair that doesn't belong together, or a backbone that sees its
    actions."""
    device = runs.pick_device(config.device)
    path = runs.upstream_weights("backbone", config.backbone, profile, "02_bc")
    backbone = runs.load_weights(path, MontezumaVLM, BackboneConfig)[0].to(device).requires_grad_(False).eval()
    check_layout(backbone)
    if backbone.config.see_actions:
        raise ValueError(f"backbone={config.backbone!r}: it sees its actions; take one that sees observations only")
    sha256 = {"backbone": runs.weights_sha256(path)}
    if config.acts == "actions":
        return Upstream(backbone, None, sha256)
    other = runs.upstream_weights("metacontroller", config.metacontroller, profile, "03_metacontroller")
    metacontroller = load_metacontroller(other, path, config.switch_rate).to(device)
    return Upstream(backbone, metacontroller, sha256 | {"metacontroller": runs.weights_sha256(other)})


def environment(config: ReinforceConfig, parts: Upstream, task: Task, first_seed: int) -> ActionVectorEnv:
    """The emulators, seeded from `first_seed` on, behind the frozen parts if codes act."""
    sizes = config.vecenv(first_seed)
    if parts.metacontroller is None:
        return ActionVectorEnv(sizes, task, first_seed, parts.backbone.device)
    acting = config.beta_threshold, config.temperature
    return OptionVectorEnv(sizes, task, parts.backbone, parts.metacontroller, *acting, seed=first_seed)


def policy_of(config: ReinforceConfig, parts: Upstream) -> CodePolicy | ActionPolicy:
    """The policy as it begins: codes from the prior, or the clone."""
    if parts.metacontroller is None:
        return ActionPolicy(parts.backbone, config.temperature, config.upper_only)
    width, dim = parts.backbone.config.width, parts.metacontroller.config.code_dim
    return CodePolicy(width, dim, config.policy_width, CODE_BOUND).to(parts.backbone.device)


def save(config: ReinforceConfig, policy: CodePolicy | ActionPolicy, folder: Path, sha256: dict[str, str]) -> str:
    """Write the policy as weights: `agent.safetensors`, which names backbone and metacontroller, or a backbone."""
    if config.acts == "actions":
        return runs.save_weights(folder / "backbone.safetensors", policy.backbone, reinforced_from=sha256["backbone"])
    return runs.save_weights(folder / "agent.safetensors", policy, **sha256)


def run(config: ReinforceConfig, run: Run) -> dict:
    """Reinforce, save, count successes on selection seeds; resumed where it left off."""
    if run.final is not None:
        return run.final
    runs.seed_everything(config.seed)
    parts = upstream(config, run.profile)
    task = Task(config.places, config.points, config.workers)
    policy, critic = policy_of(config, parts), None
    if config.estimator == "gae":
        critic = Critic(parts.backbone.config.width, config.policy_width).to(parts.backbone.device)
    trained = {"policy": policy} | ({"critic": critic} if critic is not None else {})
    weights = [weight for part in trained.values() for weight in part.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, config.learning_rate, weight_decay=0.0)
    iterations = config.total_steps // config.steps_per_iteration
    with closing(environment(config, parts, task, 100 * config.seed)) as env:
        episodes = Episodes(env, policy)

        def improve(iteration: int) -> dict[str, float] | None:
            episodes.play(config.rollout)
            lived = episodes.take(config.batch)
            if lived is None:
                return None
            if config.estimator != "none":
                update(policy, critic, optimiser, lived, config.updates)
            return {
                "environment_steps": (iteration + 1) * config.steps_per_iteration,
                "episodes": len(lived.returns),
                "success": lived.returns.mean().item(),
                "length": lived.lengths.float().mean().item(),
                "options": lived.chosen.sum(1).float().mean().item(),
            }

        kept = trained | {"optimiser": optimiser, "episodes": episodes}
        train(run, "policy", iterations, improve, kept, checkpoint_every=CHECKPOINT_EVERY, headline="success")
    sha256, found = save(config, policy, run.folder, parts.sha256), {}
    if config.episodes:
        with closing(environment(config, parts, task, SELECTION_SEED)) as env:
            won = Episodes(env, policy).success(config.episodes)
        found = {"success": won.mean(), "success_interval": bootstrap_interval(won), "success_episodes": len(won)}
    what = " to ".join(GOALS[goal].name for goal in config.places) or f"{config.points} points from reset"
    return run.finish(
        **found,
        sha256=sha256,
        **{f"{name}_sha256": value for name, value in parts.sha256.items()},
        steps=iterations * config.steps_per_iteration,
        upstream_steps=config.upstream_steps,
        parameters=sum(weight.numel() for weight in policy.parameters() if weight.requires_grad),
        protocol={"task": what, "reward": "1 at the end", "sticky": config.sticky, "success": "one life, own seeds"},
    )
