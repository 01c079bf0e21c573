"""Vector environments: equal to emulators driven by hand, their rules, and no process or memory left behind."""

import glob
import io
import os
import signal
import subprocess
import sys
import time
from functools import cache

import numpy as np
import pytest
import torch

from mzlib import demos, vecenv
from mzlib.emulator import ACTIONS, GAMES, NOOP, STICKING_FRAMES, Emulator
from mzlib.places import Place
from mzlib.runs import REPO, data_dir
from mzlib.vecenv import ROW, Cause, Environment, Start, VecEnv, VecEnvConfig

FALLS = [ACTIONS.index("RIGHT")] * 4 + [NOOP] * 80  # off the platform, down to the death
SMALL = VecEnvConfig(count=5, workers=2, seed=3, life_loss_ends=True, max_steps=60)
BEFORE_KEY = 12  # steps


@cache
def key_demo() -> demos.Demo:
    return demos.load(data_dir("demos", "first_key.npz"))[0]


@cache
def near_key(label: int = 0) -> Start:
    """12 steps before the demo's key."""
    demo = key_demo()
    frames, states = [], []
    for emulator, _, _ in demos.replay(demo):
        frames.append(emulator.frame)
        states.append(emulator.save_state())
    at = len(demo) - BEFORE_KEY
    targets = np.cumsum(demo.rewards[at:], dtype=np.int32)
    return Start(states[at - 1], np.array(frames[at - 4 : at]), targets=targets, label=label)


def start_for(i: int, episode: int) -> Start:
    """Resets and restored states by turns."""
    label = 100 * i + episode
    return near_key()._replace(targets=None, label=label) if (i + episode) % 2 else Start(noops=3 * i, label=label)


