"""Gridworld-pinpad against plain one-episode rules and a plain breadth-first search, and its gymnasium forms."""

import json
from collections import deque
from dataclasses import asdict, fields, replace
from itertools import pairwise, permutations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib.pinpad import (
    LAPTOP,
    PAD_RGB,
    PAPER,
    QUARTERS,
    SHARES,
    SINGLE,
    Episodes,
    Layouts,
    Pinpad,
    PinpadConfig,
    PinpadEnv,
    PinpadVectorEnv,
    chained_tasks,
    draw_layouts,
    draw_tasks,
    expert_actions,
    expert_episodes,
    legs_of,
    one_hot,
    plan,
    render,
)

UP, DOWN, LEFT, RIGHT = range(4)


def layouts_of(start: int, colours: list[int], walls: list[int], count: int = 1) -> Layouts:
    """The same layout `count` times."""
    return Layouts(*(np.array([cells] * count, np.uint8) for cells in (start, colours, walls)))


# S . 0
# # . .
# 1 . .
HAND = PinpadConfig(
    tasks=((0, 1), (1, 0)),
    post_training_task=(0, 1, 0),
    subgoals=((0,), (1,)),
    grid=3,
    colours=2,
    walls=1,
    horizon=6,
)
HAND_LAYOUT = layouts_of(0, [2, 6], [3])


def hand_game(*task: int) -> Pinpad:
    game = Pinpad(HAND, 1)
    game.reset(np.array([task]), HAND_LAYOUT)
    return game


def play(game: Pinpad, *actions: int) -> tuple[float, bool, bool]:
    """What the last of these steps gave."""
    for action in actions:
        result = game.step(np.array([action]))
    return tuple(array.item() for array in result)


def neighbour(grid: int, cell: int, action: int) -> int | None:
    """The cell beyond, None across the border."""
    row, column = divmod(cell, grid)
    row += {UP: -1, DOWN: 1}.get(action, 0)
    column += {LEFT: -1, RIGHT: 1}.get(action, 0)
    return row * grid + column if 0 <= row < grid and 0 <= column < grid else None


def play_plainly(config: PinpadConfig, task, start: int, colours, walls, actions):
    """One episode after the paper's words; yields (position, colours reached, reward, terminated, truncated)."""
    at, reached = start, 0
    for step, action in enumerate(actions, 1):
        beyond = neighbour(config.grid, at, action)
        right = wrong = False
        if beyond is not None and beyond not in walls:
            at = beyond
            if at in colours:
                right = colours.index(at) == task[reached]
                wrong = not right
        reached += right
        success = reached == len(task)
        ended = success or wrong
        yield at, reached, float(success), ended, not ended and step == config.horizon
        if ended or step == config.horizon:
            return


def distances(config: PinpadConfig, target: int, blocked: set[int]) -> dict[int, int]:
    """Steps to the target from each cell; blocked cells are reached but not passed through."""
    found, queue = {target: 0}, deque([target])
    while queue:
        cell = queue.popleft()
        if cell in blocked:
            continue
        for action in range(4):
            beyond = neighbour(config.grid, cell, action)
            if beyond is not None and beyond not in found:
                found[beyond] = found[cell] + 1
                queue.append(beyond)
    return found


def shortest(config: PinpadConfig, task, start: int, colours, walls) -> float:
    """Least number of steps for the whole task, inf if there is no way."""
    total, at = 0, start
    for colour in task:
        blocked = (set(colours) | set(walls)) - {colours[colour]}
        total += distances(config, colours[colour], blocked).get(at, np.inf)
        at = colours[colour]
    return total


def plain(episodes: Episodes, row: int) -> tuple[list[int], int, list[int], list[int]]:
    """Task, start, colours and walls of one episode as plain values."""
    task = [colour for colour in episodes.tasks[row].tolist() if colour >= 0]
    return task, *(cells[row].tolist() for cells in episodes.layouts)


def chi_square(counts, shares=None) -> float:
    counts = np.asarray(counts, float)
    expected = counts.sum() * (np.full(len(counts), 1 / len(counts)) if shares is None else np.asarray(shares))
    return float(((counts - expected) ** 2 / expected).sum())


# ---- the configs


def test_the_papers_numbers():
    assert (PAPER.grid, PAPER.colours, PAPER.walls, PAPER.horizon) == (7, 8, 4, 100)
    assert PAPER.observation_size == 49 * 13
    assert PAPER.subgoals_of((6, 7, 0, 1, 4, 5)) == (3, 0, 2)
    assert PAPER.subgoals_of(PAPER.post_training_task) == (0, 1, 2, 3, 0, 1)
    assert "".join(map(str, SINGLE.post_training_task)) == "0123"


