"""The vector environment with every option its own; two halves that play as one; what a checkpoint brings back."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv

from mzlib import demos, rnd, runs
from mzlib.emulator import Emulator
from mzlib.policies import ActorCritic, ActorCriticPolicy
from mzlib.rnd import EXTRINSIC, INTRINSIC, Learner, Played, Players, RNDConfig, vector_environment

TINY = RNDConfig(
    environments=4, total_steps=96, rollout=8, warmup_rollouts=1, channels=(4, 8, 8), hidden=16, features=16,
    milestones=2, device="cpu", threads=1, workers=1, checkpoint_every=1,
)  # fmt: skip


@pytest.fixture
def without_noops(monkeypatch):
    monkeypatch.setattr(rnd, "NOOP_MAX", 0)


def players(config: RNDConfig, seed: int = 7) -> Players:
    torch.manual_seed(0)
    halves = tuple(vector_environment(config, config.environments // 2) for _ in range(2))
    made = Players(config, ActorCritic(config.policy), halves)
    made.reset(seed)
    return made


# ---- the environment


def test_no_option_is_left_to_its_default(monkeypatch):
    given = {}

    class Watched(AtariVectorEnv):
        def __init__(self, game, **options):
            given.update(options)
            super().__init__(game, **options)

    monkeypatch.setattr(rnd, "AtariVectorEnv", Watched)
    vector_environment(TINY, 2)
    assert given.keys() == inspect.signature(AtariVectorEnv.__init__).parameters.keys() - {"self", "game"}
    assert (given["reward_clipping"], given["use_fire_reset"], given["episodic_life"]) == (False, False, False)
    assert (given["repeat_action_probability"], given["max_num_frames_per_episode"]) == (0.25, 18_000)
    assert (given["frameskip"], given["noop_max"], given["maxpool"]) == (4, 30, True)


def test_points_come_whole_and_frames_are_the_emulators(without_noops):
    """A demo's actions earn its 100 and 300 points, and every frame is what `Emulator` shows."""
    demo = next(d for d in demos.load(runs.data_dir("demos", "first_door.npz")) if d.noops % 4 == 0)
    environment, emulator = vector_environment(replace(TINY, sticky=0.0), 1), Emulator()
    frame, _ = environment.reset(seed=0)
    assert np.array_equal(frame[0, 0], emulator.frame)
    won = []
    for action in [0] * (demo.noops // 4) + demo.actions.tolist():
        frame, reward, _, _, _ = environment.step(np.array([action]))
        won.append(int(reward[0]))
        assert won[-1] == emulator.step(action)
        assert np.array_equal(frame[0, 0], emulator.frame)
    assert [points for points in won if points] == [100, 300]


@pytest.mark.parametrize("game", ["pitfall", "private_eye"])
def test_the_other_games(game):
    environment = vector_environment(replace(TINY, game=game), 2)
    frame, _ = environment.reset(seed=0)
    assert frame.shape == (2, 1, 84, 84)
    assert environment.single_action_space.n == 18


def test_an_episode_ends_after_max_steps_and_the_next_begins_at_once():
    """No step is lost at an autoreset: the one after the end already moves the new episode."""
    environment = vector_environment(replace(TINY, max_steps=6), 3)
    environment.reset(seed=0)
    frames = []
    for t in range(1, 19):
        _, _, terminated, truncated, info = environment.step(np.zeros(3, np.int64))
        assert not terminated.any()
        assert truncated.tolist() == [t % 6 == 0] * 3
        frames.append(info["episode_frame_number"])
    for t in range(1, 18):
        if (t + 1) % 6:
            assert ((frames[t] - frames[t - 1]) == 4).all(), "four frames every step, also after an end"
        else:
            assert (frames[t] <= rnd.NOOP_MAX + 1).all(), "a new episode, its no-ops done"


# ---- playing


def test_two_halves_play_what_one_environment_would():
    config = replace(TINY, max_steps=5)
    played = players(config).rollout()
    whole = vector_environment(config, 4)
    frame, _ = whole.reset(seed=7)
    stack, scores = np.repeat(frame, 4, 1), []
    for t in range(config.rollout):
        assert np.array_equal(played.frames[t], stack)
        frame, reward, terminated, truncated, _ = whole.step(played.actions[t].numpy())
        ended = terminated | truncated
        stack = np.concatenate([stack[:, 1:], frame], 1)
        for row in np.flatnonzero(ended):
            stack[row] = frame[row]
        assert played.rewards[t].tolist() == reward.tolist()
        assert played.ended[t].tolist() == ended.tolist()
        scores.append(reward)
    assert np.array_equal(played.frames[-1], stack)
    assert played.ended.any(1).nonzero()[:, 0].tolist() == [4]
    assert played.began.any(1).nonzero()[:, 0].tolist() == [0, 5]


@torch.no_grad()
def test_what_the_policy_thought_is_kept_with_what_it_saw():
    made = players(TINY)
    torch.nn.init.orthogonal_(made.policy.policy_head.weight, 3)
    played = made.rollout()
    began = torch.zeros(9, 4, dtype=torch.bool)
    with TINY.ppo.arithmetic("cpu"):
        logits, values = made.policy.unroll(played.frames, made.policy.init_state(4), began)
    chosen = logits[:-1].log_softmax(-1).gather(-1, played.actions[..., None])[..., 0]
    assert torch.allclose(played.log_probs, chosen, atol=1e-4)
    assert torch.allclose(played.values, values, atol=1e-4)
    assert len(played.actions.unique()) > 2


def test_a_rollout_goes_on_where_the_last_one_ended():
    made = players(replace(TINY, max_steps=8))
    first = made.rollout()
    last, ended = first.frames[-1].clone(), first.ended[-1].clone()
    assert ended.all()
    assert len(made.finished) == 4
    second = made.rollout()
    assert torch.equal(second.frames[0], last)
    assert second.began[0].all()
    assert not second.began[1:].any()
    assert (second.frames[0] == second.frames[0, :, :1]).all(), "its first frame fills an episode's stack"
    made.reset(99)
    assert not torch.equal(made.rollout().frames[0], made.frames[-1])


def test_evaluation_sees_the_stacks_of_training(tmp_path):
    """`ActorCriticPolicy`, told that a life is no new beginning, keeps the same stack over a life's end."""
    runs.save_weights(tmp_path / "policy.safetensors", ActorCritic(TINY.policy))
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(84, 2).repeat(84, 3)
    stacks = {}
    for forgets in (True, False):
        policy = ActorCriticPolicy(tmp_path / "policy.safetensors", forgets_lives=forgets)
        for t in range(6):
            seen = rnd_observation(frames[t], began=t == 0, life_lost=t == 4)
            policy.act(seen)
        stacks[forgets] = policy.stack[0, :, 0, 0].tolist()
    assert stacks == {True: [4, 4, 4, 5], False: [2, 3, 4, 5]}


def rnd_observation(frame: np.ndarray, began: bool, life_lost: bool):
    from mzlib.evaluate import Observation

    return Observation(frame, np.array([began]), np.array([life_lost]), np.array([0]))


# ---- learning


def made_up(config: RNDConfig) -> Played:
    steps, count = config.rollout, config.environments
    rng = torch.Generator().manual_seed(0)
    ended = torch.rand(steps, count, generator=rng) < 0.2
    ended[3, 0] = True
    return Played(
        torch.randint(256, (steps + 1, count, 4, 84, 84), dtype=torch.uint8, generator=rng),
        torch.randint(18, (steps, count), generator=rng),
        -torch.rand(steps, count, generator=rng),
        torch.randn(steps + 1, count, 2, generator=rng),
        400.0 * (torch.rand(steps, count, generator=rng) < 0.3),
        ended,
        torch.zeros(steps, count, dtype=torch.bool),
    )


def test_both_advantages_written_out():
    """A = 2 A_ext + A_int, each a sum of δ; points as 1, up to the episode's end, curiosity past it."""
    learner, played = Learner(TINY), made_up(TINY)
    intrinsic = torch.rand(8, 4, generator=torch.Generator().manual_seed(1))
    total, returns = learner.advantages(played, intrinsic)
    for n in range(4):
        for t in range(8):
            sums = {EXTRINSIC: 0.0, INTRINSIC: 0.0}
            for head, gamma in ((EXTRINSIC, 0.999), (INTRINSIC, 0.99)):
                for k in range(t, 8):
                    over = bool(played.ended[k, n]) and head == EXTRINSIC
                    reward = float(played.rewards[k, n] > 0) if head == EXTRINSIC else intrinsic[k, n].item()
                    after = 0.0 if over else played.values[k + 1, n, head].item()
                    sums[head] += (gamma * 0.95) ** (k - t) * (
                        reward + gamma * after - played.values[k, n, head].item()
                    )
                    if over:
                        break
                assert returns[t, n, head].item() == pytest.approx(
                    sums[head] + played.values[t, n, head].item(), abs=1e-4
                )
            assert total[t, n].item() == pytest.approx(2 * sums[EXTRINSIC] + sums[INTRINSIC], abs=1e-4)


def test_an_end_hides_what_comes_after_from_points_but_not_from_curiosity():
    learner, played, intrinsic = Learner(TINY), made_up(TINY), torch.rand(8, 4)
    before = learner.advantages(played, intrinsic)[1]
    rewards, values = played.rewards.clone(), played.values.clone()
    rewards[4:, 0] = -7
    values[4:, 0] += 50
    after = learner.advantages(played._replace(rewards=rewards, values=values), intrinsic)[1]
    assert torch.equal(before[:4, 0, EXTRINSIC], after[:4, 0, EXTRINSIC])
    assert (before[:4, 0, INTRINSIC] != after[:4, 0, INTRINSIC]).all()


def test_surprise_is_about_the_newest_frame_that_a_step_led_to():
    learner, played = Learner(TINY), made_up(TINY)
    rewards, frames, _ = learner.intrinsic_rewards(played)
    assert torch.equal(frames.view(8, 4, 84, 84)[2, 3], played.frames[3, 3, 3])
    alone, _ = learner.curiosity.novelty(played.frames[3, 3, 3][None])
    assert rewards[2, 3].item() == pytest.approx(alone.item(), rel=1e-4)
    assert learner.curiosity.frames.count == 32


def test_an_update_moves_all_but_the_target():
    learner, played = Learner(TINY), made_up(TINY)
    before = [{k: v.clone() for k, v in x.state_dict().items()} for x in (learner.policy, learner.curiosity)]
    row = learner.update(played)
    assert all(not v.equal(before[0][k]) for k, v in learner.policy.state_dict().items())
    still = {k.split(".")[0] for k, v in learner.curiosity.state_dict().items() if v.equal(before[1][k])}
    assert still == {"target"}
    assert row["predictor_loss"] > 0
    assert np.isfinite([value for name, value in row.items() if name != "explained_variance"]).all()


def test_points_and_episodes_are_counted():
    learner = Learner(TINY)
    nothing = made_up(TINY)._replace(rewards=torch.zeros(8, 4))
    assert "score" not in learner.count(nothing, [])
    rewards = torch.zeros(8, 4)
    rewards[2, 1] = 100
    row = learner.count(nothing._replace(rewards=rewards), [100.0, 0.0])
    assert (row["score"], row["best_score"], row["episodes"], row["points"]) == (50, 100, 2, 100)
    assert learner.progress.values["first_points_step"] == 32 + 3 * 4
    assert row["environment_steps"] == 64


# ---- the stage


def opened(tmp_path, config: RNDConfig, name: str = "one") -> runs.Run:
    return runs.Run.open("07_rnd", "smoke", config, tmp_path / name, quiet=True)


def test_a_run_and_the_same_again(tmp_path):
    rows = []
    for name in ("one", "two"):
        with opened(tmp_path, TINY, name) as run:
            final = rnd.run(TINY, run)
            rows.append([{k: v for k, v in row.items() if k != "wall_s"} for row in run.metrics()])
            folder = run.folder
    assert rows[0] == rows[1], "on a CPU the seed decides"
    assert (final["steps"], final["warmup_steps"], final["first_points_step"]) == (96, 32, None)
    assert [row["environment_steps"] for row in rows[0]] == [32, 64, 96]
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"rnd.pt", "best.safetensors", "policy-64.safetensors", "policy-96.safetensors", "curiosity-96.pt"} <= kept
    assert [("room_novelty" in row) for row in rows[0]] == [False, True, True]
    loaded = rnd.load_curiosity(TINY, folder / "checkpoints" / "curiosity-96.pt")
    again = {str(room): error for room, error in rnd.novelty_by_room(loaded).items()}
    assert again == pytest.approx(rows[0][-1]["room_novelty"])


