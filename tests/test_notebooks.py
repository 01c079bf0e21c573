"""The committed notebooks as a reader on the web meets them: executed in order, clean, short cells, quick's values."""

import json
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from bench.browser import CHROMIUM, Browser, jupyterlab, run_all_cells
from mzlib.runs import REPO, execute, load_profile, runs_root

README = (REPO / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(
    r"(?<![\w.~}:/])/(?:home|Users|tmp|var|opt|mnt|" + "|".join(["work", "root", "farm"]) + r")/[\w.]"
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and cell.source.strip()]
    assert cells, f"{path.name} has no code"
    return cells


def lines(cell) -> int:
    return len([line for line in cell.source.split("\n") if line.strip()])


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS if not re.fullmatch(r"0\d_[a-z_]+\.ipynb", path.name)] == []


@each_notebook
def test_executed_in_order(path):
    nbformat.validate(nbformat.read(path, 4))
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "make refresh executes it"


@each_notebook
def test_kernelspec_is_the_common_one(path):
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"


@each_notebook
def test_outputs_are_fit_to_commit(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            where = f"{path.name}, cell [{cell.execution_count}]"
            assert output.output_type != "error", where
            assert output.get("name") != "stderr", f"{where}: standard error, warnings perhaps"
            # pictures and clips are base64, in which anything may spell a path
            data = {k: v for k, v in output.get("data", {}).items() if not k.startswith(("image/", "video/"))}
            text = re.sub(r"base64,[A-Za-z0-9+/=\\n]+", "", json.dumps([output.get("text", ""), data]))
            assert not ABSOLUTE.search(text), f"{where}: {ABSOLUTE.search(text)[0]}"
            assert not execute.BAR.search(text), f"{where}: a progress bar"


@each_notebook
def test_no_trace_of_papermill(path):
    notebook = nbformat.read(path, 4)
    assert "papermill" not in notebook.metadata
    for cell in notebook.cells:
        assert "papermill" not in cell.metadata
        assert "injected-parameters" not in cell.metadata.get("tags", [])


@each_notebook
def test_cells_are_short(path):
    lengths = {cell.execution_count: lines(cell) for cell in code_cells(path)}
    assert {count: length for count, length in lengths.items() if length > 25} == {}, "longer code belongs into mzlib"
    assert statistics.median(lengths.values()) <= 8


@each_notebook
def test_parameters_are_those_of_quick(path):
    assert execute.notebook_parameters(path) == {"profile": "quick", **load_profile("quick", path.stem)}


@each_notebook
def test_opens_with_a_title_and_closes_as_agreed(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    headings = re.findall(r"^#+ *(.+)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.M)
    for closing in ("What you saw", "Exercises", "References"):
        assert any(closing in heading for heading in headings), f"no heading {closing!r}"


@each_notebook
def test_size(path):
    assert path.stat().st_size <= 1_500_000


def test_the_path_pattern_finds_paths():
    assert ABSOLUTE.search("saved to /" + "home/me/x.mp4")
    assert not ABSOLUTE.search("runs/home/x, https://a.b/home/x, ~/var/x")


def test_student_copies_lack_the_solutions_alone(tmp_path):
    copies = execute.student_copies(tmp_path / "student")
    assert [path.name for path in copies] == [path.name for path in NOTEBOOKS]
    for copy, path in zip(copies, NOTEBOOKS, strict=True):
        nbformat.validate(nbformat.read(copy, 4))
        assert [cell.source for cell in code_cells(copy)] == [cell.source for cell in code_cells(path)]
        told, whole = ("\n".join(c.source for c in nbformat.read(p, 4).cells) for p in (copy, path))
        kept = re.sub(r"<details><summary>Solution</summary>.*?</details>", "", whole, flags=re.DOTALL)
        assert "<details>" not in told
        assert told.split() == kept.split(), "nothing else is lost"
        assert whole.count("checks.check(") == whole.count("<summary>Solution"), "each exercise has one solution"


def test_answers_are_not_written_over(tmp_path):
    (tmp_path / "00_pinpad.ipynb").write_text("mine")
    with pytest.raises(ValueError, match="may hold somebody's answers"):
        execute.student_copies(tmp_path)
    assert (tmp_path / "00_pinpad.ipynb").read_text() == "mine"


def test_the_teachers_table_lists_every_exercise():
    table = dict(re.findall(r"^\| (0\d) \| ([^|]+ \| \d+) \|$", (REPO / "teaching.md").read_text(), re.MULTILINE))
    for path in NOTEBOOKS:
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
        exercises = re.findall(r"\*\*\d · ([^*]+)\*\* \(objective: [^;]+;\s+\w+,\s+(\d+)\s+minutes?\)", text)
        assert len(exercises) == text.count("checks.check("), f"{path.stem}: an exercise without objective or minutes"
        names, minutes = table[path.stem[:2]].split(" | ")
        assert names.lower().split(", ") == [name.lower() for name, _ in exercises]
        assert int(minutes) == sum(int(each) for _, each in exercises)


@each_notebook
def test_every_equation_is_held_against_the_code(path):
    waiting = None
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown" and "$$" in cell.source:
            assert waiting is None, f"{waiting}: no assertion before the next equation"
            waiting = cell.source.split("$$")[1].strip()
        elif cell.cell_type == "code" and "assert " in cell.source:
            waiting = None
    assert waiting is None, f"{waiting}: no assertion after it"


def test_readme_says_what_each_notebook_takes_and_needs():
    told = dict(re.findall(r"^\| (0\d_\w+) \|.*\| ([\d.½]+ min, after [^|]+|[\d.½]+ min) \|$", README, re.MULTILINE))
    assert sorted(told) == [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        text = " ".join("".join(cell.source for cell in nbformat.read(path, 4).cells).split())
        minutes = re.search(r"\*\*Time\*\* ([\d.½]+|half a) minute", text)[1].replace("half a", "½")
        assert told[path.stem].split(" min")[0] == minutes, path.stem
        before = re.search(r"\*\*Before this\*\* (.*?) \*\*Source", text)[1]
        assert all(number in before for number in re.findall(r"\d\d$", told[path.stem])), path.stem


@pytest.mark.lab
@each_notebook
def test_in_jupyterlab_all_cells_run(path, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome here to run JupyterLab in")
    shots = runs_root() / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    with jupyterlab(tmp_path, path, MZ_RUNS=str(tmp_path / "runs")) as address, Browser(1200, 1400) as browser:
        outputs = run_all_cells(browser, address, 1_200)
        browser.screenshot(shots / f"lab_{path.stem}.png")
    assert [output["evalue"] for output in outputs if output["output_type"] == "error"] == []
    said = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert said.count(": not attempted") == sum("checks.check(" in cell.source for cell in code_cells(path))
