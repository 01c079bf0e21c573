"""The Trajectory record refuses what doesn't fit, naming the field."""

from dataclasses import replace

import numpy as np
import pytest

from mzlib.trajectory import Trajectory


def trajectory(steps: int = 3) -> Trajectory:
    return Trajectory(
        actions=np.arange(steps, dtype=np.uint8),
        rewards=np.full(steps, 2.5, np.float32),
        frames=np.zeros((steps, 84, 84), np.uint8),
        lives=np.full(steps, 6, np.uint8),
        source="made up",
        ram=np.zeros((steps, 128), np.uint8),
        goals=np.zeros(steps, np.int16),
    )


def test_a_good_one():
    assert len(trajectory()) == 3
    assert trajectory().score == 7.5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("actions", np.array([0, 1, 18], np.uint8), "action 18 at step 2"),
        ("actions", np.zeros(3, np.int64), "actions is int64"),
        ("rewards", np.zeros(2, np.float32), r"rewards is float32 \(2,\)"),
        ("frames", np.zeros((3, 84, 80), np.uint8), "frames is uint8"),
        ("lives", np.zeros(3), "lives is float64"),
        ("ram", np.zeros((3, 127), np.uint8), "ram is uint8"),
        ("goals", np.zeros(3), "goals is float64"),
        ("frames_per_action", 0, "frames_per_action is 0"),
    ],
)
def test_what_does_not_fit(field, value, message):
    with pytest.raises(ValueError, match=f"made up: {message}"):
        replace(trajectory(), **{field: value})


def test_an_empty_one():
    with pytest.raises(ValueError, match="actions is empty"):
        trajectory(0)