def states(learner: Learner) -> dict:
    import copy

    return copy.deepcopy({name: part.state_dict() for name, part in learner.parts.items()})


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_killed_run_has_everything_back(tmp_path, monkeypatch):
    """All but the emulators, which a vector environment can't save: episodes begin anew."""
    seen, update, rollout = [], Learner.update, Players.rollout

    def spied(self, played):
        row = update(self, played)
        seen.append(states(self))
        return row

    def killed(self):
        if len(seen) == 2:
            raise RuntimeError("killed")
        return rollout(self)

    monkeypatch.setattr(Learner, "update", spied)
    monkeypatch.setattr(Players, "rollout", killed)
    with opened(tmp_path, TINY) as run, pytest.raises(RuntimeError, match="killed"):
        rnd.run(TINY, run)
    loaded = []
    monkeypatch.setattr(Players, "rollout", rollout)
    count = Learner.count

    def first_look(self, played, finished):
        loaded.append(states(self))
        return count(self, played, finished)

    monkeypatch.setattr(Learner, "count", first_look)
    with opened(tmp_path, TINY) as run:
        final = rnd.run(TINY, run)
        assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert len(loaded) == 1
    assert same(loaded[0], seen[1])
    assert not same(loaded[0], seen[0])
    assert final["steps"] == 96


