"""Room maps: the emulator's own screens in the pyramid's layout, with ways, cells and places drawn over them.

Map coordinates are pixels of the map picture: rooms side by side as in the pyramid, each 160 x 210.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mzlib.demos import Demo, replay
from mzlib.emulator import NOOP, SCREEN_SHAPE, Emulator
from mzlib.places import PLACES, to_pixels

ROWS_OF_ROOMS = (range(3), range(3, 8), range(8, 15), range(15, 24))
ROOM_GRID = {  # room -> (row, column) in the pyramid of level 1, the first room in the middle of the top row
    room: (row, 3 - row + place) for row, rooms in enumerate(ROWS_OF_ROOMS) for place, room in enumerate(rooms)
}
HEIGHT, WIDTH = SCREEN_SHAPE
Pictures = Mapping[int, np.ndarray]


def pictures_of_demos(demos: Iterable[Demo]) -> dict[int, np.ndarray]:
    """Room -> (210, 160, 3) uint8: each room as it was first seen in replays of the demos."""
    pictures = {}
    for demo in demos:
        for emulator, _, _ in replay(demo):
            facts = emulator.facts
            if facts.room not in pictures and not facts.dying:
                pictures[facts.room] = emulator.rgb().copy()
    return pictures


def pictures_of_states(states: Mapping[int, bytes]) -> dict[int, np.ndarray]:
    """Room -> (210, 160, 3) uint8: each room one step after the given state."""
    emulator, pictures = Emulator(), {}
    for room, state in states.items():
        emulator.load_state(state)
        emulator.step(NOOP)
        pictures[room] = emulator.rgb().copy()
    return pictures


class RoomMap:
    """The map of some rooms: their smallest common rectangle of the pyramid, rooms without a picture black.

    picture: (rows * 210, columns * 160, 3) uint8.
    """

    def __init__(self, pictures: Pictures):
        places = np.array([ROOM_GRID[room] for room in pictures])
        self.first_row, self.first_column = places.min(0).tolist()
        rows, columns = (places.max(0) - places.min(0) + 1).tolist()
        self.pictures = dict(pictures)
        self.picture = np.zeros((rows * HEIGHT, columns * WIDTH, 3), np.uint8)
        for room, picture in pictures.items():
            left, top = self.corner(room)
            self.picture[top : top + HEIGHT, left : left + WIDTH] = picture

    def corner(self, room: int) -> tuple[int, int]:
        """(left, top) map pixel of a room."""
        row, column = ROOM_GRID[room]
        return (column - self.first_column) * WIDTH, (row - self.first_row) * HEIGHT

    def xy(self, room: Sequence[int], x: Sequence[int], y: Sequence[int]) -> np.ndarray:
        """(n, 2) map pixels of n positions given in RAM coordinates."""
        corners = np.array([self.corner(int(one)) for one in room]).reshape(-1, 2)
        return corners + np.stack(to_pixels(np.asarray(x, float), np.asarray(y, float)), axis=1)

    def path(self, room: Sequence[int], x: Sequence[int], y: Sequence[int]) -> np.ndarray:
        """(n, 2) map pixels of a way, NaN where it jumps to another room or, after a death, far within one."""
        points = self.xy(room, x, y)
        room, x, y = (np.asarray(one, int) for one in (room, x, y))
        jump = (np.diff(room) != 0) | (np.hypot(np.diff(x), np.diff(y)) > 24)
        points[1:][jump] = np.nan
        return points

    def draw(self, axes: Axes, dim: float = 0.6) -> None:
        """The map on matplotlib axes, dimmed so that what is drawn over it reads."""
        axes.imshow((self.picture * dim).astype(np.uint8))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)

    def draw_path(self, axes: Axes, room: Sequence[int], x: Sequence[int], y: Sequence[int], **style) -> None:
        """A way over the map, broken where it jumps."""
        points = self.path(room, x, y)
        axes.plot(points[:, 0], points[:, 1], **style)

    def draw_places(self, axes: Axes) -> None:
        """The named places of the map's rooms as numbered boxes; a box is where the middle of the player's sprite
        lies."""
        for number, place in enumerate(PLACES, start=1):
            if place.room not in self.pictures:
                continue
            left, top = self.corner(place.room)
            x, bottom = to_pixels(place.x_min, place.y_min)
            right, y = to_pixels(place.x_max, place.y_max)
            corner = (left + x - 2, top + y - 2)
            axes.add_patch(Rectangle(corner, right - x + 4, bottom - y + 4, fill=False, color="#f0e442", linewidth=1.5))
            axes.annotate(str(number), corner, color="white", fontsize=9, fontweight="bold", va="bottom")
