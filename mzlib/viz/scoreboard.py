"""The scoreboard: one table of all results, from data/results and the reader's own runs; README's copy of it.

`python -m mzlib.viz.scoreboard --write README.md` puts its headlines between README's results markers; notebook 08 has
every row.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mzlib.runs import found_runs, read_results, write_atomic

BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEADLINES = (  # beginnings of names, in README's order
    *("Go-Explore: steps to the first key", "Go-Explore: score after", "Open-loop demo", "Robustified"),
    *("Clone, step layout: key", "Clone, step layout, with the policies' rollouts: key"),
    *("Grid world: switch against", "Grid world: success of"),
    *("Metacontroller: switch against changes of goal, f1", "Unseen way over four places"),
)
HEAD = ("result", "value", "95 % interval", "protocol", "seeds", "steps", "wall-clock", "machine")
BRIEF = ("sticky", "noops", "noop_max", "frames_per_action", "episodes")  # of a protocol, in README


def protocol_text(protocol: Mapping, brief: bool = False) -> str:
    """A protocol in a few words, what was measured first; `brief`: only that and BRIEF."""
    shown = {key: value for key, value in protocol.items() if key != "what" and (key in BRIEF or not brief)}
    details = [f"{key.replace('_', ' ')} {value}" for key, value in shown.items()]
    return ", ".join(([str(protocol["what"])] if "what" in protocol else []) + details)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def number(value: float, unit: str = "") -> str:
    """A value with its unit: whole numbers and thousands in full, others in four significant digits."""
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1_000 else f"{value:,.4g}"
    return f"{text} {unit}".strip()


def result_row(record: Mapping, brief: bool = False) -> tuple[str, ...]:
    """One result record as a row of HEAD; `brief`: without the protocol's details and the machine."""
    low, high = record["interval"]
    interval = "" if low == high else f"{number(low)} to {number(high)}"
    steps = record["steps"] + record["upstream_steps"]
    return (
        record["name"],
        number(record["value"], record["unit"]),
        interval,
        protocol_text(record["protocol"], brief),
        str(len(record["per_seed"]) or 1),
        number(steps),
        duration(record["wall_s"]),
        record["machine"],
    )[: len(HEAD) - brief]


def run_row(run: Mapping) -> tuple[str, ...]:
    """One of the reader's own finished runs as a row of HEAD."""
    final = run["final"]
    return (
        f"your run {run['folder'].name} ({run['profile']})",
        number(final["score"], "points"),
        "",
        protocol_text(final["protocol"]),
        "1",
        number(final["steps"] + final["upstream_steps"]),
        duration(final["wall_s"]),
        final["machine"],
    )


def rows(own_runs: bool = False) -> list[tuple[str, ...]]:
    """The shipped results, by file name, then with `own_runs` every finished run under runs/ that has a score."""
    table = [result_row(record) for records in read_results().values() for record in records]
    if own_runs:
        table += [run_row(run) for run in found_runs() if run["final"] and "score" in run["final"]]
    return table


def markdown(table: list[tuple[str, ...]]) -> str:
    """The rows as a Markdown table under HEAD, or under as much of it as they are long."""
    head = HEAD[: len(table[0])] if table else HEAD
    lines = [head, ("---",) * len(head), *table]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def stored_table(names: Iterable[str]) -> str:
    """The stored results of these names, those that there are, as a Markdown table."""
    stored = read_results()
    return markdown([result_row(record) for name in names for record in stored.get(name, [])])


def headlines() -> list[Mapping]:
    """The records of HEADLINES, in their order."""
    stored = [record for records in read_results().values() for record in records]
    return [record for begin in HEADLINES for record in stored if record["name"].startswith(begin)]


def with_results(text: str) -> str:
    """A README's text with the current headlines between its markers, and where they were measured; ValueError if the
    markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are needed where the table belongs")
    shown = headlines()
    machines = "; ".join(dict.fromkeys(record["machine"] for record in shown))
    table = markdown([result_row(record, brief=True) for record in shown])
    return f"{before}{BEGIN}\n{table}\n\nMeasured on: {machines}.\n{END}{after}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="README.md", help="put the table there instead of printing it")
    given = parser.parse_args()
    if given.write is None:
        print(markdown(rows(own_runs=True)))
        return
    try:
        write_atomic(given.write, with_results(given.write.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        sys.exit(f"mzlib.viz.scoreboard: {given.write.name}: {error}")


if __name__ == "__main__":
    main()
