"""Go-Explore: the archive's rules as properties, cells, workers, and a search that survives what happens to it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzlib import demos, go_explore
from mzlib.emulator import ACTIONS, Emulator
from mzlib.go_explore import Archive, Candidate, Episode, Explorer, GoExploreConfig, Pick, Search, Task, Workers
from mzlib.go_explore.log import Log
from mzlib.go_explore.workers import random_actions
from mzlib.runs import REPO, Run

TINY = GoExploreConfig(total_steps=3_000, batch=4, explore_steps=40, checkpoint_every=500, workers=1, seed=3)
ROOT = Candidate(b"start", 0, 0, (1, 77, 235), b"state 0")


def offers(*ways: tuple[bytes, int, int], done=None, steps: int = 9) -> Episode:
    """An episode of `steps` actions that offers (key, score, offset)."""
    candidates = tuple(Candidate(key, score, offset, (1, 2, 3), b"%d" % offset) for key, score, offset in ways)
    return Episode(steps, bytes(range(steps)), tuple(sorted({key for key, _, _ in ways})), candidates, done)


# ---- the archive


@st.composite
def histories(draw) -> list[tuple[int, Episode]]:
    """(which cell to explore from, what the episode offers), offsets rising and scores never falling in an episode."""
    history = []
    for _ in range(draw(st.integers(1, 12))):
        steps = draw(st.integers(1, 12))
        offsets = sorted(draw(st.sets(st.integers(1, steps), max_size=4)))
        gains = sorted(draw(st.lists(st.sampled_from([0, 100, 400]), min_size=len(offsets), max_size=len(offsets))))
        keys = draw(
            st.lists(st.sampled_from([b"a", b"b", b"c", b"start"]), min_size=len(offsets), max_size=len(offsets))
        )
        ways = list(zip(keys, gains, offsets, strict=True))
        history.append((draw(st.integers(0, 99)), ways, steps))
    return history


@given(histories())
def test_the_archive_keeps_the_best_way_to_each_cell(history):
    archive = Archive(ROOT)
    best = {b"start": (0, 0)}
    for which, ways, steps in history:
        pick = archive.pick(which % len(archive))
        absolute = [(key, pick.score + gain, offset) for key, gain, offset in ways]
        archive.merge(pick, offers(*absolute, steps=steps))
        for key, score, offset in absolute:
            best[key] = max(best.get(key, (-1, 0)), (score, -(pick.length + offset)))
        assert {key: archive.standing(cell) for key, cell in archive.index.items()} == best
        for cell in range(len(archive)):
            assert len(archive.way(archive.node(cell))) == archive.column("length")[cell], "the log makes the way"
    again = Archive.from_arrays(archive.to_arrays())
    for name, array in archive.to_arrays().items():
        assert np.array_equal(array, again.to_arrays()[name]), name
    assert again.index == archive.index


@given(histories())
def test_the_archive_counts_visits_and_keeps_the_accepted_state(history):
    """Against a model with dictionaries: +1 for the chosen cell and for each known one visited, 0 when improved."""
    archive = Archive(ROOT)
    seen, standing, state, ways = {b"start": 0}, {b"start": (0, 0)}, {b"start": b"state 0"}, {b"start": b""}
    for number, (which, rows, steps) in enumerate(history):
        pick = archive.pick(which % len(archive))
        key, actions = archive.keys[pick.cell], bytes((number, *range(steps - 1)))
        frozen = ways[key]
        found = tuple(
            Candidate(way_to, pick.score + gain, offset, (1, 2, 3), b"%d/%d" % (number, offset))
            for way_to, gain, offset in rows
        )
        archive.merge(pick, Episode(steps, actions, tuple(sorted({one.key for one in found})), found, None))
        seen[key] += 1
        for visited in {one.key for one in found} & seen.keys():
            seen[visited] += 1
        for one in found:
            offered = (one.score, -pick.length - one.offset)
            if one.key not in standing or offered > standing[one.key]:
                standing[one.key], state[one.key], seen[one.key] = offered, one.state, 0
                ways[one.key] = frozen + actions[: one.offset]
        for cell, cell_key in enumerate(archive.keys):
            assert archive.column("seen")[cell] == seen[cell_key]
            assert archive.states[cell] == state[cell_key]
            assert archive.way(archive.node(cell)).tobytes() == ways[cell_key]
    assert archive.steps == sum(steps for _, _, steps in history)
    assert archive.episodes == len(history)


def test_a_pick_is_frozen_while_its_cell_improves():
    """Two episodes are under way from one cell; the first improves that cell, the second must not profit from it."""
    archive = Archive(ROOT)
    archive.merge(archive.pick(0), offers((b"a", 0, 5)))
    first, second = archive.pick(archive.index[b"a"]), archive.pick(archive.index[b"a"])
    archive.merge(first, offers((b"b", 100, 2), steps=3))
    archive.merge(archive.pick(archive.index[b"b"]), offers((b"a", 100, 1), steps=1))  # back at a, with the key
    archive.merge(second, offers((b"c", 0, 4), steps=4))
    cell = archive.index[b"c"]
    assert archive.standing(cell) == (0, -9)
    assert archive.way(archive.node(cell)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3], "five old steps, then four"
    assert archive.standing(archive.index[b"a"]) == (100, -8)


def test_seen_counts():
    archive = Archive(ROOT)
    seen = archive.columns["seen"]
    archive.merge(archive.pick(0), offers((b"a", 0, 5)))
    assert seen[:2].tolist() == [1, 0], "chosen once; a new cell begins at 0"
    episode = Episode(9, bytes(9), (b"a", b"start"), (), None)
    archive.merge(archive.pick(0), episode)
    assert seen[:2].tolist() == [3, 1], "chosen and visited; visited"
    archive.merge(archive.pick(0), offers((b"a", 0, 4)))
    assert seen[:2].tolist() == [4, 0], "an improved cell begins anew"


def test_done_holds_the_best_end():
    archive = Archive(ROOT)
    archive.merge(archive.pick(0), offers(done=(-100, 9)))
    assert (archive.done.score, archive.done.length) == (-100, 9)
    archive.merge(archive.pick(0), offers(done=(400, 7)))
    archive.merge(archive.pick(0), offers(done=(100, 2)))
    archive.merge(archive.pick(0), offers(done=(400, 8)))
    assert archive.way(archive.done.node).tolist() == list(range(7)), "its way is in the log"
    assert (archive.done.score, archive.done.length) == (400, 7)
    assert archive.best() == archive.done
    archive.merge(archive.pick(0), offers((b"a", 400, 8)))
    assert archive.best().length == 8, "where play goes on is preferred"
    assert len(archive) == 2, "an end is no cell to return to"


def test_selection_follows_the_square_root():
    archive = Archive(ROOT)
    archive.merge(archive.pick(0), offers((b"a", 0, 1), (b"b", 0, 2)))
    archive.columns["seen"][:3] = [0, 3, 99]
    picks = archive.select(np.random.default_rng(0), 40_000)
    shares = np.bincount([pick.cell for pick in picks], minlength=3) / len(picks)
    assert np.abs(shares - np.array([1, 1 / 2, 1 / 10]) / 1.6).max() < 0.01


def test_the_step_of_a_score():
    archive = Archive(ROOT)
    archive.merge(archive.pick(0), offers((b"a", 0, 5)))
    archive.merge(archive.pick(0), offers((b"b", 100, 4), (b"c", 400, 6)))
    assert (archive.first_step(100), archive.first_step(101), archive.first_step(9999)) == (13, 15, None)


# ---- cells


def test_downscaled_is_the_area_mean():
    emulator = Emulator()
    for action in random_actions(np.random.default_rng(0), replace(TINY, explore_steps=40)).tolist():
        emulator.step(action)
        cell = np.frombuffer(go_explore.downscaled(emulator), np.uint8).reshape(8, 11)
        means = cv2.resize(emulator.screen.astype(np.float64), (11, 8), interpolation=cv2.INTER_AREA)
        exact = means * 8 / 255
        sure = np.abs(exact - np.round(exact)) > 1e-6
        assert np.array_equal(cell[sure], np.floor(exact)[sure].astype(np.uint8))


@pytest.mark.parametrize(("width", "height", "depth"), [(11, 8, 8), (11, 8, 1), (7, 9, 255), (16, 21, 12)])
def test_downscaled_of_any_screen(width, height, depth):
    """Against area averaging in exact integers, pixel by pixel; white is the top level, depth."""
    rng = np.random.default_rng(0)
    for screen in (rng.integers(256, size=(210, 160), dtype=np.uint8), np.full((210, 160), 255, np.uint8)):
        sums = np.repeat(np.repeat(screen.astype(np.int64), height, 0), width, 1)  # each pixel of height x width parts
        sums = sums.reshape(height, 210, width, 160).sum(axis=(1, 3))
        cell = go_explore.downscaled(SimpleNamespace(screen=screen), width, height, depth)
        assert cell == bytes((sums * depth // (255 * 210 * 160)).astype(np.uint8).ravel())
    assert set(cell) == {depth}


def test_domain_cells():
    emulator = Emulator()
    assert go_explore.domain(emulator) == bytes((0, 0, 1, 77 // 16, 235 // 16))
    for name, steps in (("RIGHT", 4), ("NOOP", 12)):
        for _ in range(steps):
            emulator.step(ACTIONS.index(name))
    while not emulator.facts.dying:
        emulator.step(0)
    assert go_explore.domain(emulator) is None


def test_gates_cells_tell_open_gates_from_closed():
    emulator, keys = Emulator(), set()
    for _ in range(40):  # standing where she starts
        emulator.step(0)
        keys.add(go_explore.gates(emulator))
    here = go_explore.domain(emulator)
    assert keys == {here + bytes([0]), here + bytes([1])}
    while not emulator.facts.dying:
        emulator.step(ACTIONS.index("RIGHT"))
    assert go_explore.gates(emulator) is None


def test_a_cell_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def cell(emulator):\n    return bytes(emulator.facts[:1])\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Search(replace(TINY, cells="mine:cell")) as search:
        search.advance()
        assert search.archive.keys[0] == bytes((1,))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cells": "none"}, "cells='none'.*use downscaled, dynamic, domain, gates or 'module:function'"),
        ({"cells": "numpy:nothing"}, "cells='numpy:nothing'"),
        ({"game": "pitfall"}, "cells='domain'"),
        ({"game": "pitfall", "cells": "gates"}, "cells='gates'"),
        ({"game": "pong"}, "game='pong'"),
        ({"selection": "newest"}, "selection='newest': use one of seen, counts, domain"),
        ({"selection": "domain", "cells": "downscaled"}, "selection='domain': it weighs domain or gates cells"),
        ({"recompute_every": 0}, "recompute_every=0"),
        ({"batch": 0}, "batch=0"),
        ({"repeat_probability": 1.0}, "repeat_probability=1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        GoExploreConfig(**setting)


def test_actions_repeat():
    config = replace(TINY, explore_steps=20_000)
    actions = random_actions(np.random.default_rng(0), config)
    expected = 0.95 + 0.05 / 18
    assert abs(np.mean(actions[1:] == actions[:-1]) - expected) < 0.005
    assert set(actions.tolist()) == set(range(18))


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_an_episode_tells_what_happened(sticky):
    """The cells it names are those along its actions, and each state offered leads on as the episode went on."""
    config = replace(TINY, sticky=sticky, repeat_probability=0.0, explore_steps=60, noops=3)
    explorer = Explorer(config)
    start = explorer.start()
    episode = explorer.explore(Task(0, Pick(0, 0, 0, go_explore.Node(-1, 0), start.state)))
    end, actions = explorer.emulator.ram.copy(), list(episode.actions)
    emulator = Emulator(seed=config.seed, sticky=sticky)
    emulator.wait(3)
    cells = []
    for action in actions:
        emulator.step(action)
        cells.append(go_explore.domain(emulator))
    assert np.array_equal(emulator.ram, end)
    assert set(episode.visited) == set(cells[: len(cells) - (episode.done is not None)]) - {None}
    assert len(episode.candidates) > 3
    for way in episode.candidates:
        assert cells[way.offset - 1] == way.key
        emulator.load_state(explorer.unpack(way.state))
        assert (emulator.facts.room, emulator.facts.x, emulator.facts.y) == way.place
        for action in actions[way.offset :]:
            emulator.step(action)
        assert np.array_equal(emulator.ram, end), way.offset


def test_the_seed_and_the_number_draw_the_actions():
    drawn = set()
    for seed in (1, 2):
        explorer = Explorer(replace(TINY, seed=seed))
        pick = Archive(explorer.start()).pick(0)
        drawn |= {explorer.explore(Task(number, pick)).actions for number in (0, 1, 0)}
    assert len(drawn) == 4


def test_an_earlier_task_knows_nothing_of_later_ones():
    """Given again because its explorer was lost, it reports what it would have reported in its turn."""
    in_turn, again = Explorer(TINY), Explorer(TINY)
    pick = Archive(in_turn.start()).pick(0)
    first, second = (in_turn.explore(Task(number, pick)) for number in (0, 1))
    alone = again.explore(Task(1, pick))
    assert len(second.candidates) < len(alone.candidates), "what was found before is not reported again"
    assert again.explore(Task(0, pick)) == first


# ---- the search


def state_of(search: Search) -> dict:
    return search.archive.to_arrays()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def searched(config: GoExploreConfig, batches: int) -> dict:
    with Search(config) as search:
        for _ in range(batches):
            search.advance()
            assert len(search.batches) == 1, "while one batch is taken in, the next is under way"
        return state_of(search)


@pytest.mark.parametrize("config", [TINY, replace(TINY, cells="downscaled"), replace(TINY, sticky=0.25, noops=7)])
def test_workers_do_not_change_the_archive(config):
    assert same(searched(config, 6), searched(replace(config, workers=2), 6))
    assert not same(searched(config, 6), searched(replace(config, seed=4), 6))


def test_what_the_workers_know_does_not_change_the_archive():
    known = searched(TINY, 6)
    with Search(TINY) as search:
        search.workers.tell = lambda standings: None
        for _ in range(6):
            search.workers.explorer.known.clear()
            search.advance()
        assert same(known, state_of(search))


def test_saved_and_loaded_is_never_saved(tmp_path):
    with Search(TINY) as search:
        for _ in range(3):
            search.advance()
        search.save(tmp_path / "latest.npz")
        for _ in range(4):
            search.advance()
        uninterrupted = state_of(search)
    with Search.load(tmp_path / "latest.npz", replace(TINY, workers=2)) as search:
        for _ in range(4):
            search.advance()
        assert same(uninterrupted, state_of(search))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_damaged_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "latest.npz"
    with Search(TINY) as search:
        search.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"^latest.npz: not a readable checkpoint .* remove it to begin anew$"):
        Search.load(path, TINY)
    folder = SimpleNamespace(checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"^latest.npz: not a readable checkpoint"):
        go_explore.load_archive(folder)


def test_flipped_bytes_of_a_checkpoint_are_noticed(tmp_path):
    path, config = tmp_path / "latest.npz", replace(TINY, batch=1, explore_steps=4)
    with Search(config) as search:
        search.advance()
        search.save(path)
        whole, workers = state_of(search), search.workers
    content, messages = path.read_bytes(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mzlib.go_explore.search.Workers", lambda *_: workers)  # a fresh emulator each would take 0.2 s
        for place in range(len(content) // 2, len(content), 5):  # the zip directory and the arrays before it
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            try:
                read = state_of(Search.load(path, config))
            except ValueError as error:
                messages.append(str(error))
            else:
                assert same(read, whole)
    assert len(messages) > 50
    assert all("remove it to begin anew" in message and "\n" not in message for message in messages)


def test_every_cell_is_reached_by_its_way():
    """Replay some ways from the start: they end in the cell, with the score, after so many actions."""
    with Search(replace(TINY, noops=5)) as search:
        for _ in range(12):
            search.advance()
        archive = search.archive
        assert len(archive) > 15
        for cell in range(1, len(archive), 4):
            emulator = Emulator(seed=TINY.seed)
            emulator.wait(5)
            score = sum(emulator.step(action) for action in archive.way(archive.node(cell)).tolist())
            assert go_explore.domain(emulator) == archive.keys[cell]
            assert score == archive.column("score")[cell]


def test_a_search_goes_on_where_a_demo_ended():
    demo = demos.upstream("shipped", "quick")[0]
    config = replace(TINY, seed=demo.seed, noops=demo.noops, sticky=demo.sticky, prefix=tuple(demo.actions.tolist()))
    with Search(config) as search:
        search.advance()
        best = search.demo()
    assert best.score >= demo.score
    assert best.actions[: len(demo)].tolist() == demo.actions.tolist()


def test_a_fabricated_score_is_no_demo():
    with Search(TINY) as search:
        for _ in range(3):
            search.advance()
        search.archive.columns["score"][1] = 2500
        with pytest.raises(RuntimeError, match="the archive says 2500 points in .* the replay 0 in"):
            search.demo()


def test_a_lost_life_ends_an_exploration_or_not():
    falls = np.full(80, ACTIONS.index("RIGHT"), np.uint8)
    episodes = {}
    for terminal in (True, False):
        explorer = Explorer(replace(TINY, life_loss_terminal=terminal, explore_steps=80))
        start = explorer.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mzlib.go_explore.workers.random_actions", lambda rng, config: falls)
            episodes[terminal] = explorer.explore(Task(0, Pick(0, 0, 0, go_explore.Node(-1, 0), start.state)))
    assert episodes[True].steps < 60
    assert episodes[True].done == (0, episodes[True].steps)
    assert episodes[False].steps == 80
    assert episodes[False].done is None


@pytest.mark.parametrize("game", ["pitfall", "private_eye"])
def test_other_games(game):
    with Search(replace(TINY, game=game, cells="downscaled")) as search:
        search.advance()
        assert len(search.archive) > 3
        search.demo()


@pytest.mark.parametrize("noticed", [False, True])
def test_a_dead_worker_is_an_error(noticed):
    with Workers(replace(TINY, workers=2), 2) as workers:
        pick = Archive(workers.explorer.start()).pick(0)
        os.kill(workers.processes[1].pid, signal.SIGKILL)
        if noticed:
            workers.processes[1].join()

        def explore():
            workers.give([Task(number, pick) for number in range(12)])
            return list(workers.take(range(12)))

        with pytest.raises(RuntimeError, match=r"explorer 1 died \(exit code -9\); run again to resume"):
            explore()


def test_a_run_ends_with_a_verified_demo(tmp_path):
    with Run.open("05_go_explore", "quick", TINY, folder=tmp_path / "run", quiet=True) as folder:
        final = go_explore.run(TINY, folder)
        assert final["replay_verified"]
        assert final["steps"] >= TINY.total_steps
        assert final["protocol"]["what"].startswith("search result in a deterministic emulator")
        demos.verify(demos.load(folder.folder / "best.npz")[0])
        assert [row["step"] for row in folder.metrics()][-1] == final["steps"]
        assert go_explore.run(TINY, folder) == final, "a finished run isn't searched again"
        states = go_explore.room_states(TINY, go_explore.load_archive(folder))
        assert list(states) == [1]


SETTINGS = ["total_steps=6000", "batch=4", "explore_steps=40", "checkpoint_every=400", "workers=2"]


def start_stage(folder) -> subprocess.Popen:
    command = [sys.executable, "-m", "mzlib.go_explore", "--profile", "smoke", "--folder", str(folder)]
    for setting in SETTINGS:
        command += ["--set", setting]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children would inherit ignoring it
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=REPO, stdout=quiet, stderr=quiet, start_new_session=True)


def finish_stage(folder) -> dict:
    """Run the stage to its end; returns the arrays of its checkpoint."""
    assert start_stage(folder).wait(timeout=120) == 0
    with np.load(folder / "checkpoints" / "latest.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict:
    return finish_stage(tmp_path_factory.mktemp("whole") / "run")


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.startswith("Z")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_stopped_then_resumed_is_uninterrupted(how, tmp_path, uninterrupted):
    checkpoint = tmp_path / "run" / "checkpoints" / "latest.npz"
    process = start_stage(tmp_path / "run")
    wait_for(checkpoint.exists)
    workers = children(process.pid)
    if how == signal.SIGINT:  # a terminal's Ctrl-C reaches the workers too
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    code = process.wait(timeout=60)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert workers
    wait_for(lambda: not any(alive(worker) for worker in workers))
    with np.load(checkpoint) as arrays:
        reached = int(arrays["counts"][0])
    assert 0 < reached < 6000
    assert same(finish_stage(tmp_path / "run"), uninterrupted)


def test_killed_at_any_moment(tmp_path, uninterrupted):
    for delay in np.random.default_rng(0).uniform(0.3, 3, size=4):
        process = start_stage(tmp_path / "run")
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            workers = children(process.pid)
            process.kill()
            process.wait()
            wait_for(lambda workers=workers: not any(alive(worker) for worker in workers))
    assert same(finish_stage(tmp_path / "run"), uninterrupted)


def test_the_stop_button_loses_nothing(tmp_path, monkeypatch):
    """Stopped after its third batch the run saves there and then, and goes on from there, as if never stopped."""
    config = replace(TINY, checkpoint_every=10**9)
    advance, calls = Search.advance, []

    def stopped_at_the_third(search):
        advance(search)
        calls.append(search.archive.steps)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with Run.open("05_go_explore", "quick", config, folder=tmp_path / "run", quiet=True) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(Search, "advance", stopped_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                go_explore.run(config, folder)
        assert len(calls) == 3
        assert go_explore.load_archive(folder).steps == calls[-1]
        folder.log(calls[-1] + 1, cells=0)  # written after the checkpoint, by a run that was killed
        final = go_explore.run(config, folder)
        assert [row["step"] for row in folder.metrics()] == [final["steps"]]
        resumed = go_explore.load_archive(folder).to_arrays()
    with Run.open("05_go_explore", "quick", config, folder=tmp_path / "whole", quiet=True) as folder:
        assert go_explore.run(config, folder)["steps"] == final["steps"]
        assert same(resumed, go_explore.load_archive(folder).to_arrays())


def test_another_folder_goes_on_with_a_search(tmp_path, monkeypatch):
    """A finished run of fewer steps, resumed in a new folder, is the longer run; its own folder stays as it was."""
    monkeypatch.setattr(Log.__init__, "__defaults__", (2,))
    longer = replace(TINY, total_steps=4_500)
    with Run.open("05_go_explore", "quick", TINY, folder=tmp_path / "first", quiet=True) as folder:
        go_explore.run(TINY, folder)
    chunks = {path.name: path.read_bytes() for path in (tmp_path / "first/checkpoints/log").iterdir()}
    assert len(chunks) > 2
    resumed = replace(longer, resume=str(tmp_path / "first"), workers=2)
    archives = {}
    for name, config in (("second", resumed), ("whole", longer)):
        with Run.open("05_go_explore", "quick", config, folder=tmp_path / name, quiet=True) as folder:
            final = go_explore.run(config, folder)
            assert final["steps"] >= 4_500
            assert final["protocol"].get("resumed from", "") == config.resume
            archives[name] = go_explore.load_archive(folder).to_arrays()
    assert same(archives["second"], archives["whole"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "first/checkpoints/log").iterdir()} == chunks


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seed": 4}, "resume=.*: that search has seed=3, not 4; set seed so"),
        ({"selection": "counts"}, "resume=.*: that search has selection='seen', not 'counts'"),
        ({"resume": "nowhere/05_go_explore"}, "resume='nowhere/05_go_explore': no checkpoint in that folder"),
    ],
)
def test_what_cannot_be_resumed(setting, message, tmp_path):
    with (
        Run.open("05_go_explore", "quick", TINY, folder=tmp_path / "first", quiet=True) as folder,
        Search(TINY) as search,
    ):
        search.save(folder.checkpoints / "latest.npz")
    config = replace(TINY, **{"resume": str(tmp_path / "first")} | setting)
    with (
        Run.open("05_go_explore", "quick", config, folder=tmp_path / "second", quiet=True) as folder,
        pytest.raises((ValueError, FileNotFoundError), match=message),
    ):
        go_explore.run(config, folder)


def test_what_a_kill_left_half_written_is_cleared(tmp_path):
    with Run.open("05_go_explore", "quick", TINY, folder=tmp_path / "run", quiet=True) as folder:
        left = [folder.checkpoints / ".latest.7.tmp.npz", folder.checkpoints / "log" / ".00003.7.tmp.npz"]
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
        go_explore.open_search(TINY, folder).__exit__()
        assert not any(path.exists() for path in left)
