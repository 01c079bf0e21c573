"""Execute notebooks: into their run folder (papermill), or in place with outputs fit for committing; copy them for
students."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .folders import atomic_path, run_folder, runs_root, shown, write_atomic
from .machine import REPO
from .profiles import load_profile

WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET_STATE_LIMIT = 400_000  # bytes of ipywidgets state that a committed notebook keeps
BAR = re.compile(r"\d+%\|")
SOLUTION = re.compile(r"<details><summary>Solution</summary>.*?</details>", re.DOTALL)


class NotebookFailed(RuntimeError):
    """A cell raised, or the notebook left no final.json."""


def notebook_path(name: str) -> Path:
    """The notebook of that name; FileNotFoundError naming those that exist."""
    path = REPO / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        have = sorted(p.stem for p in path.parent.glob("[0-9]*.ipynb"))
        raise FileNotFoundError(f"no notebook {name!r}; there are {', '.join(have) or 'none'}")
    return path


def notebook_parameters(path: Path) -> dict[str, object]:
    """The names and literal values that a notebook's cell tagged `parameters` assigns.

    Errors: ValueError when there isn't exactly one such cell, or it holds other than `name = literal` lines.
    """
    cells = [c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path.name} has {len(cells)} cells tagged 'parameters'; it must have one")
    values = {}
    for statement in ast.parse("".join(cells[0]["source"])).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        try:
            values[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError) as error:
            raise ValueError(f"{path.name}, parameters cell, line {statement.lineno}: not `name = literal`") from error
    if "profile" not in values:
        raise ValueError(f"{path.name}: the parameters cell must set `profile`")
    return values


def checked_parameters(path: Path, profile: str, overrides: Mapping[str, object]) -> dict[str, object]:
    """What to inject: the profile's name and parameters, then `overrides`, all of which the notebook must know.

    Errors: ValueError naming the parameters that exist.
    """
    known = notebook_parameters(path)
    settings = load_profile(profile, path.stem)
    for origin, keys in ((f"profile {profile!r}", settings), ("-p", overrides)):
        for key in keys:
            if key not in known or key == "profile":
                have = ", ".join(k for k in known if k != "profile")
                raise ValueError(f"{path.stem} has no parameter {key!r} ({origin}); it has {have or 'none'}")
    return {"profile": profile, **settings, **overrides}


def execute_notebook(name: str, profile: str = "quick", overrides: Mapping[str, object] | None = None) -> Path:
    """Execute a notebook with a profile's parameters; returns the run folder, where `notebook.ipynb` then lies.

    The notebook itself opens its run; a stage in it resumes, or finds itself finished. `notebook.ipynb` appears only
    after the last cell, so it is the sign of success. Errors: ValueError, FileNotFoundError for wrong names;
    NotebookFailed when a cell raises (what there is of the output is kept as `notebook.failed.ipynb`) or no
    final.json was written.
    """
    overrides = dict(overrides or {})
    path = notebook_path(name)
    parameters = checked_parameters(path, profile, overrides)
    folder = run_folder(name, profile, overrides)
    arguments = [word for key, value in overrides.items() for word in ("-p", key, str(value))]
    command = shlex.join(["python", "-m", "mzlib.runs", "notebook", name, "--profile", profile, *arguments])
    with tempfile.TemporaryDirectory(prefix="mz_notebook_") as scratch:
        output, opened = Path(scratch) / "output.ipynb", Path(scratch) / "opened"
        with _environment(MZ_OPENED=str(opened), MZ_COMMAND=command, MZ_RUNS=str(runs_root())):
            failure = _papermill(path, output, parameters)
        folders = [Path(where) for note, where in map(json.loads, _lines(opened)) if note == name]
        if folders and folder not in folders:  # a free setting, `workers` say, is in -p but not in the folder's name
            folder = folders[0]
        failed = folder / "notebook.failed.ipynb"
        if failure is None and not (folder / "final.json").exists():
            failure = f"ran to its end, but {shown(folder)} has no final.json: it must call Run.finish"
        if output.exists():
            write_atomic(failed if failure else folder / "notebook.ipynb", output.read_bytes())
    if failure:
        raise NotebookFailed(f"{name} {failure}" + (f"; partial output: {shown(failed)}" if failed.exists() else ""))
    failed.unlink(missing_ok=True)
    print(f"{name}: done, {shown(folder)}")
    return folder


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables, which a notebook's kernel inherits, and set them back."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _papermill(path: Path, output: Path, parameters: Mapping[str, object]) -> str | None:
    """Execute `path` into `output` in the notebooks' folder; None, or what failed in words."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=dict(parameters),
            kernel_name="python3",
            language="python",
            cwd=str(path.parent),
            extra_arguments=["--IPKernelApp.log_level=40"],  # not its remark on TCP, at each start
            progress_bar={"mininterval": 5} if not os.environ.get("CI") else False,
        )
    except papermill.PapermillExecutionError as error:
        message = re.sub(r"\x1b\[[\d;]*m", "", str(error.evalue)).strip().split("\n")[0]
        return f"failed in cell [{error.exec_count}]: {error.ename}: {message}"
    except DeadKernelError:
        return "failed: its kernel died (out of memory?)"
    return None


# ---- in place, for committing


