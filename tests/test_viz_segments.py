from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from mzlib.emulator import Emulator
from mzlib.segments import k_means
from mzlib.viz.rooms import RoomMap
from mzlib.viz.segments import (
    Clusters,
    SwitchTrace,
    cluster_codes,
    codes_figure,
    map_path,
    map_spots,
    overview_figure,
    path_figure,
    render_codes,
    segment_codes,
    segment_of_steps,
    segment_starts,
    switch_figure,
)

SHARP = (1.0, 0.1, 0.2, 0.9, 0.0, 0.6, 0.55, 0.1)


def trace(beta=SHARP, codes=None, **settings):
    """Eight steps to the right in room 1; z is the number of the open switches so far, twice over."""
    steps = len(beta)
    if codes is None:
        codes = np.repeat(np.cumsum(np.array(beta) >= 0.5)[:, None], 2, axis=1).astype(float)
    positions = np.stack([np.ones(steps, int), 40 + 2 * np.arange(steps), np.full(steps, 148)], 1)
    fields = {"frames": np.zeros((steps, 21, 16, 3), np.uint8), "positions": positions, "actions": np.full(steps, 3)}
    return SwitchTrace(**{**fields, "beta": np.array(beta), "codes": codes, **settings})


@pytest.mark.parametrize(
    ("threshold", "starts"),
    [(0.5, [0, 3, 5, 6]), (0.56, [0, 3, 5]), (0.61, [0, 3]), (0.95, [0]), (0.05, [0, 1, 2, 3, 5, 6, 7])],
)
def test_a_segment_begins_where_beta_reaches_the_threshold(threshold, starts):
    assert segment_starts(np.array(SHARP), threshold).tolist() == starts
    exact = np.array([0.2, 0.75, 0.2])
    assert segment_starts(exact, 0.75).tolist() == [0, 1]  # at the threshold counts
    assert segment_starts(np.zeros(3), 0.5).tolist() == [0]  # the first step begins one in any case


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_segments_tile_the_steps(beta, threshold):
    numbers, starts = segment_of_steps(np.array(beta), threshold), segment_starts(np.array(beta), threshold)
    assert len(numbers) == len(beta)
    assert np.flatnonzero(np.diff(numbers, prepend=-1)).tolist() == starts.tolist()
    assert set(np.diff(numbers).tolist()) <= {0, 1}
    lower = segment_starts(np.array(beta), threshold / 2)
    assert set(starts.tolist()) <= set(lower.tolist())


def test_a_segments_code_is_the_mean_over_its_steps():
    codes = np.arange(16, dtype=float).reshape(8, 2)
    assert segment_codes(trace(codes=codes)).tolist() == [[2, 3], [7, 8], [10, 11], [13, 14]]
    assert segment_codes(trace(codes=codes), 0.95).tolist() == [[7, 8]]


