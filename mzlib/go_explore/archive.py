"""The archive: for every cell the best known way there, and the log of episodes from which the ways are put
together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mzlib.go_explore.log import Log, Node, pack_blobs, unpack_blobs
from mzlib.go_explore.selection import Selector

ROOT = (-1, 0)  # the node at the start of the game


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
    screen: bytes = b""  # packed, where the cells' cut changes during the search


class Episode(NamedTuple):
    """What one exploration from a pick saw."""

    steps: int
    actions: bytes
    visited: tuple[bytes, ...]  # distinct cells
    candidates: tuple[Candidate, ...]  # in time order
    done: tuple[int, int] | None  # (score, offset) if the game, or the life, ended
    sample: bytes = b""  # packed screen of one of its steps, where the cells' cut changes


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
    "chosen": np.int32,
    "chosen_since_new": np.int32,  # since exploring from it led to a new or better cell
    "episode": np.int64,
    "offset": np.int32,
    "found": np.int64,  # the search step at which the cell was first reached
    "room": np.uint8,
    "x": np.uint8,
    "y": np.uint8,
}


class Archive:
    """Cells with their best score, shortest way, state and visit count (Ecoffet et al. 2021, Methods, "Archive").

    `column(name)` gives the (cells,) array of one of COLUMNS; `keys`, `states` and `screens` are lists of bytes.
    selection: the rule by which cells are drawn, one of selection.RULES.
    """

    def __init__(self, start: Candidate, selection: str = "seen"):
        self.selection = selection
        self.selector = Selector(selection)
        self.keys: list[bytes] = []
        self.states: list[bytes] = []
        self.screens: list[bytes] = []
        self.index: dict[bytes, int] = {}
        self.columns = {name: np.zeros(64, dtype) for name, dtype in COLUMNS.items()}
        self.log = Log()
        self.done = Best()
        self.steps = 0
        self.episodes = 0
        self.score_steps: dict[int, int] = {}  # each best score so far -> the search step at which it was first reached
        self._put(start, start.offset, Node(*ROOT), 0)

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> np.ndarray:
        """(cells,) view of one column of COLUMNS."""
        return self.columns[name][: len(self)]

    def standing(self, cell: int) -> tuple[int, int]:
        """(score, -length): the larger, the better."""
        return int(self.columns["score"][cell]), -int(self.columns["length"][cell])

    def select(self, rng: np.random.Generator, count: int) -> list[Pick]:
        """Draw `count` cells with replacement, with probabilities proportional to the selection rule's weights."""
        return [self.pick(cell) for cell in self.selector.draw(self, rng.random(count)).tolist()]

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
        seen, touched = self.columns["seen"], self.selector.changed
        for column in ("seen", "chosen", "chosen_since_new"):
            self.columns[column][pick.cell] += 1
        touched.append(pick.cell)
        for key in episode.visited:
            if (cell := self.index.get(key)) is not None:
                seen[cell] += 1
                touched.append(cell)
        number, changed = len(self.log), []
        for way in episode.candidates:
            cell = self.index.get(way.key)
            if cell is None or (way.score, -pick.length - way.offset) > self.standing(cell):
                node, found = Node(number, way.offset), self.steps + way.offset
                changed.append(self._put(way, pick.length + way.offset, node, found))
        if changed:
            self.columns["chosen_since_new"][pick.cell] = 0
        keep = bool(changed)
        if episode.done is not None:
            score, offset = episode.done
            better = (score, -pick.length - offset) > (self.done.score, -self.done.length)
            if better or self.done.length == 0:  # the first way that ends may well have a score below 0
                self.done = Best(score, pick.length + offset, Node(number, offset))
                self._reached(score, self.steps + offset)
                keep = True
        if keep:
            self.log.append(pick.node, episode.actions)
        self.steps += episode.steps
        self.episodes += 1
        return changed

    def _put(self, way: Candidate, length: int, node: Node, found: int) -> int:
        """Write a cell, new or improved."""
        cell = self.index.get(way.key)
        if cell is None:
            cell = self.index[way.key] = len(self.keys)
            self.keys.append(way.key)
            self.states.append(way.state)
            self.screens.append(way.screen)
            if cell == len(self.columns["score"]):
                self.columns = {name: np.concatenate([old, np.zeros_like(old)]) for name, old in self.columns.items()}
            self.columns["found"][cell] = found
        self.states[cell], self.screens[cell] = way.state, way.screen
        row = {"score": way.score, "length": length, "episode": node.episode, "offset": node.offset}
        row |= {"seen": 0, "chosen": 0, "chosen_since_new": 0}
        row |= dict(zip(("room", "x", "y"), way.place, strict=True))
        for name, value in row.items():
            self.columns[name][cell] = value
        self.selector.changed.append(cell)
        self._reached(way.score, found)
        return cell

    def rekey(self, keys: Sequence[bytes]) -> None:
        """Give every cell a new key; of those that come to share one, the best stays, in the first one's place.

        keys: (cells,). The cell that stays keeps its counts; it was found when the first of them was.
        """
        kept: dict[bytes, int] = {}
        found = self.column("found").copy()
        for cell, key in enumerate(keys):
            best = kept.setdefault(key, cell)
            if self.standing(cell) > self.standing(best):
                kept[key] = cell
            found[kept[key]] = min(found[best], found[cell])
        cells = np.fromiter(kept.values(), np.int64, len(kept))
        self.columns["found"][: len(self)] = found
        self.columns = {name: column[cells] for name, column in self.columns.items()}
        self.keys, self.index = list(kept), {key: cell for cell, key in enumerate(kept)}
        self.states, self.screens = ([blobs[cell] for cell in cells] for blobs in (self.states, self.screens))
        self.selector = Selector(self.selection)

    def _reached(self, score: int, step: int) -> None:
        if not self.score_steps or score > max(self.score_steps):
            self.score_steps[score] = step

    def first_step(self, score: int) -> int | None:
        """The search step at which a score of at least `score` was first reached, or None."""
        return min((step for reached, step in self.score_steps.items() if reached >= score), default=None)

    def way(self, node: Node) -> np.ndarray:
        """(length,) uint8: all actions from the start of the game to `node`."""
        return self.log.way(node)

    def best(self) -> Best:
        """The highest score, and the shortest way to it; a cell where play goes on is preferred to an ended game.

        While nothing has been won, the cell found last: the search's newest news.
        """
        score, length = self.column("score"), self.column("length")
        highest = np.flatnonzero(score == score.max())
        cell = int(highest[np.argmin(length[highest])])
        if cell == 0:
            cell = int(np.argmax(self.column("found")))
        best = Best(int(score[cell]), int(length[cell]), self.node(cell))
        return self.done if self.done.score > best.score else best

    def rooms(self) -> list[int]:
        """The rooms reached, where the game's RAM tells."""
        return np.flatnonzero(np.bincount(self.column("room"))).tolist()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The archive as arrays without objects, for np.savez: all but the log's chunks that were written already."""
        arrays = {f"cell_{name}": self.column(name) for name in COLUMNS}
        for name, blobs in (("keys", self.keys), ("states", self.states), ("screens", self.screens)):
            arrays |= pack_blobs(name, blobs)
        arrays |= self.log.to_arrays() | {"selection": np.array(self.selection)}
        arrays["done"] = np.array([self.done.score, self.done.length, *self.done.node], np.int64)
        arrays["counts"] = np.array([self.steps, self.episodes], np.int64)
        arrays["score_steps"] = np.array(list(self.score_steps.items()), np.int64).reshape(-1, 2)
        return arrays

    @classmethod
    def from_arrays(cls, arrays, log: Path | None = None) -> "Archive":
        """The archive that `to_arrays` gave, the chunks of its log in the folder `log`."""
        archive = cls.__new__(cls)
        archive.selection = str(arrays["selection"])
        archive.selector = Selector(archive.selection)
        archive.columns = {name: np.array(arrays[f"cell_{name}"], dtype) for name, dtype in COLUMNS.items()}
        archive.keys, archive.states, archive.screens = (unpack_blobs(n, arrays) for n in ("keys", "states", "screens"))
        archive.index = {key: cell for cell, key in enumerate(archive.keys)}
        archive.log = Log.from_arrays(arrays, log)
        score, length, *node = arrays["done"].tolist()
        archive.done = Best(score, length, Node(*node))
        archive.steps, archive.episodes = arrays["counts"].tolist()
        archive.score_steps = dict(arrays["score_steps"].tolist())
        return archive
