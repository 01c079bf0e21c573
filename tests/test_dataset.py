"""Demos to windows: the frame cache against fresh replays, death-free segments, windows against a plain reading."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mzlib import dataset, demos
from mzlib.dataset import PAD, FrameCache, WindowDataset, segments, shared_beginnings, split_by_seed
from mzlib.emulator import ACTIONS
from mzlib.runs import REPO, data_dir


def random_demo(draw: int, steps: int = 230, **fields) -> demos.Demo:
    """Random actions from the start, each for three steps; she dies several times and then for good."""
    return demos.from_actions(np.random.default_rng(draw).integers(0, 18, steps).repeat(3)[:steps], **fields)


@pytest.fixture(scope="module")
def played():
    """Two ways to the key, a sticky one with goals, one that dies, a sticky one that dies."""
    way, other = demos.load(data_dir("demos", "first_key.npz"))[:2]
    sticky = demos.load(data_dir("demos", "first_key_sticky.npz"))[0]
    sticky = replace(sticky, goals=np.arange(len(sticky), dtype=np.int16) // 30)
    return [way, other, sticky, random_demo(1, noops=1), random_demo(5, sticky=0.25, seed=5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cache(played, folder):
    return FrameCache.build(played, folder, workers=1)


# ---- the cache


def test_frames_and_facts_line_up_with_a_fresh_replay(played, cache):
    assert cache.frames.shape == (sum(map(len, played)) + len(played), 84, 84)
    assert isinstance(cache.frames, np.memmap)
    for i, demo in enumerate(played):
        emulator, offset = demos.start(demo), cache.offsets[i]
        for t, action in enumerate(demo.actions.tolist()):
            assert cache.actions[offset + t] == action
            assert np.array_equal(cache.frames[offset + i + t], emulator.frame), (i, t)
            assert emulator.step(action) == cache.rewards[offset + t]
            facts = emulator.facts
            assert tuple(cache.positions[offset + t]) == (facts.room, facts.x, facts.y)
            assert (cache.lives[offset + t], cache.dying[offset + t]) == (emulator.lives, facts.dying)
        assert np.array_equal(cache.frames[cache.offsets[i + 1] + i], emulator.frame)
    assert (cache.goals[: cache.offsets[2]] == -1).all()
    assert np.array_equal(cache.goals[cache.offsets[2] : cache.offsets[3]], played[2].goals)
    assert cache.seed.tolist() == [demo.seed for demo in played]
    assert cache.score.tolist() == [demo.score for demo in played]


def test_a_demo_from_a_saved_state_begins_with_its_own_picture(played, tmp_path):
    way = played[0]
    emulator = demos.start(way)
    for action in way.actions[:40].tolist():
        emulator.step(action)
    later = replace(way, actions=way.actions[40:], rewards=way.rewards[40:], noops=0, state=emulator.save_state())
    frames = np.asarray(FrameCache.build([later], tmp_path).frames, int)
    unlike = np.abs(frames[0] - frames).mean((1, 2))  # the picture after a NOOP: a step from this one, and the next
    assert unlike[1] < unlike[10:].min()
    assert np.abs(frames[0] - demos.start(way).frame).mean() > 2 * unlike[1]


def test_the_same_demos_are_not_replayed_again(played, cache, folder, monkeypatch):
    monkeypatch.setattr(dataset, "_replayed", lambda demo: pytest.fail("replayed"))
    again = FrameCache.build(played, folder)
    assert np.array_equal(again.frames, cache.frames)
    assert all(np.array_equal(getattr(again, name), getattr(cache, name)) for name in vars(cache))


def test_another_core_makes_the_same_cache(played, cache, tmp_path):
    other = FrameCache.build(played, tmp_path, workers=2)
    assert all(np.array_equal(getattr(other, name), getattr(cache, name)) for name in vars(cache))


@pytest.mark.parametrize(
    "change",
    [
        {"actions": np.array([3, 0, 0], np.uint8)},
        {"rewards": np.array([0, 0, 1], np.int32)},
        {"seed": 1},
        {"noops": 1},
        {"sticky": 0.25},
        {"frames_per_action": 2},
        {"state": b"a"},
        {"goals": np.zeros(3, np.int16)},
        {"game": "pitfall"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_is_in_the_key(change):
    demo = demos.Demo(np.zeros(3, np.uint8), np.zeros(3, np.int32))
    assert dataset.cache_key([demo]) == dataset.cache_key([replace(demo, source="elsewhere")])
    assert dataset.cache_key([demo]) != dataset.cache_key([replace(demo, **change)])
    assert dataset.cache_key([demo]) != dataset.cache_key([demo, demo])


def test_changed_demos_are_replayed_and_a_failed_build_keeps_the_old_cache(tmp_path, monkeypatch):
    first, second = random_demo(0, 12), random_demo(2, 9)
    FrameCache.build([first], tmp_path)
    wrong = replace(first, rewards=first.rewards + 1, source="made.npz#7")
    with pytest.raises(ValueError, match=r"^made\.npz#7: replay differs at step 0"):
        FrameCache.build([wrong], tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "frames.npy", "steps.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_replayed", lambda demo: pytest.fail("replayed"))
        FrameCache.build([first], tmp_path)
    assert FrameCache.build([second], tmp_path).actions.tolist() == second.actions.tolist()
    with pytest.raises(ValueError, match="^demos is empty"):
        FrameCache.build([], tmp_path)


def test_nothing_opens_between_the_new_frames_and_their_steps(tmp_path, monkeypatch):
    first, second = random_demo(0, 12), random_demo(2, 12)
    FrameCache.build([first], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            FrameCache.build([second], tmp_path)
    assert [dataset._opened(tmp_path, dataset.cache_key([demo])) for demo in (first, second)] == [None, None]
    assert np.array_equal(FrameCache.build([first], tmp_path).frames[0], demos.start(first).frame)


def test_a_killed_build_leaves_nothing_that_opens(tmp_path):
    code = "import sys; from pathlib import Path; from mzlib import dataset, demos\n"
    code += "dataset.FrameCache.build(demos.load(Path(sys.argv[1])), Path(sys.argv[2]), workers=1)"
    shipped = data_dir("demos", "first_key.npz")
    process = subprocess.Popen([sys.executable, "-c", code, shipped, tmp_path], cwd=REPO)
    deadline = time.monotonic() + 60
    while not (tmp_path / "frames.tmp.npy").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not {"steps.npz", "frames.npy"} & set(os.listdir(tmp_path))
    few = demos.load(shipped)[:1]
    assert len(FrameCache.build(few, tmp_path, workers=1)) == 1
    assert sorted(os.listdir(tmp_path)) == [".lock", "frames.npy", "steps.npz"]


# ---- segments


def test_a_demo_without_death_is_one_segment(played, cache):
    assert [segments(cache, i) for i in range(3)] == [[(0, len(demo))] for demo in played[:3]]


@pytest.mark.parametrize(("i", "lives"), [(3, 6), (4, 4)])
def test_segments_hold_no_death_and_begin_when_she_can_act(played, cache, i, lives):
    demo, found = played[i], segments(cache, i)
    assert len(found) == lives
    steps = cache.offsets[i] + np.concatenate([np.arange(*segment) for segment in found])
    assert not cache.dying[steps].any()
    for begin, end in found:
        begin, end = begin + cache.offsets[i], end + cache.offsets[i]
        assert len(set(cache.lives[begin:end].tolist())) == 1
        assert end == cache.offsets[i + 1] or cache.dying[end], "it goes on until she begins to die"
    begins, acts = [begin for begin, _ in found], set()
    emulator = demos.start(demo)
    for t, action in enumerate(demo.actions.tolist()):
        if t in begins or t + 1 in begins:
            here, seen = emulator.save(include_rng=True), set()
            for tried in ("RIGHT", "LEFT", "UP"):
                emulator.step(ACTIONS.index(tried))
                seen.add((emulator.facts.x, emulator.facts.y))
                emulator.load(here)
            acts |= {t} if len(seen) > 1 else set()
        emulator.step(action)
    # She may jump in the very step that puts her back; in the air no action tells.
    assert all({begin - 1, begin} & acts for begin in begins), "where a segment begins she can act"
    dead = np.flatnonzero(cache.dying[cache.offsets[i] : cache.offsets[i + 1]])
    assert all(begin - dead[dead < begin].max() <= 4 for begin in begins[1:]), "and no later than needed"


# ---- windows


@st.composite
def made_up_caches(draw) -> FrameCache:
    """Demos with made-up deaths; a frame says its own index."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    offsets = np.cumsum([0, *lengths])
    total = int(offsets[-1])
    x = np.arange(total) % 250
    dying = np.zeros(total, bool)
    for begin, length in zip(offsets, lengths, strict=False):
        for death in rng.integers(0, length, rng.integers(0, 3)):
            risen, stands = begin + death + rng.integers(1, 5, 2).cumsum() - (0, 1)
            dying[begin + death : min(risen, begin + length)] = True
            x[begin + death : min(stands, begin + length)] = 255  # where she lies
    frames = np.arange(total + len(lengths), dtype="<u2")[:, None].view(np.uint8).reshape(-1, 1, 2)
    return FrameCache(
        frames=frames,
        actions=rng.choice([0, 0, 3, 4], total).astype(np.uint8),
        rewards=np.zeros(total, np.int32),
        lives=np.full(total, 6, np.uint8),
        dying=dying,
        positions=np.stack([np.ones(total), x, x], 1).astype(np.uint8),
        goals=rng.integers(-1, 5, total).astype(np.int16),
        offsets=offsets,
        seed=rng.integers(0, 4, len(lengths)),
        score=rng.integers(0, 5, len(lengths)) * 100,
    )


