"""Demo files: written, read back, each kind of damage its own error; verified, shortened, cleaned by replay."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mzlib import demos
from mzlib.demos import Demo
from mzlib.emulator import ACTIONS, Facts
from mzlib.runs import data_dir

fresh_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def made_up_demos(draw) -> list[Demo]:
    sticky = draw(st.sampled_from([0.0, 0.25]))
    made = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 12))
        rows = st.lists(st.integers(0, 17), min_size=length, max_size=length)
        made.append(
            Demo(
                actions=np.array(draw(rows), np.uint8),
                rewards=np.array(draw(rows), np.int32) * 100,
                seed=draw(st.integers(0, 2**31 - 1)),
                noops=draw(st.integers(0, 30)),
                sticky=sticky,
                state=draw(st.none() | st.binary(min_size=1, max_size=20)),
                goals=draw(st.none() | rows.map(lambda row: np.array(row, np.int16))),
            )
        )
    return made


@fresh_folder
@given(made=made_up_demos())
def test_what_is_saved_is_loaded(made, tmp_path):
    path = tmp_path / "made.npz"
    demos.save(path, made)
    for number, (ours, theirs) in enumerate(zip(made, demos.load(path), strict=True)):
        assert theirs.source == f"made.npz#{number}"
        for name in ("game", "seed", "noops", "sticky", "frames_per_action", "state", "score"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert np.array_equal(ours.actions, theirs.actions)
        assert np.array_equal(ours.rewards, theirs.rewards)
        if ours.goals is not None:
            assert np.array_equal(ours.goals, theirs.goals)


def written(tmp_path: Path) -> Path:
    path = tmp_path / "two.npz"
    actions, rewards = np.array([1, 2, 3], np.uint8), np.array([0, 0, 100], np.int32)
    demos.save(path, [Demo(actions, rewards, seed=5), Demo(actions[:2], rewards[:2], noops=7)])
    return path


@fresh_folder
@given(data=st.data())
def test_a_truncated_file_is_refused(data, tmp_path):
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match="^two.npz: damaged or not a demo file") as raised:
        demos.load(path)
    assert "\n" not in str(raised.value)


def rewritten(path: Path, **changes) -> Path:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, value in changes.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rom_md5": "0" * 32}, "made with another ROM of montezuma_revenge"),
        ({"game": "pong"}, "game 'pong' is not covered"),
        ({"score": np.array([300, 0])}, "score 300, but its rewards sum to 100"),
        ({"actions": None}, "'actions' is missing"),
        ({"ale_py": None}, "'ale_py' is missing"),
        ({"actions": np.array([1, 2, 3, 1, 99], np.uint8)}, "action 99"),
        ({"actions": np.zeros(5)}, "actions is float64"),
        ({"rewards": np.zeros(4, np.int32)}, "rewards has shape"),
        ({"offsets": np.array([0, 3, 9])}, "offsets must rise from 0 to the number of actions, 5"),
        ({"offsets": np.array([0, 3, 3, 5])}, "offsets must rise"),
        ({"seed": np.zeros(3, int)}, "seed has shape"),
        ({"state": np.zeros(3, np.uint8)}, "state and state_offsets go together"),
        ({"actions": np.array([None] * 5)}, "damaged or not a demo file"),
        ({"offsets": np.array([0.0, 3, 5])}, "offsets is float64; integers are needed"),
        ({"seed": np.array([1.5, 2])}, "seed is float64; integers"),
        ({"seed": np.array([-1, 2])}, "a seed outside 0 to"),
        ({"noops": np.array([0, -7])}, "negative noops"),
        ({"frames_per_action": 0}, "frames_per_action is 0"),
        ({"sticky": 1.5}, "sticky is 1.5"),
        ({"sticky": "often"}, "sticky is often"),
        ({"state": np.zeros(3, np.uint8), "state_offsets": np.array([0, 9, 3])}, "state_offsets must rise from 0"),
    ],
)
def test_each_fault_has_its_own_line(changes, message, tmp_path):
    path = rewritten(written(tmp_path), **changes)
    with pytest.raises(ValueError, match=message) as raised:
        demos.load(path)
    assert str(raised.value).startswith("two.npz")
    assert "\n" not in str(raised.value)


def test_flipped_bytes_are_noticed(tmp_path):
    """Whatever byte is flipped: the one-line error, or (in a field that nobody reads) the same demos."""
    path = tmp_path / "two.npz"
    rng = np.random.default_rng(0)
    made = [Demo(rng.integers(18, size=60).astype(np.uint8), np.zeros(60, np.int32), seed=seed) for seed in (1, 2)]
    demos.save(path, made)
    content = path.read_bytes()
    messages = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = [(d.actions.tolist(), d.rewards.tolist(), d.seed, d.noops, d.sticky) for d in demos.load(path)]
        except ValueError as error:
            messages.append(str(error))
        else:
            same = [(d.actions.tolist(), d.rewards.tolist(), d.seed, d.noops, d.sticky) for d in made]
            assert read == same, "read, but not as written"
    assert len(messages) > len(content) / 2
    assert all(message.startswith("two.npz") and "\n" not in message for message in messages)


def test_another_kind_of_file(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ValueError, match="^array.npz: damaged or not a demo file"):
        demos.load(tmp_path / "array.npz")


def test_a_torn_array_header(tmp_path):
    path = tmp_path / "long.npz"
    demos.save(path, [Demo(np.zeros(5000, np.uint8), np.zeros(5000, np.int32))])
    rewritten(path)  # not compressed
    path.write_bytes(path.read_bytes().replace(b"(5000,), }", b"(5000,(, }"))
    with pytest.raises(ValueError, match="^long.npz: damaged or not a demo file") as raised:
        demos.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match="nowhere.npz: no such demo file"):
        demos.load(Path("nowhere.npz"))


def test_demos_of_two_settings_do_not_share_a_file(tmp_path):
    demo = Demo(np.zeros(1, np.uint8), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="sticky is 0.0 in one demo, 0.25 in another"):
        demos.save(tmp_path / "mixed.npz", [demo, replace(demo, sticky=0.25)])
    assert list(tmp_path.iterdir()) == []


@functools.cache
def to_the_key(sticky: bool) -> Demo:
    return demos.load(data_dir("demos", "first_key_sticky.npz" if sticky else "first_key.npz"))[0]


@pytest.mark.parametrize("sticky", [False, True])
def test_verify(sticky):
    demo = to_the_key(sticky)
    demos.verify(demo)
    claimed = demo.rewards.copy()
    claimed[10] = 5000
    with pytest.raises(
        ValueError, match=rf"replay differs at step 10 \(reward 0, stored 5000\): score {demo.score} in"
    ):
        demos.verify(replace(demo, rewards=claimed))
    with pytest.raises(ValueError, match="replay differs at step"):
        demos.verify(replace(demo, actions=np.zeros_like(demo.actions)))


def test_at_another_frameskip_it_is_another_game():
    with pytest.raises(ValueError, match="score 0 in replay, 100 in the file"):
        demos.verify(replace(to_the_key(False), frames_per_action=1))


def test_verify_all_names_the_bad_one():
    good = to_the_key(False)
    bad = replace(good, rewards=good.rewards * 2, source="the bad one")
    with pytest.raises(ValueError, match="the bad one: replay differs"):
        demos.verify_all([good, bad], workers=1)


def test_record():
    demo = to_the_key(True)
    trajectory = demos.record(demo)
    assert trajectory.score == demo.score == 100
    assert trajectory.frames.shape == (len(demo), 84, 84)
    assert set(trajectory.lives.tolist()) == {6}
    assert trajectory.ram[-1, 65] & 0x0E, "the key is held at the end"


def views(demo: Demo) -> list[tuple]:
    return [(emulator.facts, reward) for emulator, _, reward in demos.replay(demo)]


def with_a_loop(demo: Demo) -> Demo:
    """The demo after walking to and fro on the start platform."""
    loop = [ACTIONS.index(name) for name in ("LEFT", "RIGHT") for _ in range(2)] * 3
    return demos.from_actions(np.append(np.array(loop, np.uint8), demo.actions), noops=demo.noops, seed=demo.seed)


def test_shorten_leaves_a_loop_out():
    for noops in range(0, 31, 2):  # the skull's phase decides whether the way still works after the loop
        long = with_a_loop(replace(to_the_key(False), noops=noops))
        if long.score == 100 and {facts.lives for facts, _ in views(long)} == {5}:
            break
    assert long.score == 100, "no phase of the skull lets the lengthened demo through"
    short = demos.shorten(long)
    demos.verify(short)
    assert short.score == 100
    assert len(short) <= len(long) - 6


@pytest.mark.parametrize("sticky", [False, True])
def test_clean_takes_dithering_out_and_keeps_the_way(sticky):
    demo = to_the_key(sticky)
    dithered, rng, changed = demo.actions.copy(), np.random.default_rng(0), 0
    way = views(demo)
    for t in range(len(demo)):  # plant every random action that keeps the way
        tried = dithered.copy()
        tried[t] = rng.integers(18)
        if changed < 12 and tried[t] != dithered[t] and views(replace(demo, actions=tried)) == way:
            dithered, changed = tried, changed + 1
    assert changed >= 5
    planted = replace(demo, actions=dithered)
    cleaned = demos.clean(planted)
    assert views(cleaned) == way
    count = [np.count_nonzero(np.diff(one.actions.astype(int))) for one in (planted, cleaned)]
    assert count[1] <= count[0] - 5
    demos.verify(cleaned)


def test_clean_with_names_calls_a_move_by_the_simplest_and_lets_buttons_go():
    noop, left, jump = (ACTIONS.index(name) for name in ("NOOP", "LEFT", "LEFTFIRE"))
    held = demos.from_actions(np.array([left] * 2 + [jump] * 14, np.uint8), seed=1)  # over the gap and up to the door
    cleaned = demos.clean(held, names=(noop, left, jump))
    assert cleaned.actions.tolist() == [left] * 2 + [jump] + [noop] * 4 + [left] * 7 + [noop] * 2
    assert views(cleaned) == views(held)
    demos.verify(cleaned)


def test_cleaning_again_changes_nothing():
    cleaned = demos.clean(to_the_key(False))
    assert np.array_equal(demos.clean(cleaned).actions, cleaned.actions)
    assert cleaned.score == 100


@pytest.mark.parametrize("sticky", [False, True])
def test_a_tape_goes_back_to_any_of_its_steps(sticky):
    """The same actions from step t on lead the same way, stuck ones included."""
    demo = to_the_key(sticky)
    tape = demos.Tape(demo)
    way = list(tape.views)
    for t in (40, 10, 25, 0):
        tape.splice(t, [ACTIONS.index("DOWN")] * 3)
        tape.splice(t, demo.actions[t:].tolist())
        assert tape.views == way


def test_a_demo_may_begin_in_a_state():
    whole = to_the_key(False)
    emulator = demos.start(whole)
    for action in whole.actions[:30].tolist():
        emulator.step(action)
    rest = demos.from_actions(whole.actions[30:], state=emulator.save_state())
    assert rest.score == 100
    assert demos.record(rest).ram[-1, 65] & 0x0E
    with pytest.raises(ValueError, match="score 0 in replay, 100 in the file"):
        demos.verify(replace(rest, state=None))


def test_a_demo_that_does_not_replay_is_not_recorded():
    demo = to_the_key(False)
    with pytest.raises(ValueError, match=r"replay differs at step \d+ \(reward 100, stored 0\)"):
        demos.record(replace(demo, rewards=np.zeros_like(demo.rewards)))


class Ledge:
    """A made-up game: action 3 walks right, to a reward at x=5; action 9 hops, but at x=0 falls to a death that puts
    her at x=4 (`flag`: which of the facts tells it)."""

    def __init__(self, flag: str):
        self.flag, self.x, self.hops, self.lives, self.dying = flag, 0, 0, 5, False

    def step(self, action: int) -> int:
        self.dying = False
        if action == 3:
            self.x += 1
        elif self.x:
            self.hops += 1
        else:
            self.x, self.dying, self.lives = 4, self.flag == "dying", 5 - (self.flag == "lives")
        return 100 * (action == 3 and self.x == 5)

    @property
    def facts(self) -> Facts:
        return Facts(1, self.x, self.hops, 0, self.lives, 0, self.dying, False)

    def save_state(self, include_rng: bool) -> bytes:
        return bytes((self.x, self.hops, self.lives, self.dying))

    def load_state(self, state: bytes) -> None:
        self.x, self.hops, self.lives, self.dying = state


@pytest.mark.parametrize("flag", ["dying", "lives"])
def test_shorten_takes_no_short_cut_through_a_death(flag, monkeypatch):
    monkeypatch.setattr(demos, "start", lambda demo: Ledge(flag))
    way = [3, 3, 9, 3, 3, 3]
    short = demos.shorten(demos.from_actions(np.array(way)))
    assert short.actions.tolist() == way, "without its first two actions it is shorter, but deadly"
    monkeypatch.setattr(demos, "start", lambda demo: Ledge("neither"))
    assert demos.shorten(demos.from_actions(np.array(way))).actions.tolist() == [9, 3], "the game has the short cut"


def test_upstream_is_never_another_than_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("MZ_RUNS", str(tmp_path))
    assert len(demos.upstream("shipped", "quick")) > 0
    with pytest.raises(FileNotFoundError, match="run that notebook first"):
        demos.upstream("run", "quick")
    with pytest.raises(ValueError, match="use 'shipped', 'run' or a .npz file"):
        demos.upstream("mine", "quick")
    file = data_dir("demos", "first_door.npz")
    assert [demo.seed for demo in demos.upstream(str(file), "quick")] == [demo.seed for demo in demos.load(file)]
