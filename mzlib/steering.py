"""Taking hold of a frozen backbone: acting under codes, or under controllers trained for one place each."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mzlib import runs
from mzlib.backbone import MontezumaVLM
from mzlib.backbone.residuals import Sequences, action_logits
from mzlib.evaluate import Observation
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import GOALS
from mzlib.policies import ClonePolicy
from mzlib.probes import SupervisedControllers

Control = Callable[[Tensor, Tensor, Observation], Tensor]  # e (n, n_e), fresh (n,), what is seen, to ê (n, n_e)


class PriorCodes:
    """Codes from N(0, I), drawn from a generator of each episode's own."""

    def __init__(self, code_dim: int, seed: int = 0):
        self.code_dim, self.seed = code_dim, seed
        self.generators: dict[int, np.random.Generator] = {}  # by row

    def __call__(self, rows: np.ndarray, observation: Observation) -> np.ndarray:
        """(m, n_z) codes for these rows."""
        for row in rows.tolist():
            if observation.began[row] or row not in self.generators:
                self.generators[row] = np.random.default_rng((self.seed, 1, int(observation.seeds[row])))
        return np.stack([self.generators[row].standard_normal(self.code_dim) for row in rows.tolist()])


class CodeControl:
    """Codes in force until the switch opens: β ≥ `threshold`, tested on the state after the action.

    source: (rows, observation) to new codes (m, n_z) for rows whose switch opens. After each step `switch` (n,) is β,
    `opened` (n,) bool, `code` (n, n_z) what is in force.
    """

    def __init__(self, metacontroller: Metacontroller, source: Callable | None, threshold: float = 0.5):
        if not 0 <= threshold <= 1:
            raise ValueError(f"beta_threshold={threshold}: a probability in [0, 1] is needed, such as 0.5")
        self.metacontroller, self.source, self.threshold = metacontroller, source, threshold
        self.code: Tensor | None = None

    def __call__(self, residual: Tensor, fresh: Tensor, observation: Observation) -> Tensor:
        """ê (n, n_e)."""
        self.look(residual, fresh)
        if self.opened.any():
            rows = self.opened.nonzero()[:, 0].numpy()
            self.code[rows] = torch.as_tensor(self.source(rows, observation), dtype=residual.dtype)
        return self.metacontroller.hypernetwork(residual, self.code)

    def look(self, residual: Tensor, fresh: Tensor) -> None:
        """Ask the switch about e (n, n_e), with the codes in force before; fresh: (n,) bool, rows that begin anew."""
        meta, config, count = self.metacontroller, self.metacontroller.config, len(residual)
        if self.code is None:
            fresh = torch.ones_like(fresh)
            self.code, self.history = (
                residual.new_zeros(count, config.code_dim),
                residual.new_zeros(count, config.history_width),
            )
            self.steps = torch.zeros_like(fresh, dtype=torch.long)
        self.steps = torch.where(fresh, 0, self.steps + 1)
        self.code, self.history = (x.masked_fill(fresh[:, None], 0.0) for x in (self.code, self.history))
        self.switch, self.history = meta.step(residual, self.history, self.code)
        forced = torch.tensor([meta.forced(t) for t in self.steps.tolist()], device=residual.device)
        self.switch = torch.where(forced, 1.0, self.switch)
        self.opened = self.switch >= self.threshold

    def take(self, residual: Tensor, codes: Tensor) -> Tensor:
        """ê (n, n_e) after `look`, with codes (n, n_z) taken in where the switch has opened."""
        self.code = torch.where(self.opened[:, None], codes, self.code)
        return self.metacontroller.hypernetwork(residual, self.code)


class HeldCodes:
    """One code (n, n_z) for each row, held whatever the switch says."""

    def __init__(self, metacontroller: Metacontroller, codes: np.ndarray):
        self.metacontroller, self.codes = metacontroller, torch.as_tensor(codes, dtype=torch.float32)

    def __call__(self, residual: Tensor, fresh: Tensor, observation: Observation) -> Tensor:
        """ê (n, n_e)."""
        return self.metacontroller.hypernetwork(residual, self.codes)


class GoalControl:
    """The supervised controller of each row's wanted goal (n,)."""

    def __init__(self, controllers: SupervisedControllers, goals: Sequence[int]):
        self.controllers, self.goals = controllers, torch.as_tensor(np.asarray(goals), dtype=torch.long)

    def __call__(self, residual: Tensor, fresh: Tensor, observation: Observation) -> Tensor:
        """ê (n, n_e)."""
        return self.controllers(residual, self.goals)


class ControlledPolicy(ClonePolicy):
    """Acts as the clone does with its stream controlled; without a `control` it is the clone."""

    def __init__(self, weights: Path, control: Control | None = None, **settings):
        super().__init__(weights, **settings)
        self.control = control

    def controlled(self, residual: Tensor, fresh: Tensor, observation: Observation) -> Tensor:
        """ê (n, n_e)."""
        return residual if self.control is None else self.control(residual, fresh, observation)


def prior_policy(
    backbone: Path,
    metacontroller: Path,
    switch_rate: int | None = None,
    threshold: float = 0.5,
    greedy: bool = False,
    temperature: float = 0.5,
    seed: int = 0,
) -> ControlledPolicy:
    """A policy whose codes are drawn from the prior whenever the switch opens, or every `switch_rate` steps too.

    switch_rate: None: as trained. ValueError if the two weights files don't belong together.
    """
    policy = ControlledPolicy(backbone, greedy=greedy, temperature=temperature, seed=seed)
    meta = load_metacontroller(metacontroller, backbone, switch_rate)
    policy.control = CodeControl(meta, PriorCodes(meta.config.code_dim, seed), threshold)
    return policy


def load_metacontroller(weights: Path, backbone: Path, switch_rate: int | None = None) -> Metacontroller:
    """The metacontroller of a backbone; ValueError if it belongs to another. switch_rate: other than as trained."""
    sha256 = runs.weights_sha256(backbone)
    meta, _ = runs.load_weights(weights, Metacontroller, MetacontrollerConfig, backbone=sha256)
    if switch_rate is not None:
        meta.config = replace(meta.config, switch_rate=switch_rate)  # which names a wrong one
    return meta.requires_grad_(False).eval()


def train_controllers(
    backbone: MontezumaVLM,
    sequences: Sequences,
    rank: int = 16,
    steps: int = 1_000,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> SupervisedControllers:
    """One controller for each place of GOALS, trained on the steps of its legs; other steps count for nothing and are
    not controlled (Kobayashi et al. 2025, section 3.2)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    ends = sequences.ranges[:, 2]
    rows = np.flatnonzero(sequences.windows.cache.goals[ends] >= 0)  # trajectories with goals end with one
    if not len(rows):
        raise ValueError("sequences name no goals: give the places data")
    controllers = SupervisedControllers(len(GOALS), backbone.config.width, rank).to(backbone.device)
    optimiser = torch.optim.AdamW(controllers.parameters(), lr)
    for _ in range(steps):
        batch = sequences.batch(rng.choice(rows, min(batch_size, len(rows)), replace=False), backbone.device)
        loss = controllers.nll(
            lambda e, batch=batch: action_logits(backbone, batch.stream, e), batch.residual, batch.goals, batch.actions
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return controllers.requires_grad_(False)
