"""A policy's own episodes under sticky actions, kept as demonstrations:

    python -m mzlib.robustify.rollouts --policy shipped --count 500 --out data/demos/robust/first_key.npz

Each plays from reset with a seed of its own, training seeds, until it has `--score` points; the others are left out.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.evaluate import SELECTION_SEED, EvaluationProtocol, watch
from mzlib.policies import ActorCriticPolicy
from mzlib.runs import data_dir, progress

FIRST_SEED = 45_000


def rollout(seed: int, weights: Path, score: int, max_steps: int) -> Demo | None:
    """The policy's episode from reset with this seed, up to the step that brings `score` points, replay-verified; None
    if it loses a life or `max_steps` pass before."""
    protocol = EvaluationProtocol(max_frames=4 * max_steps, first_seed=seed)
    actions, rewards, lives = [], [], None
    for emulator, action, reward in watch(ActorCriticPolicy(weights), seed, protocol):
        lives = emulator.lives if lives is None else lives
        actions.append(action)
        rewards.append(reward)
        if emulator.lives < lives:
            return None
        if sum(rewards) >= score:
            noops = int(np.random.default_rng(seed).integers(protocol.noop_max + 1))  # as Episode.from_reset draws them
            demo = Demo(
                np.array(actions, np.uint8), np.array(rewards, np.int32), seed=seed, noops=noops, sticky=protocol.sticky
            )
            demos.verify(demo)
            return demo
    return None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="shipped", metavar="shipped|FILE")
    parser.add_argument("--score", type=int, default=100)
    parser.add_argument("--count", type=int, default=500, help="episodes to keep")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--max-steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.first_seed + 4 * given.count > SELECTION_SEED:
        parser.exit(
            2, f"--first-seed {given.first_seed}: up to {4 * given.count} seeds below {SELECTION_SEED} are needed\n"
        )
    weights = data_dir("weights", "policy.safetensors") if given.policy == "shipped" else Path(given.policy)
    play = partial(rollout, weights=weights, score=given.score, max_steps=given.max_steps)
    kept, seed = [], given.first_seed
    with (
        ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool,
        progress(given.count, 0, given.out.stem, "episode") as bar,
    ):
        while len(kept) < given.count:
            if seed >= given.first_seed + 4 * given.count:
                parser.exit(1, f"{given.out.name}: {len(kept)} of {seed - given.first_seed} episodes reach the score\n")
            batch = range(seed, seed + 8 * given.workers)
            found = [demo for demo in pool.map(play, batch) if demo is not None][: given.count - len(kept)]
            kept, seed = kept + found, batch.stop
            bar.update(len(found))
    demos.save(given.out, kept)
    different = len({demo.actions.tobytes() for demo in kept})
    print(f"{given.out}: {len(kept)} episodes, {different} different, of seeds {given.first_seed} to {seed - 1}")


if __name__ == "__main__":
    main()
