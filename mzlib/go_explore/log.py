"""The log of episodes: their actions and where each began, in chunks that are written once and checked ever after."""

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mzlib.runs import write_atomic

EPISODES = 256  # a chunk


class Node(NamedTuple):
    """A point in the log: after `offset` actions of episode number `episode`; (-1, 0) is the start of the game."""

    episode: int
    offset: int


class Chunk(NamedTuple):
    """Episodes in a row: `actions` all end to end, `offsets` (n+1,) where each begins, `parents` (n, 2) nodes."""

    actions: bytes
    offsets: np.ndarray
    parents: np.ndarray

    def parent(self, number: int) -> Node:
        """The node from which episode `number` of the chunk began."""
        return Node(*self.parents[number].tolist())

    def begin(self, number: int, length: int) -> bytes:
        """The first `length` actions of an episode."""
        return self.actions[self.offsets[number] : self.offsets[number] + length]


class Log:
    """Episodes by number, each with its actions and its parent: the node from which it began.

    The last, open chunk is held in memory. `write` puts the full ones into a folder, from where `way` fetches them when
    it needs them. A chunk file that is missing or not as it was written is a ValueError naming it.
    """

    def __init__(self, episodes: int = EPISODES):
        self.episodes = episodes  # of a chunk
        self.folder: Path | None = None
        self.hashes: list[str] = []  # SHA-256 of each chunk file written
        self.parents: list[Node] = []  # of the episodes since
        self.actions: list[bytes] = []
        self._chunk = lru_cache(maxsize=64)(self._read)

    def __len__(self) -> int:
        return len(self.hashes) * self.episodes + len(self.actions)

    def append(self, parent: Node, actions: bytes) -> None:
        """Add an episode, number len(log)."""
        self.parents.append(parent)
        self.actions.append(actions)

    def way(self, node: Node) -> np.ndarray:
        """(length,) uint8: all actions from the start of the game to `node`."""
        pieces = []
        while node.episode >= 0:
            number, place = divmod(node.episode, self.episodes)
            if number < len(self.hashes):
                chunk = self._chunk(number)
                pieces.append(chunk.begin(place, node.offset))
                node = chunk.parent(place)
            else:
                place = node.episode - len(self.hashes) * self.episodes
                pieces.append(self.actions[place][: node.offset])
                node = self.parents[place]
        return np.frombuffer(b"".join(reversed(pieces)), np.uint8).copy()

    def write(self, folder: Path) -> None:
        """Write all full chunks to `folder`, those in another folder copied there; then only the open one is left here.

        No file is changed once written: a search killed and resumed writes the same again.
        """
        if self.folder not in (None, folder):
            for number, expected in enumerate(self.hashes):
                write_atomic(folder / name_of(number), checked(self.folder / name_of(number), expected))
        self.folder = folder
        while len(self.actions) >= self.episodes:
            content = encode(self.parents[: self.episodes], self.actions[: self.episodes])
            write_atomic(folder / name_of(len(self.hashes)), content)
            self.hashes.append(hashlib.sha256(content).hexdigest())
            del self.parents[: self.episodes], self.actions[: self.episodes]

    def _read(self, number: int) -> Chunk:
        return decode(checked(self.folder / name_of(number), self.hashes[number]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds: the open chunk, and the hashes of the written ones."""
        return {
            **pack_blobs("actions", self.actions),
            "parents": np.array(self.parents, np.int64).reshape(-1, 2),
            "log_hashes": np.array(self.hashes, "U64"),
            "log_episodes": np.array(self.episodes),
        }

    @classmethod
    def from_arrays(cls, arrays, folder: Path | None = None) -> "Log":
        """The log that `to_arrays` gave, its written chunks in `folder`; every one of them is checked first."""
        log = cls(int(arrays["log_episodes"]))
        log.folder, log.hashes = folder, arrays["log_hashes"].tolist()
        log.actions = unpack_blobs("actions", arrays)
        log.parents = [Node(*row) for row in arrays["parents"].tolist()]
        for number, expected in enumerate(log.hashes):
            checked(folder / name_of(number), expected)
        return log


def name_of(number: int) -> str:
    """The file name of a chunk."""
    return f"{number:05}.npz"


def checked(path: Path, expected: str) -> bytes:
    """The content of a chunk file; ValueError naming it unless its SHA-256 is the expected one."""
    name = f"{path.parent.name}/{path.name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedChunk(
            f"{name}: this part of the search's log cannot be read ({error.strerror}); {REMEDY}"
        ) from error
    if hashlib.sha256(content).hexdigest() != expected:
        raise DamagedChunk(f"{name}: this part of the search's log is not as it was written; {REMEDY}")
    return content


REMEDY = "put the file back, or remove the run folder to begin anew"


class DamagedChunk(ValueError):
    """A chunk file that is missing, truncated or altered."""


def encode(parents: list[Node], actions: list[bytes]) -> bytes:
    """A chunk as the content of its file."""
    file = io.BytesIO()
    np.savez_compressed(file, **pack_blobs("actions", actions), parents=np.array(parents, np.int64))
    return file.getvalue()


def decode(content: bytes) -> Chunk:
    """The chunk that `encode` encoded."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return Chunk(arrays["actions"].tobytes(), arrays["actions_offsets"], arrays["parents"])


def pack_blobs(name: str, blobs: list[bytes]) -> dict[str, np.ndarray]:
    """Byte strings as two arrays: all of them end to end, and where each begins."""
    offsets = np.cumsum([0, *map(len, blobs)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(blobs), np.uint8), f"{name}_offsets": offsets}


def unpack_blobs(name: str, arrays) -> list[bytes]:
    """The byte strings that `pack_blobs` packed."""
    data, offsets = arrays[name].tobytes(), arrays[f"{name}_offsets"].tolist()
    return [data[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
