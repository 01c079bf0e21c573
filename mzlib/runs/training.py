"""The loop around gradient steps: progress, metrics, checkpoints, resume, the stop button."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from .folders import Run, atomic_path
from .machine import progress


@contextmanager
def stop_button():
    """Within the block an interrupt (the notebook's stop button, Ctrl-C) only sets the event that this yields."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    run: Run,
    name: str,
    steps: int,
    update: Callable[[int], dict[str, float] | None],
    parts: Mapping[str, object],
    first: int = 0,
    checkpoint_every: int = 500,
    headline: str = "loss",
) -> None:
    """Call `update(step)` for every step to `steps`, from where the checkpoint `name` of the run left off.

    update: one gradient step; returns numbers to log, or None. What it draws must follow from `step` or from torch's
    generator, which is kept: then a resumed training equals one never stopped (on a CPU). parts: name → model or
    optimiser, whatever has a state dict. first: the run's steps before this training, added to the logged ones.
    Raises KeyboardInterrupt after saving when stopped: the same call goes on from there.
    """
    path = run.checkpoints / f"{name}.pt"
    begin = load_training(path, parts) if path.exists() else 0
    if begin >= steps:  # the rows of later trainings in the same run stay
        return
    run.truncate_metrics(first + begin)
    with stop_button() as stopped, progress(steps, begin, name) as bar:
        for step in range(begin, steps):
            values = update(step)
            bar.update(1)
            if values:
                run.log(first + step + 1, **values)
                if headline in values:
                    bar.set_postfix({headline: f"{values[headline]:.3g}"})
            done = step + 1
            if done == steps or stopped.is_set() or done % checkpoint_every == 0:
                save_training(path, done, parts)
            if stopped.is_set() and done < steps:
                print(f"stopped at step {done:,}; run again to resume")
                raise KeyboardInterrupt


def save_training(path: Path, step: int, parts: Mapping[str, object]) -> None:
    """Write a checkpoint of `parts`, torch's generator and the step, in one go."""
    import torch

    content = {"step": step, "torch_rng": torch.get_rng_state()}
    content |= {key: part.state_dict() for key, part in parts.items()}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_training(path: Path, parts: Mapping[str, object]) -> int:
    """Read what `save_training` wrote into `parts` and torch's generator; returns the step. ValueError naming a file
    that is none."""
    import torch

    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        for key, part in parts.items():
            part.load_state_dict(content[key])
        torch.set_rng_state(content["torch_rng"])
        return int(content["step"])
    except (OSError, LookupError, EOFError, TypeError, ValueError, RuntimeError, UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path.name}: not a readable checkpoint ({reason}); remove it to begin anew") from error
