"""Print finished leaderboards in the terminal, and where their tables and figures are.

Reads `results/leaderboard/<dataset>/` and nothing else; runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stages.aggregate import COSTS, LONG, read_table, summary, summary_text
from stages.artifacts.files import StageError


def summary_of(folder: Path) -> Table:
    """Lay out the summary of one leaderboard folder.

    Raises
    ------
    StageError
        If the folder has no finished leaderboard.
    """
    long, costs = read_table(folder / "long.csv", LONG), read_table(folder / "costs.csv", COSTS)
    metrics, categories = list(long["metric"].unique()), list(long["category"].unique())
    text = summary_text(summary(long, costs, metrics, categories), metrics)
    title = f"{folder.name} ({len(categories)} categories)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("algorithm", no_wrap=True)
    for column in text.columns:
        # A heading is broken at its spaces, to keep the table narrow; a number never is.
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for place, (algorithm, row) in enumerate(text.iterrows()):
        table.add_row(str(algorithm), *row, style="bold" if place == 0 else None)
    return table


def paths_of(folder: Path) -> list[Path]:
    """List what there is to open: the leaderboard, its tables, figures and sheets."""
    figures = folder.parent.parent / "figures" / folder.name
    found = [folder / name for name in ("leaderboard.md", "long.csv", "costs.csv")]
    found += sorted(folder.glob("tables/*.csv"))
    found += sorted(path for path in figures.rglob("*") if path.suffix in (".png", ".svg"))
    return [path for path in found if path.is_file()]


def show(folders: list[Path], console: Console) -> None:
    """Print the summary and the paths of each leaderboard folder."""
    for folder in folders:
        table = summary_of(folder)
        # Wider than the terminal if need be, rather than with numbers cut short.
        wanted = console.measure(table, options=console.options.update(width=10_000)).maximum
        console.width = max(console.width, wanted)
        console.print(table)
        for path in paths_of(folder):
            # A path must stay in one piece, to be clicked or copied.
            console.print(f"  {path}", style="dim", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m workflow.show", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="LEADERBOARD_FOLDER",
        help="e.g. results/leaderboard/demo",
    )
    try:
        show(parser.parse_args().folders, Console())
    except StageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
