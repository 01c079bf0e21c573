"""The scoreboard: rows from records and runs, and README's copy of it is current."""

import pytest

from mzlib.runs import REPO, read_results
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


def test_the_table_of_named_results():
    table = scoreboard.stored_table(["open_loop", "never measured"])
    assert table.count("\n") == 1 + len(read_results()["open_loop"]), "the head, then a line a record"


def test_no_interval_where_there_is_none():
    assert scoreboard.result_row(RECORD | {"interval": [1, 1]})[2] == ""


def test_readme_is_current():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert scoreboard.with_results(text) == text, "run `make readme`"


def test_headlines_are_some_of_the_results_each_once():
    names, shown = [row[0] for row in scoreboard.rows()], [record["name"] for record in scoreboard.headlines()]
    assert set(shown) < set(names)
    assert len(shown) == len(set(shown))
    for begin in ("Go-Explore: score after 5 M", "Open-loop", "Grid world: switch"):
        assert any(name.startswith(begin) for name in shown)


def test_brief_rows_keep_what_decides_a_score():
    protocol = {"what": "a policy", "game": "pitfall", "sticky": 0.25, "noop_max": 30, "actions": "the likeliest"}
    row = scoreboard.result_row(RECORD | {"protocol": protocol}, brief=True)
    assert row[3] == "a policy, sticky 0.25, noop max 30"
    assert len(row) == len(scoreboard.HEAD) - 1
    assert "machine" not in scoreboard.markdown([row])


def test_missing_markers():
    with pytest.raises(ValueError, match="markers"):
        scoreboard.with_results("# nothing")
