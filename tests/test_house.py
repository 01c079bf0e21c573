"""The house rules: import order, the lock, what may not be in a tracked file, sizes, and Make's pipeline."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from mzlib.runs import REPO

# A module may import only from rows below its own.
ROWS = """
play
pinpad_study
robustify internal_rl rnd bc meta
interventions discovery
go_explore segments steering
evaluate
curiosity
metacontroller policies probes
backbone
ppo layers
dataset
agc
demos
vecenv
emulator pinpad places
trajectory
runs
"""
HEIGHT = {name: -number for number, row in enumerate(ROWS.split("\n")) for name in row.split()}
SHOWS = {"viz", "checks"}  # these import anything; only notebooks and play import them
PROFILES = ("smoke", "quick", "full", "paper")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    files = [REPO / name for name in listed.split("\0") if name]
    assert len(files) > 10
    return [path for path in files if path.is_file()]


def imports(path: Path) -> set[str]:
    """Dotted names of what a source (or a notebook's code) imports, relative ones resolved."""
    if path.suffix == ".ipynb":
        import nbformat

        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        source = "\n".join(
            line for cell in cells for line in cell.split("\n") if not line.lstrip().startswith(("%", "!"))
        )
    else:
        source = path.read_text()
    package = path.relative_to(REPO).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(
                (*package[: len(package) - node.level + 1], node.module or "") if node.level else (node.module,)
            )
            found |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    return found


def forbidden_import(importer: str, imported: str) -> str | None:
    """Why module `importer` of mzlib may not import module `imported`, or None."""
    for name in (importer, imported):
        if name not in HEIGHT and name not in SHOWS:
            return f"{name} is not in the table of modules"
    if importer == imported or importer in SHOWS:
        return None
    if imported in SHOWS:
        return None if importer == "play" else f"only notebooks and play import {imported}, not {importer}"
    return None if HEIGHT[imported] < HEIGHT[importer] else f"{importer} may not import {imported}: it is not below"


def mzlib_module(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "mzlib" and len(parts) > 1 and parts[1] != "__version__" else None


SOURCES = sorted((REPO / "mzlib").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_modules_import_downwards_only(path):
    importer = path.relative_to(REPO / "mzlib").parts[0].removesuffix(".py")
    imported = {mzlib_module(name) for name in imports(path)} - {None}
    if importer == "__init__":
        assert not imports(path), "mzlib/__init__.py stays free of imports"
        return
    assert [reason for name in sorted(imported) if (reason := forbidden_import(importer, name))] == []
    assert importer in HEIGHT or importer in SHOWS, f"{importer} is not in the table of modules"


@pytest.mark.parametrize(
    ("importer", "imported", "reason"),
    [
        ("go_explore", "demos", None),
        ("demos", "go_explore", "not below"),
        ("bc", "rnd", "not below"),
        ("play", "viz", None),
        ("evaluate", "viz", "only notebooks and play"),
        ("viz", "play", None),
        ("demos", "helpers", "not in the table"),
    ],
)
def test_the_rule_itself(importer, imported, reason):
    said = forbidden_import(importer, imported)
    assert (said is None) if reason is None else (reason in said)


def test_imports_are_seen_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPO", tmp_path)
    (tmp_path / "mzlib" / "viz").mkdir(parents=True)
    source = tmp_path / "mzlib" / "viz" / "a.py"
    forms = ["import numpy.linalg", "from mzlib import demos", "from .. import runs", "from ..play import main"]
    source.write_text("\n".join([*forms, "def f():", "    from . import b"]))
    assert imports(source) == {"numpy.linalg", "mzlib.demos", "mzlib.runs", "mzlib.play.main", "mzlib.viz.b"}


def test_mzlib_is_light_to_import():
    code = "import sys, mzlib, mzlib.runs; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "papermill", "nbformat", "matplotlib", "ale_py"} & set(loaded) == set()


# ---- dependencies


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> tuple[dict[str, str], dict[str, str]]:
    """(direct, transitive) of requirements.lock: normal name → version."""
    parts = (REPO / "requirements.lock").read_text().split("# transitive\n")
    assert len(parts) == 2
    pins = []
    for part in parts:
        lines = [line for line in part.splitlines() if line and not line.startswith("#")]
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
        pins.append({normal(line.split("==")[0]): line.split("==")[1] for line in lines})
    return pins[0], pins[1]


def test_the_lock_is_what_pyproject_asks_for():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {normal(name) for name in project["dependencies"] + extras["test"] + extras["site"]}
    direct, transitive = locked()
    assert set(direct) == asked
    assert not set(direct) & set(transitive)


def test_what_is_installed_is_what_is_locked():
    direct, transitive = locked()
    for name, version in {**direct, **transitive}.items():
        assert metadata.version(name).split("+")[0] == version, name


def test_the_lock_covers_every_import():
    owners = metadata.packages_distributions()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extra = {normal(name.partition("[")[0]) for name in project["optional-dependencies"]["cluster"]}
    known = {name for part in locked() for name in part}
    ours = {"mzlib", "bench", "tests", *(path.stem for path in (REPO / "tests").glob("*.py"))}
    sources = [p for p in tracked() if p.suffix in (".py", ".ipynb") and p.relative_to(REPO).parts[0] != "setup.py"]
    missing = set()
    for path in sources:
        for top in {name.split(".")[0] for name in imports(path)} - ours - set(sys.stdlib_module_names):
            distributions = {normal(owner) for owner in owners.get(top, [top])}
            if not distributions & (known | extra):
                missing.add(f"{path.relative_to(REPO)}: {top}")
    assert sorted(missing) == []


def test_conda_gets_the_same_lock():
    environment = yaml.safe_load((REPO / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert packages == ["python=3.11", "pip"], "versions belong into requirements.lock"
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"


def test_the_version_is_one():
    import mzlib

    assert mzlib.__version__ == tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]


# ---- tracked files

MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:" + "|".join(["work", "root", "farm", "home", "Users"]) + r")/[\w.]")
REGISTRY = re.compile("|".join(["py" + "pi[.]org", "python" + "hosted", "deb[.]" + "debian", "registry[.]" + "npmjs"]))


def test_the_patterns_find_what_they_look_for():
    assert MACHINE_PATH.search("in /" + "root/x")
    assert not MACHINE_PATH.search("~/" + "root/x, data/work/x")
    assert REGISTRY.search("https://files.python" + "hosted.org")


def test_no_file_names_this_machine_or_a_registry():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(REPO)}: {m[0]}" for rule in (MACHINE_PATH, REGISTRY) if (m := rule.search(text))]
    assert found == []


@pytest.mark.parametrize(
    ("under", "each_mb", "all_mb"),
    [("data/demos", 5, 5), ("data/weights", 5, 15), ("data/results", 3, 3), ("notebooks", 1.5, 20), (".", 5, 40)],
)
def test_sizes_stay_within_budget(under, each_mb, all_mb):
    sizes = {p: p.stat().st_size / 1e6 for p in tracked() if p.is_relative_to(REPO / under)}
    assert [f"{p.relative_to(REPO)}: {size:.1f} MB" for p, size in sizes.items() if size > each_mb] == []
    assert sum(sizes.values()) <= all_mb


def test_profiles_and_notebooks_belong_together():
    notebooks = {path.stem for path in (REPO / "notebooks").glob("*.ipynb")}
    for profile in PROFILES:
        assert {path.stem for path in (REPO / "notebooks" / "profiles" / profile).iterdir()} == notebooks, profile
    assert {path.name for path in (REPO / "notebooks" / "profiles").iterdir()} == set(PROFILES)


def test_profiles_set_the_same_parameters():
    for quick in (REPO / "notebooks" / "profiles" / "quick").glob("*.yaml"):
        for profile in PROFILES:
            other = quick.parents[1] / profile / quick.name
            assert yaml.safe_load(other.read_text()).keys() == yaml.safe_load(quick.read_text()).keys(), other


# ---- Make, with a stand-in for the environment's Python that notes what it is asked to do

CHAIN = ["00_pinpad", "01_data", "02_bc", "03_metacontroller", "04_internal_rl"]
CHAIN += ["05_go_explore", "06_robustify", "07_rnd", "08_scoreboard"]
STAND_IN = """#!/bin/bash
echo "$*" >> calls
case "$*" in
  *pytest*) [[ -z $BREAK || "$*" != *"$BREAK"* ]]; exit ;;
  *notebook*) ;;
  *) exit ;;
esac
echo "start $4" >> events
sleep 0.05
[[ "$4" == "$BREAK" ]] && exit 1
[[ $# -gt 6 ]] && exit 0
mkdir -p "runs/$6/$4"
[[ -e "runs/$6/$4/final.json" && -n $SAME ]] || touch "runs/$6/$4/final.json"
touch "runs/$6/$4/notebook.ipynb"
echo "end $4" >> events
"""


@pytest.fixture
def workshop(tmp_path):
    """A folder, with a space in its name, that Make takes for an installed checkout of all nine notebooks."""
    folder = tmp_path / "my book"
    (folder / "fake" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPO / name, folder)
    for notebook in CHAIN:
        for path in [
            folder / f"notebooks/{notebook}.ipynb",
            *(folder / f"notebooks/profiles/{p}/{notebook}.yaml" for p in PROFILES),
        ]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    python = folder / "fake" / "bin" / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    for stamp in (".lock-installed", ".installed"):
        (folder / "fake" / stamp).touch()
    return folder


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    for old in ("events", "calls"):
        (folder / old).unlink(missing_ok=True)
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MZ_RUNS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "ARGS")
    }
    return subprocess.run(
        ["make", "VENV=fake", *arguments],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def events(folder: Path, kind: str = "start") -> list[str]:
    path = folder / "events"
    return [line.split()[1] for line in path.read_text().splitlines() if line.startswith(kind)] if path.exists() else []


def age(path: Path, seconds: float) -> None:
    """Set a file's time forward: what Make compares is finer than a test should wait for."""
    os.utime(path, (path.stat().st_mtime + seconds,) * 2)


def test_make_runs_in_order_and_then_nothing(workshop):
    done = make(workshop, "-j8", "run-all")
    assert done.returncode == 0, done.stderr
    lines = (workshop / "events").read_text().splitlines()
    for before, after in [*zip(CHAIN[1:4], CHAIN[2:5], strict=True), ("05_go_explore", "06_robustify")]:
        assert lines.index(f"end {before}") < lines.index(f"start {after}")
    assert lines[-2:] == ["start 08_scoreboard", "end 08_scoreboard"]
    assert lines.index("start 05_go_explore") < lines.index("end 04_internal_rl"), (
        "independent notebooks run side by side"
    )
    assert make(workshop, "run-all").returncode == 0
    assert events(workshop) == []


def test_make_reruns_what_a_change_reaches(workshop):
    make(workshop, "-j8", "run-all")
    age(workshop / "notebooks/profiles/quick/03_metacontroller.yaml", 5)
    for name in ("03_metacontroller", "04_internal_rl"):
        assert make(workshop, "-n", "run-all").stdout.count(f"notebook {name} ") == 1
    assert "notebook 05_go_explore" not in make(workshop, "-n", "run-all").stdout
    make(workshop, "-n", "run-all", PROFILE="full")
    assert (workshop / "runs/quick").exists()
    assert not (workshop / "runs/full").exists()


def test_an_edit_that_leaves_the_result_does_not_spread(workshop):
    make(workshop, "-j8", "run-all")
    os.utime(workshop / "notebooks/03_metacontroller.ipynb")
    assert make(workshop, "run-all", SAME="1").returncode == 0
    assert events(workshop) == ["03_metacontroller"]


def test_a_failure_stops_its_own_way_only(workshop):
    done = make(workshop, "-k", "run-all", BREAK="05_go_explore")
    assert done.returncode != 0
    assert "05_go_explore" in done.stderr
    assert set(CHAIN) - set(events(workshop, "end")) == {"05_go_explore", "06_robustify", "08_scoreboard"}
    assert make(workshop, "run-all").returncode == 0
    assert events(workshop) == ["05_go_explore", "06_robustify", "08_scoreboard"]


def test_one_notebook_brings_what_it_builds_on(workshop):
    assert make(workshop, "06_robustify", "PROFILE=full").returncode == 0
    assert events(workshop) == ["05_go_explore", "06_robustify"]
    assert (workshop / "runs/full/06_robustify/notebook.ipynb").exists()


def test_a_variation_always_runs(workshop):
    for _ in range(2):
        assert make(workshop, "05_go_explore", "PROFILE=smoke", "ARGS=-p seed 3").returncode == 0
        assert (workshop / "calls").read_text() == "-m mzlib.runs notebook 05_go_explore --profile smoke -p seed 3\n"


def test_only_notebooks_that_exist_take_part(workshop):
    (workshop / "notebooks/02_bc.ipynb").unlink()
    assert make(workshop, "run-all").returncode == 0
    assert sorted(events(workshop)) == sorted(set(CHAIN) - {"02_bc"})


def test_a_wrong_profile_is_named(workshop):
    done = make(workshop, "05_go_explore", "PROFILE=fast")
    assert done.returncode != 0
    assert "profile fast has no file" in done.stderr
    assert events(workshop) == []


@pytest.mark.parametrize("broken", ["", "pytest tests", "pytest --nbval-lax"])
def test_make_test_runs_both_steps_whatever_fails(workshop, broken):
    done = make(workshop, "test", BREAK=broken)
    assert (done.returncode == 0) == (broken == "")
    calls = (workshop / "calls").read_text().splitlines()
    assert [
        bool(re.search(part, call))
        for part, call in zip(["pytest tests", "--nbval-lax .*notebooks"], calls, strict=True)
    ] == [True, True]


def test_make_without_python_311_says_so(workshop):
    (workshop / "fake" / ".lock-installed").unlink()
    done = make(workshop, "lint", "PYTHON=")
    assert done.returncode != 0
    assert done.stderr.startswith("make: the workbook needs Python 3.11")
    assert not (workshop / "calls").exists()


def test_an_interrupted_installation_is_begun_again(workshop):
    (workshop / "fake" / ".installed").unlink()
    done = make(workshop, "lint")
    assert done.returncode == 0, done.stderr
    assert "pip install --quiet --disable-pip-version-check --no-deps -e ." in (workshop / "calls").read_text()
    assert (workshop / "fake" / ".installed").exists()


def test_help_is_the_default_and_complete(workshop):
    said = make(workshop).stdout
    targets = (
        re.search(r"^\.PHONY: (.*)$", (REPO / "Makefile").read_text(), re.M)[1].replace("$(NOTEBOOKS)", "").split()
    )
    assert [target for target in targets if f"make {target} " not in said] == []
    assert "05_go_explore" in said


def test_this_checkouts_makefile_plans_a_run():
    done = make(REPO, "-n", f"VENV={Path(sys.prefix)}", "run-all", "MZ_RUNS=nowhere")
    assert done.returncode == 0, done.stderr
    for notebook in (REPO / "notebooks").glob("[0-9]*.ipynb"):
        assert f"mzlib.runs notebook {notebook.stem} --profile quick" in done.stdout
