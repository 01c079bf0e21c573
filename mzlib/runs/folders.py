"""Run folders: where a run writes, what it was configured with, its metrics, its end.

runs/<profile>/<notebook>[+key=value…]/
    config.json     settings, seed, versions, device, git commit, code hash  checkpoints/    the stage's own
    metrics.jsonl   one object a row, `step` and `wall_s` first              final.json      headline numbers and cost
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from .machine import REPO, code_hash, git_commit, machine, versions
from .profiles import load_profile, plain, settings_of

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

LONGEST = 200  # characters of a folder's name, of which file systems allow 255 bytes


def data_dir(*parts: str) -> Path:
    """A path inside the shipped `data/`."""
    return REPO.joinpath("data", *parts)


def given_path(text: str | Path) -> Path:
    """A file that a setting names, relative to where we are or else to the checkout."""
    return Path(text) if Path(text).exists() else REPO / text


def runs_root() -> Path:
    """Where run folders live: the environment's MZ_RUNS, or `runs/` in the checkout."""
    return Path(os.environ.get("MZ_RUNS") or REPO / "runs").resolve()


def run_folder(notebook: str, profile: str, overrides: Mapping[str, object] | None = None) -> Path:
    """The folder of a run whose settings differ from the profile's in `overrides` only.

    Keys whose value is the profile's own leave no trace in the name; the others are added as `+key=value`, sorted. A
    name too long for a folder ends in a digest of itself.
    """
    known = load_profile(profile, notebook)
    differing = {
        key: value for key, value in (overrides or {}).items() if key not in known or known[key] != plain(value)
    }
    name = notebook + "".join(f"+{key}={_in_a_name(differing[key])}" for key in sorted(differing))
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}+{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return runs_root() / profile / name


def _in_a_name(value: object) -> str:
    return re.sub(r"[^\w.,-]+", "-", str(value)).strip("-")[:60] or "none"


# ---- files


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` at the end of the block, removed when the block
    raises.

    Whoever reads `path` sees the old file or the whole new one, also after kill -9. The temporary name keeps the
    suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one step: there is never a half-written file of that name."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON in one step."""
    write_atomic(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


# ---- the run


class Run:
    """One run folder, open for writing by this process alone; a second `open` of the same settings resumes it.

    `folder`, `checkpoints` (both exist), `config` (as given), `final` (None until finished), `resumed` (the folder
    held a run).
    """

    _open: typing.ClassVar[dict[Path, Run]] = {}  # this process's; reopening (a notebook's cell run again) replaces

    def __init__(self, notebook: str, profile: str, config: object, folder: Path):
        """Use `Run.open`."""
        self.notebook, self.profile, self.config, self.folder = notebook, profile, config, folder
        self.checkpoints = folder / "checkpoints"
        self._metrics = folder / "metrics.jsonl"
        self._rows = None
        self._lock = None

    @classmethod
    def open(
        cls, notebook: str, profile: str, config: object, folder: Path | str | None = None, quiet: bool = False
    ) -> Run:
        """Open the folder of these settings, new or to be resumed.

        notebook: its name, "05_go_explore". config: the stage's frozen dataclass (or a mapping, for a notebook
        without a stage). folder: another place than the one that `run_folder` names. quiet: do not print where, and
        from which step. A field that differs from the profile's YAML value, or where that is silent from the
        dataclass's default, enters the folder's name as `+key=value`, unless its metadata say {"free": True}
        (`workers`: it does not change the result).
        Errors: ValueError when the folder holds another configuration; BlockingIOError when another process writes it.
        """
        settings, defaults, free = settings_of(config)
        if folder is None:
            expected = {**defaults, **{key: plain(value) for key, value in load_profile(profile, notebook).items()}}
            differing = {k: v for k, v in settings.items() if k not in free and (k not in expected or expected[k] != v)}
            folder = run_folder(notebook, profile, differing)
        folder = Path(folder).resolve()
        run = cls(notebook, profile, config, folder)
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        if folder in cls._open:
            cls._open[folder].close()
        run._take_lock()
        cls._open[folder] = run
        try:
            run._begin(settings, free, quiet)
        except BaseException:
            run.close()
            raise
        if "MZ_OPENED" in os.environ:  # the notebook executor asks where its notebook's run went
            with open(os.environ["MZ_OPENED"], "a") as opened:
                opened.write(json.dumps([notebook, str(folder)]) + "\n")
        return run

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise BlockingIOError(
                f"{shown(self.folder)}: another process is writing this run; stop it or wait for it"
            ) from error

    def _begin(self, settings: dict, free: set[str], quiet: bool) -> None:
        path = self.folder / "config.json"
        self.resumed = path.exists()
        if self.resumed:
            self._refuse_another_configuration(json.loads(path.read_text())["settings"], settings, free)
        else:
            started = {
                "notebook": self.notebook,
                "profile": self.profile,
                "settings": settings,
                "seed": settings.get("seed"),
                "device": settings.get("device", "cpu"),
                "versions": versions(),
                "machine": machine(),
                "command": _command(),
                "commit": git_commit(),
                "code_hash": code_hash(),
                "date": _today(),
            }
            write_json(path, started)
        self._mend_metrics()
        rows = self.metrics()
        self._step = rows[-1]["step"] if rows else 0
        self._spent = rows[-1]["wall_s"] if rows else 0.0
        self._since = time.monotonic()
        if not quiet:
            state = "finished already" if self.final else f"resumed at step {self._step:,}" if self.resumed else "new"
            print(f"run {shown(self.folder)}: {state}")

    def _refuse_another_configuration(self, then: dict, now: dict, free: set[str]) -> None:
        for key in sorted((then.keys() | now.keys()) - free):
            old, new = then.get(key, "(absent)"), now.get(key, "(absent)")
            if old != new:
                raise ValueError(
                    f"{shown(self.folder)} was begun with {key}={old!r}, not {new!r}: "
                    f"set {key} back, or remove that folder to begin anew"
                )

    @property
    def final(self) -> dict | None:
        """final.json, or None while the run is not finished."""
        path = self.folder / "final.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def wall_s(self) -> float:
        """Seconds spent on this run so far, earlier sessions included (up to their last logged row)."""
        return self._spent + time.monotonic() - self._since

    def log(self, step: int, **values: object) -> None:
        """Append a row {step, wall_s, **values} to metrics.jsonl; on disk (in the system's cache) when this returns."""
        self._writable()
        if self._rows is None:
            self._rows = open(self._metrics, "a", encoding="utf-8")
        row = {"step": int(step), "wall_s": round(self.wall_s, 3), **plain(values)}
        self._rows.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
        self._rows.flush()
        self._step = int(step)

    def metrics(self) -> list[dict]:
        """The logged rows. A torn last line (a kill in the middle of writing) is left out.

        Errors: ValueError naming the line when another one is damaged.
        """
        return read_metrics(self._metrics)

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows beyond `step`, that of the checkpoint resumed from. Their seconds stay spent."""
        self._writable()
        rows = self.metrics()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            self._close_rows()
            write_atomic(self._metrics, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        self._step = kept[-1]["step"] if kept else 0

    def _mend_metrics(self) -> None:
        """Cut a torn last line off, so that the next row does not grow onto it."""
        if self._metrics.exists():
            content = self._metrics.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                write_atomic(self._metrics, whole)

    def finish(self, **headline: object) -> dict:
        """Write final.json: the headline numbers, then the cost. Returns it. Nothing else is touched.

        `steps` (default: the last logged one), `upstream_steps` (0) and `protocol` ({}) may be given among the
        headline.
        """
        self._writable()
        cost = {
            "steps": self._step,
            "upstream_steps": 0,
            "wall_s": round(self.wall_s, 1),
            "protocol": {},
            "machine": machine(),
            "command": _command(),
            "commit": git_commit(),
            "date": _today(),
        }
        write_json(self.folder / "final.json", {**headline, **{k: headline.get(k, v) for k, v in cost.items()}})
        return self.final

    def _writable(self) -> None:
        if Run._open.get(self.folder) is not self:
            raise ValueError(f"{shown(self.folder)}: this Run is closed, or was opened again elsewhere in this process")

    def _close_rows(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def close(self) -> None:
        """Release the folder; a later `Run.open` resumes it. Leaving a `with` block, or the process, does the same."""
        self._close_rows()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if Run._open.get(self.folder) is self:
            del Run._open[self.folder]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _let_go_in_child() -> None:
    """A forked worker must not hold its parent's lock: it may outlive a killed one, which could then not be resumed."""
    for run in Run._open.values():
        if run._lock is not None:
            run._lock.close()  # the parent's own descriptor keeps the lock


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


def read_final(folder: Path) -> dict:
    """A finished run's final.json."""
    return json.loads((folder / "final.json").read_text())


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, as `Run.metrics` gives them; none where there is no file."""
    rows = []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty, or torn
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{shown(path)}, line {number}: not a JSON row") from error
    return rows


def found_runs(profile: str | None = None) -> list[dict]:
    """The runs under `runs_root()`, of one profile or of all, by folder name; read only, also while they are being
    written.

    Each: {folder: Path, notebook, profile, config: dict (config.json), final: dict | None, step: int, age_s: seconds
    since the last write}.
    """
    runs = []
    for path in sorted(runs_root().glob(f"{profile or '*'}/*/config.json")):
        folder = path.parent
        config = json.loads(path.read_text())
        final = folder / "final.json"
        rows = read_metrics(folder / "metrics.jsonl")
        touched = max(p.stat().st_mtime for p in (path, final, folder / "metrics.jsonl") if p.exists())
        run = {"folder": folder, "notebook": config["notebook"], "profile": config["profile"], "config": config}
        run["final"] = json.loads(final.read_text()) if final.exists() else None
        runs.append({**run, "step": rows[-1]["step"] if rows else 0, "age_s": max(0.0, time.time() - touched)})
    return runs


def shown(path: Path) -> str:
    """A path as a reader should see it: below the checkout's or the run root's name, never the machine's."""
    for base, name in ((runs_root(), "runs"), (REPO, "")):
        if path.is_relative_to(base):
            return (Path(name) / path.relative_to(base)).as_posix()
    return str(path)


def _command() -> str:
    """The command that runs this process, without machine paths."""
    if "MZ_COMMAND" in os.environ:  # a notebook's kernel: the executor says which command started it
        return os.environ["MZ_COMMAND"]
    if "ipykernel" in sys.modules:
        return "a notebook in Jupyter"
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {main.name.removesuffix('.__main__')}" if main else f"python {Path(sys.argv[0]).name}"
    return shlex.join([*program.split(), *sys.argv[1:]])


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
