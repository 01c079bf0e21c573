"""Gridworld-pinpad: walk onto coloured cells in the task's order; many layouts side by side, and their expert.

G×G cells, numbered row·G + column, hold the agent, O colours and W walls. A task is a sequence of colours that splits
into subgoals; neither task nor progress is ever observed. Source: Kobayashi et al. 2025, Appendix A.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise, permutations
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

MOVES = ("up", "down", "left", "right")
FREE, WALL = -1, -2  # what a cell holds, if not a colour
DRAWS = 1_000  # rounds of drawing after which a layout counts as impossible

# Row m: the moves whose bits are set in m, in equal shares of twelve; all four moves if none is set.
SHARES = np.array([(([a for a in range(4) if m >> a & 1] or [0, 1, 2, 3]) * 12)[:12] for m in range(16)], np.uint8)

# Okabe and Ito's colour-blind-safe colours, brown as the eighth; a ninth pad looks like the first.
PADS = "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 784614"
PAD_RGB = np.array([list(bytes.fromhex(pad)) for pad in PADS.split()], np.uint8)
FLOOR_GRAY, LINE_GRAY, WALL_GRAY = 240, 210, 60


@dataclass(frozen=True)
class PinpadConfig:
    """Sizes and tasks, by default the paper's sizes; ValueError, naming the field, if they do not fit together."""

    tasks: tuple[tuple[int, ...], ...]  # for pretraining, as colours
    post_training_task: tuple[int, ...]
    subgoals: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3), (4, 5), (6, 7))  # as colours
    grid: int = 7  # G
    colours: int = 8  # O
    walls: int = 4  # W
    horizon: int = 100  # T, steps
    quarters: bool = False  # colours 0 to 3 keep to the quarters of the board, in reading order; else anywhere
    first_tie: bool = False  # of equally short ways the expert takes the first of MOVES, not one at random

    def __post_init__(self):
        for name in ("tasks", "subgoals"):  # lists if read from JSON
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        object.__setattr__(self, "post_training_task", tuple(self.post_training_task))
        if not 2 <= self.grid <= 16:
            raise ValueError(f"grid={self.grid}: choose 2 to 16, a row has to fit into 16 bits")
        if self.colours < 1 or self.walls < 0 or self.channels > self.cells:
            raise ValueError(
                f"colours={self.colours}, walls={self.walls}: choose at least 1 and 0, and so few that they and the "
                f"agent fit into the {self.cells} cells of grid={self.grid}"
            )
        if self.quarters and (self.colours > 4 or self.grid % 2):
            raise ValueError(
                f"quarters=True with colours={self.colours}, grid={self.grid}: use at most 4 and an even number"
            )
        for subgoal in self.subgoals:
            if not subgoal or not set(subgoal) <= set(range(self.colours)):
                raise ValueError(f"subgoals: {subgoal} must hold colours from 0 to {self.colours - 1}")
        for one, other in permutations(self.subgoals, 2):
            if other[: len(one)] == one:
                raise ValueError(f"subgoals: {other} begins with {one}, so tasks could split in two ways; drop one")
        if not self.tasks:
            raise ValueError("tasks=(): give at least one")
        for name, task in [*(("tasks", task) for task in self.tasks), ("post_training_task", self.post_training_task)]:
            try:
                self.subgoals_of(task)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    @property
    def cells(self) -> int:
        """G²."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """1 + O + W: the width of a compact observation."""
        return 1 + self.colours + self.walls

    @property
    def observation_size(self) -> int:
        """G²(W + O + 1): the width of a one-hot observation."""
        return self.cells * self.channels

    def subgoals_of(self, task: Sequence[int]) -> tuple[int, ...]:
        """Split a task into subgoals, as indices into `subgoals`; ValueError for what is no task here."""
        task, split, at = tuple(task), [], 0
        if not 0 < len(task) <= self.horizon or any(one == other for one, other in pairwise(task)):
            raise ValueError(f"task {task}: give 1 to {self.horizon} (the horizon) colours, none twice running")
        while at < len(task):
            fits = [i for i, subgoal in enumerate(self.subgoals) if task[at : at + len(subgoal)] == subgoal]
            if not fits:
                raise ValueError(f"task {task}: no subgoal fits from place {at} on; use {self.subgoals}")
            split += fits
            at += len(self.subgoals[fits[0]])
        return tuple(split)


def _tasks(digits: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, task)) for task in digits.split())


PAPER = PinpadConfig(
    tasks=_tasks("014501 014523 016723 016745 230145 230167 236723 236745")
    + _tasks("450145 450167 452301 452367 672301 672367 674501 674523"),
    post_training_task=(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3),
)
SINGLE = PinpadConfig(  # the tasks of the paper's ant world, one colour a subgoal
    tasks=_tasks("032 103 210 321 020 021 031 102 131 132 202 203 213 310 313 320"),
    post_training_task=(0, 1, 2, 3),
    subgoals=((0,), (1,), (2,), (3,)),
    grid=4,
    colours=4,
    walls=1,
    horizon=40,
)


def chained_tasks(config: PinpadConfig, length: int) -> tuple[tuple[int, ...], ...]:
    """All tasks of `length` subgoals whose neighbours are neighbours in one of `config.tasks`; the paper's own sixteen
    are those of three."""
    follows = {pair for task in config.tasks for pair in pairwise(config.subgoals_of(task))}
    chains = [(goal,) for goal in range(len(config.subgoals))]
    for _ in range(length - 1):
        chains = [(*chain, goal) for chain in chains for before, goal in sorted(follows) if before == chain[-1]]
    return tuple(tuple(colour for goal in chain for colour in config.subgoals[goal]) for chain in chains)


# One colour a subgoal as in the ant world, but nine steps away: a code has to last. Four subgoals a task; a colour is
# followed by any other but the next one, so the post-training task 0123 has only transitions never seen. With five
# colours a choice is among three, and what tells them apart is worth a code.
LAPTOP = PinpadConfig(
    tasks=tuple((one, other) for one in range(5) for other in range(5) if other not in (one, (one + 1) % 5)),
    post_training_task=(0, 1, 2, 3),
    subgoals=tuple((colour,) for colour in range(5)),
    grid=13,
    colours=5,
    walls=1,
)
LAPTOP = replace(LAPTOP, tasks=chained_tasks(LAPTOP, 4))

# Where a code can mean the same in every layout: each colour keeps to its quarter of the board, and the expert has one
# way only. A task has at most one transition from a colour to the next one; the post-training task has three. Twelve
# cells a side put 8.8 steps between goals.
QUARTERS = PinpadConfig(
    tasks=tuple(permutations(range(4), 2)),
    post_training_task=(0, 1, 2, 3),
    subgoals=tuple((colour,) for colour in range(4)),
    grid=12,
    colours=4,
    walls=0,
    quarters=True,
    first_tie=True,
)
QUARTERS = replace(
    QUARTERS,
    tasks=tuple(
        task
        for task in chained_tasks(QUARTERS, 4)
        if sum((after - before) % 4 == 1 for before, after in pairwise(task)) <= 1
    ),
)


class Layouts(NamedTuple):
    """Where things are in N layouts, all in distinct cells."""

    start: np.ndarray  # (N,) uint8
    colour_cells: np.ndarray  # (N, O) uint8
    wall_cells: np.ndarray  # (N, W) uint8

    @property
    def compact(self) -> np.ndarray:
        """(N, 1+O+W) uint8: the first observations."""
        return np.concatenate([self.start[:, None], self.colour_cells, self.wall_cells], axis=1)

    @classmethod
    def of(cls, config: PinpadConfig, compact: np.ndarray) -> "Layouts":
        """The layouts of (N, 1+O+W) first observations."""
        return cls(compact[:, 0], *np.split(compact[:, 1:], [config.colours], axis=1))


def legs_of(config: PinpadConfig, tasks: np.ndarray) -> np.ndarray:
    """(2, N, L+1) int8: the colour to reach on each leg and the subgoal that it belongs to, then -1.

    tasks: (N,) indices into `config.tasks`, or (N, L) colours, filled up with -1. ValueError for what is no task.
    """
    tasks = np.asarray(tasks)
    if tasks.ndim == 1:
        known, which = config.tasks, tasks
        if len(tasks) and not 0 <= tasks.min() <= tasks.max() < len(known):
            raise ValueError(f"tasks from {tasks.min()} to {tasks.max()}: choose from 0 to {len(known) - 1}")
    else:
        rows = {}  # np.unique would take ten times as long
        which = [rows.setdefault(row.tobytes(), (len(rows), row))[0] for row in tasks]
        known = [tuple(row[row >= 0].tolist()) for _, row in rows.values()]
    legs = np.full((2, len(known), 1 + max(map(len, known), default=0)), -1, np.int8)
    for colours, goals, task in zip(*legs, known, strict=True):
        colours[: len(task)] = task
        goals[: len(task)] = [goal for goal in config.subgoals_of(task) for _ in config.subgoals[goal]]
    return legs[:, which]


def draw_tasks(
    config: PinpadConfig, count: int, rng: np.random.Generator, task: Sequence[int] | None = None
) -> np.ndarray:
    """(N, L) int8 colours, filled up with -1: drawn uniformly from `config.tasks`, or the given task N times."""
    which = rng.integers(len(config.tasks), size=count) if task is None else np.tile(task, (count, 1))
    return legs_of(config, which)[0, :, :-1]


@lru_cache
def _quarter_of(grid: int) -> np.ndarray:
    """(G²,) int: each cell's quarter of the board, in reading order."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    return 2 * (row >= grid // 2) + (column >= grid // 2)


