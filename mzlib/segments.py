"""Do the segments that a switch cuts mean something? Matching against truths beside controls, events, mutual
information.

All (n, t) arrays are bool, a row a sequence. `true`: steps at which something new begins, so a change of goal is at the
new goal's first step, and what happens in step t − 1 is at t, where it is first seen.
"""

from collections.abc import Iterator

import numpy as np

from mzlib.evaluate import bootstrap_interval
from mzlib.metacontroller import matched
from mzlib.places import SUPPORTS

TOLERANCE = 2  # steps
IN_THE_AIR = -1


def f1(counts: np.ndarray, axis: int = 0) -> np.ndarray:
    """2 hits / (found + true) of counts (…, n, 3) summed over `axis`; 0 where both are none."""
    hits, found, true = np.moveaxis(counts.sum(axis), -1, 0)
    return 2 * hits / np.maximum(found + true, 1e-9)


def match_counts(opened: np.ndarray, true: np.ndarray, tolerance: int = TOLERANCE) -> np.ndarray:
    """(n, 3) a sequence's hits, openings and true times, paired one to one within `tolerance` steps."""
    return np.array([
        (matched(np.flatnonzero(o).tolist(), np.flatnonzero(t).tolist(), tolerance), o.sum(), t.sum())
        for o, t in zip(opened, true, strict=True)
    ], float).reshape(-1, 3)  # fmt: skip


