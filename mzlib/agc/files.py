"""The Atari Grand Challenge's files, read and written: rows of text, a PNG a frame, in a folder or a .tar.gz.

    trajectories/revenge/<id>.txt      "db traj id : N", "frame,reward,score,terminal,action", a row per 60 Hz frame
    screens/revenge/<id>/<frame>.png   160 x 210, counted from 0 or from 1

Row i holds what was done on seeing screen i: the action, then the reward that it brought, the score and whether the
game was over after it. Older files have spaces and True/False. Source: Kurin et al. 2017 (arXiv:1705.10998).
"""

import gzip
import itertools
import os
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mzlib.demos import Demo, start
from mzlib.emulator import NOOP, SCREEN_SHAPE
from mzlib.runs import write_atomic
from mzlib.trajectory import ACTION_COUNT

GAME = "revenge"
HEADER = ("frame", "reward", "score", "terminal", "action")
MAX_ROWS = 108_000  # half an hour at 60 Hz, ALE's own cap
MAX_TEXT, MAX_PNG, MAX_SCREENS = 8 * 2**20, 200_000, 96 * 2**20  # bytes: a text, a PNG, the PNGs of one trajectory
CELLS = (rb"\d{1,9}", rb"-?\d{1,9}", rb"-?\d{1,9}", rb"0|1|True|False", rb"\d{1,3}")
TITLE = re.compile(rb"db traj id ?: ?\d+")
NUMBER = re.compile(r"0|[1-9]\d{0,8}")
PNG_MARK = b"\x89PNG\r\n\x1a\n"


class Rejected(ValueError):
    """Why a trajectory is not used, in one line: the file, the line if there is one, what is wrong."""


class Rows(NamedTuple):
    """The N rows of one trajectory."""

    actions: np.ndarray  # (N,) uint8
    rewards: np.ndarray  # (N,) int32
    score: np.ndarray  # (N,) int32
    terminal: np.ndarray  # (N,) bool: the game is over


def parse(name: str, text: bytes) -> Rows:
    """The rows of a trajectory's text; Rejected, naming file and line, for anything that is not of the format.

    Either version's separators and truth values will do. Frames must count up from 0 or 1, nothing may follow the
    game's end, and the score must follow from the rewards, at most a row early or late.
    """

    def wrong(line: int, why: str) -> Rejected:
        return Rejected(f"{name}, line {line}: {why}")

    if not text:
        raise wrong(1, "the file is empty")
    if len(text) > MAX_TEXT:
        raise wrong(1, f"the file has {len(text)} bytes, more than {MAX_TEXT}")
    if text.startswith(b"\xef\xbb\xbf"):
        raise wrong(1, "a byte order mark (BOM)")
    if b"\r" in text:
        raise wrong(text[: text.index(b"\r")].count(b"\n") + 1, "a carriage return (CRLF)")
    lines = text.removesuffix(b"\n").split(b"\n")
    if not TITLE.fullmatch(lines[0].strip(b" ")):
        raise wrong(1, f"{_quoted(lines[0])} is not 'db traj id : N'")
    between = rb" *, *" if len(lines) > 1 and b"," in lines[1] else rb" +"
    if len(lines) < 2 or not re.fullmatch(between.join(map(str.encode, HEADER)), lines[1].strip(b" ")):
        raise wrong(2, f"{_quoted(lines[1] if len(lines) > 1 else b'')} is not the header '{','.join(HEADER)}'")
    row = re.compile(b" *" + between.join(b"(" + cell + b")" for cell in CELLS) + b" *")
    found = []
    for number, line in enumerate(lines[2:], start=3):
        if not (cells := row.fullmatch(line)):
            raise wrong(number, f"{_quoted(line)} is not a row of {', '.join(HEADER)}")
        found.append(cells.groups())
    if not 5 <= len(found) <= MAX_ROWS:
        raise wrong(len(lines), f"{len(found)} rows; 5 to {MAX_ROWS} are taken")
    columns = list(zip(*found, strict=True))
    frames, rewards, score, actions = (np.array(columns[i], "S10").astype(np.int64) for i in (0, 1, 2, 4))
    terminal, words = np.isin(columns[3], [b"1", b"True"]), np.isin(columns[3], [b"True", b"False"])
    if (words != words[0]).any():
        at = int(np.argmax(words != words[0]))
        raise wrong(at + 3, f"terminal is {columns[3][at].decode()}, before it was {columns[3][0].decode()}")
    if frames[0] > 1 or (np.diff(frames) != 1).any():
        at = 0 if frames[0] > 1 else int(np.argmax(np.diff(frames) != 1)) + 1
        after = f"frame {frames[at]} comes after frame {frames[at - 1]}" if at else f"the first frame is {frames[0]}"
        raise wrong(at + 3, f"{after}: frames are missing, double or out of order")
    if actions.max() >= ACTION_COUNT:
        at = int(np.argmax(actions >= ACTION_COUNT))
        raise wrong(at + 3, f"action {actions[at]}; actions are 0 to {ACTION_COUNT - 1}")
    if not terminal[np.argmax(terminal) :].all() and terminal.any():
        raise wrong(int(np.argmax(terminal)) + 4, "play goes on after the game's end")
    grown = np.diff(score, prepend=0)
    early = grown[0] == 0 and (grown[1:] == rewards[:-1]).all()
    late = rewards[0] == 0 and (grown[:-1] == rewards[1:]).all()
    if not ((grown == rewards).all() or early or late):
        at = int(np.argmax(grown != rewards))
        raise wrong(at + 3, f"the score grows by {grown[at]}, the reward is {rewards[at]}")
    return Rows(actions.astype(np.uint8), rewards.astype(np.int32), score.astype(np.int32), terminal)