def plain_windows(cache: FrameCache, seq_len: int, stride: int, mask_noops: bool) -> list[dict[str, list]]:
    """Every window, read step by step."""
    windows = []
    for i in range(len(cache)):
        offset, length = int(cache.offsets[i]), int(cache.offsets[i + 1] - cache.offsets[i])
        lies = (cache.positions[offset : offset + length, 1] == 255).tolist()
        lives = [[]]  # runs of steps in which she acts
        for t in range(length):
            lives[-1].append(t) if not lies[t] and not lies[max(t - 1, 0)] else lives.append([])
        for life in filter(None, lives):
            for last in range(len(life)):
                if (len(life) - 1 - last) % stride:
                    continue
                rows = []
                for at in range(last - seq_len + 1, last + 1):
                    if at < 0:
                        rows.append((PAD, PAD, False, -1, False, [-1, -1, -1]))
                        continue
                    step = offset + life[at]
                    action = int(cache.actions[step])
                    previous = int(cache.actions[step - 1]) if at else PAD
                    valid = not (mask_noops and action == 0)
                    change = valid and at > 0 and action != previous
                    position = cache.positions[step].tolist()
                    rows.append((action, previous, valid, int(cache.goals[step]), change, position))
                names = ("actions", "previous", "valid", "goals", "change", "positions")
                window = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
                seen = range(last - seq_len - 2, last + 1)
                window["frames"] = [offset + i + life[max(at, 0)] for at in seen]
                windows.append(window)
    return windows


