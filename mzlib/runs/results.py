"""Result records: the numbers that README and scoreboard may show, with what they cost and how they were measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from .folders import data_dir, write_atomic, write_json
from .profiles import plain

FIELDS = {
    "name": str, "value": (int, float), "unit": str, "interval": list, "per_seed": dict, "protocol": dict, "steps": int,
    "upstream_steps": int, "wall_s": (int, float), "machine": str, "command": str, "commit": str, "date": str,
}  # fmt: skip


def check_record(record: Mapping, where: str) -> None:
    """Hold one record against the contract: exactly these fields, of these types, the interval around the value.

    Errors: ValueError naming `where` and the field.
    """
    for key in FIELDS.keys() ^ record.keys():
        raise ValueError(f"{where}: field {key!r} is {'missing' if key in FIELDS else 'not part of a result record'}")
    for key, kind in FIELDS.items():
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            raise ValueError(f"{where}: field {key!r} holds {record[key]!r}, of the wrong type")
    bounds = record["interval"]
    if len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds) or bounds[0] > bounds[1]:
        raise ValueError(f"{where}: field 'interval' must be [low, high], not {bounds!r}")


def write_result(name: str, records: Sequence[Mapping]) -> None:
    """Check `records` and write them to `data/results/<name>.json`, in one step.

    Each record: {name, value, unit, interval: [low, high], per_seed: {seed: value}, protocol: {…}, steps,
    upstream_steps, wall_s, machine, command, commit, date}; steps are environment steps, wall_s seconds. Errors:
    ValueError as `check_record`'s.
    """
    checked = [plain(record) for record in records]
    for number, record in enumerate(checked):
        check_record(record, f"result {name!r}, record {number}")
    write_json(data_dir("results", f"{name}.json"), checked)


def write_curve(name: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Write learning curves beside a result, `data/results/<name>.curve.csv`: one line a row, `seed` and `step` among
    the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(data_dir("results", f"{name}.curve.csv"), text.getvalue())


def read_curve(name: str) -> list[dict[str, str]]:
    """The rows of `data/results/<name>.curve.csv`, values as text."""
    with open(data_dir("results", f"{name}.curve.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_results() -> dict[str, list[dict]]:
    """Every result in `data/results/`, checked: file name without suffix → its records."""
    results = {}
    for path in sorted(data_dir("results").glob("*.json")):
        results[path.stem] = json.loads(path.read_text())
        for number, record in enumerate(results[path.stem]):
            check_record(record, f"data/results/{path.name}, record {number}")
    return results
