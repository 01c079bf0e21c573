"""Acting under codes and controllers: equal to the parallel form, one switch rule, the pair checked."""

import numpy as np
import pytest
import torch
from conftest import SMALL_BACKBONE

from mzlib import demos, runs, steering
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.backbone.residuals import Sequences, action_logits, streams
from mzlib.dataset import FrameCache, WindowDataset
from mzlib.evaluate import EvaluationProtocol, Observation, play_episodes
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import GOALS
from mzlib.policies import ClonePolicy
from mzlib.probes import SupervisedControllers
from mzlib.runs import data_dir
from mzlib.steering import CodeControl, ControlledPolicy, GoalControl, HeldCodes, prior_policy

STEPS = 20


def played(policy: ClonePolicy, frames: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """(n, t) actions on given frames (n, t, 84, 84)."""
    began = np.zeros(len(frames), bool)
    taken = []
    for t in range(frames.shape[1]):
        taken.append(policy.act(Observation(frames[:, t], began | (t == 0), lost[:, t], np.arange(len(frames)))))
    return np.stack(taken, 1)


@pytest.mark.parametrize("switch_rate", [0, 5])
@torch.no_grad()
def test_acting_under_codes_equals_the_parallel_form(small_pair, switch_rate):
    """Given codes, taken in where the switch opens; a life lost in the second episode begins anew."""
    rng = np.random.default_rng(0)
    frames, drawn = rng.integers(0, 255, (2, STEPS, 84, 84), np.uint8), torch.randn(2, STEPS, 3)
    lost = np.zeros((2, STEPS), bool)
    lost[1, 8] = True
    policy = prior_policy(*small_pair, switch_rate=switch_rate, greedy=True)
    control, now, betas, codes = policy.control, iter(range(STEPS)), [], []

    class Recording(ControlledPolicy):
        def controlled(self, residual, fresh, observation):
            t = next(now)
            self.control.source = lambda rows, _: drawn[rows, t]
            steered = super().controlled(residual, fresh, observation)
            betas.append(control.switch.clone())
            codes.append(control.code.clone())
            return steered

    taken = played(Recording(small_pair[0], control, greedy=True), frames, lost)
    betas, codes = torch.stack(betas, 1), torch.stack(codes, 1)
    backbone, meta = policy.backbone, control.metacontroller
    for row, begin, end in ((0, 0, STEPS), (1, 0, 8), (1, 8, STEPS)):
        seen = torch.from_numpy(np.concatenate([frames[row, begin : begin + 1]] * 3 + [frames[row, begin:end]]))
        stream = backbone.lower(seen[None], torch.zeros(1, end - begin, dtype=torch.long))
        followed = meta.follow(stream.e, drawn[row : row + 1, begin:end])
        assert torch.allclose(betas[row, begin:end], followed.switch[0], atol=1e-4)
        assert torch.allclose(codes[row, begin:end], followed.code[0], atol=1e-4)
        logits = backbone.upper(stream._replace(e=followed.residual)).actions
        assert np.array_equal(taken[row, begin:end], logits[0].argmax(-1).numpy())
    opened = (betas >= 0.5).float().mean()
    assert 0.05 < opened < 0.95, "the switch is neither always open nor never"
    assert not np.array_equal(taken, played(ClonePolicy(small_pair[0], greedy=True), frames, lost))


@torch.no_grad()
def test_at_threshold_one_only_switch_rate_opens():
    """Though rounding makes 1 of the sigmoid of a confident switch."""
    torch.manual_seed(0)
    meta = Metacontroller(MetacontrollerConfig(8, code_dim=2, switch_rate=3))
    meta.switch.out.bias.fill_(1_000.0)
    control, residual, began = CodeControl(meta, None, threshold=1.0), torch.randn(2, 8), torch.tensor([True, True])
    opened = []
    for t in range(7):
        control.look(residual, began & (t == 0))
        opened.append(control.opened.tolist())
    assert opened == [[t % 3 == 0] * 2 for t in range(7)]
    followed = meta.follow(torch.randn(2, 7, 8), torch.randn(2, 7, 2), threshold=1.0)
    assert ((followed.switch >= 1) == torch.tensor(opened).T).all(), "the parallel form too"


def test_without_control_it_is_the_clone(small_pair):
    frames = np.random.default_rng(1).integers(0, 255, (2, STEPS, 84, 84), np.uint8)
    lost = np.zeros((2, STEPS), bool)
    assert np.array_equal(
        played(ControlledPolicy(small_pair[0], seed=3), frames, lost),
        played(ClonePolicy(small_pair[0], seed=3), frames, lost),
    )


@torch.no_grad()
def test_held_codes_and_controllers_write_what_they_should(small_pair):
    meta = steering.load_metacontroller(small_pair[1], small_pair[0])
    e, codes, fresh = torch.randn(2, 16), np.array([[1.0, 0, 0], [0, 2, 0]]), torch.zeros(2, dtype=torch.bool)
    u = meta.hypernetwork.controller(torch.tensor(codes, dtype=torch.float32))
    expected = e + (u @ e[..., None])[..., 0]
    assert torch.allclose(HeldCodes(meta, codes)(e, fresh, None), expected, atol=1e-5)
    controllers = SupervisedControllers(4, 16, 2)
    assert torch.equal(GoalControl(controllers, [3, 1])(e, fresh, None), controllers(e, torch.tensor([3, 1])))


def test_codes_do_not_depend_on_the_company(small_pair):
    protocol = EvaluationProtocol(episodes=3, max_frames=60)
    played_at_once = play_episodes(lambda: prior_policy(*small_pair), protocol.seeds, protocol, width=3)
    alone = play_episodes(lambda: prior_policy(*small_pair), protocol.seeds, protocol, width=1)
    assert played_at_once == alone
    assert [tally["steps"] for tally in alone] == [15] * 3
    codes = [steering.PriorCodes(2, seed) for seed in (0, 0, 1)]
    seen = Observation(None, np.array([True]), np.array([False]), np.array([7]))
    drawn = [source(np.array([0]), seen) for source in codes]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    going_on = seen._replace(began=np.array([False]))
    assert not np.array_equal(codes[0](np.array([0]), going_on), drawn[0]), "another code at the next opening"


def test_a_wrong_pair_or_setting_is_named(small_pair, tmp_path):
    torch.manual_seed(9)
    runs.save_weights(tmp_path / "other.safetensors", MontezumaVLM(BackboneConfig(**SMALL_BACKBONE)))
    with pytest.raises(ValueError, match="belongs to backbone"):
        prior_policy(tmp_path / "other.safetensors", small_pair[1])
    with pytest.raises(ValueError, match="beta_threshold=2"):
        prior_policy(*small_pair, threshold=2)
    with pytest.raises(ValueError, match="switch_rate=-3"):
        prior_policy(*small_pair, switch_rate=-3)


def test_supervised_controllers_learn_the_places_legs(tmp_path):
    loaded = demos.load(data_dir("demos", "places", "plain.npz"))[:4]
    cache = FrameCache.build(loaded, tmp_path, workers=1)
    torch.manual_seed(0)
    backbone = MontezumaVLM(BackboneConfig(**SMALL_BACKBONE)).requires_grad_(False)
    windows = WindowDataset(cache, [0, 1, 2, 3], seq_len=64, stride=64, noop_subsample=False)
    sequences = Sequences(windows, streams(backbone, cache, tmp_path))
    batch = sequences.batch(np.arange(len(sequences)))
    losses = []
    for steps in (0, 30):
        controllers = steering.train_controllers(backbone, sequences, rank=4, steps=steps, batch_size=4, lr=0.01)
        losses.append(
            controllers.nll(
                lambda e: action_logits(backbone, batch.stream, e), batch.residual, batch.goals, batch.actions
            ).item()
        )
    assert controllers.a.shape == (len(GOALS), 16, 4)
    assert losses[1] < losses[0] - 0.1
    untouched = torch.where(batch.goals < 0, 0, batch.goals)
    told = controllers.nll(
        lambda e: action_logits(backbone, batch.stream, e), batch.residual, untouched, batch.actions.clamp(max=17)
    )
    assert told.item() != pytest.approx(losses[1]), "steps without a goal count for nothing"
    unknown = Sequences(WindowDataset(
        FrameCache.build(demos.load(data_dir("demos", "first_key.npz"))[:1], tmp_path / "key", workers=1), [0],
        seq_len=8, stride=8), sequences.stream)  # fmt: skip
    with pytest.raises(ValueError, match="name no goals"):
        steering.train_controllers(backbone, unknown, steps=1)
