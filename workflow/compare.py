"""Compare the leaderboard here with that of a Git revision: each value, and which files differ.

    python -m workflow.compare                     with the last commit
    python -m workflow.compare HEAD~3 --markdown   as Markdown, for a pull request

The revision's leaderboard comes from DVC's cache or remote; nothing is checked out, nothing runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.artifacts.files import StageError, read_json
from workflow.job import ROOT

SUMMARY = "results/summary/metrics.json"
SOURCES = ("params", "algorithms", "stages", "metrics")
NOTABLE = 0.0005  # smaller differences are neither better nor worse
ABSENT = "-"  # a metric that one of the two leaderboards does not have

Value = float | str | None  # a number, ABSENT, or null: undefined
Summary = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # data set, algorithm, metric


@dataclass(frozen=True)
class Cell:
    """A metric's value, then and now."""

    old: Value
    new: Value

    @property
    def difference(self) -> float:
        """New minus old; 0 if one of them is no number."""
        if isinstance(self.old, float | int) and isinstance(self.new, float | int):
            return self.new - self.old
        return 0.0

    @property
    def lines(self) -> list[str]:
        """Both values, or the only one, and the difference."""
        old, new = (
            value if isinstance(value, str) else "undefined" if value is None else f"{value:.3f}"
            for value in (self.old, self.new)
        )
        lines = [new if self.old == self.new else f"{old} -> {new}"]
        return [*lines, f"{self.difference:+.4f}"] if self.difference else lines

    @property
    def style(self) -> str:
        """Colour: unchanged, better, worse, or none of these."""
        if self.old == self.new:
            return "dim"
        if abs(self.difference) < NOTABLE:
            return ""
        return "green" if self.difference > 0 else "red"


@dataclass(frozen=True)
class Row:
    """One algorithm on one data set; if it is new or gone, both values are the one there is."""

    dataset: str
    algorithm: str
    state: str  # "new", "gone" or ""
    cells: dict[str, Cell]  # by metric

    @property
    def name(self) -> str:
        """The algorithm, and what has become of it."""
        return f"{self.algorithm} ({self.state})" if self.state else self.algorithm


def union(*mappings: Mapping[str, Any]) -> list[str]:
    """Keys of several mappings, each once, in order."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def differences(old: Summary, new: Summary) -> list[Row]:
    """Set two leaderboards against each other, in the new one's order; rows have all metrics."""
    parts = [
        values for summary in (new, old) for part in summary.values() for values in part.values()
    ]
    metrics, rows = union(*parts), []
    for dataset in union(new, old):
        before, now = old.get(dataset, {}), new.get(dataset, {})
        for name in union(now, before):
            state = "new" if name not in before else "gone" if name not in now else ""
            was = before[name] if name in before else now[name]
            one = now[name] if name in now else before[name]
            cells = {m: Cell(was.get(m, ABSENT), one.get(m, ABSENT)) for m in metrics}
            rows.append(Row(dataset, name, state, cells))
    return rows


def verdict(rows: list[Row]) -> str:
    """Say in one line how much differs."""
    cells = [cell for row in rows if not row.state for cell in row.cells.values()]
    words = [f"{sum(cell.old != cell.new for cell in cells)} of {len(cells)} values differ"]
    for state in ("new", "gone"):
        if names := [f"{row.algorithm} on {row.dataset}" for row in rows if row.state == state]:
            words.append(f"{state}: {', '.join(names)}")
    return "; ".join(words)


def table(rows: list[Row]) -> Table:
    """Lay out rows for a terminal, differences below the values to keep columns narrow."""
    laid = Table(box=box.SIMPLE_HEAD)
    for heading in ("data set", "algorithm"):
        laid.add_column(heading, no_wrap=True)
    for metric in union(*(row.cells for row in rows)):
        laid.add_column(metric.replace("_", "\n"), justify="right", no_wrap=True)
    for row in rows:
        styles = {"new": "", "gone": "dim"}
        cells = [
            Text("\n".join(cell.lines), styles.get(row.state, cell.style))
            for cell in row.cells.values()
        ]
        laid.add_row(row.dataset, Text(row.name), *cells)
    return laid


