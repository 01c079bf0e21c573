"""mzlib.runs: folders, resume, refusals, atomic files, command lines, and the executor on tiny real notebooks."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import nbformat
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mzlib import runs
from mzlib.runs import cli as runs_cli
from mzlib.runs import execute, folders, profiles, results


@dataclass(frozen=True)
class Config:
    total_steps: int = 1000
    cells: Literal["domain", "downscaled"] = "domain"
    seed: int = 0
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    note: str | None = None
    workers: int = field(default=2, metadata={"free": True})

    def __post_init__(self):
        if self.total_steps <= 0:
            raise ValueError(f"total_steps must be positive, not {self.total_steps}")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A checkout of its own: one profile with one notebook's file, an empty run root."""
    monkeypatch.setenv("MZ_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MZ_OPENED", raising=False)
    for module in (folders, profiles, execute):
        monkeypatch.setattr(module, "REPO", tmp_path)
    profile = tmp_path / "notebooks" / "profiles" / "quick"
    profile.mkdir(parents=True)
    (profile / "05_tiny.yaml").write_text("total_steps: 200_000\nseed: 0\n")
    return tmp_path


def config(**settings):
    return runs.config_from(Config, {**runs.load_profile("quick", "05_tiny"), **settings})


def opened(**settings):
    return runs.Run.open("05_tiny", "quick", config(**settings), quiet=True)


# ---- folders and names


def test_the_profile_itself_has_a_bare_folder(book):
    assert opened().folder == book / "runs" / "quick" / "05_tiny"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"seed": 3}, "05_tiny+seed=3"),
        ({"seed": 3, "rate": 0.5, "cells": "downscaled"}, "05_tiny+cells=downscaled+rate=0.5+seed=3"),
        ({"workers": 7}, "05_tiny"),
        ({"rate": 0.1}, "05_tiny"),
        ({"note": "a/../b c"}, "05_tiny+note=a-..-b-c"),
        ({"sizes": [1, 2]}, "05_tiny"),
        ({"sizes": [3]}, "05_tiny+sizes=3"),
    ],
)
def test_differing_settings_name_the_folder(book, settings, name):
    assert opened(**settings).folder == book / "runs" / "quick" / name


def test_open_and_run_folder_agree(book):
    assert opened(seed=4, cells="downscaled").folder == runs.run_folder(
        "05_tiny", "quick", {"cells": "downscaled", "seed": 4, "total_steps": 200_000}
    )


def test_a_folder_s_name_is_never_too_long(book):
    many = {f"setting_{i}": "x" * 60 for i in range(6)}
    folders = {runs.run_folder("05_tiny", "quick", many | {"last": last}) for last in (1, 2)}
    assert len(folders) == 2, "told apart by a digest"
    for folder in folders:
        assert folder.name.startswith("05_tiny+last=")
        folder.mkdir(parents=True)


def test_config_json_says_what_a_run_was(book):
    run = opened(seed=3)
    written = json.loads((run.folder / "config.json").read_text())
    assert written["settings"]["seed"] == written["seed"] == 3
    assert written["settings"]["total_steps"] == 200_000
    assert written["code_hash"] == runs.code_hash()
    assert written["versions"]["python"] == sys.version.split()[0]
    assert run.checkpoints.is_dir()


def test_a_mapping_configures_a_notebook_without_a_stage(book):
    run = runs.Run.open("05_tiny", "quick", {"seed": 5, "total_steps": 200_000}, quiet=True)
    assert run.folder.name == "05_tiny+seed=5"


def test_open_says_new_resumed_finished(book, capsys):
    for expected in ("new", "resumed at step 40", "finished already"):
        run = runs.Run.open("05_tiny", "quick", config())
        assert capsys.readouterr().out == f"run runs/quick/05_tiny: {expected}\n"
        if expected == "new":
            assert not run.resumed
            run.log(40)
        else:
            assert run.resumed
            run.finish()


# ---- refusals


def test_another_configuration_is_refused_by_field_and_values(book):
    folder = opened(seed=1).folder
    with pytest.raises(ValueError, match=r"begun with seed=1, not 2: .*remove that folder") as refusal:
        runs.Run.open("05_tiny", "quick", config(seed=2), folder)
    assert "\n" not in str(refusal.value)
    assert runs.Run.open("05_tiny", "quick", config(seed=1, workers=9), folder, quiet=True).resumed


