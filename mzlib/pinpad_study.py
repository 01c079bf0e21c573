"""Notebook 00's stage: on the grid world, clone a backbone, let a metacontroller find subgoals in it, reinforce in code
space."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mzlib import internal_rl, runs
from mzlib.backbone import PinpadBackbone, PinpadBackboneConfig, clone_loss
from mzlib.dataset import PinpadBatch, pinpad_batch
from mzlib.evaluate import EVALUATION_SEED, SELECTION_SEED
from mzlib.internal_rl import CodePolicy, ControlledPinpad, InternalRLConfig, PriorCodes
from mzlib.meta import descend, kl_weight_at, meta_loss, switch_temperature_at, warm
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig, switches_match
from mzlib.pinpad import LAPTOP, PAPER, QUARTERS, Pinpad, PinpadConfig, expert_episodes
from mzlib.runs import Run, stage_main, train

PLAYED_AT_ONCE = 5_000  # episodes
SIZES = {"quarters": QUARTERS, "laptop": LAPTOP, "paper": PAPER}


@dataclass(frozen=True)
class PinpadStudyConfig:
    """Settings of all three trainings; the `paper` profile has the paper's."""

    size: str = "quarters"  # the grid world: quarters or laptop, both for a laptop, or paper
    seed: int = 0
    device: str = "auto"
    # backbone
    stem: str = "egocentric"
    mixer: str = "transformer"
    width: int = 96
    depth: int = 4
    heads: int = 4
    layer: int = 2
    observation_weight: float = 0.01  # λ
    noise: float = 0.0  # ε of the backbone's demonstrations
    backbone_steps: int = 3_000
    backbone_batch: int = 64
    backbone_learning_rate: float = 0.002
    # metacontroller
    code_dim: int = 2
    controller_rank: int = 8
    embedding: str = "sequence"
    proposal_std: float = 0.14
    kl_weight: float = 0.05  # α in the end
    kl_begin: float = 0.0005  # α for the first quarter of kl_anneal_steps: codes have to carry something first
    kl_peak: float = 0.15  # α reached at kl_anneal_steps, in a straight line, and kept for half as long again
    kl_anneal_steps: int = 1_400
    switch_rate: int = 0
    switch_bias: float = 1.0  # at first more open than shut: or some goals' beginnings are never tried
    switch_temperature: float = 0.25  # in the end; 0.5 until α comes down from its peak
    switch_noise: bool = False
    always_open: bool = False
    cotrained: bool = False  # the backbone's weights are trained on with the metacontroller's
    meta_steps: int = 4_000
    meta_batch: int = 64
    meta_learning_rate: float = 0.003
    weight_decay: float = 0.03
    # internal RL
    raw_actions: bool = False  # the baseline: the same algorithm on actions in place of codes
    task_legs: int = 0  # so many colours of the post-training task, gone round again at its end; 0: the task itself
    rl_batch: int = 256  # episodes
    rl_iterations: int = 50
    rl_epochs: int = 4
    rl_learning_rate: float = 0.005
    policy_width: int = 64
    evaluation_episodes: int = 50_000  # for the rare successes of backbone and prior codes

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size={self.size!r}: use one of {', '.join(SIZES)}")
        if self.task_legs < 0:
            raise ValueError(f"task_legs={self.task_legs}: use 0 or more")

    @property
    def pinpad(self) -> PinpadConfig:
        """The grid world."""
        return SIZES[self.size]

    @property
    def task(self) -> tuple[int, ...]:
        """The colours of the post-training task."""
        whole = self.pinpad.post_training_task
        return tuple(whole[leg % len(whole)] for leg in range(self.task_legs or len(whole)))

    @property
    def backbone(self) -> PinpadBackboneConfig:
        """The backbone's size."""
        world = self.pinpad
        names = ("stem", "mixer", "width", "depth", "heads", "layer")
        sizes = {name: getattr(self, name) for name in names} | {"mlp_width": 2 * self.width}
        return PinpadBackboneConfig(world.grid, world.colours, world.walls, window=world.horizon, **sizes)

    @property
    def metacontroller(self) -> MetacontrollerConfig:
        """The metacontroller's size and kind."""
        names = ("code_dim", "controller_rank", "embedding", "proposal_std", "always_open", "switch_rate")
        names += ("switch_bias", "switch_temperature", "switch_noise")
        return MetacontrollerConfig(self.width, **{name: getattr(self, name) for name in names})


