"""Make the places data set: from many states, the shortest clean ways to neighbouring places, chained leg after leg.

    python -m mzlib.go_explore.legs --out data/demos/places/plain.npz --roots 40 --first-seed 40000

A root is a cut of a shipped demo. From it, and then from wherever a leg ended, a breadth-first search over positions
finds the ways to the next places in every direction; a few of them are cleaned and followed on. So the trajectories of
one root are the paths of a tree, and share its seed. No leg leads through a third place: where to turn is decided at
places only, leg by leg. It is resumable: every root done waits in runs/legs/.
"""

import argparse
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mzlib import demos
from mzlib.demos import Demo
from mzlib.emulator import ACTIONS, NOOP, Emulator, Facts
from mzlib.places import GOALS, HELD_OUT, SUPPORTS, goal_at
from mzlib.runs import data_dir, progress, runs_root

MOVES = [ACTIONS.index(name) for name in ("NOOP", "UP", "RIGHT", "LEFT", "DOWN", "FIRE", "RIGHTFIRE", "LEFTFIRE")]
IN_THE_AIR = [
    ACTIONS.index(name) for name in ("NOOP", "UP", "DOWN")
]  # a jump leaves no more: to catch a ladder, or not
SKULL_ADDRESS, SKULL_ROOM, SKULL_HEIGHT = 47, 1, 165  # its place matters to who is on the floor
GRAIN = (2, 3)  # pixels of x and y in a cell
SAFE_STEPS = 10  # of doing nothing that an arrival has to survive
STANDS = 4  # steps
SHORTEST_LEG, LEAST_LEGS = 4, 3  # steps; legs of a trajectory
FEW_FRAMES = 4  # of the last action after a restore; the few ways that this gets wrong don't arrive in the replay
BRANCHES = (3, 3, 2, 2, 2, 1, 1, 1)  # ways followed from a root, and from the end of each leg
PER_STEP = ("actions", "rewards", "goals")
SOURCES = {0.0: ("first_key", "first_door"), 0.25: ("first_key_sticky", "first_door_sticky")}


class Node(NamedTuple):
    """A state that the search has reached."""

    state: bytes
    parent: int
    action: int
    in_the_air: bool


def cell(emulator: Emulator) -> tuple:
    """What the search takes for the same state: the position (where she jumps from matters most), keys, the skull."""
    facts = emulator.facts
    below = facts.room == SKULL_ROOM and facts.y < SKULL_HEIGHT
    skull = int(emulator.ram[SKULL_ADDRESS]) // 16 if below else -1
    return facts.room, facts.x // GRAIN[0], facts.y // GRAIN[1], facts.keys, skull


def settled(emulator: Emulator, before: Facts) -> bool:
    """Whether she stands or hangs where the emulator is, and survives doing nothing; the emulator moves on."""
    y = emulator.facts.y
    for step in range(SAFE_STEPS):
        emulator.step(NOOP)
        facts = emulator.facts
        if facts.dying or facts.lives < before.lives or (step < 2 and abs(facts.y - y) > 1):
            return False
    return True


def ways(emulator: Emulator, limit: int = 1_200) -> dict[int, list[int]]:
    """Shortest ways from where the emulator is to the neighbouring places of GOALS, as actions; none through a third
    place.

    Breadth first over cells, at most `limit`. Of equally short ways the one that goes on as before is taken, then in
    the order of MOVES: what to do follows from where she is and where she goes. No way loses a life.
    """
    rng_too, begin = emulator.sticky > 0, emulator.facts
    nodes, seen, found = [Node(emulator.save_state(rng_too), -1, NOOP, False)], {cell(emulator)}, {}
    own = goal_at(begin.room, begin.x, begin.y)
    queue = deque([0])
    while queue and len(nodes) < limit:
        parent = queue.popleft()
        last, moves = nodes[parent].action, IN_THE_AIR if nodes[parent].in_the_air else MOVES
        for action in [last, *(move for move in moves if move != last)]:
            emulator.load_state(nodes[parent].state, FEW_FRAMES)
            emulator.step(action)
            facts = emulator.facts
            if facts.dying or facts.lives < begin.lives or (key := cell(emulator)) in seen:
                continue
            seen.add(key)
            held = any(support.holds(facts.room, facts.x, facts.y) for support in SUPPORTS)
            nodes.append(Node(emulator.save_state(rng_too), parent, action, not held))
            goal = goal_at(facts.room, facts.x, facts.y)
            if goal in (-1, own):
                queue.append(len(nodes) - 1)
            elif goal not in found and settled(emulator, begin):
                found[goal] = len(nodes) - 1
            elif goal not in found:  # in the air over it
                queue.append(len(nodes) - 1)
    return {goal: way_to(nodes, end) for goal, end in found.items()}


def way_to(nodes: list[Node], end: int) -> list[int]:
    """The actions from the first node to node `end`."""
    actions = []
    while end > 0:
        actions.append(nodes[end].action)
        end = nodes[end].parent
    return actions[::-1]