def markdown(rows: list[Row]) -> str:
    """Lay out rows as a Markdown table, notable differences bold."""
    metrics = union(*(row.cells for row in rows))
    lines = [["data set", "algorithm", *metrics], ["---", "---", *("--:" for _ in metrics)]]
    for row in rows:
        words = []
        for cell in row.cells.values():
            values, *change = cell.lines
            mark = "**" if abs(cell.difference) >= NOTABLE else ""
            words.append(f"{values} ({mark}{change[0]}{mark})" if change else values)
        lines.append([row.dataset, row.name, *words])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def git(root: Path, *words: str) -> str:
    """Ask Git; what it refuses is a :class:`StageError`."""
    command = ["git", "-c", "core.quotepath=off", *words]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError as error:
        raise StageError(f"git: {error}") from None
    if done.returncode:
        raise StageError(f"git: {done.stderr.strip()}")
    return done.stdout


def changed_files(root: Path, commit: str) -> list[tuple[str, str]]:
    """List files that decide results and differ from a commit, with lines added and removed."""
    counts = git(root, "diff", "--numstat", "--no-renames", "--relative", commit, "--", *SOURCES)
    lines = [line.split("\t") for line in counts.splitlines()]
    fresh = git(root, "ls-files", "--others", "--exclude-standard", "--", *SOURCES)
    return [(path, f"+{added} -{removed}") for added, removed, path in lines] + [
        (path, "not added to Git") for path in fresh.splitlines()
    ]


def is_recorded(root: Path, commit: str) -> bool:
    """Tell whether a commit's dvc.lock lists the summary."""
    try:
        stages = yaml.safe_load(git(root, "show", f"{commit}:./dvc.lock"))["stages"].values()
    except (StageError, yaml.YAMLError, TypeError, KeyError):
        return False
    outputs = [output["path"] for stage in stages for output in stage.get("outs", [])]
    return any(PurePosixPath(SUMMARY).is_relative_to(output) for output in outputs)


def recorded_summary(root: Path, revision: str, commit: str) -> Summary:
    """Read a commit's leaderboard from DVC's cache or remote.

    Raises
    ------
    StageError
        If the commit has none, or DVC cannot get it.
    """
    import dvc.api

    try:
        summary: Summary = json.loads(dvc.api.read(SUMMARY, repo=str(root), rev=commit))
    except Exception as error:  # DVC's own, dvc_data's, or whatever a remote's package raises
        if is_recorded(root, commit):
            raise StageError(
                f"{revision}: its leaderboard is neither in DVC's cache nor on a remote that "
                f"answers; where a remote has it: dvc fetch --all-commits ({error})"
            ) from None
        raise StageError(
            f"{revision}: has no recorded leaderboard ({SUMMARY} is not in its dvc.lock); "
            "git log -- dvc.lock lists the revisions that may have one"
        ) from None
    return summary


def compare(root: Path, revision: str) -> tuple[str, list[Row], list[tuple[str, str]]]:
    """Compare with a revision: its commit, rows, and the files that differ.

    Raises
    ------
    StageError
        If there is nothing to compare, here or there.
    """
    new = read_json(root / SUMMARY)
    try:
        commit = git(root, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    except StageError as error:
        raise StageError(f"{revision}: no such revision ({error})") from None
    rows = differences(recorded_summary(root, revision, commit), new)
    return commit, rows, changed_files(root, commit)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revision", nargs="?", default="HEAD", metavar="REV", help="default: HEAD")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    arguments = parser.parse_args()
    try:
        commit, rows, files = compare(ROOT, arguments.revision)
    except StageError as error:
        sys.exit(f"error: {error}")
    title = f"{arguments.revision} ({commit[:7]}) -> here: {verdict(rows)}"
    heading = "Files that differ:" if files else f"No file of {', '.join(SOURCES)} differs."
    if arguments.markdown:
        print(f"{title}\n\n{markdown(rows)}\n\n{heading}\n")
        for path, change in files:
            print(f"- `{path}` {change}")
        return
    console, laid = Console(highlight=False, markup=False), table(rows)
    # Wider than the terminal if need be, rather than with numbers cut short.
    wanted = console.measure(laid, options=console.options.update(width=10_000)).maximum
    console.width = max(console.width, wanted)
    console.print(title, soft_wrap=True)
    console.print(laid)
    listed = [f"  {path}  {change}" for path, change in files]
    console.print(heading, *listed, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    main()
