"""The emulator: equal to gymnasium's, restorable, and its RAM facts."""

import itertools

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing

from mzlib import demos
from mzlib import emulator as emulator_module
from mzlib.emulator import ACTIONS, GAMES, GRAY, NOOP, Emulator, facts
from mzlib.runs import data_dir

gymnasium.register_envs(ale_py)


def random_actions(steps: int, seed: int = 0) -> list[int]:
    """Random actions, each held for some steps, as play is."""
    return np.random.default_rng(seed).integers(18, size=steps // 8 + 1).repeat(8)[:steps].tolist()


@pytest.mark.parametrize(("game", "sticky"), [(GAMES[0], 0.0), (GAMES[0], 0.25), (GAMES[1], 0.25), (GAMES[2], 0.0)])
def test_equals_gymnasium(game, sticky):
    """Same frames, rewards and lives as ALE/…-v5 under gymnasium's own preprocessing, through lost lives."""
    name = "ALE/" + "".join(part.title() for part in game.split("_")) + "-v5"
    env = gymnasium.make(name, frameskip=1, repeat_action_probability=sticky, full_action_space=True)
    env = AtariPreprocessing(env, noop_max=0, frame_skip=4, screen_size=84, terminal_on_life_loss=False)
    for seed in range(20):  # gymnasium derives the emulator's seed from this one; half of those are negative
        frame, info = env.reset(seed=seed)
        if (emulator_seed := env.unwrapped.ale.getInt("random_seed")) >= 0:
            break
    ours = Emulator(game, seed=emulator_seed, sticky=sticky)
    ours.reset()
    assert np.array_equal(frame, ours.frame)
    for step, action in enumerate(random_actions(400)):
        frame, reward, over, _, info = env.step(action)
        assert ours.step(action) == reward
        assert ours.game_over == over
        if over:  # gymnasium then shows a frame of the step before
            assert step > 150
            break
        assert np.array_equal(frame, ours.frame)
        assert ours.lives == info["lives"]


@pytest.mark.parametrize("game", GAMES)
def test_gray_is_the_emulators_own(game):
    ours = Emulator(game)
    for action in random_actions(150):
        ours.step(action)
        assert np.array_equal(GRAY[ours._screens[1]], ours._ale.getScreenGrayscale())


def play(ours: Emulator, actions: list[int]) -> list[tuple]:
    return [(ours.step(action), ours.frame.tobytes(), ours.ram.tobytes()) for action in actions]


def test_a_loaded_state_is_the_saved_one_frame_included():
    ours = Emulator()
    play(ours, random_actions(60))
    saved, frame = ours.save(), ours.frame
    after = play(ours, random_actions(60, 1))
    ours.load(saved)
    assert np.array_equal(ours.frame, frame)
    assert play(ours, random_actions(60, 1)) == after


def sticky_trials(ours: Emulator, trials: int = 60) -> int:
    """How often a restored sticky emulator plays on otherwise than the one it was saved from."""
    different = 0
    for trial in range(trials):
        ours.reset()
        for action in np.random.default_rng(trial).integers(18, size=10).tolist():
            ours.step(action)
        saved = ours.save(include_rng=True)
        future = random_actions(24, trial)
        after = play(ours, future)
        ours.step(ACTIONS.index("LEFT"))
        ours.load(saved)
        different += play(ours, future) != after
    return different


def test_sticky_states_repeat_with_the_generator():
    assert sticky_trials(Emulator(sticky=0.25, seed=4)) == 0


def test_the_last_action_belongs_to_a_sticky_state(monkeypatch):
    """The planted fault: without putting the last action back some restored runs differ."""
    monkeypatch.setattr(emulator_module, "STICKING_FRAMES", 0)
    assert sticky_trials(Emulator(sticky=0.25, seed=4)) > 0


def test_a_reset_forgets_the_last_action():
    """A state saved right after a reset: its first frames may repeat NOOP, never what was done before the reset."""
    ours = Emulator(sticky=0.25, seed=4)
    for trial in range(40):
        ours.step(ACTIONS.index("DOWN"))
        ours.reset()
        saved = ours.save(include_rng=True)
        after = play(ours, [ACTIONS.index("RIGHT")] * 3)
        ours.load(saved)
        assert play(ours, [ACTIONS.index("RIGHT")] * 3) == after, trial


def test_a_screen_is_the_maximum_of_two_frames_unless_the_last_alone_is_wanted():
    ours, last = Emulator(), Emulator(two_frame_maximum=False)
    more = 0
    for action in random_actions(30):
        ours.step(action)
        last.step(action)
        assert np.all(ours.screen >= last.screen)
        more += int(np.sum(ours.screen > last.screen))
    assert more, "something moved"


def test_no_ops_are_raw_frames():
    ours, single, without = Emulator(), Emulator(frames_per_action=1), Emulator()
    for emulator in (ours, single, without):
        emulator.step(ACTIONS.index("DOWN"))
    ours.reset(noops=7)
    single.reset()
    without.reset()
    for _ in range(7):
        single.step(NOOP)
    assert np.array_equal(ours.ram, single.ram)
    assert not np.array_equal(ours.ram, without.ram)


def test_without_the_generator_sticky_runs_differ():
    ours = Emulator(sticky=0.25)
    saved = ours.save()
    runs = []
    for _ in range(2):
        ours.load(saved)
        runs.append(play(ours, [ACTIONS.index("RIGHT"), ACTIONS.index("LEFT")] * 20))
    assert runs[0] != runs[1]


def test_the_seed_decides_which_actions_stick():
    actions = random_actions(80)
    one, same, other = (play(Emulator(sticky=0.25, seed=seed), actions) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_step_is_four_frames():
    four, single = Emulator(), Emulator(frames_per_action=1)
    for action in random_actions(30):
        four.step(action)
        for _ in range(4):
            single.step(action)
    assert np.array_equal(four.ram, single.ram)


def test_facts_of_the_start():
    ours = Emulator()
    assert ours.facts == (1, 77, 235, 0, 5, 0, False, False)
    assert ours.lives == 6


def test_dying_and_the_lost_life():
    ours = Emulator()
    for name, steps in (("RIGHT", 4), ("NOOP", 12)):  # off the platform, down to the death
        for _ in range(steps):
            ours.step(ACTIONS.index(name))
    dying = [ours.facts.dying]
    for _ in range(60):
        ours.step(0)
        dying.append(ours.facts.dying)
    assert any(dying)
    assert ours.facts.lives == 4
    assert ours.lives == 5


@pytest.mark.parametrize(
    ("inventory", "keys"), [(0x00, 0), (0x02, 1), (0x06, 2), (0x0E, 3), (0x01, 0), (0x10, 0), (0xF1, 0), (0xFF, 3)]
)
def test_keys_are_counted_apart_from_the_rest_of_the_inventory(inventory, keys):
    ram = np.zeros(128, np.uint8)
    ram[65] = inventory
    assert facts(ram).keys == keys


def status_changes(steps) -> tuple[list[int], list[int]]:
    """Steps at which the screen's status area (score, spare lives, inventory) changes, and at which RAM's facts do."""
    on_screen, in_ram, before = [], [], None
    for step, (ours, _, _) in enumerate(steps):
        now = ours.screen[:48].copy(), (ours.facts.lives, ours.facts.keys)
        if before is not None:
            if not np.array_equal(now[0], before[0]):
                on_screen.append(step)
            if now[1] != before[1]:
                in_ram.append(step)
        before = now
    return on_screen, in_ram


def test_the_screen_shows_the_key_when_the_facts_do():
    demo = demos.load(data_dir("demos", "first_door.npz"))[0]
    on_screen, in_ram = status_changes(itertools.islice(demos.replay(demo), len(demo) - 1))
    assert on_screen == in_ram
    assert len(in_ram) == 1


def test_the_screen_shows_the_lost_life_when_the_facts_do():
    ours = Emulator()
    falls = [ACTIONS.index("RIGHT")] * 4 + [NOOP] * 80
    on_screen, in_ram = status_changes((ours, action, ours.step(action)) for action in falls)
    assert on_screen == in_ram
    assert len(in_ram) == 1


def test_the_screen_shows_the_gates_of_light_when_the_facts_say_closed():
    demo = demos.load(data_dir("demos", "far", "points_2500.npz"))[2]  # enters a room with six gates, and stands there
    ours = [ours for ours, _, _ in itertools.islice(demos.replay(demo), 206)][-1]
    frames, gates_open = [], []
    for _ in range(64):
        ours.step(NOOP)
        frames.append(ours.screen[48:].astype(int))
        gates_open.append(ours.facts.gates_open)
    without = frames[gates_open.index(True)]
    assert ours.facts.room == 0
    assert [np.array_equal(frame, without) for frame in frames] == gates_open
    assert sum(gates_open) == 18  # 9 of every 32 steps


def test_facts_are_montezumas():
    with pytest.raises(ValueError, match="known for montezuma_revenge only"):
        _ = Emulator("pitfall").facts


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"game": "pong"}, "game='pong' is not covered"),
        ({"sticky": 1.0}, r"sticky=1.0: a probability"),
        ({"sticky": -0.1}, "sticky=-0.1"),
        ({"frames_per_action": 0}, "frames_per_action=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        Emulator(**setting)