def at_random(count: int, allowed: np.ndarray, changed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`count` of the allowed steps."""
    return rng.choice(allowed, count, replace=False)


def evenly(count: int, allowed: np.ndarray, changed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`count` of the allowed steps, equally far apart, from a random one on."""
    return allowed[((np.arange(count) + rng.random()) * len(allowed) / max(count, 1)).astype(int)]


def at_changes(count: int, allowed: np.ndarray, changed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`count` of the steps at which the action changes; all of them if there are no more."""
    return rng.choice(changed, min(count, len(changed)), replace=False)


CONTROLS = {"random": at_random, "even": evenly, "actions": at_changes}


def compare(
    opened: np.ndarray,
    true: np.ndarray,
    allowed: np.ndarray,
    changed: np.ndarray,
    groups: np.ndarray | None = None,
    tolerance: int = TOLERANCE,
    draws: int = 20,
) -> dict[str, dict]:
    """How openings match true times, and how as many do that know nothing: "random", "even", at "actions" changes.

    opened, true, allowed, changed: (n, t); allowed: steps that count; changed: the action is another than the last.
    groups: (n,) sequences of one group are not independent (trajectories of one tree): the bootstrap draws groups.
    draws: of each control, averaged. Returns for the "switch" and each control precision, recall, f1, interval.
    """
    opened, true, changed = opened & allowed, true & allowed, changed & allowed
    rng = np.random.default_rng(0)
    counts = {"switch": match_counts(opened, true, tolerance)}
    for name, control in CONTROLS.items():
        total = np.zeros((len(opened), 3))
        for _ in range(draws):
            drawn = np.zeros_like(opened)
            for row, (own, may, moves) in enumerate(zip(opened, allowed, changed, strict=True)):
                drawn[row, control(int(own.sum()), np.flatnonzero(may), np.flatnonzero(moves), rng)] = True
            total += match_counts(drawn, true, tolerance)
        counts[name] = total / draws
    _, group = np.unique(np.arange(len(opened)) if groups is None else groups, return_inverse=True)
    return {name: _score(each, group) for name, each in counts.items()}


def _score(counts: np.ndarray, group: np.ndarray) -> dict:
    hits, found, true = counts.sum(0)
    pooled = np.zeros((group.max() + 1, 3))
    np.add.at(pooled, group, counts)
    return {
        "precision": float(hits / max(found, 1e-9)),
        "recall": float(hits / max(true, 1e-9)),
        "f1": float(f1(counts)),
        "interval": bootstrap_interval(pooled, f1),
    }


def goal_changes(goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(true, allowed), both (n, t), of goals (n, t): where one goal follows another, and where both are known."""
    known = np.zeros(goals.shape, bool)
    known[:, 1:] = (goals[:, 1:] >= 0) & (goals[:, :-1] >= 0)
    true = np.zeros_like(known)
    true[:, 1:] = known[:, 1:] & (goals[:, 1:] != goals[:, :-1])
    return true, known


def supports(positions: np.ndarray) -> np.ndarray:
    """(…,) what holds her at positions (…, 3), room, x, y: an index into `places.SUPPORTS`, or IN_THE_AIR."""
    found = np.full(positions.shape[:-1], IN_THE_AIR)
    room, x, y = np.moveaxis(np.asarray(positions, int), -1, 0)
    for index, s in enumerate(SUPPORTS):
        inside = (room == s.room) & (s.x_min <= x) & (x <= s.x_max) & (s.y_min <= y) & (y <= s.y_max)
        found[inside & (found == IN_THE_AIR)] = index
    return found


def regions(positions: np.ndarray) -> np.ndarray:
    """(t,) the last support that she touched at positions (t, 3) of one trajectory; it stands for room and region."""
    held = supports(positions)
    last = np.maximum.accumulate(np.where(held != IN_THE_AIR, np.arange(len(held)), 0))
    return held[last]


def events(positions: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """(t,) bool: first steps after something happened to her in an ordinary trajectory: another room, a ladder, rope or
    platform gained or left, a reward (key, door).

    positions: (t, 3) after each step; rewards: (t,) of each step. A jump that ends where it began is no event.
    """
    room, held = positions[:, 0], supports(positions)
    happened = np.asarray(rewards) > 0
    happened[1:] |= room[1:] != room[:-1]
    last = None  # the step at which a support was held last
    for t in np.flatnonzero(held != IN_THE_AIR):
        if last is not None and held[t] != held[last]:
            happened[[last + 1, t]] = True
        last = t
    return np.append(False, happened[:-1])


def spans(opened: np.ndarray, valid: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row, begin, end) of each segment: from an opening, or the first valid step, to the next; (n, t) each."""
    for row, (own, there) in enumerate(zip(opened, valid, strict=True)):
        steps = np.flatnonzero(there)
        if len(steps):
            edges = [steps[0], *(t for t in np.flatnonzero(own & there) if t > steps[0]), steps[-1] + 1]
            yield from ((row, int(begin), int(end)) for begin, end in zip(edges[:-1], edges[1:], strict=True))


def k_means(points: np.ndarray, k: int, seed: int = 0, restarts: int = 8, rounds: int = 100) -> np.ndarray:
    """(k, d) centres of the best of some runs of Lloyd's algorithm from k-means++ starts (Arthur, Vassilvitskii 2007),
    ordered by the number of their points; fewer centres where there are fewer distinct points. points: (n, d)."""
    if k < 1:
        raise ValueError(f"k={k}: at least 1 cluster is needed")
    rng, best = np.random.default_rng(seed), (np.inf, None, None)
    k = min(k, len(np.unique(points, axis=0)))
    for _ in range(restarts):
        centres = points[rng.integers(len(points))][None]
        while len(centres) < k:
            distance = np.square(points[:, None] - centres).sum(2).min(1)
            centres = np.vstack([centres, points[rng.choice(len(points), p=distance / distance.sum())]])
        for _ in range(rounds):
            label = np.square(points[:, None] - centres).sum(2).argmin(1)
            moved = np.array([points[label == i].mean(0) if (label == i).any() else c for i, c in enumerate(centres)])
            if np.array_equal(moved, centres):
                break
            centres = moved
        distance = np.square(points[:, None] - centres).sum(2)
        if distance.min(1).sum() < best[0] - 1e-12:
            best = (distance.min(1).sum(), centres, np.bincount(distance.argmin(1), minlength=len(centres)))
    return best[1][np.argsort(-best[2], kind="stable")]


def clusters(codes: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(n,) labels of codes (n, d) by `k_means`."""
    return np.square(codes[:, None] - k_means(codes, count, seed)).sum(2).argmin(1)


def mutual_information(a: np.ndarray, b: np.ndarray, shuffles: int = 200) -> dict[str, float]:
    """Nats that labels a (n,) and b (n,) tell of each other; beside it the `floor`, the mean over shuffles of a, since
    few samples always tell something; and the `share` of b's entropy that is told beyond the floor."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]

    def nats(a: np.ndarray) -> float:
        joint = np.zeros((a.max() + 1, b.max() + 1))
        np.add.at(joint, (a, b), 1 / len(a))
        product = joint.sum(1, keepdims=True) * joint.sum(0)
        there = joint > 0
        return float((joint[there] * np.log(joint[there] / product[there])).sum())

    rng, found = np.random.default_rng(0), nats(a)
    floor = float(np.mean([nats(rng.permutation(a)) for _ in range(shuffles)]))
    p = np.bincount(b) / len(b)
    entropy = float(-(p * np.log(p)).sum())
    return {"nats": found, "floor": floor, "share": (found - floor) / max(entropy - floor, 1e-9)}