def draw_layouts(config: PinpadConfig, tasks: np.ndarray, rng: np.random.Generator) -> Layouts:
    """A layout for each task (see `legs_of`), uniform among those that the expert solves within the horizon.

    ValueError if none is found in 1,000 draws.
    """
    tasks = legs_of(config, tasks)[0, :, :-1]
    compact, left = np.empty((len(tasks), config.channels), np.uint8), np.arange(len(tasks))
    for _ in range(DRAWS):
        keys = rng.random((len(left), config.cells), dtype=np.float32)
        if config.quarters:
            places = np.where(_quarter_of(config.grid) == np.arange(config.colours)[:, None, None], keys, 1).argmin(2).T
            np.put_along_axis(keys, places, 1, axis=1)  # taken: last in the order, so neither start nor wall
            others = np.argsort(keys, axis=1)[:, : 1 + config.walls]
            compact[left] = np.concatenate([others[:, :1], places, others[:, 1:]], axis=1)
        else:
            compact[left] = np.argsort(keys, axis=1)[:, : config.channels]
        lengths = plan(config, tasks[left], Layouts.of(config, compact[left])).lengths
        left = left[lengths.sum(axis=1) > config.horizon]
        if not len(left):
            return Layouts.of(config, compact)
    raise ValueError(f"task {tasks[left[0]]}: no solvable layout in {DRAWS} draws; use fewer walls or a longer horizon")


