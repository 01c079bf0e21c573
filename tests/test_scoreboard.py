"""The scoreboard: rows from records and runs, and README's copy of it is current."""

import pytest

from mzlib.runs import REPO
from mzlib.viz import scoreboard

RECORD = {
    "name": "a | b", "value": 4500, "unit": "points", "interval": [4000, 5000.5], "per_seed": {"0": 4500, "1": 4500},
    "protocol": {"what": "search", "sticky": 0}, "steps": 1_000_000, "upstream_steps": 500, "wall_s": 5400,
    "machine": "4 cores", "command": "make", "commit": "abc", "date": "2026-01-01",
}  # fmt: skip


def test_a_record_as_a_row():
    row = scoreboard.result_row(RECORD)
    assert row == ("a | b", "4,500 points", "4,000 to 5,000", "search, sticky 0", "2", "1,000,500", "1.5 h", "4 cores")
    assert "a \\| b" in scoreboard.markdown([row])


def test_no_interval_where_there_is_none():
    assert scoreboard.result_row(RECORD | {"interval": [1, 1]})[2] == ""


def test_readme_is_current():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert scoreboard.with_results(text) == text, "run `make readme`"


def test_headlines_are_some_of_the_rows_each_once():
    table, shown = scoreboard.rows(), scoreboard.headlines()
    assert set(shown) < set(table)
    assert len(shown) == len(set(shown))
    for begin in ("Go-Explore: score after 5 M", "Open-loop", "Grid world: switch"):
        assert any(row[0].startswith(begin) for row in shown)


def test_missing_markers():
    with pytest.raises(ValueError, match="markers"):
        scoreboard.with_results("# nothing")