@pytest.mark.parametrize(("config", "tasks"), [(PAPER, 16), (SINGLE, 16), (LAPTOP, 135)])
def test_the_new_task_needs_transitions_never_trained(config, tasks):
    trained = {pair for task in config.tasks for pair in pairwise(config.subgoals_of(task))}
    assert len(config.tasks) == len(set(config.tasks)) == tasks
    assert not {(0, 1), (1, 2), (2, 3)} & trained
    assert {goal for pair in trained for goal in pair} == set(range(len(config.subgoals)))


def test_in_quarters_the_new_task_has_three_of_the_rare_transitions_of_which_a_trained_task_has_one_at_most():
    rare = [sum((b - a) % 4 == 1 for a, b in pairwise(task)) for task in QUARTERS.tasks]
    assert set(QUARTERS.tasks) >= {(0, 1, 3, 1), (0, 2, 0, 2)}
    assert len(QUARTERS.tasks) == len(set(QUARTERS.tasks)) == 80
    assert set(rare) == {0, 1}
    assert np.mean(rare) == pytest.approx(0.6)
    assert QUARTERS.post_training_task == (0, 1, 2, 3) not in QUARTERS.tasks
    assert {pair for task in QUARTERS.tasks for pair in pairwise(task)} == {*permutations(range(4), 2)}


@pytest.mark.parametrize("config", [PAPER, QUARTERS])
def test_a_config_survives_json(config):
    assert PinpadConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("walls", [0, 3])
def test_colours_keep_to_their_quarters_and_are_everywhere_in_them(walls):
    config = replace(QUARTERS, walls=walls)
    layouts = draw_layouts(config, np.zeros(2_000, int), np.random.default_rng(0))
    row, column = np.divmod(layouts.colour_cells, 12)
    assert (2 * (row >= 6) + (column >= 6) == np.arange(4)).all()
    assert all(len(np.unique(layouts.colour_cells[:, colour])) == 36 for colour in range(4))
    assert len(np.unique(layouts.start)) == 144, "the agent starts anywhere"
    assert all(len(set(row)) == config.channels for row in layouts.compact.tolist()), "all in distinct cells"


def test_without_ties_an_episode_follows_from_its_layout():
    one, other = (expert_episodes(QUARTERS, 50, np.random.default_rng(seed)) for seed in (3, 4))
    for seed in (5, 6):  # the same tasks and layouts, another source of chance
        game, tasks = Pinpad(QUARTERS, 50), one.tasks
        game.reset(tasks, one.layouts)
        paths, rng, t = plan(QUARTERS, tasks, one.layouts), np.random.default_rng(seed), 0
        while not game.done.all():
            playing = ~game.done
            actions = expert_actions(game, paths, rng)
            assert (actions == one.actions[:, t])[playing].all()
            game.step(actions)
            t += 1
    assert not np.array_equal(one.actions, other.actions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": 1}, "grid=1: choose 2 to 16"),
        ({"grid": 17}, "grid=17: choose 2 to 16"),
        ({"walls": 7}, "colours=2, walls=7: .* fit into the 9 cells of grid=3"),
        ({"walls": -1}, "walls=-1"),
        ({"colours": 0}, "colours=0"),
        ({"subgoals": ((0,), (2,))}, r"subgoals: \(2,\) must hold colours from 0 to 1"),
        ({"subgoals": ((0,), ())}, r"subgoals: \(\)"),
        ({"subgoals": ((0,), (0, 1))}, r"\(0, 1\) begins with \(0,\)"),
        ({"subgoals": ((0,), (1,), (0,))}, r"\(0,\) begins with \(0,\)"),
        ({"subgoals": ((0, 1),)}, r"tasks: task \(1, 0\): no subgoal fits from place 0"),
        ({"tasks": ()}, "tasks=.*at least one"),
        ({"tasks": ((0, 1), ())}, r"tasks: task \(\): give 1 to 6"),
        ({"tasks": ((0, 1, 1),)}, "none twice running"),
        ({"tasks": ((0, 5),)}, "no subgoal fits from place 1"),
        ({"horizon": 2}, r"post_training_task: task \(0, 1, 0\): give 1 to 2"),
    ],
)
def test_a_config_that_does_not_fit_is_named(change, said):
    with pytest.raises(ValueError, match=said) as caught:
        replace(HAND, **change)
    assert "\n" not in str(caught.value)


