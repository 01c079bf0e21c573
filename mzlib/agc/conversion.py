"""Human trajectories as the models' data: 60 Hz rows to steps of four, deaths read off the screen, a file each.

A step is four rows: their rewards summed, its end OR-ed, the action that most of them hold (of equally many the
latest), and the maximum of the two screens that end it, the last of which the next row begins with. A rest of fewer
than four rows and a screen is left out.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from mzlib.agc.files import Rejected, Rows, Screens, Source, in_archive, in_folder, survey
from mzlib.agc.signals import DEATH_FRAMES, LAST_DEATH_FRAMES, Alignment, align, spare_lives
from mzlib.emulator import FRAMES_PER_ACTION
from mzlib.runs import atomic_path, data_dir, in_processes, progress, write_atomic
from mzlib.trajectory import ACTION_COUNT, FRAME_SHAPE

VERSION = 1  # of what is computed; another number makes everything be converted again
UNREAD = 0.1  # of the screens may show something else where spare lives are shown
UNKNOWN = 255  # the room in which the player is, where no memory tells


@dataclass(frozen=True)
class ConversionConfig:
    """What changes the result. The offsets, in rows, undo what the alignment test reports: see `Alignment`."""

    action_offset: int = 0  # row i's action is taken from row i + action_offset; then all is as if it had stood there
    reward_offset: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if abs(value) > 8:
                raise ValueError(f"{name}={value}: -8 to 8 rows are possible")


@dataclass(frozen=True)
class Record:
    """What the index says of one trajectory: converted, or rejected for a reason."""

    number: int
    key: str  # of input and settings
    reason: str = ""  # why it was rejected; empty for a converted one
    score: int = 0
    rows: int = 0
    steps: int = 0
    ended: bool = False  # with the game
    actions: tuple[int, ...] = ()  # (18,) rows with each action
    alignment: dict = field(default_factory=dict)
    sha256: str = ""  # of the converted file


@dataclass(frozen=True)
class Play:
    """One converted trajectory; where a Demo is replayed, this is read."""

    actions: np.ndarray  # (T,) uint8
    rewards: np.ndarray  # (T,) int32, points
    path: Path
    record: Record
    goals: None = None

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def score(self) -> int:
        """Sum of the rewards, in points."""
        return int(self.rewards.sum())

    @property
    def seed(self) -> int:
        """The trajectory's number: whatever holds out seeds holds out whole trajectories."""
        return self.record.number

    def read(self) -> tuple[np.ndarray, ...]:
        """(frames (T + 1, 84, 84), lives (T,), dying (T,), positions (T, 3), unknown); ValueError if it is damaged."""
        if hashlib.sha256(self.path.read_bytes()).hexdigest() != self.record.sha256:
            raise ValueError(f"{self.path.name}: damaged; delete it and convert again")
        with np.load(self.path, allow_pickle=False) as file:
            frames = np.frombuffer(zlib.decompress(file["frames"]), np.uint8).reshape(-1, *FRAME_SHAPE)
            lives, dying = file["lives"], file["dying"]
        return frames, lives, dying, np.full((len(self), 3), UNKNOWN, np.uint8)


def shifted(column: np.ndarray, offset: int) -> np.ndarray:
    """Row i + offset in row i's place; zeros where there is none."""
    moved = np.zeros_like(column)
    begin, end = max(offset, 0), len(column) + min(offset, 0)
    moved[begin - offset : end - offset] = column[begin:end]
    return moved


def held_action(actions: np.ndarray) -> np.ndarray:
    """(T,) of (T, 4) actions: the most frequent of each four, of equally many the latest."""
    count = (actions[:, :, None] == actions[:, None, :]).sum(2)
    latest = actions.shape[1] - 1 - count[:, ::-1].argmax(1)
    return actions[np.arange(len(actions)), latest]


