"""Where the time of an exploring step goes."""

import time
from collections.abc import Callable

import numpy as np

from mzlib.go_explore import GoExploreConfig, Search
from mzlib.go_explore.workers import random_actions

WARM_UP = 60_000  # steps: an archive with more than the first room's states
ROUNDS, EPISODES = 12, 25  # episodes a round and part
PARTS = ("emulator", "last two screens", "cell", "archive, states, rest")


def step_costs(cells: str) -> dict[str, list[float]]:
    """Microseconds a step of each of PARTS by round, in one process.

    Loops that do one thing more each take turns; a part's time is the difference of two of them.
    """
    config = GoExploreConfig(cells=cells, workers=1)
    with Search(config) as search:
        while search.archive.steps < WARM_UP:
            search.advance()
        explorer, rng = search.workers.explorer, np.random.default_rng(0)
        emulator, act = explorer.emulator, explorer.emulator._ale.act

        def four_acts(action: int) -> None:
            for _ in range(emulator.frames_per_action):
                act(action)

        def step_and_cell(action: int) -> None:
            emulator.step(action)
            explorer.cell_of(emulator)

        def explore(state: bytes, do: Callable[[int], None]) -> int:
            emulator.load_state(state)
            steps = 0
            for action in random_actions(rng, config).tolist():
                do(action)
                steps += 1
                if emulator.game_over:
                    break
            return steps

        nested = []
        for _ in range(ROUNDS):
            states = [explorer.unpack(pick.state) for pick in search.archive.select(rng, EPISODES)]
            times = []
            for do in (four_acts, emulator.step, step_and_cell):
                since = time.perf_counter()
                steps = sum(explore(state, do) for state in states)
                times.append((time.perf_counter() - since) / steps)
            since, before = time.perf_counter(), search.archive.steps
            search.advance()
            times.append((time.perf_counter() - since) / (search.archive.steps - before))
            nested.append(1e6 * np.diff(times, prepend=0.0))
    return {part: [float(times[number]) for times in nested] for number, part in enumerate(PARTS)}
