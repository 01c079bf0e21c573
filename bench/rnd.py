"""PPO + RND: how well acting and emulation overlap, what share of the matmul peak the learner uses; and the stored
results of notebook 07."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mzlib import demos, rnd, runs
from mzlib.curiosity import novelty
from mzlib.emulator import ACTIONS, facts
from mzlib.rnd import Learner, Players, RNDConfig, vector_environment
from mzlib.runs import Run

CPU_ENVIRONMENTS, CUDA_ENVIRONMENTS = 32, 512
CPU_SQUARE, CUDA_SQUARE = 2_048, 8_192  # side of the matrices whose product is the peak
CPU_ROLLOUT = 64  # half as long as in training: a round takes seconds
ROUNDS = 5


def settings(**changes) -> RNDConfig:
    """The `full` profile with changes."""
    return runs.config_from(RNDConfig, runs.load_profile("full", "07_rnd") | changes)


# ---- speed


class Recorded:
    """A vector environment's answers over again, at no cost: half the recorded ones, by turns."""

    def __init__(self, answers: list[tuple]):
        self.answers, self.number = answers, 0

    def send(self, actions: np.ndarray) -> None:
        """Nothing moves."""

    def recv(self) -> tuple:
        """The next recorded answer."""
        self.number += 1
        return self.answers[self.number % len(self.answers)]


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """How long one call takes."""
    wait(device)
    since = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - since


def emulate(halves: tuple, steps: int, rng: np.random.Generator) -> list[tuple]:
    """Both halves under random actions, always in flight; the last eight answers of the first."""
    answers, size = [], halves[0].num_envs

    def send(half) -> None:
        half.send(rng.integers(len(ACTIONS), size=size))

    for half in halves:
        send(half)
    for t in range(steps):
        for number, half in enumerate(halves):
            answer = half.recv()
            if number == 0:
                answers = [*answers[-7:], answer]
            if t < steps - 1:
                send(half)
    return answers


def rnd_speed(seconds: float) -> dict[str, dict]:
    """`rnd_efficiency`: the loop's steps/s over 1 / (1/e + 1/l), e of the environments alone, l of the learner alone
    (acting, curiosity, updates on recorded frames); `rnd_flops_utilisation`: the update's FLOP/s over those of a large
    matrix product. Medians of rounds in turn, a rollout and an update each."""
    device = runs.pick_device()
    cuda = device == "cuda"
    sizes = {"environments": CUDA_ENVIRONMENTS} if cuda else {"environments": CPU_ENVIRONMENTS, "rollout": CPU_ROLLOUT}
    config = settings(device=device, **sizes)
    learner, rng = Learner(config), np.random.default_rng(0)
    halves = tuple(vector_environment(config, config.environments // 2) for _ in range(2))
    players = Players(config, learner.policy, halves)
    players.reset(0)
    learner.curiosity.frames.update(players.random_frames(rng))
    answers = emulate(halves, 16, rng)
    recorded = Players(config, learner.policy, (Recorded(answers), Recorded(answers)))
    side, dtype = (CUDA_SQUARE, torch.bfloat16) if cuda else (CPU_SQUARE, torch.float32)
    square = torch.randn(side, side, device=device, dtype=dtype)

    def turn(of: Players) -> None:
        with runs.torch_threads(1 if of is players else None):  # as in training; the learner alone has all of them
            played = of.rollout()
        learner.update(played)

    turn(players), torch.mm(square, square)
    with FlopCounterMode(display=False) as counter:
        learner.update(played := recorded.rollout())
    flops, found = counter.get_total_flops(), {"loop": [], "alone": [], "emulate": [], "update": [], "peak": []}
    end = time.perf_counter() + seconds
    while len(found["loop"]) < ROUNDS or time.perf_counter() < end:
        found["emulate"].append(seconds_of(lambda: emulate(halves, config.rollout, rng), device))
        found["loop"].append(seconds_of(lambda: turn(players), device))
        found["alone"].append(seconds_of(lambda: turn(recorded), device))
        found["update"].append(seconds_of(lambda: learner.update(played), device))
        found["peak"].append(min(seconds_of(lambda: torch.mm(square, square), device) for _ in range(3)))
    rounds = [
        (one + other) / loop for one, other, loop in zip(found["emulate"], found["alone"], found["loop"], strict=True)
    ]
    share = [flops / took * peak / (2 * side**3) for took, peak in zip(found["update"], found["peak"], strict=True)]
    what = f"steps/s, {config.environments} environments, {device}"
    speeds = {
        f"rnd_{name}steps_per_s": {"value": config.steps_per_update / statistics.median(found[key]), "unit": what}
        for name, key in (("", "loop"), ("learner_", "alone"), ("environment_", "emulate"))
    }
    reference = "environments alone, then the learner alone"
    return {
        "rnd_efficiency": {
            "value": statistics.median(rounds),
            "unit": "ratio",
            "reference": reference,
            "rounds": rounds,
        },
        "rnd_flops_utilisation": {"value": statistics.median(share), "unit": "ratio", "rounds": share},
    } | speeds


# ---- results


def train(seed: int, workers: int) -> Path:
    """A training of profile full, or what is left of it; its run folder."""
    config = settings(seed=seed, workers=workers)
    with Run.open("07_rnd", "full", config) as run:
        rnd.run(config, run)
        return run.folder


def learning_curve(seed: int, folder: Path, rows: int = 400) -> list[dict]:
    """Some of the logged rows, evenly picked, for the stored curve."""
    logged = runs.read_metrics(folder / "metrics.jsonl")
    picked = np.unique(np.linspace(0, len(logged) - 1, min(rows, len(logged))).round().astype(int))
    columns = ("score", "best_score", "prediction_error", "entropy")
    return [
        {"seed": seed, "step": logged[i]["environment_steps"], "wall_s": logged[i]["wall_s"]}
        | {name: logged[i].get(name, "") for name in columns}
        for i in picked
    ]


def room_curve(seed: int, folder: Path) -> list[dict]:
    """The prediction error by room at each milestone, and how many rooms were visited when playing from reset."""
    rows = []
    for row in runs.read_metrics(folder / "metrics.jsonl"):
        visited = row.get("selection", {}).get("visited", [])
        for room, error in row.get("room_novelty", {}).items():
            seen = int(int(room) in visited)
            rows.append(
                {"seed": seed, "step": row["environment_steps"], "room": int(room), "error": error, "visited": seen}
            )
    return rows


def way_curve(seed: int, folder: Path) -> list[dict]:
    """The last milestone's prediction error at each step of the shipped way through most rooms."""
    config = settings(seed=seed)
    last = max((folder / "checkpoints").glob("curiosity-*.pt"), key=lambda path: int(path.stem.split("-")[1]))
    way = demos.record(demos.load(runs.data_dir("demos", "rooms", "five_million.npz"))[0])
    errors = novelty(rnd.load_curiosity(config, last), way.frames)
    return [
        {"seed": seed, "step": step, "room": facts(ram).room, "error": f"{error:.5g}"}
        for step, (ram, error) in enumerate(zip(way.ram, errors.tolist(), strict=True))
    ]
