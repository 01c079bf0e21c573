"""The scoreboard: the agents' scores beside the published ones, every result, the reader's own runs, learning curves.

`python -m mzlib.viz.scoreboard --write README.md` puts the agents and the headlines between README's results markers;
notebook 08 has every row.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mzlib.emulator import GAMES
from mzlib.runs import found_runs, read_curve, read_results, write_atomic
from mzlib.viz.style import OKABE_ITO

BEGIN, END = "<!-- results -->", "<!-- /results -->"
HEADLINES = (  # beginnings of names, in README's order
    "Go-Explore: steps to the first key",
    "Go-Explore, 100 M steps, gates cells, domain weights: points on entering",
    "Go-Explore, 100 M steps, gates cells, domain weights: steps to 31,000",
    "Open-loop demo: 100 points in the first life",
    "Robustified, first key: key in the first life",
    "Clone, step layout: key in the first life",
    "Clone, step layout, with the policies' rollouts: key in the first life",
    "PPO + RND: key in the whole game",
    "Open-loop demo to the door: 400 points in the first life",
    "Robustified, key and door: 400 points in the first life",
    "Robustified, 2,500 points: 2500 points in the first life",
    "Robustified, 3,500 points: 3500 points in the first life",
    "Grid world: switch against",
    "Grid world: success of",
    "Metacontroller: switch against changes of goal, f1",
    "Unseen way over four places",
)
HEAD = ("result", "value", "95 % interval", "protocol", "seeds", "steps", "wall-clock", "machine")
BRIEF = ("sticky", "noops", "noop_max", "frames_per_action", "episodes", "way_steps")  # of a protocol, in README
AGENT_HEAD = ("agent", "the score is", "whole game", "first life", "seeds", "steps in all", "wall-clock")
SEARCH = "a search's best way, deterministic emulator"
REPLAY = "a demo's replay, sticky, from reset"
POLICY = "a policy's, sticky, from reset"
KINDS = (SEARCH, REPLAY, POLICY)
PUBLISHED = (  # not measured here; each under its own protocol
    ("Go-Explore 2021, no domain knowledge (mean of 50; secondary source)", SEARCH, "24,758", "", "50", "500 M", ""),
    ("Go-Explore 2021, no domain knowledge, robustified", POLICY, "43,791", "", "", "2,500 M", ""),
    ("PPO + RND (Burda et al. 2018)", POLICY, "8,152", "", "", "500 M", ""),
)
WHOLE_GAME, FIRST_LIFE, FOUND = "whole-game score", "first-life score", "score after "  # beginnings of a score's name


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


def markdown(table: list[tuple[str, ...]], head: tuple[str, ...] = HEAD) -> str:
    """The rows as a Markdown table under `head`, or under as much of it as they are long."""
    head = head[: len(table[0])] if table else head
    lines = [head, ("---",) * len(head), *table]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def stored_table(names: Iterable[str], brief: bool = False) -> str:
    """The stored results of these names, those that there are, as a Markdown table; `brief` as in `result_row`."""
    stored = read_results()
    return markdown([result_row(record, brief) for name in names for record in stored.get(name, [])])


def agents() -> list[tuple[str, ...]]:
    """One row of AGENT_HEAD for each agent with a stored score in Montezuma's Revenge, and the published ones: by kind,
    then by score."""
    found: dict[str, dict[str, Mapping]] = {}
    for record in (record for records in read_results().values() for record in records):
        agent, _, metric = record["name"].partition(": ")
        scored = record["unit"] == "points" and record["protocol"].get("game", GAMES[0]) == GAMES[0]
        if scored and metric.startswith((WHOLE_GAME, FIRST_LIFE)):
            found.setdefault(agent, {})[WHOLE_GAME if metric.startswith(WHOLE_GAME) else FIRST_LIFE] = record
        elif scored and metric.startswith(FOUND):
            found[f"{agent}, {metric.removeprefix(FOUND)}"] = {WHOLE_GAME: record}
    table = list(PUBLISHED)
    for agent, records in found.items():
        record = records[WHOLE_GAME]
        replayed = "replay" in record["protocol"]["what"]
        kind = SEARCH if not record["protocol"]["sticky"] else REPLAY if replayed else POLICY
        scores = (_score(records[which]) if which in records else "" for which in (WHOLE_GAME, FIRST_LIFE))
        millions = f"{(record['steps'] + record['upstream_steps']) / 1e6:.1f} M"
        seeds = str(len(record["per_seed"]) or 1)
        table.append((agent, kind, *scores, seeds, millions, duration(record["wall_s"])))
    return sorted(table, key=lambda row: (KINDS.index(row[1]), float(row[2].split()[0].replace(",", ""))))


def _score(record: Mapping) -> str:
    row = result_row(record)
    return number(record["value"]) + (f" ({row[2]})" if row[2] else "")


def folded(name: str) -> str:
    """The stored results of one name as a table that opens at a click."""
    count = len(read_results()[name])
    return f"<details><summary>{name}: {count} results</summary>\n\n{stored_table([name])}\n\n</details>"


def curves_figure() -> Figure:
    """Learning curves side by side: the searches' best score; how often starts from reset reach a demo's points; PPO +
    RND's episodes; the unseen way over four places. Each in its own unit: they do not compare across panels. The two
    shares are running means, of ten and of five rows."""
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 6.4))
    panels = (
        ("five_million", ("cells_kind",), "score", "search, deterministic: best score", 1),
        ("robustify", ("agent",), "reset_success", "robustified, sticky: success from reset", 10),
        ("rnd", (), "score", "PPO + RND, sticky: mean of 100 episodes", 1),
        ("internal_rl", ("agent",), "success", "unseen way, four places, sticky: success", 5),
    )
    for one, (name, kinds, value, title, window) in zip(axes.flat, panels, strict=True):
        labels = {}
        for row in read_curve(name):
            if row[value] and row.get("task", "four places") == "four places":
                label = ", ".join(row[kind] for kind in kinds)
                labels.setdefault(label, {}).setdefault(row["seed"], []).append((float(row["step"]), float(row[value])))
        for number, (label, seeds) in enumerate(labels.items()):
            colour, style = OKABE_ITO[number % 6], "-" if number < 4 else "--"
            for first, points in enumerate(seeds.values()):
                steps, values = np.array(points).T
                width = min(window, len(values))
                values = np.convolve(values, np.ones(width) / width, "valid")
                one.plot(steps[width - 1 :], values, style, color=colour, lw=1.2, label=None if first else label)
        one.set(xlabel="environment steps", title=title)
        one.set_ylim(0, 100 if name == "rnd" and one.get_ylim()[1] < 1 else None)  # a line of zeros still is one
        one.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(labels) > 1:
            one.legend(fontsize=7, loc="best")
    return figure


def headlines() -> list[Mapping]:
    """The records of HEADLINES, in their order."""
    stored = [record for records in read_results().values() for record in records]
    return [record for begin in HEADLINES for record in stored if record["name"].startswith(begin)]


def with_results(text: str) -> str:
    """A README's text with the agents and the current headlines between its markers, and where they were measured;
    ValueError if the markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are needed where the table belongs")
    shown = headlines()
    machines = "; ".join(dict.fromkeys(record["machine"] for record in shown))
    scores, others = markdown(agents(), AGENT_HEAD), markdown([result_row(record, brief=True) for record in shown])
    return f"{before}{BEGIN}\n{scores}\n\n{others}\n\nMeasured on: {machines}.\n{END}{after}"


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