def actions_for(step: int, count: int) -> np.ndarray:
    """(count,) actions, each held for some steps."""
    return np.random.default_rng((7, step // 6)).integers(18, size=count)


class ByHand:
    """What environment i of SMALL should do, written plainly."""

    def __init__(self, config: VecEnvConfig, i: int):
        self.config, self.i, self.episode = config, i, 0
        self.emulator = Emulator(config.game, config.seed + i, config.sticky)
        self.begin()

    def begin(self) -> None:
        start = start_for(self.i, self.episode)
        self.episode += 1
        if start.state is None:
            self.emulator.reset()
            self.emulator.wait(STICKING_FRAMES)
            self.emulator.reset(start.noops)  # a real one: that a VecEnv returns to a saved reset must not be seen
            self.frames = [self.emulator.frame] * 4
        else:
            self.emulator.load_state(start.state)
            self.emulator.wait(STICKING_FRAMES)
            self.emulator.load_state(start.state)
            self.frames = list(start.frames)
        self.score = self.length = 0

    def step(self, action: int) -> tuple:
        lives = self.emulator.lives
        reward = self.emulator.step(action)
        self.score += reward
        self.length += 1
        over = self.emulator.game_over
        lost = self.config.life_loss_ends and self.emulator.lives < lives
        ended = over or lost or self.length == self.config.max_steps
        told = (reward, ended, self.score, self.length, 100 * self.i + self.episode - 1)
        if ended:
            self.begin()
        else:
            self.frames = [*self.frames[1:], self.emulator.frame]
        return (*told, np.array(self.frames).tobytes(), self.emulator.ram.tobytes(), self.emulator.lives)


class Driver:
    """Steps a VecEnv, supplying `start_for`; `episodes` are those begun or supplied."""

    def __init__(self, envs: VecEnv):
        self.envs, self.episodes, self.taken = envs, [2] * envs.config.count, 0
        envs.start([start_for(i, 0) for i in range(envs.config.count)])
        for i in range(envs.config.count):
            envs.supply(i, start_for(i, 1))

    def supply(self) -> None:
        for i in np.flatnonzero(~self.envs.supplied).tolist():
            self.envs.supply(i, start_for(i, self.episodes[i]))
            self.episodes[i] += 1

    def step(self) -> list[tuple]:
        self.envs.step(actions_for(self.taken, self.envs.config.count))
        self.taken += 1
        self.supply()
        return told(self.envs)

    def step_by_halves(self, rounds: int) -> list[list[tuple]]:
        """As many steps with the two halves in turn; each environment's story."""
        envs, stories = self.envs, [[] for _ in range(self.envs.config.count)]
        at = [self.taken, self.taken]

        def send(half):
            envs.send(actions_for(at[half], envs.config.count)[envs.halves[half]], half)
            at[half] += 1

        def receive(half):
            rewards = envs.receive(half)
            assert rewards.tolist() == envs.rewards[envs.halves[half]].tolist()
            part = range(envs.halves[half].start, envs.halves[half].stop)
            for i in part:
                stories[i].append(told(envs, [i])[0])
            self.supply()

        send(0)
        for _ in range(rounds):
            send(1)
            receive(0)
            if at[0] < self.taken + rounds:
                send(0)
            receive(1)
        self.taken += rounds
        return [list(step) for step in zip(*stories, strict=True)]


def told(envs: VecEnv, members=None) -> list[tuple]:
    return [
        (
            *(envs.rewards[i], envs.ended[i], envs.scores[i], envs.lengths[i], envs.labels[i]),
            *(envs.frames[i].tobytes(), envs.ram[i].tobytes(), envs.lives[i]),
        )
        for i in (range(envs.config.count) if members is None else members)
    ]


@pytest.fixture(scope="module")
def story() -> list[list[tuple]]:
    """180 steps of SMALL, step by step, with two workers."""
    with VecEnv(SMALL) as envs:
        driver = Driver(envs)
        return [driver.step() for _ in range(180)]


def test_equals_emulators_driven_by_hand(story):
    by_hand = [ByHand(SMALL, i) for i in range(SMALL.count)]
    for step, found in enumerate(story):
        actions = actions_for(step, SMALL.count).tolist()
        assert found == [one.step(action) for one, action in zip(by_hand, actions, strict=True)], step
    assert sum(one.episode for one in by_hand) > 3 * SMALL.count


def test_the_story_has_every_kind_of_end(story):
    lengths = {one[3] for step in story for one in step if one[1]}
    assert max(lengths) == SMALL.max_steps
    assert min(lengths) < SMALL.max_steps, "no life was lost"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers, story):
    with VecEnv(VecEnvConfig(**{**vars(SMALL), "workers": workers})) as envs:
        driver = Driver(envs)
        assert [driver.step() for _ in range(80)] == story[:80]


def test_halves_in_turn_are_whole_steps(story):
    with VecEnv(SMALL) as envs:
        assert Driver(envs).step_by_halves(80) == story[:80]


def test_another_seed_sticks_otherwise(story):
    with VecEnv(VecEnvConfig(**{**vars(SMALL), "seed": 40})) as envs:
        driver = Driver(envs)
        assert [driver.step() for _ in range(30)] != story[:30]


def test_saved_and_loaded_goes_on_as_if_never_stopped():
    with VecEnv(SMALL) as envs:
        driver = Driver(envs)
        for _ in range(45):
            driver.step()
        kept = io.BytesIO()
        torch.save(envs.save(), kept)
        episodes = list(driver.episodes)
        now, after = told(envs), [driver.step() for _ in range(80)]
    saved = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
    with VecEnv(VecEnvConfig(**{**vars(SMALL), "workers": 1, "seed": 99})) as envs:
        driver = Driver(envs)
        for _ in range(20):
            driver.step()
        envs.load(saved)
        driver.episodes, driver.taken = episodes, 45
        assert envs.supplied.all()
        assert told(envs) == now
        assert [driver.step() for _ in range(80)] == after


def test_without_the_saved_generator_it_would_differ():
    """The planted fault: the states' generators taken from elsewhere."""
    stories = []
    for other in (0, 1):
        environment = alone(VecEnvConfig(sticky=0.25))
        environment.next = near_key()._replace(targets=None)
        environment.begin()
        saved = environment.save()
        if other:
            environment.emulator.reseed(5)
            saved["state"] = environment.emulator.save_state(include_rng=True)
        environment.load(saved)
        stories.append([play(environment, [action]) for action in key_demo().actions[-BEFORE_KEY:].tolist()])
    assert stories[0] != stories[1]


# ---- one environment, in this process


def alone(config: VecEnvConfig, start: Start | None = None) -> Environment:
    """An environment with memory of its own, at a start."""
    environment = Environment(config, 0, np.zeros(1, ROW)[0])
    if start is not None:
        environment.next = start
        environment.begin()
        environment.next = Start(label=-1)
    return environment


def play(environment: Environment, actions) -> tuple:
    """Act until the episode ends: (cause, length, score, succeeded, frames of what follows)."""
    row = environment.row
    for action in actions:
        row["actions"] = action
        environment.step()
        if row["ended"]:
            break
    return Cause(row["cause"]), int(row["lengths"]), int(row["scores"]), bool(row["succeeded"]), row["frames"].tobytes()


def plain(**settings) -> VecEnvConfig:
    return VecEnvConfig(sticky=0.0, **settings)


def test_the_key_is_a_success():
    environment = alone(plain(), near_key(label=9))
    assert np.array_equal(environment.row["frames"], near_key().frames)
    assert play(environment, key_demo().actions[-BEFORE_KEY:])[:4] == (Cause.SUCCESS, BEFORE_KEY, 100, True)
    assert environment.row["rewards"] == 100
    assert environment.row["labels"] == 9
    assert np.array_equal(environment.row["frames"], [Emulator().frame] * 4), "the next episode, from a reset"


def test_frames_after_a_restore_are_those_of_the_demo():
    demo, environment = key_demo(), alone(plain(), near_key())
    seen = [emulator.frame for emulator, _, _ in demos.replay(demo)]
    for step, action in enumerate(demo.actions[-BEFORE_KEY:-1].tolist()):
        play(environment, [action])
        upto = len(demo) - BEFORE_KEY + step + 1
        assert np.array_equal(environment.row["frames"], seen[upto - 4 : upto])


def test_after_success_the_episode_goes_on_for_extra_steps():
    environment = alone(plain(), near_key()._replace(extra=3))
    actions = [*key_demo().actions[-BEFORE_KEY:].tolist(), *[NOOP] * 9]
    assert play(environment, actions[:BEFORE_KEY])[:4] == (Cause.IN_PLAY, BEFORE_KEY, 100, True)
    assert play(environment, actions[BEFORE_KEY:])[:4] == (Cause.SUCCESS, BEFORE_KEY + 3, 100, True)


# From the start platform (x 77): to the right, then back to the left; one after the other.
RIGHT_THEN_LEFT = (Place("right", 1, 82, 89, 234, 236), Place("left", 1, 63, 74, 234, 236))
THERE_AND_BACK = [ACTIONS.index("RIGHT")] * 2 + [ACTIONS.index("LEFT")] * 4


@pytest.mark.parametrize("cut", [None, 1, 3])
def test_places_count_in_their_order(cut):
    """Saved and restored at any step too, what was reached stays reached."""
    environment, by_hand, arrived = alone(plain(), Start(way=RIGHT_THEN_LEFT)), Emulator(), []
    for step, action in enumerate(THERE_AND_BACK):
        by_hand.step(action)
        place = RIGHT_THEN_LEFT[min(len(arrived), 1)]
        arrived += [step] * place.holds(by_hand.facts.room, by_hand.facts.x, by_hand.facts.y)
    assert 0 < arrived[0] < arrived[1]
    if cut is not None:
        assert play(environment, THERE_AND_BACK[:cut])[0] == Cause.IN_PLAY
        kept = io.BytesIO()
        torch.save(environment.save(), kept)
        environment = alone(plain(), Start())
        environment.load(torch.load(io.BytesIO(kept.getvalue()), weights_only=True))
        environment.next = Start()
    found = play(environment, THERE_AND_BACK[cut or 0 :])
    assert found[:4] == (Cause.SUCCESS, arrived[1] + 1, 0, True)
    backwards = alone(plain(max_steps=6), Start(way=RIGHT_THEN_LEFT[::-1]))
    assert play(backwards, THERE_AND_BACK)[:4] == (Cause.LIMIT, 6, 0, False)


@pytest.mark.parametrize(("lag", "length"), [(5, 8), (0, 3), (None, 20)])
def test_an_episode_that_lags_is_cut(lag, length):
    """The demo won 100 points with its third step: `lag` steps later at the latest they must be there."""
    start = Start(targets=np.array([0, 0, 100, 100], np.int32))
    cause = Cause.LIMIT if lag is None else Cause.LAGGING
    assert play(alone(plain(lag=lag, max_steps=20), start), [NOOP] * 30)[:4] == (cause, length, 0, False)


def test_who_keeps_up_does_not_lag():
    environment = alone(plain(lag=0), near_key())
    assert play(environment, key_demo().actions[-BEFORE_KEY:])[0] == Cause.SUCCESS


def test_a_lost_life_ends_the_episode_or_not():
    lives, by_hand = [], Emulator()
    for action in FALLS:
        by_hand.step(action)
        lives.append(by_hand.lives)
    lost = lives.index(5)
    assert play(alone(plain(life_loss_ends=True), Start()), FALLS)[:2] == (Cause.LIFE_LOST, lost + 1)
    environment = alone(plain(life_loss_ends=False), Start())
    assert play(environment, FALLS)[:2] == (Cause.IN_PLAY, len(FALLS))
    assert environment.row["lives"] == 5


def test_the_game_ends_the_episode():
    environment = alone(plain(), Start())
    random = np.random.default_rng(0).integers(18, size=1500).repeat(3)
    cause, length, *_ = play(environment, random)
    assert cause == Cause.GAME_OVER
    assert 200 < length < 4_500
    assert environment.row["lives"] == 6, "the next game has begun"


def test_no_ops_come_after_the_reset_or_the_state():
    by_hand = Emulator()
    by_hand.reset(noops=7)
    row = alone(plain(), Start(noops=7)).row
    assert np.array_equal(row["ram"], by_hand.ram)
    assert not np.array_equal(row["ram"], alone(plain(), Start()).row["ram"])
    by_hand.load_state(near_key().state)
    by_hand.wait(7)
    row = alone(plain(), near_key()._replace(noops=7)).row
    assert np.array_equal(row["ram"], by_hand.ram)
    assert np.array_equal(row["frames"], [*near_key().frames[1:], by_hand.frame])


@pytest.mark.parametrize("two_frame_maximum", [True, False])
@pytest.mark.parametrize("game", GAMES)
def test_frames_put_together_from_changed_rows_are_whole(game, two_frame_maximum):
    environment = alone(plain(game=game, two_frame_maximum=two_frame_maximum), Start())
    by_hand = Emulator(game, two_frame_maximum=two_frame_maximum)
    by_hand.reset()
    for action in np.random.default_rng(1).integers(18, size=100).repeat(3).tolist():
        play(environment, [action])
        by_hand.step(action)
        if by_hand.game_over:
            break
        assert np.array_equal(environment.row["frames"][-1], by_hand.frame)


@pytest.mark.parametrize("frames", [STICKING_FRAMES, 0])
def test_the_first_frame_after_a_restore_repeats_nothing_older(frames, monkeypatch):
    """Whatever the episode before did last, with the same stuck frames the next one is the same; the planted fault:
    without waiting before the restore it is not."""
    monkeypatch.setattr(vecenv, "STICKING_FRAMES", frames)
    on_the_platform = near_key()._replace(state=Emulator().save_state(), targets=None)
    environment = alone(VecEnvConfig(sticky=0.25), Start())
    different = 0
    for trial in range(20):
        generator = environment.emulator.save_state(include_rng=True)
        places = []
        for before in ("LEFT", "RIGHT"):
            environment.emulator.load_state(generator)
            for _ in range(6 + trial):
                environment.emulator.step(ACTIONS.index(before))
            environment.next = on_the_platform
            environment.begin()
            play(environment, [NOOP])
            places.append(environment.row["ram"].tobytes())
        different += places[0] != places[1]
    assert (different == 0) == (frames > 0)


# ---- errors


def test_a_missing_start_is_named():
    with VecEnv(VecEnvConfig(count=3, workers=2, max_steps=2)) as envs:
        envs.start([Start()] * 3)
        for i in (0, 2):
            envs.supply(i, Start())
        envs.step(np.zeros(3, int))
        assert envs.supplied.tolist() == [True, False, True]
        with pytest.raises(RuntimeError, match=r"environment 1: its episode ended .* call supply\(1, start\)"):
            envs.step(np.zeros(3, int))


@pytest.mark.parametrize("noticed", [False, True])
def test_a_dead_worker_is_an_error(noticed):
    with VecEnv(VecEnvConfig(count=2, workers=2)) as envs:
        envs.start([Start()] * 2)
        if noticed:
            envs._processes[1].kill()
            envs._processes[1].join()
        else:
            os.kill(envs._processes[1].pid, signal.SIGSTOP)  # so that it is at work when it dies
            envs.send(np.zeros(2, int))
            envs._processes[1].kill()
        since = time.monotonic()
        with pytest.raises(RuntimeError, match=r"vector worker 1 died \(exit code -9\)"):
            envs.step(np.zeros(2, int)) if noticed else envs.receive()
        assert time.monotonic() < since + 5


def test_wrong_use():
    with VecEnv(VecEnvConfig(count=3, workers=1)) as envs:
        with pytest.raises(ValueError, match="2 starts for 3 environments"):
            envs.start([Start()] * 2)
        envs.start([Start()] * 3)
        with pytest.raises(RuntimeError, match="half 1: nothing to receive"):
            envs.receive(1)
        with pytest.raises(ValueError, match=r"actions: shape \(3,\), not \(2,\)"):
            envs.send(np.zeros(3, int), 0)
        with pytest.raises(ValueError, match="actions from 0 to 18"):
            envs.step(np.array([0, 18, 3]))
        envs.send(np.zeros(2, int), 0)
        with pytest.raises(RuntimeError, match="half 0: sent already"):
            envs.send(np.zeros(3, int))
        with pytest.raises(RuntimeError, match="half 0: sent; receive it first"):
            envs.save()
        envs.receive(0)
        with pytest.raises(ValueError, match="2 saved environments for 3"):
            envs.load(envs.save()[:2])
        envs.close()
        with pytest.raises(RuntimeError, match="closed"):
            envs.step(np.zeros(3, int))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": None}, "state and frames: give both"),
        ({"state": None}, "state and frames: give both"),
        ({"frames": np.zeros((84, 84), np.uint8)}, r"frames: shape \(84, 84\), not \(4, 84, 84\)"),
        ({"targets": np.zeros(0, np.int32)}, r"targets: shape \(0,\)"),
        ({"way": RIGHT_THEN_LEFT}, "way and targets"),
        ({"noops": -1}, "noops=-1, extra=0"),
        ({"extra": -2}, "noops=0, extra=-2"),
    ],
)
def test_wrong_starts(changed, message):
    near_key().check()
    with pytest.raises(ValueError, match=message):
        near_key()._replace(**changed).check()


