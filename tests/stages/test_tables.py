"""Tables for papers: marks, ties, notes, escapes; the LaTeX has balanced groups, and compiles."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from stages.tables import (
    IN_A_CATEGORY,
    escape_latex,
    escape_markdown,
    latex,
    latex_document,
    lay_out,
    letter,
    markdown,
)

TABLE = pd.DataFrame(
    {
        "a_b": [0.90049, 0.5, 0.7],
        "second": [0.9004, 0.6, math.nan],
        "third": [0.8, 0.6001, 0.6],
        "last": [0.8, 0.4, 0.5],
    },
    index=pd.Index(["x&y", "nut", "mean"], name="category"),
)
REASONS = {("mean", "second"): "no anomalous pixel, 100 %"}
HOSTILE = '\\ { } $ & # % _ ^ ~ < > | "'


def marks(text: str, row: str) -> list[str]:
    """Cells of a LaTeX row."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{row} & ")]
    return line.removesuffix(r" \\").split(" & ")[1:]


def check(text: str) -> None:
    """Groups and environments close in the order in which they open; rows have as many cells."""
    depth, environments = 0, []
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    for token in re.findall(r"\\begin\{(\w+)\}|\\end\{(\w+)\}|([{}])", bare):
        if token[0]:
            environments.append((token[0], depth))
        elif token[1]:
            assert environments.pop() == (token[1], depth)
        else:
            depth += 1 if token[2] == "{" else -1
            assert depth >= 0
    assert depth == 0 and not environments
    body = bare.split(r"\toprule")[1].split(r"\bottomrule")[0]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    rows = [line for line in body.splitlines() if "&" in line]
    assert {line.count("&") for line in rows} == {len(columns[1]) - 1}


def test_best_is_bold_second_underlined_and_what_looks_equal_is_equal() -> None:
    text = latex(lay_out(TABLE, REASONS), "T", "tab:x")
    bold = r"\textbf{0.900}"
    assert marks(text, r"x\&y") == [bold, bold, r"\underline{0.800}", r"\underline{0.800}"]
    assert marks(text, "nut") == [
        r"\underline{0.500}", r"\textbf{0.600}", r"\textbf{0.600}", "0.400",
    ]  # fmt: skip


def test_undefined_is_a_dash_with_its_reason_also_in_a_category_called_mean() -> None:
    laid = lay_out(TABLE, REASONS)
    assert laid.notes == {"a": REASONS["mean", "second"], "b": IN_A_CATEGORY}
    text = latex(laid, "T", "tab:x")
    category, mean = (line for line in text.splitlines() if line.startswith("mean & "))
    assert r"--\textsuperscript{a}" in category and r"--\textsuperscript{b}" in mean
    assert r"\textsuperscript{a}\,no anomalous pixel, 100 \%" in text
    assert text.index(r"\midrule", text.index("nut")) < text.index(mean)
    shown = markdown(laid, "T")
    assert "| – (a) |" in shown and "(b) undefined in a category" in shown
    assert "| **0.900** | **0.900** | <u>0.800</u> |" in shown
    check(text)


def test_many_algorithms_go_down_the_page() -> None:
    laid = lay_out(TABLE, REASONS, across=3)
    assert laid.rows == list(TABLE.columns) and laid.columns == ["x&y", "nut", "mean", "mean"]
    text = latex(laid, "T", "tab:x")
    assert marks(text, "third")[1] == r"\textbf{0.600}"  # of its category, not of its row
    check(text)
    assert text.count(r"\midrule") == 1


def test_many_columns_have_turned_headings() -> None:
    wide = pd.DataFrame({f"algorithm_{place}": [0.5] for place in range(12)}, index=["nut"])
    text = latex(lay_out(wide, {}), "T", "tab:x")
    assert r"\rotatebox{90}{algorithm\_11}" in text
    check(text)


def test_hostile_names_stay_names() -> None:
    table = pd.DataFrame({HOSTILE: [0.5], "b": [math.nan]}, index=[HOSTILE])
    check(latex(lay_out(table, {(HOSTILE, "b"): HOSTILE}), HOSTILE, "tab:x"))
    assert escape_latex("a_b\\c\n50%") == r"a\_b\textbackslash{}c 50\%"
    assert escape_markdown("<b>|*a_b*") == r"\<b\>\|\*a\_b\*"
    lines = markdown(lay_out(table, {}), HOSTILE).splitlines()
    assert len(re.findall(r"(?<!\\)\|", lines[2])) == 4


def test_notes_have_letters() -> None:
    assert [letter(number) for number in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


def test_compiles(tmp_path: Path) -> None:
    engine = next(filter(shutil.which, ("pdflatex", "tectonic")), None)
    if engine is None:
        pytest.skip("needs a LaTeX engine")
    wide = pd.DataFrame({f"algorithm_{place}": [0.5] * 3 for place in range(34)}, TABLE.index)
    tables = {"image_auroc": TABLE, "pl": TABLE.rename(index={"nut": HOSTILE}), "wide": wide}
    for name, table in tables.items():
        text = latex(lay_out(table, REASONS), f"T {HOSTILE}", f"tab:demo_x-{name}")
        (tmp_path / f"{name}.tex").write_text(text)
    (tmp_path / "_tables.tex").write_text(latex_document(tables))
    options = ["-interaction=nonstopmode", "-halt-on-error"] if engine == "pdflatex" else []
    done = subprocess.run(
        [engine, *options, "_tables.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "_tables.pdf").stat().st_size > 5000
