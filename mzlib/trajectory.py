"""The Trajectory record: one played stretch of a game, as every source of demonstrations gives it."""

from dataclasses import dataclass

import numpy as np

FRAME_SIZE = 84  # an observed frame is FRAME_SIZE x FRAME_SIZE
FRAME_SHAPE = (FRAME_SIZE, FRAME_SIZE)
STACK = 4  # frames that a model sees at once, the newest last
RAM_SIZE = 128
ACTION_COUNT = 18


@dataclass(frozen=True)
class Trajectory:
    """T steps of play; index t holds the action of step t and what followed it.

    Raises ValueError, naming the field, for a wrong shape, type or range.
    """

    actions: np.ndarray  # (T,) uint8, 0..17
    rewards: np.ndarray  # (T,) float32, points
    frames: np.ndarray  # (T, 84, 84) uint8 gray: the maximum of the step's last two emulator frames
    lives: np.ndarray  # (T,) uint8, lives left, the current one included
    source: str  # where it comes from, such as "demos/first_key.npz#12"
    frames_per_action: int = 4
    ram: np.ndarray | None = None  # (T, 128) uint8
    goals: np.ndarray | None = None  # (T,) int: index of the place aimed at; never an input of a model

    def __post_init__(self):
        steps = len(self.actions)
        expected = {
            "actions": ((steps,), np.uint8),
            "rewards": ((steps,), np.float32),
            "frames": ((steps, *FRAME_SHAPE), np.uint8),
            "lives": ((steps,), np.uint8),
            "ram": ((steps, RAM_SIZE), np.uint8),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array is None and name == "ram":
                continue
            if array.shape != shape or array.dtype != dtype:
                wanted = f"{np.dtype(dtype).name} {shape}"
                raise ValueError(f"{self.source}: {name} is {array.dtype.name} {array.shape}; {wanted} is needed")
        if steps == 0:
            raise ValueError(f"{self.source}: actions is empty; a trajectory has at least one step")
        if self.actions.max() >= ACTION_COUNT:
            step = int(np.argmax(self.actions >= ACTION_COUNT))
            raise ValueError(f"{self.source}: action {self.actions[step]} at step {step}; actions are 0 to 17")
        if self.frames_per_action < 1:
            raise ValueError(f"{self.source}: frames_per_action is {self.frames_per_action}; at least 1 is needed")
        if self.goals is not None and (self.goals.shape != (steps,) or self.goals.dtype.kind not in "iu"):
            raise ValueError(
                f"{self.source}: goals is {self.goals.dtype} {self.goals.shape}; integers ({steps},) are needed"
            )

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def score(self) -> float:
        """Sum of the rewards, in points."""
        return float(self.rewards.sum())
