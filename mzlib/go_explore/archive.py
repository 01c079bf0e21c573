"""The archive: for every cell the best known way there, and the log of episodes from which the ways are put
together."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROOT = (-1, 0)  # the node at the start of the game


class Node(NamedTuple):
    """A point in the log: after `offset` actions of episode number `episode`; (-1, 0) is the start of the game."""

    episode: int
    offset: int


class Pick(NamedTuple):
    """A cell chosen to return to, frozen as it was then: the archive may improve the cell while the pick is
    explored."""

    cell: int
    score: int
    length: int
    node: Node
    state: bytes


class Candidate(NamedTuple):
    """A way to a cell that an episode found."""

    key: bytes
    score: int
    offset: int  # actions into the episode
    place: tuple[int, int, int]  # (room, x, y) where the game's RAM tells, else zeros
    state: bytes  # packed


class Episode(NamedTuple):
    """What one exploration from a pick saw."""

    steps: int
    actions: bytes
    visited: tuple[bytes, ...]  # distinct cells
    candidates: tuple[Candidate, ...]  # in time order
    done: tuple[int, int] | None  # (score, offset) if the game, or the life, ended


@dataclass
class Best:
    """A score, the number of actions it took and the node where it stands."""

    score: int = 0
    length: int = 0
    node: Node = Node(*ROOT)


COLUMNS = {
    "score": np.int32,
    "length": np.int32,
    "seen": np.int32,
    "episode": np.int64,
    "offset": np.int32,
    "found": np.int64,  # the search step at which the cell was first reached
    "room": np.uint8,
    "x": np.uint8,
    "y": np.uint8,
}


class Archive:
    """Cells with their best score, shortest way, state and visit count (Ecoffet et al. 2021, Methods, "Archive").

    `column(name)` gives the (cells,) array of one of COLUMNS; `keys` and `states` are lists of bytes.
    """

    def __init__(self, start: Candidate):
        self.keys: list[bytes] = []
        self.states: list[bytes] = []
        self.index: dict[bytes, int] = {}
        self.columns = {name: np.zeros(64, dtype) for name, dtype in COLUMNS.items()}
        self.parents: list[Node] = []
        self.actions: list[bytes] = []
        self.done = Best()
        self.steps = 0
        self.episodes = 0
        self.score_steps: dict[int, int] = {}  # each best score so far -> the search step at which it was first reached
        self._put(start.key, start.score, start.offset, Node(*ROOT), start.place, start.state, 0)

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> np.ndarray:
        """(cells,) view of one column of COLUMNS."""
        return self.columns[name][: len(self)]

    def standing(self, cell: int) -> tuple[int, int]:
        """(score, -length): the larger, the better."""
        return int(self.columns["score"][cell]), -int(self.columns["length"][cell])

    def select(self, rng: np.random.Generator, count: int) -> list[Pick]:
        """Draw `count` cells with replacement, with probability proportional to 1/sqrt(seen + 1)."""
        weights = 1 / np.sqrt(self.column("seen") + 1.0)
        chosen = rng.choice(len(self), size=count, p=weights / weights.sum())
        return [self.pick(cell) for cell in chosen.tolist()]

    def pick(self, cell: int) -> Pick:
        """Freeze a cell as it is now."""
        score, negative_length = self.standing(cell)
        return Pick(cell, score, -negative_length, self.node(cell), self.states[cell])

    def node(self, cell: int) -> Node:
        """Where in the log the cell's best way ends."""
        return Node(int(self.columns["episode"][cell]), int(self.columns["offset"][cell]))

    def merge(self, pick: Pick, episode: Episode) -> list[int]:
        """Take in an episode explored from `pick`; returns the cells that are new or improved.

        A way is accepted if its score is higher, or equal and the way shorter; the cell's `seen` starts again then.
        """
        self.columns["seen"][pick.cell] += 1
        for key in episode.visited:
            if (cell := self.index.get(key)) is not None:
                self.columns["seen"][cell] += 1
        number, changed = len(self.actions), []
        for way in episode.candidates:
            cell = self.index.get(way.key)
            if cell is None or (way.score, -pick.length - way.offset) > self.standing(cell):
                node, found = Node(number, way.offset), self.steps + way.offset
                changed.append(
                    self._put(way.key, way.score, pick.length + way.offset, node, way.place, way.state, found)
                )
        keep = bool(changed)
        if episode.done is not None:
            score, offset = episode.done
            better = (score, -pick.length - offset) > (self.done.score, -self.done.length)
            if better or self.done.length == 0:  # the first way that ends may well have a score below 0
                self.done = Best(score, pick.length + offset, Node(number, offset))
                self._reached(score, self.steps + offset)
                keep = True
        if keep:
            self.parents.append(pick.node)
            self.actions.append(episode.actions)
        self.steps += episode.steps
        self.episodes += 1
        return changed

    def _put(self, key, score, length, node, place, state, found) -> int:
        """Write a cell, new or improved."""
        cell = self.index.get(key)
        if cell is None:
            cell = self.index[key] = len(self.keys)
            self.keys.append(key)
            self.states.append(state)
            if cell == len(self.columns["score"]):
                self.columns = {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self.columns.items()}
            self.columns["found"][cell] = found
        self.states[cell] = state
        row = {"score": score, "length": length, "seen": 0, "episode": node.episode, "offset": node.offset}
        row |= dict(zip(("room", "x", "y"), place, strict=True))
        for name, value in row.items():
            self.columns[name][cell] = value
        self._reached(score, found)
        return cell

    def _reached(self, score: int, step: int) -> None:
        if not self.score_steps or score > max(self.score_steps):
            self.score_steps[score] = step

    def first_step(self, score: int) -> int | None:
        """The search step at which a score of at least `score` was first reached, or None."""
        return min((step for reached, step in self.score_steps.items() if reached >= score), default=None)

    def way(self, node: Node) -> np.ndarray:
        """(length,) uint8: all actions from the start of the game to `node`."""
        pieces = []
        while node.episode >= 0:
            pieces.append(self.actions[node.episode][: node.offset])
            node = self.parents[node.episode]
        return np.frombuffer(b"".join(reversed(pieces)), np.uint8).copy()

    def best(self) -> Best:
        """The highest score, and the shortest way to it; a cell where play goes on is preferred to an ended game.

        While nothing has been won, the cell found last: the search's newest news.
        """
        score, length = self.column("score"), self.column("length")
        cell = int(np.lexsort((length, -score))[0])
        if cell == 0:
            cell = int(np.argmax(self.column("found")))
        best = Best(int(score[cell]), int(length[cell]), self.node(cell))
        return self.done if self.done.score > best.score else best

    def rooms(self) -> list[int]:
        """The rooms reached, where the game's RAM tells."""
        return np.unique(self.column("room")).tolist()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The whole archive as arrays without objects, for np.savez."""
        arrays = {f"cell_{name}": self.column(name) for name in COLUMNS}
        for name, blobs in (("keys", self.keys), ("states", self.states), ("actions", self.actions)):
            arrays |= pack_blobs(name, blobs)
        arrays["parents"] = np.array(self.parents, np.int64).reshape(-1, 2)
        arrays["done"] = np.array([self.done.score, self.done.length, *self.done.node], np.int64)
        arrays["counts"] = np.array([self.steps, self.episodes], np.int64)
        arrays["score_steps"] = np.array(list(self.score_steps.items()), np.int64).reshape(-1, 2)
        return arrays

    @classmethod
    def from_arrays(cls, arrays) -> "Archive":
        """The archive that `to_arrays` gave."""
        archive = cls.__new__(cls)
        archive.columns = {name: np.array(arrays[f"cell_{name}"], dtype) for name, dtype in COLUMNS.items()}
        archive.keys, archive.states, archive.actions = (unpack_blobs(n, arrays) for n in ("keys", "states", "actions"))
        archive.index = {key: cell for cell, key in enumerate(archive.keys)}
        archive.parents = [Node(*row) for row in arrays["parents"].tolist()]
        score, length, *node = arrays["done"].tolist()
        archive.done = Best(score, length, Node(*node))
        archive.steps, archive.episodes = arrays["counts"].tolist()
        archive.score_steps = dict(arrays["score_steps"].tolist())
        return archive


def pack_blobs(name: str, blobs: list[bytes]) -> dict[str, np.ndarray]:
    """Byte strings as two arrays: all of them end to end, and where each begins."""
    offsets = np.cumsum([0, *map(len, blobs)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(blobs), np.uint8), f"{name}_offsets": offsets}


def unpack_blobs(name: str, arrays) -> list[bytes]:
    """The byte strings that `pack_blobs` packed."""
    data, offsets = arrays[name].tobytes(), arrays[f"{name}_offsets"].tolist()
    return [data[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