def test_an_edited_profile_is_refused(book):
    opened()
    (book / "notebooks/profiles/quick/05_tiny.yaml").write_text("total_steps: 300_000\nseed: 0\n")
    with pytest.raises(ValueError, match="total_steps=200000, not 300000"):
        opened()


def test_a_new_setting_is_refused(book):
    opened()
    with pytest.raises(ValueError, match=r"begun with cells='domain', not '\(absent\)'"):
        runs.Run.open("05_tiny", "quick", {"total_steps": 200_000, "seed": 0}, quiet=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sed", 1, "no setting 'sed'; it has total_steps, cells, seed"),
        ("seed", "a", "'seed' must be int, not 'a'"),
        ("seed", True, "'seed' must be int, not True"),
        ("seed", 1.5, "'seed' must be int, not 1.5"),
        ("cells", "round", "one of 'domain', 'downscaled', not 'round'"),
        ("rate", None, "'rate' must be float"),
        ("sizes", [1, "b"], "'sizes' must be int, not 'b'"),
        ("sizes", 4, "'sizes' must be"),
        ("note", 3, "'note' must be"),
        ("total_steps", -1, "must be positive, not -1"),
    ],
)
def test_wrong_settings_are_named(key, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        runs.config_from(Config, {key: value})


def test_settings_fit_their_types():
    made = runs.config_from(Config, {"total_steps": "1e6", "rate": 1, "sizes": [3], "note": "x"})
    assert made == replace(Config(), total_steps=1_000_000, rate=1.0, sizes=(3,), note="x")
    assert type(made.total_steps) is int
    assert type(made.rate) is float


def test_missing_profiles_are_named(book):
    with pytest.raises(FileNotFoundError, match="no profile 'fast'; there are quick"):
        runs.load_profile("fast", "05_tiny")
    with pytest.raises(FileNotFoundError, match="'quick' has no file for '06_none'; it has 05_tiny"):
        runs.load_profile("quick", "06_none")
    (book / "notebooks/profiles/quick/05_tiny.yaml").write_text("- seed\n")
    with pytest.raises(ValueError, match="must be a mapping"):
        runs.load_profile("quick", "05_tiny")


def _holds_a_run(settings, ready, done):
    runs.Run.open("05_tiny", "quick", Config(**settings), quiet=True)
    ready.set()
    done.wait(30)


def test_two_processes_cannot_write_one_run(book):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_holds_a_run, args=({"total_steps": 200_000}, ready, done))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(BlockingIOError, match="runs/quick/05_tiny: another process is writing this run"):
            opened()
    finally:
        done.set()
        other.join()
    assert opened().resumed


def test_a_forked_worker_does_not_keep_the_lock(book):
    run = opened()
    context = multiprocessing.get_context("fork")
    done = context.Event()
    worker = context.Process(target=done.wait, args=(30,))
    worker.start()
    try:
        folder = run.folder
        run.close()
        code = f"import fcntl; fcntl.flock(open({str(folder / '.lock')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    finally:
        done.set()
        worker.join()


def test_reopening_in_one_process_retires_the_older_handle(book):
    older = opened()
    newer = opened()
    newer.log(1)
    with pytest.raises(ValueError, match="opened again"):
        older.log(2)
    older.close()
    newer.log(3)
    assert [row["step"] for row in newer.metrics()] == [1, 3]


# ---- metrics and the end


def test_rows_begin_with_step_and_seconds(book):
    run = opened()
    run.log(10, score=400, loss=float("nan"))
    line = (run.folder / "metrics.jsonl").read_text()
    assert list(json.loads(line)) == ["step", "wall_s", "score", "loss"]
    assert json.loads(line)["loss"] is None


def test_a_torn_last_line_is_left_out_and_not_written_onto(book):
    run = opened()
    run.log(1)
    run.log(2)
    run.close()
    path = run.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["step"] for row in folders.read_metrics(path)] == [1]
    run = opened()
    run.log(3)
    assert [row["step"] for row in run.metrics()] == [1, 3]


