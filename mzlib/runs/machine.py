"""What a run ran on: seeds, device, machine, commit, versions; and the progress bar that shows it running."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]
RECORDED = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless", "matplotlib")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and, where it is imported already, torch's generators.

    torch is not imported for this: a worker that does not use it should not pay for it. Emulators take their seed
    themselves.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def pick_device(name: str = "auto") -> str:
    """The torch device to use: `name` itself, or for "auto" the first of cuda, mps, cpu that this machine has.

    Errors: ValueError for a device that isn't there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, present in there.items() if present)
    if not there.get(name.split(":")[0], False):
        raise ValueError(f"device {name!r} is not on this machine; it has {', '.join(d for d in there if there[d])}")
    return name


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """PyTorch computes on `count` threads in the block, and on as many as before after it, whatever the block set.

    One is best for acting beside emulators that keep all cores busy: threads that wait for each other would wait for
    the emulators too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fast_bfloat16(device: str) -> bool:
    """Whether the device computes in bfloat16 faster than in float32: CUDA, and a CPU with matrix units of its own."""
    import torch

    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16")))


@cache
def machine() -> str:
    """The machine in words, without its name: "4 cores, Intel Xeon 2.5 GHz, 23 GiB"."""
    cores, usable = os.cpu_count(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} cores" if usable == cores else f"{usable} of {cores} cores", _processor()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            for noise in ("(R)", "(TM)", "CPU", "Processor", "@"):
                names[0] = names[0].replace(noise, " ")
            return " ".join(names[0].split())
    return platform.processor() or platform.machine()


def git_commit() -> str:
    """The checkout's short commit, with "+dirty" when a tracked file differs; "unknown" outside a git checkout."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(REPO), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def code_hash() -> str:
    """Twelve hex digits of the SHA-256 over mzlib's Python sources: names and contents."""
    digest = hashlib.sha256()
    package = REPO / "mzlib"
    for source in sorted(package.rglob("*.py")):
        digest.update(f"{source.relative_to(package).as_posix()}\0".encode() + source.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in RECORDED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def progress(total: int, initial: int = 0, desc: str = "", unit: str = "step", headline: dict | None = None):
    """A tqdm bar with rate and time left; the stage shows its headline number by `bar.set_postfix(score=400)`.

    total, initial: in `unit`s; a resumed run begins at `initial`. headline: what to show beside the bar at first.
    Silent under CI (environment variable CI); in a log file it writes every 30 seconds.
    """
    from tqdm.auto import tqdm

    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=live,
        mininterval=0.5 if live else 30,
        disable=bool(os.environ.get("CI")),
    )
    if headline:
        bar.set_postfix(headline)
    return bar


def in_processes(function: Callable, jobs: Iterable, workers: int | None = None) -> Iterator:
    """function(job) of each job, in order, from `workers` spawned processes (one a core by default).

    At most three jobs a process are under way or waiting to be taken: memory does not grow with their number.
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) == 3 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
