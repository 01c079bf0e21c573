"""Options on the emulator: equal to the parallel form, whole episodes, tasks, learning, a training that is killed."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL_BACKBONE

from mzlib import demos, internal_rl, runs
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.emulator import ACTIONS, Emulator
from mzlib.evaluate import Observation
from mzlib.internal_rl import (
    ActionPolicy,
    ActionVectorEnv,
    CodePolicy,
    Episodes,
    OptionVectorEnv,
    ReinforceConfig,
    Task,
    agent_policy,
    policies,
    tasks,
    training,
)
from mzlib.internal_rl.updates import update
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import GOALS, Place
from mzlib.runs import Run
from mzlib.vecenv import Cause, Start, VecEnvConfig

LIMIT = 9  # steps of an episode
GREEDY, SHARP = 1e-4, 0.2  # temperatures


@pytest.fixture(scope="module")
def weights(small_pair):
    """The folder of a backbone and its metacontroller."""
    return small_pair[0].parent


def config(folder, **changes) -> ReinforceConfig:
    named = {"backbone": str(folder / "b.safetensors"), "metacontroller": str(folder / "m.safetensors")}
    sizes = {"environments": 4, "rollout": 8, "max_steps": LIMIT, "workers": 1, "device": "cpu", "policy_width": 16}
    sizes |= {"total_steps": 3 * 32, "batch": 2, "points": 100, "minibatches": 2}
    return ReinforceConfig(**named | sizes | changes)


def world(config: ReinforceConfig, task: Task | None = None, first_seed: int = 0):
    parts = training.upstream(config, "quick")
    return parts, training.environment(config, parts, task or Task(), first_seed)


def lived_by_hand(env: OptionVectorEnv, steps: int):
    """Steps under random codes: per row what was seen, what was given, what the environment told."""
    torch.manual_seed(0)
    env.begin()
    rows = [[] for _ in range(4)]
    for _ in range(steps):
        codes = torch.randn(4, 3)
        seen = [torch.cat(parts) for parts in zip(*env.seen, strict=True)]
        frames = env.envs.frames.copy()
        for half, part in enumerate(env.halves):
            env.send(half, codes[part])
        for half in (0, 1):
            env.receive(half)
        in_force = torch.cat([control.code for control in env.controls])
        for i in range(4):
            told = [x[i] for x in seen]
            rows[i].append((frames[i], codes[i], *told, in_force[i], int(env.envs._rows["actions"][i])))
    return rows


def disagreements(parts, rows) -> int:
    """Steps at which e, the switch or the action is not what the parallel form makes of the episode alone."""
    wrong = 0
    for row in rows:
        begins = [t for t, step in enumerate(row) if step[4]]
        for begin, end in zip(begins, [*begins[1:], len(row)], strict=True):
            frames, codes, e, due, _, _, actions = zip(*row[begin:end], strict=True)
            seen = np.concatenate([frames[0][:3], [stack[3] for stack in frames]])
            stream = parts.backbone.lower(torch.from_numpy(seen)[None], torch.zeros(1, end - begin, dtype=torch.long))
            followed = parts.metacontroller.follow(stream.e, torch.stack(codes)[None])
            logits = parts.backbone.upper(stream._replace(e=followed.residual)).actions[0]
            sure = (followed.switch[0] - 0.5).abs() > 1e-3
            opened = followed.switch[0] >= 0.5
            wrong += int(((stream.e[0] - torch.stack(e)).abs() > 1e-3).any(1).sum())
            wrong += int((opened != torch.stack(due))[sure].sum())
            best = logits.topk(2).values
            clear = best[:, 0] - best[:, 1] > 100 * GREEDY
            wrong += int((logits.argmax(-1) != torch.tensor(actions))[clear].sum())
    return wrong


@torch.no_grad()
def test_an_option_step_equals_the_step_by_hand(weights, monkeypatch):
    """Over several episodes each: β tested on the state after the action, codes held, caches begun anew."""
    settings = config(weights, temperature=GREEDY)
    parts, env = world(settings)
    with closing(env):
        rows = lived_by_hand(env, 2 * LIMIT + 3)
    assert disagreements(parts, rows) == 0
    due = torch.tensor([[bool(step[3]) for step in row] for row in rows]).float()
    assert 0.15 < due.mean() < 0.9, "the switch both opens and stays closed"
    assert sum(bool(step[4]) for step in rows[0]) == 3
    look = OptionVectorEnv._look
    monkeypatch.setattr(OptionVectorEnv, "_look", lambda self, half, frames, fresh: look(
        self, half, frames, fresh & (not self.seen))._replace(fresh=fresh))  # fmt: skip
    parts, env = world(settings)
    with closing(env):
        assert disagreements(parts, lived_by_hand(env, 2 * LIMIT + 3)) > 0, "episodes that remember the one before"


@pytest.mark.parametrize("acts", ["codes", "actions"])
def test_whole_episodes_are_handed_out(weights, acts):
    settings = config(weights, acts=acts)
    parts, env = world(settings)
    policy = training.policy_of(settings, parts)
    with closing(env):
        episodes = Episodes(env, policy)
        episodes.play(4)
        assert episodes.take() is None
        episodes.play(2 * LIMIT)
        assert episodes.take(least=9) is None
        lived = episodes.take()
        episodes.play(LIMIT)
        assert len(episodes.take().returns) == 4
    assert lived.lengths.tolist() == [LIMIT] * 8
    assert lived.chosen[:, 0].all()
    assert lived.chosen.all() == (acts == "actions")
    assert not lived.returns.any()
    with torch.no_grad():
        again = policy.log_prob(lived.observation, lived.action)
    assert torch.allclose(again[lived.chosen], lived.log_prob[lived.chosen], atol=1e-4), "step form equals parallel"
    if acts == "actions":
        assert lived.observation.shape == (8, LIMIT + 3, 84, 84)
        assert torch.equal(lived.observation[0, 0], lived.observation[0, 3]), "a reset's frame four times"


def test_it_is_a_vector_environment_as_gymnasium_knows_it(weights):
    _, env = world(config(weights))
    with closing(env):
        observation, info = env.reset(seed=3)
        assert observation.shape == (4, 16)
        assert env.observation_space.contains(observation)
        assert info["due"].all()
        for t in range(LIMIT):
            observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
            assert not terminated.any()
            assert truncated.all() == (t == LIMIT - 1)
        assert info["due"].all(), "new episodes"
        assert rewards.tolist() == [0.0] * 4
    with pytest.raises(ValueError, match="environments=1"):
        ActionVectorEnv(VecEnvConfig(count=1), Task())


# ---- tasks


def test_a_composition_begins_where_the_data_arrives_and_ends_at_the_last_place():
    """A leg of the data, replayed from the arrival before it, is a success as it arrives; the reverse order is none."""
    first, last, demo, begin, end = next(
        (int(demo.goals[begin - 1]), int(demo.goals[begin]), demo, begin, end)
        for demo in demos.load(runs.data_dir("demos", "places") / "plain.npz")
        for begin, end in [np.flatnonzero(np.diff(demo.goals, append=-2))[-2:] + 1]
        if demo.goals[begin - 1] >= 0
    )
    start = tasks.begun((demo, begin), (last,))
    ways = [start, start._replace(way=(GOALS[last], GOALS[first]))]
    settings = VecEnvConfig(count=2, workers=1, sticky=0.0, life_loss_ends=True)
    with closing(internal_rl.ActionVectorEnv(settings, Task())) as env:
        assert GOALS[first].holds(*[int(x) for x in np.array([*_facts(start)])])
        env.envs.start(ways)
        for half in (0, 1):
            env.envs.supply(half, Start())
        causes = [env.envs.step(np.full(2, action)) is not None and env.envs.cause.tolist()
                  for action in demo.actions[begin:end].tolist()]  # fmt: skip
    assert [cause[0] for cause in causes].index(Cause.SUCCESS) <= end - begin - 1
    assert all(cause[1] == Cause.IN_PLAY for cause in causes)


def _facts(start: Start) -> tuple[int, int, int]:
    emulator = Emulator()
    emulator.load_state(start.state)
    return emulator.facts[:3]


def test_starts_are_of_the_first_place_and_none_twice():
    goal = GOALS.index(next(place for place in GOALS if place.name == "floor, left"))
    found = tasks.arrivals(goal)
    assert len(found) > 1
    assert {int(demo.goals[end - 1]) for demo, end in found} == {goal}
    assert len({(demo.seed, demo.actions[:end].tobytes()) for demo, end in found}) == len(found)
    task = Task((goal, 12), workers=1)
    drawn = [task.draw(torch.Generator().manual_seed(seed)) for seed in range(1_500)]
    assert {start.state for start in drawn} == {start.state for start in task.starts}
    assert all(start.way == (GOALS[12],) for start in drawn)
    from_reset = [Task(points=400).draw(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {start.targets.tolist()[-1] for start in from_reset} == {400}
    assert 0 <= min(start.noops for start in from_reset) < 10 < max(start.noops for start in from_reset) <= 30


class ToTheRight(Task):
    """From reset some pixels along the platform that she stands on."""

    def __init__(self, pixels: int):
        super().__init__()
        self.pixels = pixels

    def draw(self, generator: torch.Generator) -> Start:
        """A reset, after which she stands at 77."""
        return Start(way=(Place("to the right", 1, 77 + self.pixels, 89, 234, 236),))


def taught(parts: training.Upstream) -> Metacontroller:
    """A metacontroller whose codes mean something: RIGHT where their first number is high, else LEFT."""
    meta, emulator = Metacontroller(MetacontrollerConfig(16, code_dim=3, switch_rate=4)), Emulator()
    frames = torch.from_numpy(np.repeat(emulator.frame[None, None], 4, 1))
    stream = parts.backbone.lower(frames, torch.zeros(1, 1, dtype=torch.long))
    optimiser = torch.optim.Adam(meta.hypernetwork.parameters(), 0.01)
    for _ in range(150):
        codes = torch.randn(64, 1, 3)
        controlled = meta.hypernetwork(stream.e.expand(64, -1, -1), codes)
        many = stream._replace(e=controlled, context=stream.context.expand(64, -1, -1, -1),
                               embeddings=stream.embeddings.expand(64, -1, -1, -1))  # fmt: skip
        wanted = torch.where(codes[..., 0] > 0.8, ACTIONS.index("RIGHT"), ACTIONS.index("LEFT"))
        logits = parts.backbone.upper(many).actions[:, 0] / SHARP
        loss = torch.nn.functional.cross_entropy(logits, wanted[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3
    return meta.requires_grad_(False).eval()


@pytest.mark.parametrize(("acts", "pixels", "rate"), [("codes", 6, 6e-3), ("actions", 4, 3e-3)])
def test_a_task_of_a_few_steps_is_learnt(weights, acts, pixels, rate):
    """Some 6 updates do it, whatever the seed."""
    settings = config(weights, acts=acts, environments=16, max_steps=8, learning_rate=rate, total_steps=10**6)
    torch.manual_seed(1)
    parts = training.upstream(settings, "quick")
    if acts == "codes":
        parts, settings = parts._replace(metacontroller=taught(parts)), replace(settings, temperature=SHARP)
    frozen = [weight.clone() for part in parts[:2] if part is not None for weight in part.parameters()]
    policy = training.policy_of(settings, parts)
    optimiser = torch.optim.Adam(policy.parameters(), settings.learning_rate)
    won = []
    with closing(training.environment(settings, parts, ToTheRight(pixels), 0)) as env:
        episodes = Episodes(env, policy)
        while len(won) < 20 and np.mean(won[-2:] or 0) < 0.6:
            episodes.play(16)
            lived = episodes.take()
            update(policy, None, optimiser, lived, settings.updates)
            won.append(lived.returns.mean().item())
    now = [weight for part in parts[:2] if part is not None for weight in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True)), "the frozen parts stay frozen"
    assert np.mean(won[:2]) < 0.45
    assert np.mean(won[-2:]) >= 0.6


# ---- the stage


@pytest.mark.parametrize(("acts", "estimator"), [("codes", "gae"), ("actions", "episode")])
def test_killed_then_resumed_equals_uninterrupted(weights, tmp_path, monkeypatch, acts, estimator):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(training, "Task", lambda *_: ToTheRight(2))  # one that is won now and then from the start
    settings = config(weights, acts=acts, estimator=estimator, total_steps=4 * 28, rollout=7, episodes=4)
    with Run.open("04_internal_rl", "smoke", settings, tmp_path / "whole", quiet=True) as whole:
        training.run(settings, whole)
    real, played = Episodes.play, []

    def dies(self, steps):
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(steps)
        real(self, steps)

    monkeypatch.setattr(Episodes, "play", dies)
    with (
        pytest.raises(KeyboardInterrupt),
        Run.open("04_internal_rl", "smoke", settings, tmp_path / "cut", quiet=True) as cut,
    ):
        training.run(settings, cut)
    resumed = []
    monkeypatch.setattr(Episodes, "play", lambda self, steps: (resumed.append(steps), real(self, steps))[1])
    with Run.open("04_internal_rl", "smoke", settings, tmp_path / "cut", quiet=True) as cut:
        final = training.run(settings, cut)
    assert resumed.count(7) == 1, "resumed, not begun anew"
    rows = [
        [
            {k: v for k, v in row.items() if k != "wall_s"}
            for row in runs.read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert rows[0][-1]["environment_steps"] == 112
    assert 0 < np.mean([row["success"] for row in rows[0]]) < 1, "there was something to learn from"
    name = "agent.safetensors" if acts == "codes" else "backbone.safetensors"
    contents = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "cut")]
    assert contents[0] == contents[1]
    assert (final["steps"], final["upstream_steps"], final["success_episodes"]) == (112, 0, 4)
    untrained = training.policy_of(settings, training.upstream(settings, "smoke"))
    runs.save_weights(tmp_path / "untrained.safetensors", getattr(untrained, "backbone", untrained))
    assert (tmp_path / "untrained.safetensors").read_bytes() != contents[0]


def test_an_agents_weights_belong_to_their_pair(weights, tmp_path):
    torch.manual_seed(0)
    pair = weights / "b.safetensors", weights / "m.safetensors"
    names = {"backbone": runs.weights_sha256(pair[0]), "metacontroller": runs.weights_sha256(pair[1])}
    policy = CodePolicy(16, 3, 8)
    torch.nn.init.normal_(policy.mean.weight)
    runs.save_weights(tmp_path / "agent.safetensors", policy, **names)
    again = policies.load_agent(tmp_path / "agent.safetensors", *pair)
    assert again.config == policy.config
    for name, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16().float())
    for wrong in names:
        runs.save_weights(tmp_path / "other.safetensors", policy, **names | {wrong: "another"})
        with pytest.raises(ValueError, match=f"belongs to {wrong} another"):
            policies.load_agent(tmp_path / "other.safetensors", *pair)


@torch.no_grad()
def test_an_agent_at_play_takes_its_policys_codes(weights, tmp_path):
    """Its codes are the policy's mean given all that was seen since the life began, taken in where the switch opens."""
    pair = weights / "b.safetensors", weights / "m.safetensors"
    torch.manual_seed(4)
    policy = CodePolicy(16, 3, 8)
    torch.nn.init.normal_(policy.mean.weight)
    names = {"backbone": runs.weights_sha256(pair[0]), "metacontroller": runs.weights_sha256(pair[1])}
    runs.save_weights(tmp_path / "agent.safetensors", policy, **names)
    player = agent_policy(*pair, tmp_path / "agent.safetensors", greedy=True, switch_rate=4, threshold=1.0)
    frames = np.random.default_rng(0).integers(0, 255, (14, 2, 84, 84), np.uint8)
    seen, opened, codes = [], [], []
    for t in range(14):
        lost = np.array([False, t == 6])
        player.act(Observation(frames[t], np.full(2, t == 0), lost, np.arange(2)))
        opened.append(player.control.opened.clone())
        codes.append(player.control.code.clone())
    for row, begin, end in ((0, 0, 14), (1, 0, 6), (1, 6, 14)):
        seen = torch.from_numpy(np.concatenate([frames[begin : begin + 1, row]] * 3 + [frames[begin:end, row]]))
        e = player.backbone.lower(seen[None], torch.zeros(1, end - begin, dtype=torch.long)).e
        mean, held = player.control.policy(e).mean[0], None
        for t in range(end - begin):
            held = mean[t] if opened[begin + t][row] else held
            assert torch.allclose(codes[begin + t][row], held, atol=1e-3)
    share = torch.stack(opened).float().mean()
    assert 0.2 < share < 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"acts": "moves"}, "acts='moves'"),
        ({"estimator": "reinforce"}, "estimator='reinforce'"),
        ({"places": (3,)}, r"places=\(3,\)"),
        ({"places": (3, 99)}, r"places=\(3, 99\)"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"total_steps": 10}, "total_steps=10"),
        ({"seed": 500}, "seed=500"),
        ({"gamma": 2.0}, "gamma=2"),
        ({"sticky": 1.0}, "sticky=1"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_a_wrong_setting_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ReinforceConfig(**wrong)


def test_a_backbone_that_sees_its_actions_is_refused(weights, tmp_path):
    runs.save_weights(tmp_path / "b.safetensors", MontezumaVLM(BackboneConfig(**SMALL_BACKBONE, see_actions=True)))
    with pytest.raises(ValueError, match="sees its actions"):
        training.upstream(config(weights, backbone=str(tmp_path / "b.safetensors"), acts="actions"), "quick")


def test_only_what_follows_block_l_is_trained_if_so_wished(weights):
    parts = training.upstream(config(weights, acts="actions"), "quick")
    policy = ActionPolicy(parts.backbone, upper_only=True)
    moving = {name.split(".")[1] + "." + name.split(".")[2] for name, p in policy.named_parameters() if p.requires_grad}
    assert moving == {"blocks.1", "blocks.2", "norm.weight", "norm.bias", "action_head.weight", "action_head.bias"}