@settings(max_examples=60, deadline=None)
@given(
    cache=made_up_caches(),
    seq_len=st.integers(1, 50),
    stride=st.integers(1, 12),
    mask_noops=st.booleans(),
)
def test_windows_are_what_a_plain_reading_gives(cache, seq_len, stride, mask_noops):
    expected = plain_windows(cache, seq_len, stride, mask_noops)
    options = {"noop_subsample": False, "mask_noops": mask_noops, "stride": stride}
    if not expected:
        with pytest.raises(ValueError, match="none of 0 windows"):
            WindowDataset(cache, range(len(cache)), seq_len, **options)
        return
    windows = WindowDataset(cache, range(len(cache)), seq_len, **options)
    assert (len(windows), windows.keep_rate) == (len(expected), 1)
    batch = windows.batch(range(len(windows)))
    # Which window of a segment comes first is the data set's business.
    ours = [
        {name: getattr(batch, name)[b].tolist() for name in batch._fields if name != "frames"}
        | {"frames": batch.frames[b].numpy().reshape(-1, 2).copy().view("<u2")[:, 0].tolist()}
        for b in range(len(windows))
    ]
    assert sorted(ours, key=lambda window: window["frames"]) == sorted(expected, key=lambda window: window["frames"])


def test_windows_of_real_demos(played, cache):
    windows = WindowDataset(cache, [2, 3], noop_subsample=False, stride=4)
    batch = windows.batch(range(len(windows)))
    b, length = len(windows), 64
    assert batch.frames.shape == (b, length + 3, 84, 84)
    shapes = [(b, length)] * 5 + [(b, length, 3)]
    assert [tuple(field.shape) for field in batch[1:]] == shapes
    kinds = "uint8 int64 int64 bool int64 bool int32"
    assert " ".join(str(field.dtype).removeprefix("torch.") for field in batch) == kinds
    assert ((batch.actions == PAD) == ~batch.valid).all()
    assert not (batch.change & ~batch.valid).any()
    whole = np.flatnonzero(batch.valid.all(1))[0]  # ends with the sticky demo's last step: windows run backwards
    steps = slice(len(played[2]) - length, len(played[2]))
    assert batch.actions[whole].tolist() == played[2].actions[steps].tolist()
    assert batch.goals[whole].tolist() == played[2].goals[steps].tolist()
    emulator = demos.start(played[2])
    for action in played[2].actions[:-1].tolist():
        emulator.step(action)
    assert np.array_equal(batch.frames[whole, -1], emulator.frame), "the last action's frame is the one before it"