class Plan(NamedTuple):
    """The shortest paths of N layouts with L legs each."""

    moves: np.ndarray  # (4, G, N, L) uint16: in each row the columns, as bits, from which this move is optimal
    lengths: np.ndarray  # (N, L) int: steps from where the leg begins; horizon + 1 if there is no way

    def optimal(self, legs: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """(4, N) uint16, 0 or 1: which moves are optimal on these legs (N,) from these cells (N,)."""
        row, column = np.divmod(cells, self.moves.shape[1])
        return self.moves[:, row, np.arange(len(cells)), legs.clip(max=self.lengths.shape[1] - 1)] >> column & 1


def plan(config: PinpadConfig, tasks: np.ndarray, layouts: Layouts) -> Plan:
    """Shortest paths to the colour of every leg (see `legs_of`), all other colours and the walls being obstacles.

    Boards are G rows of bits, (G, N, L) uint16. From the target the reached set grows by one step at a time on all
    boards at once: its edge, shifted against a move, is where that move leads onto a shortest path. Colours are
    reached, as a leg begins on one, but not passed through.
    """
    cell = np.arange(config.cells)
    bits = np.zeros((config.grid, config.cells), np.uint16)
    bits[cell // config.grid, cell] = 1 << cell % config.grid
    colours, walls = bits[:, layouts.colour_cells], np.bitwise_or.reduce(bits[:, layouts.wall_cells], axis=2)[..., None]
    passable = ~np.bitwise_or.reduce(colours, axis=2)[..., None]
    targets = legs_of(config, tasks)[0, :, :-1]
    edge = np.take_along_axis(colours, targets.clip(0).astype(int)[None], axis=2)
    edge[:, targets < 0] = 0
    origins = np.concatenate([bits[:, layouts.start][..., None], edge[..., :-1]], axis=2)
    unreached = ~(edge | walls) & np.uint16((1 << config.grid) - 1)
    moves, lengths = np.zeros((4, *edge.shape), np.uint16), np.where(targets < 0, 0, config.horizon + 1)
    before = np.zeros_like(moves)  # from where each move leads onto the edge
    distance = 0
    while edge.any():
        distance += 1
        before[0, 1:], before[1, :-1], before[2], before[3] = edge[:-1], edge[1:], edge << 1, edge >> 1
        before &= unreached
        moves |= before
        reached = np.bitwise_or.reduce(before)
        lengths[(reached & origins).any(axis=0)] = distance
        unreached &= ~reached
        edge = reached & passable
    return Plan(moves, lengths)


@lru_cache
def _ahead(grid: int) -> np.ndarray:
    """(G², 4) uint8: the cell that each move leads to; across the border the agent's own."""
    cell = np.arange(grid * grid)
    row, column = np.divmod(cell, grid)
    up, left = cell - grid * (row > 0), cell - (column > 0)
    down, right = cell + grid * (row < grid - 1), cell + (column < grid - 1)
    return np.stack([up, down, left, right], axis=1).astype(np.uint8)


class Pinpad:
    """N pinpads in step; all are done until `reset` or `reset_random` begins an episode.

    A move into a wall or the border leaves the agent where it is. A colour counts when the agent moves onto it from
    another cell. An episode terminates, with reward 1, at the end of the task, or on any colour but the next one;
    after `horizon` steps it is truncated.
    """

    def __init__(self, config: PinpadConfig, count: int):
        self.config, self.count = config, count
        self.done = np.ones(count, bool)
        self.steps, self.progress = np.zeros((2, count), int)  # progress: colours reached
        self._rows = np.arange(count)
        self._compact = np.zeros((count, config.channels), np.uint8)
        self._contents = np.full((count, config.cells), FREE, np.int8)
        self._legs = np.full((2, count, 1), -1, np.int8)  # as in `legs_of`

    def reset(self, tasks: np.ndarray, layouts: Layouts, where: np.ndarray | None = None) -> None:
        """Begin episodes with these tasks (see `legs_of`) and layouts, in all pinpads or (mask or indices) `where`."""
        rows = self._rows if where is None else self._rows[where]
        compact, legs = layouts.compact, legs_of(self.config, tasks)
        if compact.shape != (len(rows), self.config.channels) or legs.shape[1] != len(rows):
            raise ValueError(f"layouts {compact.shape}, {legs.shape[1]} tasks: {len(rows)} of both are needed")
        if compact.max(initial=0) >= self.config.cells or (np.diff(np.sort(compact, axis=1), axis=1) == 0).any():
            raise ValueError(f"layouts: cells must be distinct and from 0 to {self.config.cells - 1}")
        wider = legs.shape[2] - self._legs.shape[2]
        self._legs = np.pad(self._legs, [(0, 0), (0, 0), (0, max(wider, 0))], constant_values=-1)
        self._legs[:, rows] = np.pad(legs, [(0, 0), (0, 0), (0, max(-wider, 0))], constant_values=-1)
        self._compact[rows], self._contents[rows] = compact, FREE
        self._contents[rows[:, None], layouts.colour_cells] = np.arange(self.config.colours)
        self._contents[rows[:, None], layouts.wall_cells] = WALL
        self.steps[rows] = self.progress[rows] = self.done[rows] = 0

    def reset_random(
        self, rng: np.random.Generator, task: Sequence[int] | None = None, where: np.ndarray | None = None
    ) -> None:
        """Begin episodes with tasks drawn from `config.tasks`, or the given one, and layouts drawn for them."""
        count = self.count if where is None else len(self._rows[where])
        tasks = draw_tasks(self.config, count, rng, task)
        self.reset(tasks, draw_layouts(self.config, tasks, rng), where)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move all agents; returns rewards (N,) float32, terminated (N,) bool and truncated (N,) bool.

        actions: (N,) ints, indices into MOVES. Where the episode is done, the action is ignored and all three are 0.
        ValueError for other shapes or actions.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.count,) or actions.dtype.kind not in "iu" or ((actions < 0) | (actions > 3)).any():
            raise ValueError(f"actions {actions.dtype} {actions.shape}: {self.count} integers from 0 to 3 are needed")
        agent, playing = self._compact[:, 0], ~self.done
        ahead = _ahead(self.config.grid)[agent, actions]
        content = self._contents[self._rows, ahead]
        moved = playing & (ahead != agent) & (content != WALL)
        np.copyto(agent, ahead, where=moved)
        entered = moved & (content >= 0)
        right = entered & (content == self._legs[0, self._rows, self.progress])
        self.progress += right
        self.steps += playing
        success = right & (self._legs[0, self._rows, self.progress] < 0)
        terminated = success | (entered & ~right)
        truncated = playing & ~terminated & (self.steps >= self.config.horizon)
        self.done |= terminated | truncated
        return success.astype(np.float32), terminated, truncated

    @property
    def observation(self) -> np.ndarray:
        """(N, 1+O+W) uint8, compact: the cells of the agent, of each colour and of each wall."""
        return self._compact.copy()

    @property
    def goal(self) -> np.ndarray:
        """(N,) int8: the subgoal in pursuit, -1 when done; the truth, for measuring only."""
        return np.where(self.done, np.int8(-1), self._legs[1, self._rows, self.progress])


def one_hot(config: PinpadConfig, compact: np.ndarray) -> np.ndarray:
    """(..., 1+O+W) compact observations as the paper's (..., G²(W+O+1)) float32: index channel·G² + cell.

    A linear layer on the one-hot equals a sum of 1+O+W rows of an embedding; hence the compact form.
    """
    return np.eye(config.cells, dtype=np.float32)[compact].reshape(*compact.shape[:-1], config.observation_size)


def expert_actions(game: Pinpad, paths: Plan, rng: np.random.Generator, noise: float = 0.0) -> np.ndarray:
    """(N,) uint8: for each pinpad a uniform draw among the optimal moves, or their first with `first_tie`; with
    probability `noise` one of all four.

    paths: the `plan` of the game's tasks and layouts. If noise has cut off the way (it leads back over a colour), any
    move is drawn.
    """
    up, down, left, right = paths.optimal(game.progress, game.observation[:, 0])
    optimal = up | down << 1 | left << 2 | right << 3
    if game.config.first_tie:
        optimal &= -optimal  # the lowest bit alone
    if noise:
        optimal[rng.random(game.count) < noise] = 0
    return SHARES[optimal, rng.integers(12, size=game.count, dtype=np.uint8)]


@dataclass(frozen=True)
class Episodes:
    """N episodes; each array holds `lengths` steps and is filled up to the horizon T."""

    layouts: Layouts
    tasks: np.ndarray  # (N, L) int8 colours, filled up with -1
    positions: np.ndarray  # (N, T+1) uint8: the agent's cell before each step and after the last, which fills up
    actions: np.ndarray  # (N, T) uint8, filled up with 0
    goals: np.ndarray  # (N, T) int8: the subgoal in pursuit, filled up with -1; never an input of a model
    lengths: np.ndarray  # (N,) int: steps
    success: np.ndarray  # (N,) bool

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray) -> "Episodes":
        """The episodes of these rows, such as a minibatch."""
        arrays = [getattr(self, field.name) for field in fields(self)[1:]]
        return Episodes(Layouts(*(cells[rows] for cells in self.layouts)), *(array[rows] for array in arrays))

    @property
    def observations(self) -> np.ndarray:
        """(N, T+1, 1+O+W) uint8, compact; made anew, so take a minibatch first."""
        observations = np.repeat(self.layouts.compact[:, None], self.positions.shape[1], axis=1)
        observations[:, :, 0] = self.positions
        return observations