# ---- the rules


def test_moves_stop_at_the_border_and_at_walls():
    config = replace(HAND, colours=2, horizon=10)
    free = [cell for cell in range(9) if cell not in (2, 3, 6)]
    pairs = [(cell, action) for cell in free for action in range(4)]
    game = Pinpad(config, len(pairs))
    layouts = layouts_of(0, [2, 6], [3], len(pairs))._replace(start=np.array([cell for cell, _ in pairs], np.uint8))
    game.reset(np.zeros(len(pairs), int), layouts)
    game.step(np.array([action for _, action in pairs]))
    beyond = [neighbour(3, *pair) for pair in pairs]
    expected = [cell if to in (None, 3) else to for (cell, _), to in zip(pairs, beyond, strict=True)]
    assert game.observation[:, 0].tolist() == expected
    assert np.array_equal(game.observation[:, 1:], layouts.compact[:, 1:])


def test_a_wrong_colour_ends_the_episode_without_reward():
    game = hand_game(1, 0)
    assert play(game, RIGHT) == (0, False, False)
    assert play(game, RIGHT) == (0, True, False)
    assert game.done.all()
    assert game.progress[0] == 0


def test_bumping_on_a_colour_is_no_new_visit():
    game = hand_game(0, 1)
    assert play(game, RIGHT, RIGHT) == (0, False, False)
    assert game.progress[0] == 1
    assert play(game, UP, RIGHT) == (0, False, False)
    assert game.progress[0] == 1
    assert not game.done.any()


def test_bumping_does_not_count_for_a_repeated_colour_either():
    config = replace(HAND, horizon=20)
    game = Pinpad(config, 1)
    game.reset(np.array([[0, 1, 0]]), HAND_LAYOUT)
    play(game, RIGHT, RIGHT, DOWN, DOWN, LEFT, LEFT, LEFT, UP, DOWN)
    assert (game.progress[0], game.observation[0, 0]) == (2, 6)
    assert play(game, RIGHT, RIGHT, UP, UP) == (1, True, False)


def test_coming_back_to_a_colour_is_a_wrong_visit():
    game = hand_game(0, 1)
    assert play(game, RIGHT, RIGHT, DOWN) == (0, False, False)
    assert play(game, UP) == (0, True, False)


def test_reward_comes_only_at_the_end_and_success_beats_the_horizon():
    game = hand_game(0, 1)
    assert game.goal.tolist() == [0]
    assert play(game, RIGHT, RIGHT) == (0, False, False)
    assert game.goal.tolist() == [1]
    assert play(game, DOWN, DOWN, LEFT) == (0, False, False)
    assert play(game, LEFT) == (1, True, False)  # step 6 of 6
    assert game.goal.tolist() == [-1]


def test_the_horizon_truncates():
    game = hand_game(0, 1)
    assert play(game, *[LEFT] * 5) == (0, False, False)
    assert play(game, LEFT) == (0, False, True)
    assert game.steps[0] == 6


def test_a_done_pinpad_ignores_steps():
    game = hand_game(1, 0)
    play(game, RIGHT, RIGHT)
    before = game.observation
    assert play(game, *[LEFT] * 9) == (0, False, False)
    assert np.array_equal(game.observation, before)
    assert game.steps[0] == 2
    assert play(Pinpad(HAND, 1), LEFT) == (0, False, False)


@pytest.mark.parametrize("actions", [[4], [-1], [0.0], [0, 1], 0])
def test_wrong_actions_are_refused(actions):
    with pytest.raises(ValueError, match="1 integers from 0 to 3"):
        hand_game(0, 1).step(np.array(actions))


def test_wrong_layouts_and_tasks_are_refused():
    game = Pinpad(HAND, 1)
    for layouts in (layouts_of(0, [2, 2], [3]), layouts_of(3, [2, 6], [3]), layouts_of(0, [2, 9], [3])):
        with pytest.raises(ValueError, match="distinct and from 0 to 8"):
            game.reset(np.array([0]), layouts)
    with pytest.raises(ValueError, match="1 of both are needed"):
        game.reset(np.array([0, 0]), HAND_LAYOUT)
    with pytest.raises(ValueError, match="choose from 0 to 1"):
        game.reset(np.array([2]), HAND_LAYOUT)
    with pytest.raises(ValueError, match="no subgoal fits"):
        game.reset(np.array([[0, 3]]), HAND_LAYOUT)
    assert game.done.all()