def test_noop_rule_chooses_windows_and_removes_no_step(cache):
    every = WindowDataset(cache, range(5), seq_len=16, noop_subsample=False, stride=1)
    some = WindowDataset(cache, range(5), seq_len=16, noop_keep=0.3, stride=1, seed=3)
    none = WindowDataset(cache, range(5), seq_len=16, noop_keep=0, stride=1)
    ends_in_noop = cache.actions[every.windows[:, 2]] == 0
    noops = int(ends_in_noop.sum())
    assert noops > 20
    assert len(none) == len(every) - noops
    assert none.keep_rate == pytest.approx(1 - noops / len(every))
    assert len(none) < len(some) < len(every)
    assert some.keep_rate == pytest.approx(len(some) / len(every))
    kept = int((cache.actions[some.windows[:, 2]] == 0).sum())
    assert abs(kept - 0.3 * noops) < 4 * np.sqrt(0.21 * noops)
    rows = {tuple(row): at for at, row in enumerate(every.windows.tolist())}
    same = every.batch([rows[tuple(row)] for row in some.windows.tolist()])
    for ours, theirs in zip(some.batch(range(len(some))), same, strict=True):
        assert ours.equal(theirs)
    assert (none.batch(range(len(none))).actions == 0).any(), "NOOPs inside windows stay"


@pytest.mark.parametrize(("limit", "chosen"), [(100, [0, 1, 2, 3]), (50, [1, 3]), (30, [1, 3]), (25, [3]), (1, [3])])
def test_limit_trajs_keeps_the_best(limit, chosen):
    total = 8
    cache = FrameCache(
        frames=np.zeros((12, 1, 1), np.uint8),
        actions=np.ones(total, np.uint8),
        rewards=np.zeros(total, np.int32),
        lives=np.full(total, 6, np.uint8),
        dying=np.zeros(total, bool),
        positions=np.zeros((total, 3), np.uint8),
        goals=np.zeros(total, np.int16),
        offsets=np.arange(0, 10, 2),
        seed=np.arange(4),
        score=np.array([0, 300, 100, 400]),
    )
    windows = WindowDataset(cache, range(4), limit_trajs=limit)
    assert windows.demo_indices == chosen
    assert set(windows.windows[:, 0].tolist()) == set(chosen)


def test_the_order_follows_from_seed_and_epoch(cache):
    def ends(windows, epoch, **options):
        return [batch.frames.sum((1, 2, 3)).tolist() for batch in windows.batches(16, epoch, **options)]

    windows = WindowDataset(cache, range(5), seq_len=4, stride=2)
    again = WindowDataset(cache, range(5), seq_len=4, stride=2)
    epoch = ends(windows, 3)
    assert len(epoch) == len(windows) // 16
    assert len(windows) % 16
    assert epoch == ends(again, 3)
    assert epoch[5:] == ends(again, 3, first=5), "resumed at batch 5"
    assert epoch != ends(windows, 4)
    in_order = sum(ends(windows, 0, shuffle=False), [])
    assert len(in_order) == len(windows)
    assert in_order == windows.batch(range(len(windows))).frames.sum((1, 2, 3)).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "^seq_len=0: at least 1"),
        ({"stride": 0}, "^stride=0: at least 1"),
        ({"limit_trajs": 0}, r"^limit_trajs=0: a percentage in \(0, 100\]"),
        ({"limit_trajs": 101}, "^limit_trajs=101"),
        ({"noop_keep": 1.5}, "^noop_keep=1.5: a rate"),
        ({"demo_indices": []}, r"^demo_indices=\[\]: one or more from 0 to 4"),
        ({"demo_indices": [0, 5]}, r"^demo_indices=\[0, 5\]"),
    ],
)
def test_settings_out_of_range_are_named(cache, options, message):
    with pytest.raises(ValueError, match=message) as error:
        WindowDataset(cache, **{"demo_indices": [0], **options})
    assert "\n" not in str(error.value)


