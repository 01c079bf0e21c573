"""What is measured of a metacontroller, on planted truths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mzlib import demos
from mzlib.backbone import BackboneConfig, MontezumaVLM
from mzlib.backbone.residuals import Sequences, action_logits, streams
from mzlib.dataset import FrameCache, WindowDataset
from mzlib.discovery import Codes, Played, codes_of, information, look, match_events, play_through
from mzlib.metacontroller import Metacontroller, MetacontrollerConfig
from mzlib.places import SUPPORTS
from mzlib.runs import data_dir
from mzlib.segments import events, goal_changes
from mzlib.viz.segments import traces_of

SIZES = {"channels": 4, "width": 16, "depth": 3, "heads": 2, "mlp_width": 32, "layer": 1, "seq_len": 12}


@pytest.fixture(scope="module")
def backbone() -> MontezumaVLM:
    torch.manual_seed(0)
    return MontezumaVLM(BackboneConfig(**SIZES)).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sequences(backbone, tmp_path_factory) -> Sequences:
    """Of three places demos, then of an ordinary one."""
    folder = tmp_path_factory.mktemp("cache")
    loaded = [demos.load(data_dir("demos", name))[:n] for name, n in (("places/plain.npz", 3), ("first_key.npz", 1))]
    cache = FrameCache.build([*loaded[0], *loaded[1]], folder, workers=1)
    windows = WindowDataset(cache, [0, 1, 2, 3], seq_len=24, stride=24, noop_subsample=False)
    return Sequences(windows, streams(backbone, cache, folder))


def planted(sequences: Sequences, switch) -> Played:
    """What a metacontroller would have to have done: β from the goals."""
    rows = np.arange(len(sequences))
    batch = sequences.batch(rows)
    n, t = batch.actions.shape
    goals = torch.where(batch.valid, torch.arange(t).expand(n, t) // 9, -1).numpy()
    zeros = np.zeros((n, t), np.float32)
    steps = (batch.valid.numpy(), batch.actions.numpy(), goals, batch.positions.numpy(), switch(goals))
    return Played(rows, *steps, np.zeros((n, t, 3)), zeros + 0.5, zeros + 0.2, zeros + 0.4, zeros + 0.3)


def test_a_planted_switch_scores_one(sequences):
    def true(goals):
        beta = np.full(goals.shape, 0.01, np.float32)
        beta[:, 1:][goals[:, 1:] != goals[:, :-1]] = 0.99
        return beta

    found = look(planted(sequences, true), sequences)
    assert (found["precision"], found["recall"], found["f1"], found["sharp"]) == (1, 1, 1, 1)
    assert found["switches"] == found["changes"] > 0
    assert max(found["f1_random"], found["f1_even"]) < 0.9
    assert (found["nll"], found["nll_and_kl"]) == (pytest.approx(0.2), pytest.approx(0.7))
    blind = look(planted(sequences, lambda goals: np.full(goals.shape, 0.3, np.float32)), sequences)
    assert (blind["f1"], blind["sharp"], blind["open"]) == (0, 0, 0)


def test_the_backbones_own_nll_and_a_measure_on_other_terms(sequences, backbone):
    rows = np.arange(len(sequences))
    torch.manual_seed(1)
    controller = Metacontroller(MetacontrollerConfig(16, code_dim=3, controller_rank=2))
    controller.hypernetwork.a.data *= 10
    played = play_through(backbone, controller, sequences, rows, size=2)
    batch = sequences.batch(rows)
    with torch.no_grad():
        logits = action_logits(backbone, batch.stream, batch.residual)
    nll = F.cross_entropy(logits[batch.valid], batch.actions[batch.valid]).item()
    found = look(played, sequences)
    assert found["backbone_nll"] == pytest.approx(nll, rel=1e-4)
    assert found["nll"] != pytest.approx(nll, rel=1e-4)
    assert played.switch.shape == played.kl.shape == (len(rows), 24)
    assert np.array_equal(played.goals[played.valid.astype(bool)], batch.goals[batch.valid].numpy())


def test_events_of_ordinary_demos_only(sequences):
    rows = np.arange(len(sequences))
    ordinary = sequences.windows.windows[:, 0] == 3
    played = planted(sequences, lambda goals: np.zeros(goals.shape, np.float32))
    played.goals[ordinary] = -1
    cache = sequences.windows.cache
    for row in np.flatnonzero(ordinary):
        steps, lengths = sequences.steps([row])
        played.switch[row, : lengths[0]] = events(cache.positions[steps[0]], cache.rewards[steps[0]])
    found = match_events(played, sequences)
    assert found["switch"]["f1"] == 1
    assert found["random"]["f1"] < 0.9
    played.switch[ordinary] = 0
    assert match_events(played, sequences)["switch"]["f1"] == 0
    played.goals[rows, 0] = 0
    with pytest.raises(ValueError, match="every sequence names goals"):
        match_events(played, sequences)


def test_codes_between_cuts_and_what_they_tell(sequences):
    played = planted(sequences, lambda goals: np.zeros(goals.shape, np.float32))
    true, _ = goal_changes(played.goals)
    played.code[..., 0] = np.where(played.goals >= 0, played.goals, -9)  # the code says the goal
    legs = codes_of(played, true)
    assert np.array_equal(legs.code[:, 0], legs.goal)
    assert np.array_equal(legs.before[legs.begin > 0], legs.goal[legs.begin > 0] - 1)
    assert (legs.before[legs.begin == 0] == -1).all()
    assert legs.end.max() <= 24
    assert {SUPPORTS[i].name for i in legs.region if i >= 0} <= {s.name for s in SUPPORTS}
    told = information(legs, clusters=8)
    assert told["goal"]["share"] == pytest.approx(1)
    assert told["length"]["median"] == 9
    rng = np.random.default_rng(0)
    blind = information(Codes(rng.standard_normal(legs.code.shape), *legs[1:]), clusters=8)
    assert blind["goal"]["share"] < 0.5


def test_traces_show_what_was_seen_before_each_action(sequences):
    played = planted(sequences, lambda goals: np.full(goals.shape, 0.3, np.float32))
    traces = traces_of(played, sequences)
    files = [*demos.load(data_dir("demos", "places/plain.npz"))[:3], demos.load(data_dir("demos", "first_key.npz"))[0]]
    assert len(traces) == len(sequences)
    for trace, (demo, first, last) in zip(traces, sequences.ranges, strict=True):
        recorded = demos.record(files[demo])
        begin = first - sequences.windows.cache.offsets[demo]
        assert len(trace) == last - first + 1
        assert np.array_equal(trace.actions, recorded.actions[begin : begin + len(trace)])
        assert trace.name == f"demo {demo}, steps {begin} on"
        if begin:  # Trajectory.frames: seen after each step
            assert np.array_equal(trace.frames, recorded.frames[begin - 1 : begin - 1 + len(trace)])
            assert np.array_equal(trace.positions[1:], sequences.windows.cache.positions[first:last])