def blobs(count=30, spread=0.1, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0], [5, 0, 0], [0, 9, 0]])
    sizes = (count, count // 2, count // 3)
    points = [c + spread * rng.standard_normal((n, 3)) for c, n in zip(centres, sizes, strict=True)]
    return np.concatenate(points), np.repeat(np.arange(3), sizes), centres


def test_k_means_finds_planted_clusters_largest_first():
    points, labels, centres = blobs()
    found = k_means(points, 3, seed=4)
    assert np.abs(found - centres).max() < 0.15
    nearest = np.square(points[:, None] - found).sum(2).argmin(1)
    assert (nearest == labels).all()


def test_clustering_is_the_same_for_the_same_seed_and_in_any_order():
    points, _, _ = blobs(spread=1.5)
    assert np.array_equal(k_means(points, 5, seed=1), k_means(points, 5, seed=1))
    shuffled = np.random.default_rng(0).permutation(points)
    assert np.allclose(np.sort(k_means(shuffled, 3, seed=1), 0), np.sort(k_means(points, 3, seed=1), 0))


def test_fewer_distinct_codes_than_clusters_give_fewer_clusters():
    assert k_means(np.array([[1.0], [2.0], [1.0]]), 7).tolist() == [[1.0], [2.0]]
    assert len(cluster_codes([trace(beta=(1.0, 0.0))], 7).centres) == 1
    with pytest.raises(ValueError, match="k=0"):
        k_means(np.zeros((3, 1)), 0)


def test_clusters_name_a_lived_code_and_a_plane_of_the_largest_spread():
    codes = np.zeros((8, 3))
    codes[:, 1] = (0, 0, 0, 4, 4, 10, 20, 20)
    found = cluster_codes([trace(codes=codes)], 2)
    lived = segment_codes(trace(codes=codes)).tolist()
    assert all(example.tolist() in lived for example in found.examples)
    assert np.allclose(found.axes[0], [0, 1, 0])  # signed by its largest entry
    assert found.nearest(codes).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert np.allclose(found.plane(codes)[:, 0], codes[:, 1] - segment_codes(trace(codes=codes))[:, 1].mean())
    one = cluster_codes([trace(codes=codes[:, 1:2])], 2)
    assert np.allclose(one.plane(codes[:, 1:2])[:, 1], 0)  # codes of one dimension lie on a line


def test_every_cluster_has_a_colour_of_its_own():
    colours = Clusters(np.zeros((21, 2)), np.zeros((21, 2)), np.zeros(2), np.eye(2)).colours
    assert len(set(colours)) == 21


def test_ways_leave_the_map_and_break_at_jumps():
    room_map = RoomMap({1: np.zeros((210, 160, 3), np.uint8)})
    positions = np.array([[1, 40, 148], [1, 42, 148], [5, 42, 148], [1, 44, 148], [1, 120, 148], [1, 122, 148]])
    spots, path = map_spots(room_map, positions), map_path(room_map, positions)
    assert np.isnan(spots[:, 0]).tolist() == [False, False, True, False, False, False]
    assert np.isnan(path[:, 0]).tolist() == [False, False, True, False, True, False]
    assert spots[0].tolist() == [43, 170]
    far = map_path(room_map, positions + [[20, 0, 0]] * 6)
    assert np.isnan(far).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"beta": np.array([0.5] * 7 + [1.2])}, r"beta leaves \[0, 1\]"),
        ({"beta": np.array([0.5] * 7 + [np.nan])}, r"beta leaves \[0, 1\]"),
        ({"codes": np.zeros((7, 2))}, r"codes is \(7, 2\); finite \(8, n_z\)"),
        ({"codes": np.full((8, 2), np.inf)}, "finite"),
        ({"positions": np.zeros((8, 2))}, r"positions is \(8, 2\); \(8, 3\)"),
        ({"goals": np.zeros(9)}, r"goals is \(9,\)"),
        ({"actions": np.zeros((8, 1))}, "actions"),
        ({"frames": np.zeros((8, 84, 84), np.float32)}, "frames is float32"),
        ({"frames": np.zeros((8, 84, 84, 4), np.uint8)}, "frames is uint8"),
    ],
)
def test_what_does_not_fit_is_refused(fault, message):
    with pytest.raises(ValueError, match="trajectory: .*" + message):
        trace(**fault)


def test_the_figures_show_the_segments():
    first, second = trace(goals=np.array([2, 2, 2, 4, 4, 4, 4, 4]), name="first"), trace(beta=SHARP[::-1])
    clusters = cluster_codes([first, second], 3)
    room_map = RoomMap({1: np.zeros((210, 160, 3), np.uint8)})
    axes = switch_figure(first, clusters).axes[0]
    bands = [patch for patch in axes.patches if patch.get_alpha() == 0.45]
    assert [band.get_x() for band in bands] == [0, 3, 5, 6]
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [3]  # the one change of goal
    labels = clusters.nearest(segment_codes(first))
    assert [plt.matplotlib.colors.to_hex(band.get_facecolor()) for band in bands] == [
        clusters.colours[i] for i in labels
    ]
    ways = path_figure([first, second], clusters, room_map).axes
    assert [axes.get_title() for axes in ways] == ["first", "trajectory"]
    assert [line.get_color() for line in ways[0].lines] == [clusters.colours[i] for i in labels]
    shown = codes_figure([first, second], clusters, shown=1).axes[0].collections
    assert [len(dots.get_offsets()) for dots in shown] == [4, len(segment_codes(second))]
    assert len(overview_figure([first, second], clusters, room_map).axes) == 3
    plt.close("all")


def test_a_clip_tells_the_switch_and_the_codes_cluster():
    """The switch opens at the fourth step, and the cluster changes there."""
    emulator, control = Emulator(), SimpleNamespace()

    def played():
        for t, (beta, code) in enumerate(((0.9, 0.0), (0.1, 0.0), (0.3, 0.0), (0.75, 5.0), (0.2, 5.0))):
            control.switch, control.opened = torch.tensor([beta]), torch.tensor([t in (0, 3)])
            control.code = torch.full((1, 2), code)
            yield emulator, 0, emulator.step(0)

    captions = render_codes(played(), control).captions
    assert [caption[caption.index("β") :].split() for caption in captions] == [
        ["β", "0.90*", "z", "0"],
        ["β", "0.10", "z", "0"],
        ["β", "0.30", "z", "0"],
        ["β", "0.75*", "z", "1"],
        ["β", "0.20", "z", "1"],
    ]
    assert all("score 0" in caption for caption in captions)
