"""The command lines: a stage's own (`stage_main`), the notebook executor's and the list of runs (`python -m
mzlib.runs`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from .folders import Run, found_runs, shown
from .machine import code_hash
from .profiles import config_from, load_profile


def _parse_value(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assignment(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, _parse_value(value)


def stage_main(
    stage_name: str,
    notebook: str,
    config_class: type,
    run_function: Callable[[object, Run], dict],
    argv: Sequence[str] | None = None,
) -> None:
    """A stage's command line: `python -m mzlib.<stage> --profile P --set key=value … --folder DIR`.

    run_function(config, run) trains or searches, resuming what it finds in `run`, ends with `run.finish(…)` and
    returns that. Values are read as YAML and checked against the dataclass's types. A wrong setting is one line and
    exit status 2; Ctrl-C leaves a run that the same command resumes, exit status 130.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m mzlib.{stage_name}", description=f"The stage of notebook {notebook}."
    )
    parser.add_argument("--profile", default="quick", help="a folder of notebooks/profiles (default: quick)")
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", type=_assignment, action="append", default=[],
                        help="one setting other than the profile's; may be repeated")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="run here, not in runs/PROFILE/…")
    given = parser.parse_args(argv)
    try:
        config = config_from(config_class, {**load_profile(given.profile, notebook), **dict(given.settings)})
        run = Run.open(notebook, given.profile, config, given.folder)
    except (ValueError, FileNotFoundError, BlockingIOError) as error:
        parser.exit(2, f"mzlib.{stage_name}: {error}\n")
    with run:
        try:
            headline = run_function(config, run)
        except KeyboardInterrupt:
            parser.exit(130, f"\nstopped; the same command resumes {shown(run.folder)}\n")
        if run.final is None:
            raise RuntimeError(
                f"mzlib.{stage_name} returned without run.finish(…): {shown(run.folder)} has no final.json"
            )
    for key, value in headline.items():
        print(f"{key:>16}  {value}")


def status(profile: str | None) -> None:
    """Print the table of run folders: finished or at which step, how old, and whether older than today's code."""
    runs = found_runs(profile)
    if not runs:
        print("no runs yet: `make run-all` makes some")
        return
    today = code_hash()
    width = max(len(shown(run["folder"])) for run in runs)
    for run in runs:
        state = "finished" if run["final"] else f"at step {run['step']:,}"
        older = "" if run["config"]["code_hash"] == today else "older than the code"
        print(f"{shown(run['folder']):<{width}}  {state:<20}  {_age(run['age_s']):>10}  {older}".rstrip())


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m mzlib.runs notebook NAME …`, `status` and `student`."""
    parser = argparse.ArgumentParser(prog="python -m mzlib.runs")
    commands = parser.add_subparsers(dest="command", required=True)
    execute = commands.add_parser("notebook", help="execute a notebook into its run folder")
    execute.add_argument("name", help="05_go_explore, say")
    execute.add_argument("--profile", default="quick")
    execute.add_argument(
        "-p",
        nargs=2,
        metavar=("KEY", "VALUE"),
        action="append",
        default=[],
        help="one parameter other than the profile's",
    )
    execute.add_argument(
        "--in-place",
        action="store_true",
        help="write the cleaned outputs back into notebooks/ (profile quick, temporary runs)",
    )
    table = commands.add_parser("status", help="list the runs")
    table.add_argument("--profile")
    student = commands.add_parser("student", help="copy the notebooks without their solutions")
    student.add_argument("--out", type=Path, default=Path("student"), help="a new folder (student)")
    given = parser.parse_args(argv)
    if given.command == "status":
        return status(given.profile)
    from . import execute as executor

    try:
        if given.command == "student":
            print(f"{given.out}: {len(executor.student_copies(given.out))} notebooks without solutions")
            return
        overrides = {key: _parse_value(value) for key, value in given.p}
        if given.in_place:
            if overrides or given.profile != "quick":
                raise ValueError("--in-place commits what profile quick shows: it goes with no other profile and no -p")
            executor.refresh_notebook(given.name)
        else:
            executor.execute_notebook(given.name, given.profile, overrides)
    except (ValueError, FileNotFoundError) as error:
        print(f"mzlib.runs: {error}", file=sys.stderr)
        sys.exit(2)
    except executor.NotebookFailed as error:
        print(f"mzlib.runs: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"mzlib.runs: {given.name} stopped; the same command resumes it", file=sys.stderr)
        sys.exit(130)