def test_tasks_by_index_and_by_colours_are_the_same():
    explicit = np.array([(*PAPER.tasks[3], -1), (*PAPER.tasks[0], -1), (*PAPER.tasks[3], -1)])
    assert np.array_equal(legs_of(PAPER, np.array([3, 0, 3])), legs_of(PAPER, explicit))
    colours, goals = legs_of(PAPER, np.array([PAPER.tasks.index((0, 1, 4, 5, 2, 3))]))
    assert colours.tolist() == [[0, 1, 4, 5, 2, 3, -1]]
    assert goals.tolist() == [[0, 0, 2, 2, 1, 1, -1]]


def test_the_batch_plays_as_the_plain_rules_do():
    rng = np.random.default_rng(0)
    config = replace(SINGLE, horizon=15)
    game = Pinpad(config, 300)
    game.reset_random(rng)  # of which nothing may stay
    game.step(np.full(300, RIGHT))
    tasks = draw_tasks(config, 300, rng)
    layouts = draw_layouts(config, tasks, rng)
    game.reset(tasks, layouts)
    actions = rng.integers(4, size=(15, 300))
    results = [(game.observation[:, 0], game.progress.copy(), *game.step(row)) for row in actions]
    after = [(*results[t + 1][:2], *results[t][2:]) for t in range(14)]
    kinds = set()
    for row in range(300):
        start, colours, walls = (cells[row].tolist() for cells in layouts)
        task = [colour for colour in tasks[row].tolist() if colour >= 0]
        expected = list(play_plainly(config, task, start, colours, walls, actions[:, row].tolist()))
        assert [tuple(array[row].item() for array in step) for step in after[: len(expected)]] == expected[:14]
        assert game.steps[row] == len(expected)
        kinds.add(expected[-1][2:])
    assert kinds >= {(0, True, False), (0, False, True)}


def test_a_batch_is_so_many_single_pinpads():
    rng = np.random.default_rng(1)
    tasks = draw_tasks(SINGLE, 40, rng)
    layouts = draw_layouts(SINGLE, tasks, rng)
    batch, singles = Pinpad(SINGLE, 40), [Pinpad(SINGLE, 1) for _ in range(40)]
    batch.reset(tasks, layouts)
    for row, single in enumerate(singles):
        single.reset(tasks[row : row + 1], Layouts(*(cells[row : row + 1] for cells in layouts)))
    for actions in rng.integers(4, size=(45, 40)):
        together = (*batch.step(actions), batch.observation, batch.goal, batch.done)
        alone = []
        for single, action in zip(singles, actions, strict=True):
            alone.append((*single.step(action[None]), single.observation, single.goal, single.done))
        for array, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert np.array_equal(array, np.concatenate(parts))
    assert batch.done.all()


def test_some_pinpads_begin_anew_while_the_others_go_on():
    rng = np.random.default_rng(2)
    game = Pinpad(SINGLE, 6)
    game.reset_random(rng)
    game.step(np.full(6, UP))
    before = game.observation, game.goal, game.steps.copy()
    where = np.array([True, False, True, False, False, True])
    game.reset_random(rng, SINGLE.post_training_task * 2, where)  # longer than any before
    assert game.goal[where].tolist() == [0, 0, 0]
    assert game.steps.tolist() == np.where(where, 0, before[2]).tolist()
    game.reset_random(rng, (2, 0), np.array([0]))  # and a shorter one
    assert game.goal[0] == 2
    kept = ~where
    assert np.array_equal(game.observation[kept], before[0][kept])
    assert np.array_equal(game.goal[kept], before[1][kept])
    assert (game.observation[where] != before[0][where]).any(axis=1).all()


# ---- observations


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_one_hot_marks_each_channels_cell(seed):
    game = Pinpad(SINGLE, 5)
    game.reset_random(np.random.default_rng(seed))
    compact = game.observation
    observation = one_hot(SINGLE, compact)
    assert observation.shape == (5, SINGLE.observation_size)
    assert observation.dtype == np.float32
    assert (observation.sum(axis=1) == SINGLE.channels).all()
    assert set(np.flatnonzero(observation[0])) == {channel * 16 + cell for channel, cell in enumerate(compact[0])}
    by_channel = observation.reshape(5, SINGLE.channels, 16)
    assert np.array_equal(by_channel.argmax(axis=2), compact)
    assert np.array_equal(one_hot(SINGLE, compact[:, None]), observation[:, None])