def _quoted(line: bytes) -> str:
    return repr(line[:40].decode("ascii", "replace")) + "…" * (len(line) > 40)


def check_png(name: str, png: bytes) -> None:
    """Rejected, naming the file, unless its chunks are whole and it is 160 x 210; nothing is unpacked."""
    height, width = SCREEN_SHAPE
    if len(png) > MAX_PNG:
        raise Rejected(f"{name}: {len(png)} bytes, more than {MAX_PNG}")
    if png[:8] != PNG_MARK or png[12:16] != b"IHDR":
        raise Rejected(f"{name}: no PNG" if png else f"{name}: the file is empty")
    if len(png) >= 33:
        size, (depth, interlaced) = struct.unpack(">II", png[16:24]), (png[24], png[28])
        if size != (width, height) or depth > 8 or interlaced:
            raise Rejected(f"{name}: a PNG of {size[0]} x {size[1]}, {depth} bits; {width} x {height}, 8 is needed")
    at, kind = 8, b""
    while at + 12 <= len(png) and kind != b"IEND":
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        end = at + 12 + length
        if end <= len(png) and zlib.crc32(png[at + 4 : end - 4]) != struct.unpack(">I", png[end - 4 : end])[0]:
            raise Rejected(f"{name}: a damaged PNG, chunk {kind.decode('ascii', 'replace')}")
        at = end
    if kind != b"IEND" or at != len(png):
        raise Rejected(f"{name}: a truncated PNG" if at >= len(png) else f"{name}: bytes after the PNG's end")