class ExpertBatches:
    """Fresh expert episodes for every training step, which follow from seed, stage and step alone.

    Eight batches are drawn at once and cut by length: less padding, no other difference.
    """

    TOGETHER = 8

    def __init__(self, config: PinpadStudyConfig, stage: int, size: int, noise: float = 0.0):
        self.config, self.stage, self.size, self.noise = config, stage, size, noise
        self.device = runs.pick_device(config.device)
        self.number, self.batches = -1, []

    def __call__(self, step: int) -> PinpadBatch:
        number, place = divmod(step, self.TOGETHER)
        if number != self.number:
            rng = np.random.default_rng((self.config.seed, self.stage, number))
            episodes = expert_episodes(self.config.pinpad, self.TOGETHER * self.size, rng, self.noise)
            order = np.argsort(episodes.lengths, kind="stable").reshape(self.TOGETHER, self.size)
            self.batches = [episodes.take(rows) for rows in rng.permutation(order)]
            self.number = number
        return pinpad_batch(self.batches[place], self.device)


def held_out(config: PinpadStudyConfig, count: int, seed: int = SELECTION_SEED) -> PinpadBatch:
    """Expert episodes from a selection seed, or another, the same for every training seed."""
    episodes = expert_episodes(config.pinpad, count, np.random.default_rng(seed))
    return pinpad_batch(episodes, runs.pick_device(config.device))


def train_backbone(config: PinpadStudyConfig, run: Run) -> PinpadBackbone:
    """Clone the expert."""
    torch.manual_seed(config.seed)
    device = runs.pick_device(config.device)
    backbone = PinpadBackbone(config.backbone).to(device)
    optimiser = torch.optim.AdamW(
        backbone.parameters(), config.backbone_learning_rate, weight_decay=config.weight_decay
    )
    draw, unseen = ExpertBatches(config, 0, config.backbone_batch, config.noise), held_out(config, 512)
    parameters, steps = list(backbone.parameters()), config.backbone_steps

    def update(step: int) -> dict[str, float] | None:
        optimiser.param_groups[0]["lr"] = warm(config.backbone_learning_rate, step, steps)
        batch = draw(step)
        loss, nll = clone_loss(
            backbone(batch.observations), batch.actions, batch.next_cells, batch.valid, config.observation_weight
        )
        descend(parameters, optimiser, loss)
        if (step + 1) % 100 and step + 1 < steps:
            return None
        with torch.no_grad():
            prediction = backbone(unseen.observations)
            _, unseen_nll = clone_loss(prediction, unseen.actions, unseen.next_cells, unseen.valid, 0.0)
        return {"backbone_nll": nll.item(), "backbone_held_out_nll": unseen_nll.item()}

    parts = {"backbone": backbone, "optimiser": optimiser}
    train(run, "backbone", steps, update, parts, headline="backbone_held_out_nll")
    return backbone


def train_metacontroller(config: PinpadStudyConfig, run: Run, backbone: PinpadBackbone) -> Metacontroller:
    """Let a metacontroller find what the frozen backbone can be told."""
    torch.manual_seed(config.seed + 1)
    metacontroller = Metacontroller(config.metacontroller).to(runs.pick_device(config.device))
    backbone.requires_grad_(config.cotrained)
    parameters = [*metacontroller.parameters(), *(backbone.parameters() if config.cotrained else ())]
    optimiser = torch.optim.AdamW(parameters, config.meta_learning_rate, weight_decay=config.weight_decay)
    draw, unseen, steps = ExpertBatches(config, 1, config.meta_batch), held_out(config, 512), config.meta_steps

    def update(step: int) -> dict[str, float] | None:
        optimiser.param_groups[0]["lr"] = warm(config.meta_learning_rate, step, steps)
        weight, temperature = kl_weight_at(config, step), switch_temperature_at(config, step)
        metacontroller.switch.temperature.fill_(temperature)
        loss, nll, _ = meta_loss(backbone, metacontroller, draw(step), weight)
        descend(parameters, optimiser, loss)
        if (step + 1) % 100 and step + 1 < steps:
            return None
        return {"nll": nll.item(), "kl_weight": weight} | look(backbone, metacontroller, unseen)

    parts = {"metacontroller": metacontroller, "optimiser": optimiser}
    parts |= {"backbone": backbone} if config.cotrained else {}
    train(run, "metacontroller", steps, update, parts, first=config.backbone_steps, headline="f1")
    return metacontroller


@torch.no_grad()
def look(backbone: PinpadBackbone, metacontroller: Metacontroller, batch: PinpadBatch) -> dict[str, float]:
    """Held-out NLL, KL in nats an episode, and how the switch compares with the true changes of subgoal."""
    metacontroller.eval()
    _, nll, controlled = meta_loss(backbone, metacontroller, batch, 0.0)
    metacontroller.train()
    kl = (controlled.kl * batch.valid).sum(1).mean()
    return {"held_out_nll": nll.item(), "kl": kl.item()} | switches_match(controlled.switch, batch.goals, batch.valid)