def test_one_hot_times_weights_is_a_sum_of_embeddings():
    compact = expert_episodes(PAPER, 4, np.random.default_rng(0)).observations
    weights = np.random.default_rng(1).standard_normal((PAPER.observation_size, 3))
    rows = weights[compact + 49 * np.arange(13)]
    assert np.allclose(one_hot(PAPER, compact) @ weights, rows.sum(axis=2))


def test_the_observation_tells_nothing_of_task_or_progress():
    """Six tasks that begin with 0, 1 and a free walk: the same cells in the same layout look the same."""
    config = replace(HAND, colours=3, walls=0, subgoals=((0,), (1,), (2,)), horizon=20)
    tasks = np.array([(0, 1, 0, 1), (0, 1, 2, 1), (0, 1, 2, 0), (0, 1, 0, 2), (0, 1, 2, -1), (0, 1, 0, -1)])
    game = Pinpad(config, 6)
    game.reset(tasks, layouts_of(0, [1, 7, 6], [], 6))  # S 0 . / . . . / 2 1 .
    for action in (RIGHT, DOWN, DOWN, RIGHT, UP, LEFT, LEFT, UP, RIGHT):
        assert not game.done.any()
        game.step(np.full(6, action))
        seen = game.observation
        assert (seen == seen[0]).all()
        assert seen[0, 1:].tolist() == [1, 7, 6]
    assert game.done.tolist() == [False, True, True, False, True, True]
    assert not np.shares_memory(game.observation, game.observation)
    before_any = hand_game(0, 1)
    around = hand_game(0, 1)
    play(around, RIGHT, RIGHT, LEFT)
    play(before_any, RIGHT)
    assert around.progress[0] > before_any.progress[0]
    assert np.array_equal(around.observation, before_any.observation)


def test_a_picture_shows_every_cell():
    compact = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 23])
    picture = render(PAPER, compact)
    assert (picture.shape, picture.dtype) == ((168, 168, 3), np.uint8)
    middle = picture[12::24, 12::24].reshape(49, 3)
    assert np.array_equal(middle[1:9], PAD_RGB)
    assert len(np.unique(np.concatenate([PAD_RGB, middle[[0, 20, 30]]]), axis=0)) == 11
    assert (middle[20:24] == middle[20]).all()
    assert middle[0].tolist() == [0, 0, 0]
    assert render(PAPER, compact, pixels=10).shape == (70, 70, 3)
    moved = render(PAPER, np.array([3 * 7 + 4, *compact[1:]]))
    changed = np.argwhere((moved != picture).any(axis=2)) // 24
    assert np.unique(changed, axis=0).tolist() == [[0, 0], [3, 4]]


# ---- layouts