def steps_of(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(actions (T,) uint8, rewards (T,) int32) of N rows; T is (N - 1) // 4."""
    count = (len(rows.actions) - 1) // FRAMES_PER_ACTION
    actions, rewards = (column[: 4 * count].reshape(count, 4) for column in (rows.actions, rows.rewards))
    return held_action(actions), rewards.sum(1, dtype=np.int32)


def frames_and_lives(screens: Screens, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(frames (T + 1, 84, 84), lives (T,), dying (T,)) of the screens; Rejected where spare lives can't be read.

    Frame t is the maximum of screens 4t - 1 and 4t. She dies from the screen before the one that shows a spare life
    less; the last death, which shows none less, is taken from the game's end.
    """
    count = (len(rows.actions) - 1) // FRAMES_PER_ACTION
    frames, spare, onsets, unread = np.zeros((count + 1, *FRAME_SHAPE), np.uint8), np.zeros(count + 1, int), [], 0
    for t in range(count + 1):
        last = screens.gray(4 * t)
        both = cv2.max(last, screens.gray(4 * t - 1)) if t else last
        frames[t] = cv2.resize(both, FRAME_SHAPE, interpolation=cv2.INTER_AREA)
        seen = spare_lives(last)
        unread += seen is None
        spare[t] = spare[t - 1] if seen is None and t else seen or 0
        if t and spare[t] < spare[t - 1]:
            shows = (i for i in (4 * t - 3, 4 * t - 2, 4 * t - 1) if spare_lives(screens.gray(i)) == spare[t])
            onsets.append(next(shows, 4 * t) - 1)
    if not spare.any() or unread > UNREAD * count:
        raise Rejected(f"{screens.folder}: spare lives cannot be read on {unread or count + 1} of {count + 1} screens")
    over = int(np.argmax(rows.terminal)) if rows.terminal.any() else len(rows.terminal)
    if over < len(rows.terminal) and spare[min(over // 4, count)] == 0:
        onsets.append(over + 1 - LAST_DEATH_FRAMES)
    after = FRAMES_PER_ACTION * np.arange(1, count + 1)  # the screen after each step
    dying = np.zeros(count, bool)
    for onset in onsets:
        dying |= (after >= onset) & (after < onset + DEATH_FRAMES)
    return frames, np.where(after > over, 0, spare[1:] + 1).astype(np.uint8), dying


def convert_one(source: Source, key: str, folder: Path, config: ConversionConfig) -> Record:
    """Convert one trajectory into `folder`, or say why not."""
    try:
        rows = source.rows()
        actions, rewards = shifted(rows.actions, config.action_offset), shifted(rows.rewards, config.reward_offset)
        rows = rows._replace(actions=actions, rewards=rewards)
        screens = source.pngs(len(rows.actions))
        actions, rewards = steps_of(rows)
        frames, lives, dying = frames_and_lives(screens, rows)
        for i in range(len(rows.actions)):
            if i not in screens.checked:
                screens.check(i)
        found = align(screens, rows)
    except Rejected as error:
        return Record(source.number, key, str(error))
    path = folder / f"{source.number}.npz"
    packed = np.frombuffer(zlib.compress(frames, 1), np.uint8)
    with atomic_path(path) as temporary:
        np.savez(temporary, frames=packed, actions=actions, rewards=rewards, lives=lives, dying=dying)
    told = {"score": int(rewards.sum()), "rows": len(rows.actions), "steps": len(actions), "alignment": found}
    histogram = tuple(np.bincount(rows.actions, minlength=ACTION_COUNT).tolist())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Record(source.number, key, actions=histogram, ended=bool(rows.terminal.any()), sha256=sha256, **told)


@dataclass(frozen=True)
class Report:
    """What a conversion made, and what it refused."""

    records: tuple[Record, ...]  # by number
    strange: dict[str, str]  # names that belong to no trajectory, and why they are not used

    @property
    def converted(self) -> list[Record]:
        return [record for record in self.records if not record.reason]

    @property
    def rejected(self) -> dict[str, str]:
        """Name -> reason of all that is not used."""
        return {str(record.number): record.reason for record in self.records if record.reason} | self.strange

    @property
    def alignment(self) -> Alignment:
        """The test over all that was converted."""
        return Alignment.of([record.alignment for record in self.converted])


def convert(origin: Path, folder: Path, config: ConversionConfig | None = None, workers: int | None = None) -> Report:
    """Convert a folder of the format, or its .tar.gz, into `folder`, a file a trajectory; `plays` reads them.

    What a killed conversion has finished is not done again: an index line is written after each trajectory, with the
    SHA-256 of its file. workers: processes, all cores by default. FileNotFoundError if there is nothing to convert,
    ValueError for a damaged archive.
    """
    config, origin, folder = config or ConversionConfig(), Path(origin), Path(folder)
    if archive := origin.is_file():
        found, strange = survey(origin, folder / "texts")
    else:
        sources, strange = in_folder(origin)
        found = {source.number: source for source in sources}
    if not found:
        raise FileNotFoundError(f"{origin}: no trajectory of the format in it; `make data-agc` fetches the archive")
    mark = f"{origin.resolve()} {origin.stat().st_size if archive else ''}"
    keys = {number: _key(source, config, mark) for number, source in found.items()}
    done = {record.number: record for record in _index(folder) if _stands(folder, record, keys)}
    todo = keys.keys() - done.keys()
    if todo:
        (folder / "strange.json").unlink(missing_ok=True)  # which makes a conversion a finished one
    stream = in_archive(origin, found, todo) if archive else (found[number] for number in sorted(todo))
    jobs = ((source, keys[source.number], folder, config) for source in stream)
    _write_index(folder, done)
    with progress(len(keys), len(done), "converting", "trajectory") as bar, open(folder / "index.jsonl", "a") as index:
        for record in in_processes(_convert, jobs, min(workers or os.cpu_count() or 1, len(todo) or 1)):
            done[record.number] = record
            index.write(_line(record))
            index.flush()
            bar.update()
    _write_index(folder, done)
    write_atomic(folder / "strange.json", json.dumps(strange, indent=1))
    return report_of(folder)


def _convert(job: tuple) -> Record:
    return convert_one(*job)


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"


def _write_index(folder: Path, records: dict[int, Record]) -> None:
    write_atomic(folder / "index.jsonl", "".join(_line(records[number]) for number in sorted(records)))


def _key(source: Source, config: ConversionConfig, mark: str) -> str:
    """SHA-256 of what a trajectory's conversion depends on: its text, where and how old its screens are, settings."""
    mark += f"{source.screens.stat().st_mtime_ns}" if isinstance(source.screens, Path) else ""
    text = source.text.read_bytes() if isinstance(source.text, Path) and source.text.is_file() else b""
    settings = f"{VERSION} {config} {mark} {source.problem}"
    return hashlib.sha256(settings.encode() + text).hexdigest()


def _index(folder: Path) -> Iterator[Record]:
    """The records in a folder's index; half a line, as a kill leaves it, is no record."""
    path = folder / "index.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue


def _stands(folder: Path, record: Record, keys: dict[int, str]) -> bool:
    """Whether the record still stands: same input, its file there and whole."""
    if keys.get(record.number) != record.key:
        return False
    path = folder / f"{record.number}.npz"
    return bool(record.reason) or (path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256)


def agc_root() -> Path:
    """Where the human data lies: `data/atari_v1`, or the folder that the environment's MZ_AGC names."""
    return Path(os.environ.get("MZ_AGC") or data_dir("atari_v1"))


def converted_folder() -> Path:
    """Where it lies once converted."""
    return agc_root() / "converted"


def report_of(folder: Path | None = None) -> Report:
    """The report of an earlier conversion; FileNotFoundError if there is none."""
    folder = folder or converted_folder()
    if not (folder / "strange.json").exists():
        raise FileNotFoundError(f"source='agc': {folder.name}/ holds no finished conversion; run `make data-agc`")
    records = sorted(_index(folder), key=lambda record: record.number)
    return Report(tuple(records), json.loads((folder / "strange.json").read_text()))


def plays(folder: Path | None = None) -> Sequence[Play]:
    """What a conversion made, to be read; FileNotFoundError if there is nothing, ValueError if the alignment test is
    sure that actions or rewards stand in the wrong rows."""
    folder, found = folder or converted_folder(), []
    report = report_of(folder)
    if remedy := report.alignment.remedy:
        raise ValueError(f"source='agc': {remedy}; convert again, the options of `make data-agc` set it right")
    for record in report.converted:
        path = folder / f"{record.number}.npz"
        with np.load(path, allow_pickle=False) as file:
            found.append(Play(file["actions"], file["rewards"], path, record))
    if not found:
        raise FileNotFoundError(f"source='agc': every trajectory in {folder.name}/ was rejected; its report says why")
    return found