def test_the_best_milestone_is_the_one_that_stays(tmp_path, monkeypatch):
    config = replace(TINY, episodes=2, max_steps=12, milestones=3)
    means = iter([3.0, 8.0, 8.0])
    play = rnd.play

    def favoured(config, weights, seed):
        played = play(config, weights, seed)
        assert played["protocol"]["max_frames"] == 48
        return played | {"mean": next(means)} if seed < 100_000 else played

    monkeypatch.setattr(rnd, "play", favoured)
    with opened(tmp_path, config) as run:
        final = rnd.run(config, run)
        best = run.folder / "policy.safetensors"
        assert best.read_bytes() == (run.checkpoints / "policy-64.safetensors").read_bytes()
        assert best.read_bytes() != (run.checkpoints / "policy-96.safetensors").read_bytes()
        assert run.metrics()[1]["selection"]["visited"] == [1]
    assert final["visited"] == [1]
    assert final["protocol"]["first_seed"] == 100_000


@pytest.mark.parametrize("profile", ["smoke", "quick", "full", "paper"])
def test_profiles(profile):
    settings = runs.load_profile(profile, "07_rnd")
    config = runs.config_from(RNDConfig, settings)
    assert len(settings) <= 24
    assert (config.gamma, config.intrinsic_gamma, config.lam, config.clip) == (0.999, 0.99, 0.95, 0.1)
    assert rnd.milestone_updates(config)[-1] == config.updates
    assert len(rnd.milestone_updates(config)) == min(config.milestones, config.updates)


def test_the_papers_settings():
    """Burda et al. 2018, Table 5."""
    paper = runs.config_from(RNDConfig, runs.load_profile("paper", "07_rnd"))
    assert (paper.rollout, paper.environments, paper.updates) == (128, 128, 30_000)
    assert (paper.epochs, paper.minibatches, paper.learning_rate, paper.entropy) == (4, 4, 1e-4, 0.001)
    assert (paper.extrinsic_weight, paper.intrinsic_weight, paper.predictor_share) == (2, 1, 0.25)
    assert (paper.sticky, paper.max_steps, paper.warmup_rollouts, paper.channels) == (0.25, 4_500, 50, (32, 64, 64))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"environments": 5}, "environments=5: an even number"),
        ({"total_steps": 31}, "total_steps=31: one rollout of all environments is 32 steps"),
        ({"game": "pong"}, "game='pong' is not covered"),
        ({"predictor_share": 0.0}, "predictor_share=0.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"milestones": 0}, "milestones=0"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **setting)