def test_a_start_with_the_generator_is_refused():
    state = Emulator(sticky=0.25).save_state(include_rng=True)
    with pytest.raises(ValueError, match="state holds the sticky generator"):
        Start(state, np.zeros((4, 84, 84), np.uint8)).check()


@pytest.mark.parametrize(
    "setting",
    [
        *({"game": "pong"}, {"count": 0}, {"workers": -1}, {"seed": -1}, {"max_steps": 0}),
        *({"frames_per_action": 1}, {"sticky": 1.0}, {"lag": -1}),
    ],
)
def test_wrong_settings(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        VecEnvConfig(**setting)


# ---- nothing stays behind


def alive(pid: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.startswith("Z")


def shared_memory(pid: int) -> list[str]:
    """Files of `multiprocessing` in shared memory."""
    return glob.glob(f"/dev/shm/pym-{pid}-*")


def test_closing_ends_the_processes_also_after_an_exception():
    envs = VecEnv(VecEnvConfig(count=3, workers=2))
    pids = [process.pid for process in envs._processes]

    def fail_half_way():
        with envs:
            envs.start([Start()] * 3)
            envs.send(np.zeros(3, int))
            assert all(alive(pid) for pid in pids)
            assert shared_memory(os.getpid()) == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    assert envs.frames.any(), "what was seen last can still be read"


PLAYS_ON = """
import numpy as np
from mzlib.vecenv import Start, VecEnv, VecEnvConfig

if __name__ == "__main__":
    with VecEnv(VecEnvConfig(count=4, workers=2)) as envs:
        envs.start([Start()] * 4)
        print(*(process.pid for process in envs._processes), flush=True)
        try:
            while True:
                envs.step(np.zeros(4, int))
        except KeyboardInterrupt:
            print("stopped", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_stopped_nothing_stays(how, tmp_path):
    """Also when the stop reaches the workers, as a terminal's Ctrl-C does."""
    (tmp_path / "plays_on.py").write_text(PLAYS_ON)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children would inherit ignoring it
    process = subprocess.Popen(
        [sys.executable, tmp_path / "plays_on.py"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(alive(pid) for pid in workers)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    said, complaints = process.communicate(timeout=20)
    assert (said, complaints) == ("stopped\n" if how == signal.SIGINT else "", "")
    end = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end, "workers go on without their parent"
        time.sleep(0.05)
    assert shared_memory(process.pid) == []