def test_a_damaged_middle_line_is_an_error(book):
    run = opened()
    run.log(1)
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "wall_s": 0}\n{"st\n{"step": 2, "wall_s": 0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        run.metrics()


def test_truncation_drops_rows_but_not_the_seconds(book):
    run = opened()
    for step in (10, 20, 30):
        run.log(step)
    run._since -= 100
    run.log(40)
    run.close()
    run = opened()
    run.truncate_metrics(20)
    assert [row["step"] for row in run.metrics()] == [10, 20]
    run.log(21)
    assert run.metrics()[-1]["wall_s"] >= 100
    assert run.finish()["steps"] == 21


def test_final_holds_headline_and_cost(book):
    run = opened()
    assert run.final is None
    run.log(7)
    final = run.finish(score=400, upstream_steps=5)
    assert final == run.final == json.loads((run.folder / "final.json").read_text())
    assert (final["score"], final["steps"], final["upstream_steps"]) == (400, 7, 5)
    assert final.keys() >= {"wall_s", "command", "commit", "machine", "protocol"}
    assert "/" not in final["machine"] + final["command"].split()[0]


def test_found_runs_reads_without_opening(book):
    opened(seed=2).log(5)
    opened().finish(score=1)
    found = {run["folder"].name: run for run in runs.found_runs("quick")}
    assert found["05_tiny+seed=2"]["step"] == 5
    assert found["05_tiny+seed=2"]["final"] is None
    assert found["05_tiny"]["final"]["score"] == 1
    assert runs.found_runs("full") == []


# ---- files


def test_atomic_write_replaces_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    runs.write_atomic(path, "old")
    runs.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")

    def write_half():
        with runs.atomic_path(path) as temporary:
            assert temporary.suffix == ".npz"
            temporary.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "checkpoint.bin"
    code = (
        "import sys\nfrom mzlib.runs import write_atomic\nn = 0\nwhile True:\n    n += 1\n"
        "    write_atomic(sys.argv[1], bytes([n % 256]) * 3_000_000)\n    print(n, flush=True)\n"
    )
    for attempt in range(3):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
            for _ in range(2):
                writer.stdout.readline()
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_plain_values_are_json_and_stay_so(value):
    plain = profiles.plain(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert profiles.plain(plain) == plain


# ---- seeds, device, results


def test_seeding_repeats_every_generator():
    import random

    import numpy as np

    def draw():
        runs.seed_everything(7)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def test_devices():
    assert runs.pick_device("cpu") == "cpu"
    assert runs.pick_device() in ("cuda", "mps", "cpu")
    assert runs.fast_bfloat16("cuda:0")
    assert not runs.fast_bfloat16("mps")
    with pytest.raises(ValueError, match="'tpu' is not on this machine; it has .*cpu"):
        runs.pick_device("tpu")


def test_torch_threads_are_set_back_whatever_happens():
    def policy_fails():
        torch.set_num_threads(before + 2)
        raise KeyError

    before = torch.get_num_threads()
    with runs.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with pytest.raises(KeyError), runs.torch_threads():
        policy_fails()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be chosen on this system")
def test_the_machine_says_how_many_cores_a_run_may_use():
    whole = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(whole)})
        told = runs.machine.__wrapped__()  # it is remembered
        assert told.startswith(f"1 of {os.cpu_count()} cores, " if os.cpu_count() > 1 else "1 cores, ")
    finally:
        os.sched_setaffinity(0, whole)


def test_the_machine_is_described_without_its_name():
    import platform

    assert re.match(r"\d+ (of \d+ )?cores, .+", runs.machine())
    assert platform.node() not in runs.machine()


RECORD = {
    "name": "first_key", "value": 90_000.0, "unit": "steps", "interval": [70_000, 110_000], "per_seed": {"0": 90_000},
    "protocol": {"sticky": 0.0}, "steps": 120_000, "upstream_steps": 0, "wall_s": 60.0, "machine": "4 cores",
    "command": "python -m bench", "commit": "abc", "date": "2026-01-01",
}  # fmt: skip


def test_results_come_back(book):
    runs.write_result("explore", [RECORD])
    assert runs.read_results() == {"explore": [RECORD]}
    assert results.data_dir("results") == book / "data" / "results"
    runs.write_curve("explore", [{"seed": 0, "step": 10, "score": 100.0}, {"seed": 0, "step": 20, "score": 400.0}])
    curve = (book / "data" / "results" / "explore.curve.csv").read_text()
    assert curve == "seed,step,score\n0,10,100.0\n0,20,400.0\n"
    assert runs.read_results() == {"explore": [RECORD]}, "a curve is no record"