@st.composite
def small_configs(draw) -> PinpadConfig:
    grid = draw(st.integers(2, 5))
    colours = draw(st.integers(1, min(4, grid * grid // 2)))
    walls = draw(st.integers(0, max(0, grid * grid // 2 - colours)))
    singles = colours < 2 or colours % 2 or draw(st.booleans())
    subgoals = [(c,) for c in range(colours)] if singles else [(c, c + 1) for c in range(0, colours, 2)]
    order = draw(st.permutations(range(len(subgoals))))
    tasks = [sum((subgoals[i] for i in order[:n]), ()) for n in range(1, len(order) + 1)]
    horizon = draw(st.integers(2 * len(tasks[-1]) + grid, 60))
    return PinpadConfig(tasks, tasks[-1], subgoals, grid, colours, walls, horizon)


@given(small_configs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_layouts_are_distinct_and_solvable(config, seed):
    rng = np.random.default_rng(seed)
    tasks = rng.integers(len(config.tasks), size=8)
    layouts = draw_layouts(config, tasks, rng)
    assert [cells.shape for cells in layouts] == [(8,), (8, config.colours), (8, config.walls)]
    lengths = plan(config, tasks, layouts).lengths.sum(axis=1)
    for row in range(8):
        start, colours, walls = (cells[row].tolist() for cells in layouts)
        cells = {start, *colours, *walls}
        assert len(cells) == config.channels
        assert cells <= set(range(config.cells))
        best = shortest(config, config.tasks[tasks[row]], start, colours, walls)
        assert best == lengths[row] <= config.horizon


def test_the_plan_knows_what_cannot_be_solved():
    rng = np.random.default_rng(3)
    keys = rng.random((200, SINGLE.cells)).argsort(axis=1)[:, : SINGLE.channels].astype(np.uint8)
    layouts, tasks = Layouts.of(SINGLE, keys), draw_tasks(SINGLE, 200, rng)
    lengths = plan(SINGLE, tasks, layouts).lengths.sum(axis=1)
    expected = [
        shortest(SINGLE, [c for c in task.tolist() if c >= 0], *(cells[row].tolist() for cells in layouts))
        for row, task in enumerate(tasks)
    ]
    assert np.array_equal(lengths > SINGLE.horizon, np.isinf(expected))
    assert 0 < np.isinf(expected).sum() < 100
    assert np.array_equal(lengths[np.isfinite(expected)], np.array(expected)[np.isfinite(expected)])


def test_layouts_are_uniform_where_all_are_solvable():
    config = PinpadConfig(tasks=((0,),), post_training_task=(0,), subgoals=((0,),), grid=2, colours=1, walls=0)
    layouts = draw_layouts(config, np.zeros(12_000, int), np.random.default_rng(0))
    counts = np.bincount(4 * layouts.start.astype(int) + layouts.colour_cells[:, 0], minlength=16)
    assert counts[[0, 5, 10, 15]].sum() == 0
    assert chi_square(counts[counts > 0]) < 35  # 11 degrees of freedom
    assert (counts > 0).sum() == 12


def test_layouts_keep_to_the_horizon():
    config = replace(SINGLE, horizon=6)
    tasks = np.zeros(100, int)
    lengths = plan(config, tasks, draw_layouts(config, tasks, np.random.default_rng(0))).lengths.sum(axis=1)
    assert lengths.max() == 6


def test_a_task_without_any_layout_is_named():
    config = replace(HAND, colours=3, walls=0, subgoals=((0,), (1,), (2,)), horizon=4)
    with pytest.raises(
        ValueError, match=r"task \[0 1 2 0\]: no solvable layout in 1000 draws"
    ):  # a grid has no triangle
        draw_layouts(config, np.array([[0, 1, 2, 0]]), np.random.default_rng(0))


# ---- the expert


@pytest.mark.parametrize(
    ("config", "new_task"), [(PAPER, False), (PAPER, True), (SINGLE, False), (LAPTOP, True), (QUARTERS, True)]
)
def test_expert_episodes_are_shortest_and_succeed(config, new_task):
    task = config.post_training_task if new_task else None
    episodes = expert_episodes(config, 60, np.random.default_rng(4), task=task)
    assert episodes.success.all()
    for row in range(60):
        sequence, *layout = plain(episodes, row)
        assert episodes.lengths[row] == shortest(config, sequence, *layout)
        if new_task:
            assert tuple(sequence) == config.post_training_task
        else:
            assert tuple(sequence) in config.tasks


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("config", [PAPER, SINGLE])
def test_episodes_replay_to_what_they_record(config, noise):
    episodes = expert_episodes(config, 200, np.random.default_rng(5), noise)
    assert len(episodes) == 200
    assert episodes.success.all() == (noise == 0)
    game = Pinpad(config, 200)
    game.reset(episodes.tasks, episodes.layouts)
    won = np.zeros(200)
    for step in range(config.horizon):
        assert np.array_equal(game.observation, episodes.observations[:, step])
        assert np.array_equal(game.done, step >= episodes.lengths)
        assert np.array_equal(game.goal, episodes.goals[:, step])
        won += game.step(episodes.actions[:, step])[0]
    assert game.done.all()
    assert np.array_equal(game.observation, episodes.observations[:, -1])
    assert np.array_equal(won, episodes.success)
    padding = np.arange(config.horizon) >= episodes.lengths[:, None]
    assert not episodes.actions[padding].any()
    assert np.array_equal(episodes.goals == -1, padding)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_goals_are_those_of_the_plain_rules(noise):
    episodes = expert_episodes(PAPER, 60, np.random.default_rng(6), noise)
    for row in range(60):
        task, *layout = plain(episodes, row)
        length = episodes.lengths[row]
        steps = list(play_plainly(PAPER, task, *layout, episodes.actions[row].tolist()))
        assert len(steps) == length
        assert steps[-1][2] == episodes.success[row]
        assert [at for at, *_ in steps] == episodes.positions[row, 1 : length + 1].tolist()
        reached = [0, *(reached for _, reached, *_ in steps[:-1])]
        assert episodes.goals[row, :length].tolist() == [task[k] // 2 for k in reached]
        assert (episodes.positions[row, length:] == episodes.positions[row, length]).all()


OPEN = PinpadConfig(tasks=((0,),), post_training_task=(0,), subgoals=((0,),), grid=3, colours=1, walls=0, horizon=12)


def expert_draws(config: PinpadConfig, task: list[int], layouts: Layouts, before: list[int], noise: float = 0.0):
    """(4,) how often the expert draws each move after these actions."""
    count = len(layouts.start)
    game, tasks = Pinpad(config, count), np.array([task] * count)
    game.reset(tasks, layouts)
    for action in before:
        game.step(np.full(count, action))
    paths = plan(config, tasks, layouts)
    return np.bincount(expert_actions(game, paths, np.random.default_rng(7), noise), minlength=4)


def test_ties_are_broken_uniformly():
    corner = layouts_of(0, [8], [], 20_000)
    for before in ([], [RIGHT, DOWN]):
        counts = expert_draws(OPEN, [0], corner, before)
        assert counts[[UP, LEFT]].sum() == 0
        assert chi_square(counts[[DOWN, RIGHT]]) < 11  # 1 degree of freedom
    assert expert_draws(OPEN, [0], corner, [RIGHT, RIGHT]).tolist() == [0, 20_000, 0, 0]
    for mask, shares in enumerate(SHARES):
        allowed = [move for move in range(4) if mask >> move & 1] or [0, 1, 2, 3]
        assert np.bincount(shares, minlength=4).tolist() == [12 / len(allowed) * (m in allowed) for m in range(4)]


def test_noise_replaces_that_share_of_the_moves():
    counts = expert_draws(OPEN, [0], layouts_of(0, [8], [], 20_000), [], noise=0.2)
    assert chi_square(counts, [0.05, 0.45, 0.05, 0.45]) < 25  # 3 degrees of freedom
    with pytest.raises(ValueError, match="noise=1.5"):
        expert_episodes(OPEN, 1, np.random.default_rng(0), noise=1.5)


def test_the_expert_goes_on_from_where_noise_has_put_it():
    corner = layouts_of(0, [4], [], 100)
    assert expert_draws(OPEN, [0], corner, [RIGHT, RIGHT, DOWN]).tolist() == [0, 0, 100, 0]


def test_a_way_that_is_cut_off_leaves_any_move():
    """. # . / S 0 1 / . # . : back in the left column, the only way leads over colour 0 again."""
    config = replace(HAND, walls=2, horizon=20)
    layouts = layouts_of(3, [4, 5], [1, 7], 8_000)
    assert expert_draws(config, [0, 1], layouts, [RIGHT]).tolist() == [0, 0, 0, 8_000]
    assert chi_square(expert_draws(config, [0, 1], layouts, [RIGHT, LEFT])) < 25


def test_the_expert_walks_around_other_colours():
    # S 1 0 / . . . / . . .
    config = replace(HAND, walls=0)
    counts = expert_draws(config, [0], layouts_of(0, [2, 1], [], 100), [])
    assert counts.tolist() == [0, 100, 0, 0]


def test_all_tasks_are_drawn_alike():
    tasks = draw_tasks(PAPER, 16_000, np.random.default_rng(8))
    rows, counts = np.unique(tasks, axis=0, return_counts=True)
    assert {tuple(row) for row in rows.tolist()} == set(PAPER.tasks)
    assert chi_square(counts) < 45  # 15 degrees of freedom


def test_the_same_seed_gives_the_same_episodes():
    def made(seed):
        episodes = expert_episodes(SINGLE, 50, np.random.default_rng(seed), 0.1)
        return [getattr(episodes, field.name) for field in fields(episodes)[1:]] + [episodes.layouts.compact]

    assert all(np.array_equal(one, other) for one, other in zip(made(9), made(9), strict=True))
    assert not np.array_equal(made(9)[1], made(10)[1])


def test_a_minibatch_is_taken_by_rows():
    episodes = expert_episodes(SINGLE, 20, np.random.default_rng(11))
    rows = np.array([7, 3])
    taken = episodes.take(rows)
    assert len(taken) == 2
    assert np.array_equal(taken.observations, episodes.observations[rows])
    assert np.array_equal(taken.goals, episodes.goals[rows])
    assert np.array_equal(taken.layouts.compact, episodes.layouts.compact[rows])


# ---- gymnasium


@pytest.fixture
def registered():
    gymnasium.register("mzlib-test/Pinpad-v0", entry_point=PinpadEnv)
    yield "mzlib-test/Pinpad-v0"
    del gymnasium.registry["mzlib-test/Pinpad-v0"]


@pytest.mark.parametrize("config", [PAPER, SINGLE])
def test_gymnasiums_own_check(registered, config):
    check_env(gymnasium.make(registered, config=config).unwrapped)


def test_the_environment_plays_the_core(registered):
    env = gymnasium.make(registered, config=SINGLE, render_mode="rgb_array")
    task = (1, 3, 1)
    observation, info = env.reset(seed=3, options={"task": task})
    core = Pinpad(SINGLE, 1)
    core.reset_random(np.random.default_rng(3), task)
    assert np.array_equal(observation, one_hot(SINGLE, core.observation)[0])
    rng, total, ended = np.random.default_rng(0), 0.0, False
    paths = plan(SINGLE, np.array([task]), Layouts.of(SINGLE, core.observation))
    while not ended:
        assert env.unwrapped.goal == core.goal[0] >= 0
        assert info == {}
        action = expert_actions(core, paths, rng)
        observation, reward, terminated, truncated, info = env.step(action[0])
        core.step(action)
        assert np.array_equal(observation, one_hot(SINGLE, core.observation)[0])
        assert env.render().shape == (96, 96, 3)
        total, ended = total + reward, terminated or truncated
    assert (total, terminated, env.unwrapped.goal) == (1, True, -1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    with pytest.raises(ValueError, match="only task"):
        env.reset(options={"tasks": task})
    with pytest.raises(ValueError, match="no subgoal fits"):
        env.reset(options={"task": (1, 4)})


def test_the_vector_environment_resets_with_the_next_step():
    env = PinpadVectorEnv(replace(SINGLE, horizon=9), 64, compact=True)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = env.reset(seed=0)
    assert (observation in env.observation_space, info) == (True, {})
    env.action_space.seed(0)
    ended, steps, kinds = np.zeros(64, bool), np.zeros(64, int), np.zeros(2, int)
    for _ in range(60):
        before = observation
        observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
        assert (observation in env.observation_space, info) == (True, {})
        steps = np.where(ended, 0, steps + 1)
        assert np.array_equal(env.core.steps, steps)
        assert all(not array[ended].any() for array in (rewards, terminated, truncated))
        assert np.array_equal(observation[~ended, 1:], before[~ended, 1:])
        assert (observation[ended] != before[ended]).any(axis=1).all()
        assert np.array_equal(truncated, ~terminated & (steps == 9))
        ended = terminated | truncated
        kinds += terminated.any(), truncated.any()
    assert (kinds > 0).all()


def test_the_vector_environment_is_the_same_in_both_observation_forms():
    one, other = PinpadVectorEnv(SINGLE, 16), PinpadVectorEnv(SINGLE, 16, compact=True)
    results = one.reset(seed=5), other.reset(seed=5)
    one.action_space.seed(1)
    for _ in range(30):
        assert results[0][0] in one.observation_space
        assert np.array_equal(results[0][0], one_hot(SINGLE, results[1][0]))
        assert all(np.array_equal(a, b) for a, b in zip(results[0][1:-1], results[1][1:-1], strict=True))
        actions = one.action_space.sample()
        results = one.step(actions), other.step(actions)


def test_the_vector_environment_keeps_the_chosen_task():
    env = PinpadVectorEnv(SINGLE, 32, compact=True)
    env.reset(seed=0, options={"task": (2, 1)})
    for _ in range(30):
        assert (env.core.goal[env.core.steps == 0] == 2).all()
        env.step(np.random.default_rng(0).integers(4, size=32))
    env.reset(seed=0)
    assert len(set(env.core.goal.tolist())) == 4


def test_gymnasiums_wrappers_take_the_vector_environment():
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(PinpadVectorEnv(SINGLE, 8))
    env.reset(seed=0)
    env.action_space.seed(0)
    lengths = []
    for _ in range(100):
        *_, info = env.step(env.action_space.sample())
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths
    assert 1 <= min(lengths) <= max(lengths) <= SINGLE.horizon


def test_chained_tasks_are_those_that_the_papers_transitions_allow():
    assert set(chained_tasks(PAPER, 3)) == set(PAPER.tasks)
    assert {len(LAPTOP.subgoals_of(task)) for task in LAPTOP.tasks} == {4}
