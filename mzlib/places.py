"""The named places of Montezuma's first rooms, in RAM coordinates (x grows to the right, y upwards).

The boxes were read off some 500,000 states of random searches drawn over the rooms' screens: a line of states at one
height is a floor, a column of states a ladder or the rope. Ladder and rope ends are where the player hangs, floors
where she stands.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """A box of positions, ends included."""

    name: str
    room: int
    x_min: int
    x_max: int
    y_min: int
    y_max: int

    def holds(self, room: int, x: int, y: int) -> bool:
        """Whether a position lies in the box."""
        return room == self.room and self.x_min <= x <= self.x_max and self.y_min <= y <= self.y_max


PLACES = (
    Place("start platform", 1, 63, 89, 234, 236),
    Place("middle ladder, top", 1, 75, 79, 222, 233),
    Place("middle ladder, bottom", 1, 75, 79, 194, 205),
    Place("conveyor", 1, 55, 100, 191, 193),
    Place("rope", 1, 107, 111, 171, 214),
    Place("right platform", 1, 119, 145, 191, 193),
    Place("right ladder, top", 1, 131, 135, 178, 190),
    Place("right ladder, bottom", 1, 131, 135, 150, 161),
    Place("floor, right", 1, 77, 133, 147, 149),
    Place("floor, left", 1, 20, 76, 147, 149),
    Place("left ladder, bottom", 1, 19, 23, 150, 161),
    Place("left ladder, top", 1, 19, 23, 178, 190),
    Place("key platform", 1, 9, 36, 191, 193),
    Place("upper left platform", 1, 31, 54, 234, 236),
    Place("left door", 1, 1, 30, 234, 236),
    Place("upper right platform", 1, 98, 124, 234, 236),
    Place("right door", 1, 125, 152, 234, 236),
    Place("left room, entrance", 0, 140, 152, 234, 236),
    Place("right room, entrance", 2, 1, 20, 234, 236),
    Place("right room, ladder top", 2, 75, 79, 222, 233),
    Place("right room, ladder bottom", 2, 75, 79, 134, 146),
    Place("right room, far side", 2, 130, 152, 234, 236),
    Place("below right, ladder top", 6, 75, 79, 240, 254),
    Place("below right, floor left", 6, 1, 30, 234, 236),
    Place("below right, floor right", 6, 120, 152, 234, 236),
)

# What she stands on or hangs from: whole floors, ladders and the rope.
SUPPORTS = (
    Place("floor", 1, 20, 133, 147, 149),
    Place("key platform", 1, 9, 36, 191, 193),
    Place("conveyor", 1, 55, 100, 191, 193),
    Place("right platform", 1, 119, 145, 191, 193),
    Place("upper left platform", 1, 1, 54, 234, 236),
    Place("start platform", 1, 63, 89, 234, 236),
    Place("upper right platform", 1, 98, 152, 234, 236),
    Place("middle ladder", 1, 75, 79, 194, 233),
    Place("right ladder", 1, 131, 135, 150, 190),
    Place("left ladder", 1, 19, 23, 150, 190),
    Place("rope", 1, 107, 111, 168, 214),
    Place("left room, floor", 0, 1, 152, 234, 236),
    Place("right room, floor", 2, 1, 152, 234, 236),
    Place("right room, ladder", 2, 75, 79, 134, 233),
    Place("below right, ladder", 6, 75, 79, 237, 254),
    Place("below right, floor", 6, 1, 152, 234, 236),
)


def _named(*names: str) -> tuple[Place, ...]:
    return tuple(next(place for place in PLACES if place.name == name) for name in names)


# What a leg of the places data may aim at, by index; behind the doors with a key only. They are where ways part: a
# platform with the top of the ladder that hangs from it, which a jump can catch.
GOALS = (
    _named("start platform")[0]._replace(y_min=222),
    *_named("left door"),
    _named("upper right platform")[0]._replace(x_max=152),  # up to the door: a ladder's top lies in the middle of it
    *_named("middle ladder, bottom", "rope"),
    _named("right platform")[0]._replace(y_min=178),
    *_named("right ladder, bottom", "floor, left", "key platform", "left room, entrance", "right room, entrance"),
    *_named("right room, ladder top", "right room, ladder bottom"),
)

# The way to the key and out. Nobody in the places data goes from place to place to place as in HELD_OUT, though each of
# the two legs is there: these compositions are for after. (The shipped demos walk that way; they name no goals.)
KEY_AND_OUT = (0, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 0, 2)  # as indices into GOALS
HELD_OUT = frozenset({(0, 4, 5), (5, 4, 3), (3, 0, 2)})
POST_TRAINING_TASKS = (
    *((0, 4, 5), (5, 4, 3), (3, 0, 2)),
    *((0, 4, 5, 6), (6, 5, 4, 3), (5, 4, 3, 0), (4, 3, 0, 2), (5, 4, 3, 0, 2)),  # longer ones
    *(KEY_AND_OUT[:6], KEY_AND_OUT),
)


def goal_at(room: int, x: int, y: int) -> int:
    """The index into GOALS of the place that holds a position, or -1."""
    return next((goal for goal, place in enumerate(GOALS) if place.holds(room, x, y)), -1)


def place_at(room: int, x: int, y: int) -> Place | None:
    """The named place that holds a position, or None."""
    return next((place for place in PLACES if place.holds(room, x, y)), None)


def to_pixels(x: float, y: float) -> tuple[float, float]:
    """The screen pixel (column, row) at the middle of the player's sprite: she is 20 rows high and stands at row + 10.

    Calibrated on the start, the platforms and the rope of room 1, where the sprite's box is known.
    """
    return x + 3, 318 - y