def reinforce(
    config: PinpadStudyConfig, run: Run, backbone: PinpadBackbone, metacontroller: Metacontroller
) -> CodePolicy | PinpadBackbone:
    """Internal RL on the post-training task, never seen in pretraining, with reward 1 at its very end; or, with
    `raw_actions`, the same algorithm on the backbone's own actions."""
    torch.manual_seed(config.seed + 2)
    device = runs.pick_device(config.device)
    backbone, metacontroller = backbone.requires_grad_(False), metacontroller.requires_grad_(False).eval()
    rl = InternalRLConfig(config.rl_epochs, learning_rate=config.rl_learning_rate)
    if config.raw_actions:
        policy = internal_rl.raw_policy(backbone)
    else:
        policy = CodePolicy(config.width, config.code_dim, config.policy_width).to(device)
    optimiser = torch.optim.AdamW(policy.parameters(), config.rl_learning_rate, weight_decay=0.0)
    environment = ControlledPinpad(backbone, metacontroller, rl.beta_threshold)

    def update(iteration: int) -> dict[str, float]:
        pinpad = Pinpad(config.pinpad, config.rl_batch)
        rng = np.random.default_rng((config.seed, 2, iteration))
        pinpad.reset_random(rng, task=config.task)
        if config.raw_actions:
            lived = internal_rl.raw_rollout(policy, pinpad)
        else:
            lived = internal_rl.rollout(environment, policy, pinpad)
        internal_rl.update(policy, None, optimiser, lived, rl)
        return {
            "episodes": (iteration + 1) * config.rl_batch,
            "success": lived.returns.mean().item(),
            "options": lived.chosen.sum(1).float().mean().item(),
            "environment_steps": int(lived.lengths.sum()),
        }

    name = "raw_rl" if config.raw_actions else "internal_rl"
    first = config.backbone_steps + config.meta_steps
    parts = {"policy": policy, "optimiser": optimiser}
    train(run, name, config.rl_iterations, update, parts, first, checkpoint_every=20, headline="success")
    return policy


def success_rate(config: PinpadStudyConfig, play: Callable[[Pinpad], internal_rl.Lived], episodes: int) -> float:
    """The share of episodes of the post-training task that `play` wins, on layouts from evaluation seeds."""
    rng, won = np.random.default_rng(EVALUATION_SEED), 0.0
    for begin in range(0, episodes, PLAYED_AT_ONCE):
        pinpad = Pinpad(config.pinpad, min(PLAYED_AT_ONCE, episodes - begin))
        pinpad.reset_random(rng, task=config.task)
        won += play(pinpad).returns.sum().item()
    return won / episodes


def run(config: PinpadStudyConfig, run: Run) -> dict:
    """All three trainings, each resumed where it left off; writes backbone and metacontroller as safetensors, returns
    the headline numbers."""
    if run.final is not None:
        return run.final
    backbone = train_backbone(config, run)
    metacontroller = train_metacontroller(config, run, backbone)
    sha256 = runs.save_weights(run.folder / "backbone.safetensors", backbone)  # after it may have been co-trained
    runs.save_weights(run.folder / "metacontroller.safetensors", metacontroller, backbone=sha256)
    found = look(backbone, metacontroller, held_out(config, 2_000, EVALUATION_SEED))
    policy = reinforce(config, run, backbone, metacontroller)
    environment = ControlledPinpad(backbone, metacontroller.eval())
    players = {"backbone_success": partial(internal_rl.raw_rollout, backbone)}
    players["prior_success"] = partial(internal_rl.rollout, environment, PriorCodes(config.code_dim))
    if config.raw_actions:
        players["success"] = partial(internal_rl.raw_rollout, policy)
    else:
        players["success"] = partial(internal_rl.rollout, environment, policy)
    for name, play in players.items():
        episodes = config.evaluation_episodes // (10 if name == "success" else 1)  # it isn't rare
        found[name] = success_rate(config, play, max(episodes, 1))
    return run.finish(
        **found,
        episodes=config.rl_iterations * config.rl_batch,
        steps=sum(row.get("environment_steps", 0) for row in run.metrics()),
        protocol={"world": config.size, "task": list(config.task), "reward": "at the end only"},
    )


if __name__ == "__main__":
    stage_main("pinpad_study", "00_pinpad", PinpadStudyConfig, run)
