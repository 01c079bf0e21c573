"""Room maps: where rooms and positions land, and where a way breaks."""

import matplotlib.pyplot as plt
import numpy as np

from mzlib.demos import from_actions
from mzlib.emulator import ACTIONS, Emulator
from mzlib.places import PLACES, to_pixels
from mzlib.viz.rooms import ROOM_GRID, RoomMap, pictures_of_demos, pictures_of_states


def test_the_pyramid():
    assert sorted(ROOM_GRID) == list(range(24))
    assert len(set(ROOM_GRID.values())) == 24
    beside = [(0, 1), (1, 2), (5, 6), (6, 7), (12, 13), (13, 14), (21, 22), (22, 23)]  # doors seen in searches
    below = [(2, 6), (7, 13), (13, 21), (14, 22)]  # ladders and pits seen in searches
    for left, right in beside:
        assert ROOM_GRID[right] == (ROOM_GRID[left][0], ROOM_GRID[left][1] + 1)
    for upper, lower in below:
        assert ROOM_GRID[lower] == (ROOM_GRID[upper][0] + 1, ROOM_GRID[upper][1])


def flat(value: int) -> np.ndarray:
    return np.full((210, 160, 3), value, np.uint8)


def test_pictures_land_in_their_rooms():
    room_map = RoomMap({1: flat(10), 2: flat(20), 6: flat(60)})
    assert room_map.picture.shape == (420, 320, 3)
    assert room_map.picture[0, 0, 0] == 10
    assert room_map.picture[0, 160, 0] == 20
    assert room_map.picture[210, 160, 0] == 60
    assert room_map.picture[210, 0, 0] == 0
    assert room_map.xy([6], [77], [235]).tolist() == [[160 + 80, 210 + 83]]


def test_a_way_breaks_between_rooms_and_after_a_death():
    room_map = RoomMap({1: flat(0), 2: flat(0)})
    path = room_map.path([1, 1, 2, 2, 2], [140, 148, 4, 10, 100], [235] * 5)
    assert np.isnan(path[:, 0]).tolist() == [False, False, True, False, True]


def test_pictures_are_the_emulators():
    emulator = Emulator()
    state = emulator.save_state()
    seen = pictures_of_states({1: state})
    emulator.step(0)
    assert np.array_equal(seen[1], emulator.rgb())
    demo = from_actions(np.full(3, ACTIONS.index("DOWN")))
    assert list(pictures_of_demos([demo])) == [1]


def test_places_are_drawn_where_they_are():
    room_map = RoomMap({1: flat(0)})
    figure, axes = plt.subplots()
    room_map.draw_places(axes)
    boxes = [box.get_bbox() for box in axes.patches]
    assert len(boxes) == sum(place.room == 1 for place in PLACES)
    x, y = to_pixels(77, 235)
    assert boxes[0].contains(x, y)
    plt.close(figure)