def root(seed: int, sticky: float) -> Demo:
    """A shipped demo cut at a random step where she is safe, early ones more often (from the start platform many ways
    end at a door), each of its moves by its simplest name."""
    rng = np.random.default_rng(seed)
    sources = [demo for name in SOURCES[sticky] for demo in demos.load(data_dir("demos") / f"{name}.npz")]
    while True:
        demo = sources[rng.integers(len(sources))]
        steps = int(rng.random() ** 2 * (len(demo) + 1))
        cut = replace(demo, actions=demo.actions[:steps], rewards=demo.rewards[:steps], goals=np.full(steps, -1))
        emulator = at_end(cut)
        begin = emulator.facts
        if not begin.dying and settled(emulator, begin):
            return demos.clean(cut, names=MOVES)


def at_end(demo: Demo) -> Emulator:
    """An emulator after the demo's last action."""
    emulator = demos.start(demo)
    for action in demo.actions.tolist():
        emulator.step(action)
    return emulator


def grow(demo: Demo, emulator: Emulator, rng: np.random.Generator, aims: tuple[int, ...] = ()) -> list[Demo]:
    """All trajectories that go on from the end of `demo`, where `emulator` is; its legs so far led to `aims`.

    A trajectory ends where there is no choice, but for its first leg: what precedes that has no goal to change from.
    """
    state = emulator.save_state(include_rng=demo.sticky > 0)
    reachable = ways(emulator) if len(aims) < len(BRANCHES) else {}
    shortest, choices = (SHORTEST_LEG, 2) if aims else (1, 1)
    fit = [goal for goal, way in sorted(reachable.items()) if len(way) >= shortest]
    fit = [goal for goal in fit if (*aims[-2:], goal) not in HELD_OUT]
    grown = []
    for goal in rng.permutation(fit)[: BRANCHES[len(aims)]].tolist() if len(fit) >= choices else []:
        leg = Demo(np.array(reachable[goal], np.uint8), np.zeros(0), sticky=demo.sticky, state=state)
        leg = demos.clean(leg, emulator, MOVES)
        leg = replace(leg, goals=np.full(len(leg), goal))
        joined = {name: np.concatenate([getattr(demo, name), getattr(leg, name)]) for name in PER_STEP}
        emulator.load_state(state)
        for action in leg.actions.tolist():
            emulator.step(action)
        grown += grow(replace(demo, **joined), emulator, rng, (*aims, goal))
    return grown or [demo] * (len(aims) >= LEAST_LEGS)


def arrives(demo: Demo) -> bool:
    """Whether a replay from the game's start earns the demo's rewards and ends every leg at its place.

    A stuck action can escape a saved state (see Emulator.save_state); a way found after one is no way.
    """
    ends = np.flatnonzero(np.diff(demo.goals, append=-2))
    for step, (emulator, _, reward) in enumerate(demos.replay(demo)):
        facts = emulator.facts
        if reward != demo.rewards[step]:
            return False
        goal = demo.goals[step]
        if step in ends and goal >= 0 and not GOALS[goal].holds(facts.room, facts.x, facts.y):
            return False
    return True


def split(demo: Demo) -> Demo:
    """The demo with every leg that leads through a third place cut there in two, as for GOALS of larger boxes than
    those that it was made for: she is at a place if she stands there, at one height for STANDS steps."""
    goals, begin = demo.goals.copy(), 0
    facts = [emulator.facts for emulator, _, _ in demos.replay(demo)]
    visited = [goal_at(here.room, here.x, here.y) for here in facts]
    own = visited[0]
    for step, aim in enumerate(demo.goals):
        if step and aim != demo.goals[step - 1]:
            begin, own = step, visited[step - 1]
        next_steps = slice(step, step + STANDS)
        stands = len({(facts[t].y, visited[t], demo.goals[t]) for t in range(len(demo))[next_steps]}) == 1
        if aim >= 0 and stands and visited[step] not in (-1, own, aim) and step + STANDS <= len(demo):
            goals[begin : step + 1], begin, own = visited[step], step + 1, visited[step]
    return replace(demo, goals=goals)


def find_and_keep(seed: int, folder: Path, sticky: float) -> Path:
    """The trajectories of root `seed` as a file in `folder`, unless it is there already."""
    file = folder / f"{seed}.npz"
    if not file.exists():
        begin = root(seed, sticky)
        grown = grow(begin, at_end(begin), np.random.default_rng((seed, 1)))
        kept = [demo for demo in grown if arrives(demo)]
        if kept:
            demos.save(file, kept)
        else:
            file.touch()
    return file


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roots", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=40_000)
    parser.add_argument("--sticky", type=float, default=0.0, choices=SOURCES)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", action="store_true", help="only cut the legs in --out anew, after places have grown")
    given = parser.parse_args()
    if given.split:
        with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
            demos.save(given.out, list(pool.map(split, demos.load(given.out), chunksize=16)))
        return
    folder = runs_root() / "legs" / given.out.stem
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(given.first_seed, given.first_seed + given.roots)
    with (
        ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool,
        progress(given.roots, 0, given.out.stem, "root") as bar,
    ):
        files = []
        for file in pool.map(partial(find_and_keep, folder=folder, sticky=given.sticky), seeds):
            files.append(file)
            bar.update(1)
    found = [demo for file in files if file.stat().st_size for demo in demos.load(file)]
    demos.save(given.out, found)
    legs = sum(np.count_nonzero((np.diff(demo.goals, prepend=-1) != 0) & (demo.goals >= 0)) for demo in found)
    print(f"{given.out}: {len(found)} trajectories, {legs} legs, {sum(map(len, found))} steps")


if __name__ == "__main__":
    main()