def refresh_notebook(name: str) -> Path:
    """Execute a notebook with its committed values, in a fresh temporary run root, and write the cleaned result back.

    Errors: ValueError when the committed parameters are not profile quick's; NotebookFailed, the notebook then being
    left as it was.
    """
    path = notebook_path(name)
    wanted, committed = checked_parameters(path, "quick", {}), notebook_parameters(path)
    for key, value in wanted.items():
        if committed[key] != value:
            raise ValueError(f"{path.name}: the parameters cell sets {key}={committed[key]!r}, profile quick {value!r}")
    with tempfile.TemporaryDirectory(prefix="mz_refresh_") as scratch:
        runs, output = Path(scratch).resolve() / "runs", Path(scratch) / "output.ipynb"
        command = f"make {name}"
        with _environment(MZ_RUNS=str(runs), MZ_COMMAND=command, CI="true"):
            failure = _papermill(path, output, {})
        if failure:
            raise NotebookFailed(f"{name} {failure}; the notebook is left as it was")
        with _environment(MZ_RUNS=str(runs)):
            cleaned = cleaned_notebook(json.loads(output.read_text()))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(cleaned, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{path.name}: refreshed, {path.stat().st_size / 1e3:.0f} kB")
    return path


def student_copies(out: Path) -> list[Path]:
    """Write every notebook without its solutions into a new folder, in one go; ValueError if `out` exists."""
    if out.exists():
        raise ValueError(f"--out {out}: exists, and may hold somebody's answers; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as whole:
        for path in sorted((REPO / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = SOLUTION.sub("", "".join(cell["source"])).strip()
            notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"]]
            Path(whole, path.name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
        shutil.copytree(whole, out)
        out.chmod(0o755)  # the temporary folder is for its owner alone
    return sorted(out.iterdir())


def cleaned_notebook(notebook: dict) -> dict:
    """An executed notebook without what differs from run to run or machine to machine.

    Out go papermill's metadata and injected cell, timings, standard error, progress bars, absolute paths; widget
    state is kept up to WIDGET_STATE_LIMIT, without what no output shows. Cell ids stay; execution counts become 1…n;
    the kernelspec is python3.
    """
    cells, count = [], 0
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            continue
        metadata = {
            k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution") and v not in ([], {})
        }
        cell = {**cell, "id": cell.get("id") or uuid.uuid4().hex[:8], "metadata": metadata}
        if cell["cell_type"] == "code":
            count += bool("".join(cell["source"]).strip())
            outputs = [_cleaned_output(o, count) for o in cell["outputs"] if not _is_noise(o)]
            cell |= {"execution_count": count if "".join(cell["source"]).strip() else None, "outputs": outputs}
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"file_extension": ".py", "name": "python"},
    }
    widgets = _shown_widgets(notebook["metadata"].get("widgets", {}), cells)
    if widgets:
        metadata["widgets"] = widgets
    return _with_steady_model_ids({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _with_steady_model_ids(notebook: dict) -> dict:
    """Number the widget models in order of appearance: their random ids would make each refresh a change."""
    text = json.dumps(notebook)
    models = dict.fromkeys(re.findall(r'(?:"model_id": "|IPY_MODEL_)([0-9a-f]{32})\b', text))
    numbers = {model: f"{number:032x}" for number, model in enumerate(models, start=1)}
    return json.loads(
        re.sub(r"\b(IPY_MODEL_)?([0-9a-f]{32})\b", lambda m: (m[1] or "") + numbers.get(m[2], m[2]), text)
    )


def _is_noise(output: dict) -> bool:
    if output["output_type"] == "stream":
        return output["name"] == "stderr"
    return bool(BAR.search("".join(output.get("data", {}).get("text/plain", ""))))


def _cleaned_output(output: dict, count: int) -> dict:
    """One output without absolute paths and addresses, its execution count that of its cell."""
    output = dict(output)
    if "text" in output:
        output["text"] = _without_paths(output["text"])
    if "data" in output:
        output["data"] = {
            kind: _without_paths(value) if kind.startswith("text/") else value for kind, value in output["data"].items()
        }
    if output["output_type"] == "execute_result":
        output["execution_count"] = count
    output.get("metadata", {}).pop("papermill", None)
    return output


def _without_paths(text: str | list[str]) -> str | list[str]:
    if isinstance(text, list):
        return [_without_paths(line) for line in text]
    for base, name in ((str(runs_root()), "runs"), (f"{REPO}/", ""), (str(REPO), "."), (str(Path.home()), "~")):
        if len(base) > 1:
            text = text.replace(base, name)
    return re.sub(r" at 0x[0-9a-f]{6,}", "", text)


def _shown_widgets(widgets: dict, cells: list[dict]) -> dict:
    """The widget state that the outputs refer to, directly or through other widgets; {} when it is too large."""
    state = widgets.get(WIDGETS, {}).get("state", {})
    kept: dict[str, dict] = {}
    wanted = re.findall(r'"model_id": "(\w+)"', json.dumps([c.get("outputs", []) for c in cells]))
    while wanted:
        model = wanted.pop()
        if model in state and model not in kept:
            kept[model] = state[model]
            wanted += re.findall(r"IPY_MODEL_(\w+)", json.dumps(state[model]))
    if not kept or len(json.dumps(kept)) > WIDGET_STATE_LIMIT:
        return {}
    return {WIDGETS: {**widgets[WIDGETS], "state": kept}}
