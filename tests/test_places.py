"""The named places: disjoint, and where the emulator's own screens show them."""

import itertools

import numpy as np
import pytest

from mzlib.emulator import ACTIONS, Emulator
from mzlib.places import GOALS, PLACES, place_at, to_pixels


def play(*runs: tuple[str, int]) -> list[str]:
    """Names of the places passed when each action is held for so many steps from the start."""
    emulator, names = Emulator(), []
    for name, steps in runs:
        for _ in range(steps):
            emulator.step(ACTIONS.index(name))
            facts = emulator.facts
            place = place_at(facts.room, facts.x, facts.y)
            if place and not facts.dying and (not names or names[-1] != place.name):
                names.append(place.name)
    return names


@pytest.mark.parametrize("places", [PLACES, GOALS], ids=["places", "goals"])
def test_places_are_disjoint_and_named_once(places):
    assert len({place.name for place in places}) == len(places)
    for one, other in itertools.combinations(places, 2):
        apart = one.room != other.room or one.x_max < other.x_min or other.x_max < one.x_min
        assert apart or one.y_max < other.y_min or other.y_max < one.y_min, (one.name, other.name)


def test_down_the_middle_ladder():
    assert play(("NOOP", 1), ("DOWN", 30)) == [
        "start platform",
        "middle ladder, top",
        "middle ladder, bottom",
        "conveyor",
    ]


def test_to_the_rope_and_the_right_platform():
    passed = play(("NOOP", 1), ("RIGHT", 3), ("RIGHTFIRE", 12), ("NOOP", 6), ("RIGHTFIRE", 12))
    assert passed[0] == "start platform"
    assert "rope" in passed


def test_elsewhere_is_no_place():
    assert place_at(1, 77, 252) is None
    assert place_at(23, 77, 235) is None


@pytest.mark.parametrize("steps", [3, 8, 13])
def test_pixels_are_the_middle_of_the_sprite(steps):
    # on the ladder only the sprite differs from the same room with her elsewhere
    down, other = Emulator(), Emulator()
    for _ in range(steps):
        down.step(ACTIONS.index("DOWN"))
        other.step(ACTIONS.index("NOOP"))
    column, row = to_pixels(down.facts.x, down.facts.y)
    changed = (down.rgb() != other.rgb()).any(-1)
    changed[:50] = changed[150:] = False  # score and skull
    changed[:, : int(column) - 8] = changed[:, int(column) + 9 :] = False
    rows = np.flatnonzero(changed.any(1))
    sprite = rows[rows > 93] if steps > 10 else rows  # past the place where she stands in the other picture
    assert abs(sprite.max() - (row + 10)) <= 3
