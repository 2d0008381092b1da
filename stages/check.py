"""Judge all indexes of a data set at once, before anything is trained.

Writes `report.md` with every problem, its file and its remedy. Policy `fail` ends with an error if
there is any; `skip` leaves the files out (the report records them). A category without enough
training images, or without test images, fails under both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.artifacts.files import StageError, write_json, write_text
from stages.artifacts.index import read_index, usable
from stages.artifacts.job import Job
from stages.command import Options, run


@dataclass(frozen=True)
class Problem:
    """Something wrong with a category; ``fatal`` under every policy."""

    category: str
    file: str
    problem: str
    remedy: str
    fatal: bool


def find_problems(category: str, table: pd.DataFrame, min_train_images: int) -> list[Problem]:
    """List what is wrong in one category's index."""
    problems = [
        Problem(category, row["path"], row["problem"], row["remedy"], fatal=False)
        for row in table[table["problem"] != ""].to_dict("records")
    ]
    train, test = len(usable(table, "train")), len(usable(table, "test"))
    held_out = table[table["split"] == "validation"]
    if train < min_train_images:
        problems.append(
            Problem(
                category,
                "train/good",
                f"{train} usable training images, {min_train_images} needed",
                "add images, or lower checks.min_train_images",
                fatal=True,
            )
        )
    if not test:
        problems.append(Problem(category, "test", "no usable test image", "add images", fatal=True))
    if len(held_out) and not len(usable(held_out, "validation")):
        # Else training images would be held out instead: another protocol, unnoticed.
        problem = "no usable validation image"
        problems.append(Problem(category, "validation", problem, "replace the files", fatal=True))
    return problems


def render_report(dataset: str, root: str, problems: list[Problem], counts: pd.DataFrame) -> str:
    """Write the report as Markdown."""
    lines = [
        f"# Data set {dataset}",
        "",
        f"Root: `{root}`",
        "",
        counts.to_markdown(index=False),
        "",
    ]
    if not problems:
        return "\n".join([*lines, "No problems found.", ""])
    rows = pd.DataFrame(
        [(f"{p.category}/{p.file}", p.problem, p.remedy) for p in problems],
        columns=["file", "problem", "remedy"],
    )
    return "\n".join([*lines, f"{len(problems)} problems:", "", rows.to_markdown(index=False), ""])


def body(job: Job, options: Options) -> dict[str, Any]:
    """Check the job's data set."""
    dataset, policy = job.key["dataset"], job.parameters["policy"]
    problems: list[Problem] = []
    counts = []
    for path in job.inputs["indexes"]:
        table = read_index(path)
        problems += find_problems(path.stem, table, job.parameters["min_train_images"])
        test = usable(table, "test")
        counts.append(
            {
                "category": path.stem,
                "train": len(usable(table, "train")),
                "validation": len(usable(table, "validation")),
                "test good": int((test["label"] == 0).sum()),
                "test defective": int(test["label"].sum()),
                "left out": int((table["problem"] != "").sum()),
            }
        )
    report = Path(job.outputs["check"]).with_name("report.md")
    root = job.parameters["root"]
    counted = pd.DataFrame(counts)
    if not counted["validation"].any():
        counted = counted.drop(columns="validation")
    write_text(report, render_report(dataset, root, problems, counted))
    bad = [p for p in problems if p.fatal or policy == "fail"]
    if bad:
        lines = [f"  {root}/{p.category}/{p.file}: {p.problem} -> {p.remedy}" for p in bad]
        hint = (
            ""
            if any(p.fatal for p in bad)
            else ("\nor leave these files out: --config checks='{policy: skip}'")
        )
        raise StageError(
            f"data set {dataset}: {len(bad)} problems (also in {report})\n"
            + "\n".join(lines)
            + hint
        )
    write_json(
        job.outputs["check"],
        {"dataset": dataset, "policy": policy, "left_out": [vars(p) for p in problems]},
    )
    return {"problems": len(problems)}


if __name__ == "__main__":
    run("check", __doc__, body)
