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
    for begin in ("Go-Explore: steps to the first key", "Open-loop", "Grid world: switch"):
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


def test_agents_stand_by_kind_then_by_score():
    table = scoreboard.agents()
    by_name = {row[0]: dict(zip(scoreboard.AGENT_HEAD, row, strict=True)) for row in table}
    assert len(by_name) == len(table), "one row an agent"
    kinds = [scoreboard.KINDS.index(row[1]) for row in table]
    assert kinds == sorted(kinds)
    for kind in set(kinds):
        scores = [
            float(row[2].split()[0].replace(",", "")) for row, its in zip(table, kinds, strict=True) if its == kind
        ]
        assert scores == sorted(scores)
    assert by_name["Open-loop demo"]["the score is"] == scoreboard.REPLAY
    assert by_name["Go-Explore, 5 M steps, domain cells (median)"]["the score is"] == scoreboard.SEARCH
    stored = {record["name"]: record for record in read_results()["robustify"]}
    record = stored["Robustified, first key: first-life score (mean)"]
    row = by_name["Robustified, first key"]
    assert (row["the score is"], row["seeds"]) == (scoreboard.POLICY, "3")
    assert row["first life"].startswith(f"{record['value']:,.0f} (")


def test_an_agent_needs_a_score_of_montezumas_revenge(monkeypatch):
    results = {
        "a": [RECORD, RECORD | {"name": "X: whole-game score (mean)", "protocol": {"what": "", "game": "pitfall"}}]
    }
    monkeypatch.setattr(scoreboard, "read_results", lambda: results)
    assert set(scoreboard.agents()) == set(scoreboard.PUBLISHED)


def test_all_results_of_a_file_open_at_a_click():
    text = scoreboard.folded("open_loop")
    assert text.startswith(
        f"<details><summary>open_loop: {len(read_results()['open_loop'])} results</summary>\n\n| result |"
    )


def test_learning_curves_of_every_seed():
    figure = scoreboard.curves_figure()
    search, robust, _, ways = figure.axes
    assert len(search.lines) >= 3
    assert len(robust.lines) == 6, "three seeds of the first key, one each of key and door, 2,500 and 3,500 points"
    assert {text.get_text() for text in ways.get_legend().get_texts()} > {"raw actions"}