def test_batches_larger_than_the_data_are_an_error(cache):
    windows = WindowDataset(cache, [0], stride=64)
    with pytest.raises(ValueError, match="^size=99: a batch has 1 to"):
        windows.batches(99, epoch=0)
    with pytest.raises(ValueError, match="^size=0"):
        windows.batches(0, epoch=0, shuffle=False)


# ---- the split


@settings(max_examples=100, deadline=None)
@given(cache=made_up_caches(), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_demos_that_share_a_seed_stay_on_one_side(cache, held_out, seed):
    distinct = set(cache.seed.tolist())
    if len(distinct) < 2:
        with pytest.raises(ValueError, match="add demos of another seed"):
            split_by_seed(cache, held_out, seed)
        return
    train, aside = split_by_seed(cache, held_out, seed)
    assert sorted(train + aside) == list(range(len(cache)))
    assert train
    assert aside
    sides = [set(cache.seed[side].tolist()) for side in (train, aside)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == min(max(round(held_out * len(distinct)), 1), len(distinct) - 1)
    assert (train, aside) == split_by_seed(cache, held_out, seed)


def test_another_seed_splits_otherwise_and_a_wrong_share_is_named(cache):
    many = replace(cache, seed=np.arange(200), score=np.zeros(200))
    assert len(split_by_seed(many)[1]) == 20
    assert split_by_seed(many, seed=1) != split_by_seed(many, seed=0)
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=rf"^held_out={share}: a share in \(0, 1\)"):
            split_by_seed(many, share)


def test_a_beginning_that_demos_share_is_used_once():
    """A tree of three: the second leaves the first after 6 steps, the third the second after 9."""
    actions = np.tile(np.arange(12) % 5 + 1, (3, 1)).astype(np.uint8)
    actions[1, 6:] += 6
    actions[2, 6:] += 6
    actions[2, 9:] += 6
    positions = np.zeros((36, 3), np.uint8)
    cache = FrameCache(
        frames=np.zeros((39, 1, 2), np.uint8),
        actions=actions.ravel(),
        rewards=np.zeros(36, np.int32),
        lives=np.full(36, 6, np.uint8),
        dying=np.zeros(36, bool),
        positions=positions,
        goals=np.full(36, -1, np.int16),
        offsets=np.array([0, 12, 24, 36]),
        seed=np.array([7, 7, 7]),
        score=np.zeros(3, np.int32),
    )
    assert shared_beginnings(cache, [0, 1, 2]) == {0: 0, 1: 6, 2: 9}
    assert shared_beginnings(cache, [2, 1, 0]) == {2: 0, 1: 9, 0: 6}
    apart = replace(cache, seed=np.array([7, 8, 9]))
    assert shared_beginnings(apart, [0, 1, 2]) == {0: 0, 1: 0, 2: 0}
    moved = positions.copy()
    moved[12 + 3] = 1  # the same action took her elsewhere
    assert shared_beginnings(replace(cache, positions=moved), [0, 1])[1] == 3
    lasts = WindowDataset(cache, [0, 1, 2], seq_len=4, stride=1, noop_subsample=False).windows[:, 2].tolist()
    assert lasts == [*range(11, -1, -1), *range(23, 17, -1), *range(35, 32, -1)]


def test_which_demos_are_meant():
    places = dataset.training_demos("places", "quick")
    assert all((demo.goals >= 0).any() for demo in places)
    shipped = dataset.training_demos("shipped", "quick")
    assert len(shipped) > len(places)
    assert sum(demo.goals is not None for demo in shipped) == len(places)
    assert len(dataset.training_demos("shipped", "quick", rollouts=True)) > len(shipped)
    with pytest.raises(ValueError, match="they go with source=demos, demos=shipped"):
        dataset.training_demos("places", "quick", rollouts=True)