def decode(name: str, png: bytes) -> np.ndarray:
    """(210, 160, 3) uint8 BGR of a checked PNG; Rejected, naming the file, where it can't be unpacked."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape != (*SCREEN_SHAPE, 3):
        raise Rejected(f"{name}: a damaged PNG, its pixels cannot be read")
    return picture


# ---- where the files lie


@dataclass
class Source:
    """One trajectory as it was found: its text and its screens, in memory or still files."""

    number: int
    text: bytes | Path | None = None
    screens: Mapping[str, bytes] | Path | None = None  # by name, "17.png"
    problem: str = ""  # found before reading: then it is rejected

    def rows(self) -> Rows:
        """The parsed text."""
        name = f"trajectories/{GAME}/{self.number}.txt"
        if self.problem:
            raise Rejected(self.problem)
        if self.text is None:
            raise Rejected(f"{name}: there is no such file, but screens")
        return parse(name, self.text if isinstance(self.text, bytes) else _read(self.text, name, MAX_TEXT))

    def pngs(self, count: int) -> "Screens":
        """The screens in order, checked to be as many as `count` rows."""
        name = f"screens/{GAME}/{self.number}"
        if self.screens is None:
            raise Rejected(f"{name}: there is no such folder")
        try:
            found = {p.name: p for p in self.screens.iterdir()} if isinstance(self.screens, Path) else self.screens
        except OSError as error:
            raise Rejected(f"{name}: cannot be read ({error.strerror})") from error
        numbers = sorted(_number(f"{name}/{one}", one, ".png") for one in found if one.lower().endswith(".png"))
        if len(numbers) != count or numbers != list(range(numbers[0], numbers[0] + count)) or numbers[0] > 1:
            expected = range(numbers[0] if numbers and numbers[0] <= 1 else 0, MAX_ROWS)
            missing = next(want for want, have in itertools.zip_longest(expected, numbers) if want != have)
            raise Rejected(f"{name}: {len(numbers)} screens for {count} rows, the first missing is {missing}.png")
        return Screens(name, [(f"{n}.png", found[f"{n}.png"]) for n in numbers])


def _number(path: str, name: str, suffix: str) -> int:
    if not NUMBER.fullmatch(name.removesuffix(suffix)):
        raise Rejected(f"{printable(path)}: a number{' and ' * bool(suffix)}{suffix} is needed")
    return int(name.removesuffix(suffix))


def printable(name: str) -> str:
    """A name as it can stand in one line: whoever made the file chose it."""
    return ascii(name[:200])[1:-1]


def _read(path: Path, name: str, limit: int) -> bytes:
    """A file's content; Rejected for a link or one beyond the limit."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected(f"{name}: a link, or no file")
        if found.st_size > limit:
            raise Rejected(f"{name}: {found.st_size} bytes, more than {limit}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Rejected(f"{name}: cannot be read ({error.strerror})") from error


@dataclass
class Screens:
    """The PNGs of one trajectory in order; each is read and checked once."""

    folder: str
    entries: list[tuple[str, bytes | Path]]
    checked: set[int] = field(default_factory=set)

    def check(self, i: int) -> bytes:
        """The i-th PNG, checked."""
        name, png = self.entries[i]
        if isinstance(png, Path):
            png = _read(png, f"{self.folder}/{name}", MAX_PNG)
        if i not in self.checked:
            check_png(f"{self.folder}/{name}", png)
            self.checked.add(i)
        return png

    def rgb(self, i: int) -> np.ndarray:
        """(210, 160, 3) uint8: the i-th screen."""
        return self._bgr(i)[..., ::-1]

    def gray(self, i: int) -> np.ndarray:
        """(210, 160) uint8: its luminance, as the emulator's."""
        return cv2.cvtColor(self._bgr(i), cv2.COLOR_BGR2GRAY)

    def _bgr(self, i: int) -> np.ndarray:
        return decode(f"{self.folder}/{self.entries[i][0]}", self.check(i))


def in_folder(root: Path) -> tuple[list[Source], dict[str, str]]:
    """The trajectories in a folder by number, and what else lies there: name -> why it is not used.

    FileNotFoundError if the folder has no trajectories/revenge.
    """
    texts, screens = Path(root, "trajectories", GAME), Path(root, "screens", GAME)
    if not texts.is_dir():
        raise FileNotFoundError(f"{root}: no folder trajectories/{GAME} in it; `make data-agc` fetches the archive")
    found, strange = {}, {}
    for parent, suffix in ((texts, ".txt"), (screens, "")):
        for path in parent.iterdir() if parent.is_dir() else ():
            name = f"{parent.parent.name}/{GAME}/{path.name}"
            try:
                number = _number(name, path.name, suffix)
                if path.is_symlink():
                    found.setdefault(number, Source(number)).problem = f"{name}: a link"
            except Rejected as error:
                strange[name] = str(error)
            else:
                setattr(found.setdefault(number, Source(number)), "text" if suffix else "screens", path)
    return [found[number] for number in sorted(found)], strange


def members(archive: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Every entry of a .tar.gz as it streams by, to be read at once; ValueError if the archive is damaged."""
    count = 0
    try:
        with gzip.open(archive) as unzipped:
            with tarfile.open(fileobj=unzipped, mode="r|") as tar:
                while (entry := tar.next()) is not None:
                    yield tar, entry
                    tar.members.clear()  # which would grow with the archive
                    count += 1
            while unzipped.read(2**20):  # to the end, where the checksum stands
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive.name}: damaged after {count} entries ({error}); fetch it again") from error


def place(entry: tarfile.TarInfo) -> tuple[str, int, str] | None:
    """(kind, id, file name) of an archive's entry of our game, None for what belongs to none.

    Rejected, naming it, for links, devices, absolute paths, paths upwards, and names that are not of the format.
    """
    name, parts = printable(entry.name), [part for part in entry.name.split("/") if part not in ("", ".")]
    if entry.name.startswith("/") or ".." in parts:
        raise Rejected(f"{name}: a path out of the archive")
    for kind, depth, suffix in (("trajectories", 3, ".txt"), ("screens", 4, "")):
        if kind in parts and parts[(at := parts.index(kind)) + 1 :][:1] == [GAME]:
            if entry.isdir():
                return None
            if not entry.isreg():
                raise Rejected(f"{name}: a link, or no file")
            if len(parts) - at != depth:
                raise Rejected(f"{name}: not where the format has files")
            return kind, _number(entry.name, parts[at + 2], suffix), parts[-1]
    return None


def survey(archive: Path, folder: Path) -> tuple[dict[int, Source], dict[str, str]]:
    """A first pass over a .tar.gz: texts into `folder`, sources without screens, and what is not used, by name."""
    found, strange, last = {}, {}, None
    for tar, entry in members(archive):
        try:
            if (where := place(entry)) is None:
                continue
        except Rejected as error:
            if len(strange) < 1000:
                strange[printable(entry.name)] = str(error)
            if number := re.search(rf"(?:screens|trajectories)/{GAME}/(\d{{1,9}})(?:/|\.txt$)", entry.name):
                found.setdefault(int(number[1]), Source(int(number[1]))).problem = str(error)
            continue
        kind, number, _ = where
        source = found.setdefault(number, Source(number))
        if kind == "trajectories":
            if source.text is not None:
                source.problem = f"{entry.name}: twice in the archive"
            elif entry.size > MAX_TEXT:
                source.problem = f"{entry.name}: {entry.size} bytes, more than {MAX_TEXT}"
            else:
                source.text = folder / f"{number}.txt"
                write_atomic(source.text, tar.extractfile(entry).read())
        elif source.screens is not None and last != number:
            source.problem = f"screens/{GAME}/{number}: not in one piece in the archive; unpack it, convert the folder"
        else:
            source.screens, last = {}, number
    return found, strange


def in_archive(archive: Path, found: Mapping[int, Source], wanted: set[int]) -> Iterator[Source]:
    """The second pass: each wanted trajectory with its screens, as soon as they are complete, then those without."""
    current, size = None, 0
    for tar, entry in members(archive):
        try:
            where = place(entry)
        except Rejected:
            continue
        if where is None or where[0] != "screens" or found[where[1]].problem or where[1] not in wanted:
            continue
        _, number, name = where
        if current is None or number != current.number:
            if current is not None:
                yield current
            current, size = replace(found[number], screens={}), 0
        size += entry.size
        if name in current.screens:
            current.problem = f"{entry.name}: twice in the archive"
        elif entry.size > MAX_PNG or size > MAX_SCREENS:
            current.problem = f"{entry.name}: {entry.size} bytes, {size} of this trajectory; too many"
            current.screens.clear()
        elif not current.problem:
            current.screens[name] = tar.extractfile(entry).read()
    if current is not None:
        yield current
    yield from (found[i] for i in sorted(wanted) if found[i].problem or found[i].screens is None)


# ---- writing


def encode(rgb: np.ndarray) -> bytes:
    """A PNG of a screen (210, 160, 3) uint8, its rows unfiltered: a tenth of the time that OpenCV takes."""
    height, width = SCREEN_SHAPE
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = np.pad(rgb.reshape(height, -1), ((0, 0), (1, 0)))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return PNG_MARK + b"".join(packed)


def export(demo: Demo, root: Path, number: int, version: int = 2) -> None:
    """Write a demo as trajectory `number` of the format: every emulator frame at 60 Hz, one more screen at the end.

    version: 1 writes spaces, True/False and counts PNGs from 1; 2 neither. ValueError for a demo from a saved state,
    whose first screen is not known, and for another version.
    """
    if demo.state is not None:
        raise ValueError(f"{demo.source}: it starts in a saved state, which has no screen; export one from the start")
    if version not in (1, 2):
        raise ValueError(f"version={version}: the format has 1 and 2")
    screens = Path(root, "screens", GAME, str(number))
    screens.mkdir(parents=True, exist_ok=True)
    between, first = (", ", 1) if version == 1 else (",", 0)
    lines, score = [f"db traj id : {number}", between.join(HEADER)], 0
    emulator = start(replace(demo, frames_per_action=1))
    for i, action in enumerate([*demo.actions.repeat(demo.frames_per_action).tolist(), None]):
        (screens / f"{i + first}.png").write_bytes(encode(emulator.rgb()))
        reward = emulator.step(action) if action is not None else 0
        score += reward
        over = str(emulator.game_over) if version == 1 else int(emulator.game_over)
        lines.append(between.join(map(str, (i, reward, score, over, NOOP if action is None else action))))
    write_atomic(Path(root, "trajectories", GAME, f"{number}.txt"), "\n".join(lines) + "\n")
