"""The exercises' checks: a student's function against stored answers, never against mzlib's own code.

A stub returns `TODO`; `check` then says "not attempted". Otherwise it prints right, or wrong with the first differing
case.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class _Todo:
    def __repr__(self) -> str:
        return "TODO"


TODO = _Todo()


class Case(NamedTuple):
    """A call and the answer it must give."""

    arguments: tuple
    answer: object


CASES: dict[str, tuple[Case, ...]] = {
    "00 integrator": (
        Case(([1, 0, 1], [2, 5, 7]), (2, 2, 7)),
        Case(([1, 1], [3, -4]), (3, -4)),
        Case(([1, 0.5, 0.25], [4, 0, 8]), (4, 2, 3.5)),
        Case(([1, 0.1, 0.1, 0.9], [1, 0, 0, -1]), (1, 0.9, 0.81, -0.819)),
    ),
    "00 controller": (
        Case((((0,), (0,)), ((5, 5),), (1, 2)), (1, 2)),
        Case((((1,), (2,)), ((3, 4),), (1, 1)), (8, 15)),
        Case((((1, 0), (0, 1)), ((0, 1), (-1, 0)), (2, 3)), (5, 1)),
        Case((((1,), (0,), (-1,)), ((0, 2, 0),), (1, 2, 3)), (5, 2, -1)),
    ),
    "00 kl": (
        Case(((0, 0), (1, 1)), 0.0),
        Case(((1, 2), (1, 1)), 2.5),
        Case(((0,), (0.5,)), 0.3181471806),
        Case(((0.5, -1), (0.8, 1.2)), 0.7058219946),
    ),
    "00 options": (
        Case(([1, 0.1, 0.9, 0.1], 0.5), (2, 2)),
        Case(([0.2, 0.2, 0.2], 0.5), (3,)),
        Case(([0, 0.5, 0.4, 0.6, 0.7], 0.5), (1, 2, 1, 1)),
        Case(([1, 0.3, 0.3], 0.3), (1, 1, 1)),
    ),
    "00 rg-lru": (
        Case(([1.0], [0.5], [0.5], 0.9), (0.5,)),
        Case(([2.0, 0.0], [1.0, 1.0], [1.0, 0.5], 0.9), (2.0, 1.3122)),
        Case(([1.0, -1.0, 3.0], [0.5, 0.0, 1.0], [0.5, 0.5, 0.25], 0.8), (0.5, 0.2048, 2.4361967255)),
        Case(([0.0, 4.0], [1.0, 0.25], [1.0, 0.5], 0.95), (0.0, 0.58015478)),
    ),
    "01 repeat rate": (
        Case(([3, 3, 3, 3, 3],), 1.0),
        Case(([0, 1, 0, 1],), 0.0),
        Case(([2, 2, 5, 5, 5, 1],), 0.6),
        Case(([7, 7, 0],), 0.5),
    ),
    "01 undelayed": (
        Case(([3, 3, 3, 3], 0.25), 0.75),
        Case(([3, 3, 4, 4, 4, 0], 0.25), 0.421875),
        Case(([0, 0, 0], 0.25), 1.0),
        Case(([5, 6, 5], 0.5), 0.125),
        Case(([1, 2, 2], 0.0), 1.0),
    ),
    "01 four rows": (
        Case(([0, 100, 0, 0], [3, 3, 0, 0]), ((100, 0),)),
        Case(([0, 0, 0, 0, 0, 0, 0, 400], [1, 1, 1, 5, 2, 3, 3, 2]), ((0, 1), (400, 2))),
        Case(([1, 2, 3, 4, 5], [7, 7, 7, 7, 9]), ((10, 7),)),
        Case(([0, 0, 0, 0, 0, 0, 0, 0], [4, 5, 6, 4, 3, 1, 2, 6]), ((0, 4), (0, 6))),
    ),
    "02 band": (
        Case((3, 3), ((1, 0, 0), (1, 1, 0), (1, 1, 1))),
        Case((4, 2), ((1, 0, 0, 0), (1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 1))),
        Case((2, 1), ((1, 0), (0, 1))),
    ),
    "02 masked nll": (
        Case(([0.5, 0.25], [True, True]), 1.0397207708),
        Case(([0.5, 0.1, 0.9], [True, False, False]), 0.6931471806),
        Case(([0.01, 1.0, 0.5, 0.5], [False, True, True, True]), 0.4620981204),
    ),
    "02 interleaving": (
        Case((2, 1, 1), (1, 3)),
        Case((4, 2, 3), (3, 4, 8, 9)),
        Case((10, 8, 36), (36, 37, 38, 39, 40, 41, 42, 43, 80, 81)),
    ),
    "03 hits": (
        Case(([5, 20], [6, 30], 2), 1),
        Case(([5, 6, 7], [6], 2), 1),
        Case(([10], [8, 12], 2), 1),
        Case(([1, 20], [20, 30], 2), 1),
        Case(([4, 5, 20, 40], [5, 7, 22, 37], 2), 3),
        Case(([], [1, 2], 2), 0),
    ),
    "03 information": (
        Case((["a", "b", "a", "b"], [0, 1, 0, 1]), 0.6931471806),
        Case(([0, 0, 1, 1], [0, 1, 0, 1]), 0.0),
        Case(([0, 0, 0, 1], [0, 0, 1, 1]), 0.2157615543),
        Case(([0, 1, 2, 2], [5, 5, 6, 6]), 0.6931471806),
    ),
    "03 hinge": (
        Case(([3.0, 0.5], [True, True], 1.0), 1.0),
        Case(([3.0, 9.0], [True, False], 1.0), 2.0),
        Case(([0.5, 0.5, 2.0], [True, True, True], 1.0), 0.3333333333),
        Case(([4.0, 1.0, 7.0, 7.0], [True, True, False, False], 0.5), 2.0),
    ),
    "04 normalised return": (
        Case(([1.0, 0.0],), (0.998003992, -0.998003992)),
        Case(([0.0, 0.0, 0.0],), (0.0, 0.0, 0.0)),
        Case(([1.0, 1.0, 0.0, 0.0, 0.0],), (1.22224996, 1.22224996, -0.81483331, -0.81483331, -0.81483331)),
    ),
    "04 option error": (
        Case(([0, 0, 0], 0.2, 0.5, 0.9), 0.1645),
        Case(([0, 1], 0.25, 0.0, 0.5), 0.25),
        Case(([2], 1.0, 3.0, 0.5), 2.5),
        Case(([1, 0, 4], 2.0, 1.0, 1.0), 4.0),
    ),
    "04 clipped": (
        Case((1.5, 2.0, 0.2), 2.4),
        Case((0.5, 2.0, 0.2), 1.0),
        Case((0.5, -1.0, 0.2), -0.8),
        Case((1.5, -1.0, 0.2), -1.5),
        Case((1.1, 3.0, 0.2), 3.3),
    ),
    "05 cell": (
        Case((((255, 255), (255, 255)), 1, 1, 8), (8,)),
        Case((((0, 0), (0, 0)), 2, 2, 8), (0, 0, 0, 0)),
        Case((((0, 255), (255, 0)), 1, 1, 8), (4,)),
        Case((((0, 64, 128, 254), (0, 64, 128, 254)), 4, 1, 8), (0, 2, 4, 7)),
        Case((((10, 20, 200, 210), (30, 40, 220, 230), (0, 0, 90, 90), (0, 0, 90, 90)), 2, 2, 8), (0, 6, 0, 2)),
        Case((((10, 20, 200, 210), (30, 40, 220, 230), (0, 0, 90, 90), (0, 0, 90, 90)), 2, 2, 255), (25, 215, 0, 90)),
    ),
    "05 selection": (
        Case(([0, 0, 0, 0],), (0.25, 0.25, 0.25, 0.25)),
        Case(([0, 3],), (0.6666666667, 0.3333333333)),
        Case(([0, 3, 8],), (0.5454545455, 0.2727272727, 0.1818181818)),
        Case(([99, 0],), (0.0909090909, 0.9090909091)),
    ),
    "05 accept": (
        Case((100, 50, 0, 10), True),
        Case((0, 5, 100, 500), False),
        Case((100, 49, 100, 50), True),
        Case((100, 50, 100, 50), False),
        Case((100, 51, 100, 50), False),
        Case((400, 900, 100, 20), True),
        Case((0, 10, 100, 20), False),
    ),
    "06 move": (
        Case((30, [10], [10], 0.2, 10, 6), 24),
        Case((30, [8, 8], [0, 4], 0.2, 10, 6), 25),
        Case((4, [5, 5, 5], [5, 5, 5], 0.2, 10, 6), 0),
        Case((12, [4, 4, 4], [4, 0, 0], 0.2, 10, 6), 8),
        Case((50, [8, 8, 8, 8], [0, 0, 0, 8], 0.25, 10, 4), 49),
        Case((30, [8, 8], [0, 0], 0.2, 10, 6), 30),
        Case((30, [8, 8, 8], [0, 1, 0], 0.2, 10, 6), 36),
        Case((20, [8, 8, 4], [0, 0, 0], 0.2, 10, 5), 25),
    ),
    "06 gae": (
        Case(([1.0], [0.5, 2.0], [False], 0.5, 0.9), (1.5,)),
        Case(([1.0], [0.5, 2.0], [True], 0.5, 0.9), (0.5,)),
        Case(([0, 0, 1], [0, 0, 0, 0], [False, False, True], 0.5, 1.0), (0.25, 0.5, 1.0)),
        Case(([0, 1, 3], [0.5, 0.25, 0.5, 1.0], [False, True, False], 0.5, 0.5), (-0.1875, 0.75, 3.0)),
        Case(([2, 0, 4], [1, 2, 4, 8], [False, False, False], 0.5, 0.5), (2.25, 1.0, 4.0)),
    ),
    "06 lagging": (
        Case(([0, 0, 0], [0, 0, 100], 0), True),
        Case(([0, 0, 0], [0, 0, 100], 1), False),
        Case(([0, 0, 0, 0], [0, 0, 100], 1), True),
        Case(([0, 0, 0, 100], [0, 0, 100], 1), False),
        Case(([0], [0, 100], 1), False),
        Case(([0, 100, 100], [0, 100, 400], 0), True),
        Case(([0, 100, 100, 100], [0, 100, 400], 2), False),
        Case(([0] * 12, [0, 0, 100], 2), True),
    ),
    "07 normalise": (
        Case(([10, 20, 30], [10, 10, 10], [1, 2, 5]), (0, 5, 4)),
        Case(([0, 255], [100, 100], [10, 400]), (-5, 0.3875)),
        Case(([3, 9, 40], [4, 8, 0], [2, 0.5, 8]), (-0.5, 2, 5)),
    ),
    "07 filter": (
        Case(([1, 0, 0], 0.5), (1, 0.5, 0.25)),
        Case(([1, 2, 3], 0.9), (1, 2.9, 5.61)),
        Case(([0, 4], 0.0), (0, 4)),
        Case(([2, 2, 2, 2], 0.5), (2, 3, 3.5, 3.75)),
    ),
    "07 two returns": (
        Case(([1, 0, 2], [False, True, False], 0.5, True), (1, 0, 2)),
        Case(([1, 0, 2], [False, True, False], 0.5, False), (1.5, 1, 2)),
        Case(([0, 0, 0, 1], [False, False, False, True], 0.9, True), (0.729, 0.81, 0.9, 1)),
        Case(([1, 1], [True, True], 0.5, True), (1, 1)),
        Case(([1, 1], [True, True], 0.5, False), (1.5, 1)),
    ),
    "07 bonus": (
        Case(([1.0, 2.0], [1.0, 0.0], 1.0), 2.0),
        Case(([0.5, -0.5, 1.0, 0.0], [0.5, -0.5, 1.0, 0.0], 2.0), 0.0),
        Case(([1.0, -1.0], [-1.0, 1.0], 0.5), 8.0),
        Case(([3.0], [0.0], 4.5), 2.0),
    ),
    "08 iqm": (
        Case(([4, 1, 3, 2],), 2.5),
        Case(([0, 0, 100, 100],), 50.0),
        Case(([0, 0, 0, 0, 0, 0, 0, 8000],), 0.0),
        Case(([1000, 10, 20, 30, 40, 50, 60, 0],), 35.0),
        Case(([9, 1, 2],), 4.0),
    ),
    "08 interval": (
        Case(([0, 10], [[0, 0], [0, 1], [1, 1]], 0), (0, 10)),
        Case(([0, 10], [[1, 1], [0, 1], [0, 0]], 1), (5, 5)),
        Case(([3, 0, 6], [[0, 0, 2], [1, 1, 1], [2, 2, 2], [0, 1, 2], [1, 1, 0]], 1), (1, 4)),
    ),
    "08 improvement": (
        Case(([3, 4], [1, 2]), 1.0),
        Case(([0, 0], [0, 0, 0]), 0.5),
        Case(([400, 0], [100, 100, 500]), 0.3333333333),
        Case(([1], [1, 0]), 0.75),
    ),
    "08 comparable": (
        Case(({"kind": "policy", "sticky": 0.25, "lives": 6}, {"kind": "policy", "sticky": 0.25, "lives": 6}), True),
        Case(({"kind": "search", "sticky": 0.25, "lives": 6}, {"kind": "policy", "sticky": 0.25, "lives": 6}), False),
        Case(({"kind": "policy", "sticky": 0.25, "lives": 1}, {"kind": "policy", "sticky": 0.25, "lives": 6}), False),
        Case(({"kind": "policy", "sticky": 0.25}, {"kind": "policy", "sticky": 0.25}), False),
        Case(
            (
                {"kind": "policy", "sticky": 0.25, "lives": 1, "machine": "a"},
                {"kind": "policy", "sticky": 0.25, "lives": 1, "machine": "b"},
            ),
            True,
        ),
        Case(({"kind": "search", "sticky": 0.0, "lives": 6}, {"kind": "search", "sticky": 0.25, "lives": 6}), False),
        Case(({"kind": "search", "sticky": 0.0, "lives": 6}, {"kind": "search", "sticky": 0.0, "lives": 6}), True),
        Case(({"sticky": 0.25, "lives": 6}, {"sticky": 0.25, "lives": 6}), False),
        Case(({"kind": "policy", "lives": 6}, {"kind": "policy", "lives": 6}), False),
    ),
}


def same(given: object, answer: object) -> bool:
    """Whether a given value is the stored answer: numbers within 1e-6, rows entry by entry, truth values exactly."""
    if isinstance(answer, bool):
        return isinstance(given, bool | np.bool_) and bool(given) == answer
    if isinstance(answer, tuple):
        if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray) or len(given) != len(answer):
            return False
        return all(same(one, other) for one, other in zip(given, answer, strict=True))
    number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
    return number and math.isclose(given, answer, rel_tol=1e-6, abs_tol=1e-9)


def check(exercise: str, function: Callable) -> None:
    """Try the function on the exercise's cases and print the verdict; ValueError for an exercise that doesn't exist."""
    if exercise not in CASES:
        raise ValueError(f"no exercise {exercise!r}; there are {', '.join(CASES)}")
    for arguments, answer in CASES[exercise]:
        call = f"{function.__name__}({', '.join(map(repr, arguments))})"
        try:
            given = function(*arguments)
        except Exception as error:  # the student's code: whatever it raises is the verdict
            print(f"{exercise}: wrong. {call} raised {type(error).__name__}: {error}")
            return
        if given is TODO:
            print(f"{exercise}: not attempted")
            return
        if not same(given, answer):
            print(f"{exercise}: wrong. {call} gave {given!r}; the answer is {answer!r}")
            return
    print(f"{exercise}: right")