def expert_episodes(
    config: PinpadConfig, count: int, rng: np.random.Generator, noise: float = 0.0, task: Sequence[int] | None = None
) -> Episodes:
    """Episodes of the stochastic shortest-path expert, each in a layout of its own.

    noise: probability that an action is replaced by a uniform one; such an episode may fail. task: colours; by
    default one of `config.tasks` is drawn for each episode.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise={noise}: it is a probability, choose 0 to 1")
    game, tasks = Pinpad(config, count), draw_tasks(config, count, rng, task)
    layouts = draw_layouts(config, tasks, rng)
    game.reset(tasks, layouts)
    paths = plan(config, tasks, layouts)
    positions = np.empty((config.horizon + 1, count), np.uint8)  # steps first: each is written at once
    actions = np.zeros((config.horizon, count), np.uint8)
    goals = np.full((config.horizon, count), -1, np.int8)
    success = np.zeros(count, bool)
    positions[0] = layouts.start
    for step in range(config.horizon):
        if game.done.all():
            positions[step + 1 :] = positions[step]
            break
        goals[step] = game.goal
        np.copyto(actions[step], expert_actions(game, paths, rng, noise), where=~game.done)
        success |= game.step(actions[step])[0] > 0
        positions[step + 1] = game.observation[:, 0]
    turned = (np.ascontiguousarray(array.T) for array in (positions, actions, goals))
    return Episodes(layouts, tasks, *turned, game.steps, success)


def render(config: PinpadConfig, observation: np.ndarray, pixels: int = 24) -> np.ndarray:
    """(G·pixels, G·pixels, 3) uint8: a picture of one compact observation, (1+O+W,)."""
    (agent,), colours, walls = np.split(np.asarray(observation), [1, 1 + config.colours])
    cells = np.full((config.cells, 3), FLOOR_GRAY, np.uint8)
    cells[colours] = PAD_RGB[np.arange(config.colours) % len(PAD_RGB)]
    cells[walls] = WALL_GRAY
    picture = cells.reshape(config.grid, config.grid, 3).repeat(pixels, axis=0).repeat(pixels, axis=1)
    picture[::pixels] = picture[:, ::pixels] = LINE_GRAY
    y, x = (np.indices(picture.shape[:2]) + 0.5) / pixels - 0.5  # in cells
    distance = np.hypot(y - agent // config.grid, x - agent % config.grid)
    picture[distance < 0.34], picture[distance < 0.26] = 255, 0
    return picture


def _chosen_task(options: dict | None) -> Sequence[int] | None:
    if set(options or {}) - {"task"}:
        raise ValueError(f"options {sorted(options)}: only task, a sequence of colours, is known")
    return (options or {}).get("task")


class PinpadEnv(gymnasium.Env):
    """One pinpad with one-hot observations; `reset(options={"task": colours})` chooses the task.

    The info is empty: nothing tells the task. `env.unwrapped.goal` is the truth, for measuring only.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, config: PinpadConfig = PAPER, render_mode: str | None = None):
        self.config, self.render_mode, self.core = config, render_mode, Pinpad(config, 1)
        self.observation_space = spaces.Box(0, 1, (config.observation_size,), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.core.reset_random(self.np_random, _chosen_task(options))
        return one_hot(self.config, self.core.observation)[0], {}

    def step(self, action: int):
        if self.core.done[0]:
            raise gymnasium.error.ResetNeeded("no episode is in play; call reset")
        reward, terminated, truncated = (result.item() for result in self.core.step(np.array([action])))
        return one_hot(self.config, self.core.observation)[0], reward, terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        return render(self.config, self.core.observation[0]) if self.render_mode else None

    @property
    def goal(self) -> int:
        """The subgoal in pursuit, -1 when done."""
        return self.core.goal.item()


class PinpadVectorEnv(VectorEnv):
    """N pinpads behind gymnasium's vector interface; an ended one begins anew with the next step, its action unused.

    compact: give observations as (N, 1+O+W) uint8, not as one-hot. `reset(options={"task": colours})` chooses the task
    of all episodes until the next call of `reset`.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, config: PinpadConfig = PAPER, num_envs: int = 1, compact: bool = False):
        self.config, self.num_envs, self.compact, self.core = config, num_envs, compact, Pinpad(config, num_envs)
        self.task: Sequence[int] | None = None
        if compact:
            self.single_observation_space = spaces.Box(0, config.cells - 1, (config.channels,), np.uint8)
        else:
            self.single_observation_space = spaces.Box(0, 1, (config.observation_size,), np.float32)
        self.single_action_space = spaces.Discrete(len(MOVES))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.task = _chosen_task(options)
        self.core.reset_random(self.np_random, self.task)
        return self._observation(), {}

    def step(self, actions: np.ndarray):
        ended = self.core.done.copy()
        rewards, terminated, truncated = self.core.step(actions)
        if ended.any():
            self.core.reset_random(self.np_random, self.task, ended)
        return self._observation(), rewards, terminated, truncated, {}

    def _observation(self) -> np.ndarray:
        return self.core.observation if self.compact else one_hot(self.config, self.core.observation)