@pytest.mark.parametrize("key", sorted(RECORD))
def test_a_record_without_a_field_is_refused(book, key):
    with pytest.raises(ValueError, match=f"'explore', record 0: field '{key}' is missing"):
        runs.write_result("explore", [{k: v for k, v in RECORD.items() if k != key}])
    assert not (book / "data").exists()


@pytest.mark.parametrize(
    "wrong", [{"value": "4"}, {"steps": 1.5}, {"interval": [2, 1]}, {"interval": [1]}, {"extra": 1}]
)
def test_a_wrong_record_is_refused(book, wrong):
    with pytest.raises(ValueError, match=f"field '{next(iter(wrong))}'"):
        runs.write_result("explore", [{**RECORD, **wrong}])


# ---- command lines


def count_to(config, run):
    run.log(config.total_steps)
    return run.finish(score=config.total_steps * 2)


def stage(*argv, function=count_to):
    runs.stage_main("tiny", "05_tiny", Config, function, argv)


def test_a_stage_runs_from_its_command_line(book, capsys):
    stage("--set", "total_steps=30", "--set", "sizes=[4, 5]")
    assert re.search(r"score +60", capsys.readouterr().out)
    (run,) = runs.found_runs()
    assert run["config"]["settings"]["sizes"] == [4, 5]
    assert run["final"]["steps"] == 30


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "sed=1"], "mzlib.tiny: Config has no setting 'sed'"),
        (["--set", "seed=x"], "mzlib.tiny: setting 'seed' must be int, not 'x'"),
        (["--set", "seed"], "'seed' is not of the form key=value"),
        (["--profile", "fast"], "no profile 'fast'; there are quick"),
    ],
)
def test_a_stage_refuses_in_one_line(book, capsys, argv, message):
    with pytest.raises(SystemExit) as end:
        stage(*argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert runs.found_runs() == []


def test_stopping_a_stage_says_how_to_resume(book, capsys):
    def stop(config, run):
        run.log(5)
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        stage(function=stop)
    assert end.value.code == 130
    assert "the same command resumes runs/quick/05_tiny" in capsys.readouterr().err
    stage()
    assert "resumed at step 5" in capsys.readouterr().out


def test_a_stage_that_does_not_finish_is_an_error(book):
    with pytest.raises(RuntimeError, match=r"no final\.json"):
        stage(function=lambda config, run: {})


def test_status_lists_runs(book, capsys, monkeypatch):
    runs_cli.main(["status"])
    assert "no runs yet" in capsys.readouterr().out
    opened(seed=2).log(1500)
    opened().finish()
    monkeypatch.setattr(runs_cli, "code_hash", lambda: "another")
    runs_cli.main(["status", "--profile", "quick"])
    finished, going = capsys.readouterr().out.splitlines()
    assert finished.startswith("runs/quick/05_tiny ")
    assert "finished" in finished
    assert "at step 1,500" in going
    assert going.endswith("older than the code")


# ---- the notebook executor


PARAMETERS = "profile = 'quick'\ntotal_steps = 200_000\nseed = 0"
STAGE = """\
from mzlib import runs
run = runs.Run.open("05_tiny", profile, {"total_steps": total_steps, "seed": seed})
run.log(seed)
run.finish(score=seed * 10)"""


def write_notebook(book, *sources, parameters=PARAMETERS):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})] if parameters else []
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path = book / "notebooks" / "05_tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def kernel(book, monkeypatch):
    """A book with its own copy of mzlib.runs, which a notebook's kernel then imports."""
    shutil.copytree(runs.REPO / "mzlib" / "runs", book / "mzlib" / "runs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(runs.REPO / "mzlib" / "__init__.py", book / "mzlib")
    monkeypatch.setenv("PYTHONPATH", str(book))
    monkeypatch.setenv("CI", "true")
    return book


def cli(book, *argv):
    """The executor as Make calls it: (exit status, standard output, standard error)."""
    done = subprocess.run(
        [sys.executable, "-m", "mzlib.runs", "notebook", *argv], cwd=book, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_a_notebook_is_executed_into_its_run_folder(kernel):
    write_notebook(kernel, STAGE, "import pathlib; print(pathlib.Path.cwd().name)")
    code, out, err = cli(kernel, "05_tiny", "-p", "seed", "3")
    assert (code, out) == (0, "05_tiny: done, runs/quick/05_tiny+seed=3\n"), err
    folder = kernel / "runs/quick/05_tiny+seed=3"
    assert json.loads((folder / "final.json").read_text())["score"] == 30
    assert "notebook 05_tiny --profile quick -p seed 3" in (folder / "final.json").read_text()
    executed = nbformat.read(folder / "notebook.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "notebooks\n"


def test_a_failing_notebook_leaves_its_partial_output_aside(kernel):
    write_notebook(kernel, STAGE)
    assert cli(kernel, "05_tiny")[0] == 0
    whole = (kernel / "runs/quick/05_tiny/notebook.ipynb").read_bytes()
    write_notebook(kernel, STAGE, "print('so far')", "{}['rope']", "print('never')")
    code, out, err = cli(kernel, "05_tiny")
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("mzlib.runs:")]
    assert re.search(
        r"05_tiny failed in cell \[5\]: KeyError: 'rope'; partial output: runs/quick/05_tiny/notebook", line
    )
    partial = (kernel / "runs/quick/05_tiny/notebook.failed.ipynb").read_text()
    assert "so far" in partial
    assert (kernel / "runs/quick/05_tiny/notebook.ipynb").read_bytes() == whole
    write_notebook(kernel, STAGE)
    assert cli(kernel, "05_tiny")[0] == 0
    assert not (kernel / "runs/quick/05_tiny/notebook.failed.ipynb").exists()


def test_a_notebook_must_leave_a_final(kernel):
    write_notebook(kernel, "1 + 1")
    code, _, err = cli(kernel, "05_tiny")
    assert code == 1
    assert "runs/quick/05_tiny has no final.json: it must call Run.finish" in err


def test_refresh_writes_clean_outputs_back(kernel):
    noisy = "import sys; print('noise', file=sys.stderr); import pathlib; print(pathlib.Path.cwd(), run.folder)"
    path = write_notebook(kernel, STAGE, noisy, "import ipywidgets; ipywidgets.IntSlider(3)")
    code, _, err = cli(kernel, "05_tiny", "--in-place")
    assert code == 0, err
    text = path.read_text()
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert [cell.id for cell in notebook.cells] == [cell["id"] for cell in json.loads(text)["cells"]]
    assert notebook.cells[2].outputs[0].text == "notebooks runs/quick/05_tiny\n"
    assert "noise" not in [output.get("text") for output in notebook.cells[2].outputs]
    for unwanted in (str(kernel), "papermill", "iopub", "/tmp"):
        assert unwanted not in text
    assert len(notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state) == 3
    assert not (kernel / "runs").exists()
    assert cli(kernel, "05_tiny", "--in-place")[0] == 0
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("parameters", "argv", "message"),
    [
        (PARAMETERS, ["-p", "sed", "3"], "05_tiny has no parameter 'sed' (-p); it has total_steps, seed"),
        (PARAMETERS, ["--profile", "fast"], "no profile 'fast'; there are quick"),
        ("profile = 'quick'\nseed = 0", [], "05_tiny has no parameter 'total_steps' (profile 'quick'); it has seed"),
        ("seed = 0", [], "the parameters cell must set `profile`"),
        ("profile = 'quick'\nseed = max(0, 1)", [], "parameters cell, line 2: not `name = literal`"),
        (None, [], "has 0 cells tagged 'parameters'; it must have one"),
        (PARAMETERS.replace("seed = 0", "seed = 1"), ["--in-place"], "sets seed=1, profile quick 0"),
        (PARAMETERS, ["--in-place", "-p", "seed", "1"], "--in-place commits what profile quick shows"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(book, capsys, parameters, argv, message):
    write_notebook(book, STAGE, parameters=parameters)
    with pytest.raises(SystemExit) as end:
        runs_cli.main(["notebook", "05_tiny", *argv])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not os.path.exists(book / "runs")


def test_an_unknown_notebook_is_named(book, capsys):
    write_notebook(book)
    with pytest.raises(SystemExit):
        runs_cli.main(["notebook", "06_none"])
    assert "no notebook '06_none'; there are 05_tiny" in capsys.readouterr().err
