"""Lay out a metric's table for papers, as LaTeX and as Markdown (the paper's Tables 2 to 5).

Categories and their mean against algorithms; in each category the best value is bold and the second
underlined. What looks equal with three digits is equal: ties share their mark. An undefined value
is a dash with a note that says why.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

DIGITS = 3
ACROSS = 16  # more algorithms than these do not fit beside each other: they go down the page
UPRIGHT = 6  # more columns than these have their headings turned
MEAN = "mean"
IN_A_CATEGORY = "undefined in a category"
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
        "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
        "\n": " ",
    }
)  # fmt: skip
MARKDOWN = str.maketrans({one: f"\\{one}" for one in "\\`*_[]<>#|~"} | {"\n": " "})
PREAMBLE = r"""% Compiles as it is; in a paper, \input one table and load these packages.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
"""


@dataclass(frozen=True)
class Cell:
    """One value as it is shown."""

    text: str  # of DIGITS digits; empty where undefined
    rank: int  # 1: the best of its category, 2: the second, 0: neither
    note: str  # a letter that stands below the table; empty where defined


@dataclass(frozen=True)
class PaperTable:
    """A metric's table, laid out but not yet written.

    Attributes
    ----------
    rows, columns
        What stands to the left and on top.
    cells
        Row by row.
    notes
        Reasons by letter.
    means_below
        Whether the mean is the last row; else it is the last column.
    """

    rows: list[str]
    columns: list[str]
    cells: list[list[Cell]]
    notes: dict[str, str]
    means_below: bool


def lay_out(
    table: pd.DataFrame, reasons: Mapping[tuple[str, str], str], across: int = ACROSS
) -> PaperTable:
    """Lay out a table categories x algorithms, best algorithm first.

    Parameters
    ----------
    table
        As :func:`stages.aggregate.pivot` makes it: mean over seeds, nan where undefined.
    reasons
        Why values are undefined, by category and algorithm.
    across
        The most algorithms that stand side by side.
    """
    whole = pd.concat([table, table.mean(skipna=False).to_frame(MEAN).T])
    letters: dict[str, str] = {}
    cells: dict[tuple[str, str], Cell] = {}
    last = len(table)
    for place, (category, row) in enumerate(zip(whole.index, whole.to_numpy(), strict=True)):
        texts = ["" if pd.isna(value) else f"{value:.{DIGITS}f}" for value in row]
        order = sorted({text for text in texts if text}, key=float, reverse=True)
        ranks = {text: rank for rank, text in enumerate(order[:2], 1)}
        for algorithm, text in zip(whole.columns, texts, strict=True):
            note = ""
            if not text:
                own = reasons.get((category, algorithm), "no reason is known")
                reason = IN_A_CATEGORY if place == last else own
                note = letters.setdefault(reason, letter(len(letters)))
            cells[str(place), algorithm] = Cell(text, ranks.get(text, 0), note)
    notes = {one: reason for reason, one in letters.items()}
    names, algorithms = list(map(str, whole.index)), list(map(str, whole.columns))
    places = [str(place) for place in range(len(names))]
    if len(algorithms) <= across:
        laid = [[cells[place, algorithm] for algorithm in algorithms] for place in places]
        return PaperTable(names, algorithms, laid, notes, True)
    laid = [[cells[place, algorithm] for place in places] for algorithm in algorithms]
    return PaperTable(algorithms, names, laid, notes, False)


def letter(number: int) -> str:
    """Name a note: a to z, then aa, ab, ..."""
    letters = string.ascii_lowercase
    before, last = divmod(number, len(letters))
    return (letter(before - 1) if before else "") + letters[last]


def latex(table: PaperTable, caption: str, label: str) -> str:
    """Write a table as a LaTeX `table` that needs booktabs and graphicx."""

    def cell(one: Cell) -> str:
        if one.note:
            return rf"--\textsuperscript{{{one.note}}}"
        return {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(one.rank, "%s") % one.text

    wide = len(table.columns) > UPRIGHT
    heads = [escape_latex(name) for name in table.columns]
    if wide:
        heads = [rf"\rotatebox{{90}}{{{head}}}" for head in heads]
    rows = [
        " & ".join([escape_latex(name), *map(cell, cells)]) + r" \\"
        for name, cells in zip(table.rows, table.cells, strict=True)
    ]
    if table.means_below:
        rows.insert(len(rows) - 1, r"\midrule")
    notes = "; ".join(
        rf"\textsuperscript{{{one}}}\,{escape_latex(reason)}" for one, reason in table.notes.items()
    )
    # Only what is too wide for the page is shrunk.
    fit = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{{label}}}",
        r"\par\smallskip",
        fit,
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["", *heads]).strip() + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip{{\footnotesize {notes}}}"] if notes else []),
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def latex_document(tables: Iterable[str]) -> str:
    """Write a document of the tables in the files beside it, named without `.tex`."""
    inputs = [rf"\input{{\detokenize{{{name}}}}}" for name in tables]
    return "\n".join([PREAMBLE + "\n".join(inputs), r"\end{document}", ""])


def markdown(table: PaperTable, caption: str) -> str:
    """Write a table as Markdown; HTML's `<u>` underlines, for which Markdown has no mark."""

    def cell(one: Cell) -> str:
        if one.note:
            return f"– ({one.note})"
        return {1: "**{}**", 2: "<u>{}</u>"}.get(one.rank, "{}").format(one.text)

    lines = [
        f"**{escape_markdown(caption)}**",
        "",
        "| | " + " | ".join(map(escape_markdown, table.columns)) + " |",
        "|:--|" + "--:|" * len(table.columns),
    ]
    for name, cells in zip(table.rows, table.cells, strict=True):
        lines.append("| " + " | ".join([escape_markdown(name), *map(cell, cells)]) + " |")
    notes = [f"({one}) {escape_markdown(reason)}  " for one, reason in table.notes.items()]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def escape_latex(text: str) -> str:
    """Write text so that LaTeX sets it as it is."""
    return text.translate(LATEX)


def escape_markdown(text: str) -> str:
    """Write text so that Markdown shows it as it is."""
    return text.translate(MARKDOWN)


def caption_of(title: str, metric: str, dataset: str, seeds: int) -> str:
    """Say what a table shows."""
    of = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    return f"{metric} on {dataset} ({title}): {of}; best bold, second underlined."
