"""The promise: after any edit both engines run the same jobs, the fewest, and then agree.

Each row of the matrix edits a small copy of the real project, with real stages, and is run from the
same start through `snakemake` and through `dvc repro`. The set of jobs that ran must be the one
stated here; afterwards `snakemake -n` has nothing to do, `dvc status` is clean, and both engines'
leaderboards say the same. `make test` runs a quick half of the rows, `make test-all` all of them.
The table of `docs/incremental.md` is that of the rows here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.mini_repository import PADIM, ROOT, Repository, draw_category, recolour
from tests.workflow.running import LATE, MESSAGES, assert_clean, of, ran, succeeds, values
from workflow.plan import Plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs Git"),
]

ENGINES = {"snakemake": ("snakemake", "--cores", "1"), "dvc": ("dvc", "repro")}
BEGIN, END = "<!-- matrix: written by tests/workflow/test_matrix.py -->", "<!-- end of matrix -->"

Edit = Callable[[Repository], object]
TRAINED = ("train", "predict", "evaluate", "resample", "sheet", "gallery")
PICTURES = {"pictures/folder"}
CHECKED = {"check/folder"}
COMPARED = LATE - {"aggregate/folder", "summary"}
ONLY_PADIM = of(*TRAINED, algorithms=["padim"]) | LATE


# --- edits ---------------------------------------------------------------------------------------


def regularise(repository: Repository) -> None:
    repository.edit("algorithms/padim.yaml", parameters={"regularisation": 0.1})


def append(path: str, text: str) -> Edit:
    """Return an edit that adds a line to a file."""

    def edit(repository: Repository) -> None:
        file = repository.root / path
        file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")

    return edit


def new_algorithm(repository: Repository) -> None:
    repository.write("algorithms/padim_few.yaml", {**PADIM, "parameters": {"max_features": 5}})
    repository.edit("benchmark.yaml", algorithms=["random", "padim", "patchcore", "padim_few"])


def comments(repository: Repository) -> None:
    repository.replace(
        "algorithms/padim.py", '"""Values of the paper', '"""The values of the paper'
    )
    append("algorithms/blocks/maps.py", "# Why not?\n")(repository)
    repository.replace("algorithms/padim.py", "    shuffle = False", "    shuffle=False")


def yaml_order(repository: Repository) -> None:
    data = repository.read("algorithms/padim.yaml")
    repository.write("algorithms/padim.yaml", dict(reversed(data.items())))
    path = repository.root / "params/algorithms/padim.yaml"
    path.write_text("# Ordered otherwise.\n" + path.read_text(encoding="utf-8"), encoding="utf-8")


def touch(repository: Repository) -> None:
    for folder in ("algorithms", "stages", "metrics", "params", "workflow", "data", "results"):
        for path in (repository.root / folder).rglob("*"):
            os.utime(path)


def image(name: str) -> Edit:
    return lambda repository: recolour(repository.images / "bolt" / name)


def remove(path: str) -> Edit:
    def edit(repository: Repository) -> None:
        target = repository.root / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return edit


MAPS = "results/maps/padim/folder/bolt/seed0.h5"


def cut_short(repository: Repository) -> None:
    """Put half of a file in its place, as a copy that was broken off does."""
    path = repository.root / MAPS
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.unlink()
    path.write_bytes(half)


def cut_in_place(repository: Repository) -> None:
    """Cut a file where it lies, and with it the store's link to it."""
    path = repository.root / MAPS
    assert path.stat().st_nlink > 1, "the store links large files"
    os.truncate(path, path.stat().st_size // 2)


@dataclass(frozen=True)
class Row:
    """An edit, and the jobs that it makes necessary."""

    edit: Edit
    expected: set[str]
    quick: bool = False
    first: Edit | None = None  # edited, run and committed before the edit proper
    then: Edit | None = None  # edited after it: nothing runs


NOTHING: set[str] = set()
ROWS = {
    "a hyperparameter of one algorithm": Row(regularise, ONLY_PADIM, quick=True),
    "a parameter that only prediction reads": Row(
        lambda r: r.edit("algorithms/padim.yaml", parameters={"sigma": 2.0}),
        of("predict", "evaluate", "resample", "sheet", "gallery", algorithms=["padim"]) | LATE,
        quick=True,
    ),
    "one algorithm's code": Row(
        lambda r: r.replace("algorithms/padim.py", "shuffle = False", "shuffle = bool(0)"),
        ONLY_PADIM,
    ),
    "a shared block's code (coreset)": Row(
        append("algorithms/blocks/coreset.py", "UNUSED = 1\n"),
        of(*TRAINED, algorithms=["patchcore"]) | LATE,
    ),
    "the algorithms' base class": Row(
        append("algorithms/base.py", "UNUSED = 1\n"), of(*TRAINED) | LATE
    ),
    "a metric's parameter": Row(
        lambda r: r.edit("metrics.yaml", parameters={"pl": {"iou_limit": 0.6}}),
        of("evaluate", "resample", "gallery") | PICTURES | LATE,
        quick=True,
    ),
    "a metric's code": Row(
        append("metrics/visionad_metrics/catalogue/pixel_auroc.py", "UNUSED = 1\n"),
        of("evaluate") | LATE,
    ),
    "a new metric": Row(
        lambda r: r.edit(
            "presets/tiny.yaml", metrics=["image_auroc", "pixel_auroc", "aupro", "pl", "pixel_ap"]
        ),
        of("evaluate", "resample") | LATE,
    ),
    "a new algorithm": Row(
        new_algorithm, of(*TRAINED, algorithms=["padim_few"]) | LATE, quick=True
    ),
    "a new category": Row(
        lambda r: draw_category(r.images / "screw", seed=7),
        of("index", "features", *TRAINED, categories=["screw"]) | CHECKED | PICTURES | LATE,
    ),
    "a removed category": Row(
        lambda r: shutil.rmtree(r.images / "nut"),
        CHECKED | of("sheet", "gallery") | PICTURES | LATE,
    ),
    "one training image": Row(
        image("train/good/003.png"),
        of("index", "features", *TRAINED, categories=["bolt"]) | CHECKED | LATE,
    ),
    "one test image": Row(
        image("test/spot/001.png"),
        of("index", "features", "predict", "evaluate", "resample", "sheet", "gallery",
           categories=["bolt"])
        | PICTURES
        | CHECKED
        | LATE,
        quick=True,
    ),
    "one mask": Row(
        image("ground_truth/spot/001_mask.png"),
        of("index", "evaluate", "resample", "sheet", "gallery", categories=["bolt"])
        | PICTURES
        | CHECKED
        | LATE,
        quick=True,
    ),
    "the backbone": Row(
        lambda r: r.edit("backbones/tiny.yaml", weights={"seed": 1}),
        of("features") | of(*TRAINED, algorithms=["padim", "patchcore"]) | LATE,
    ),
    "a new seed": Row(
        lambda r: r.edit("presets/tiny.yaml", seeds=[0, 1, 2]),
        of("train", "predict", "evaluate", "resample", seeds=[2]) | LATE,
    ),
    "the figures' style": Row(
        lambda r: r.edit("figures.yaml", dpi=60), of("sheet") | {"figures/folder"}, quick=True
    ),
    "the report's look": Row(
        append("stages/reporting/assets/style.css", "/* */\n"), {"report"}, quick=True
    ),
    "the level of tests": Row(
        lambda r: r.edit("comparison.yaml", alpha=0.01), COMPARED, quick=True
    ),
    "the number of resamples": Row(
        lambda r: r.edit("comparison.yaml", resamples=100), of("resample") | COMPARED
    ),
    "the leaderboard's layout": Row(
        append("stages/aggregate.py", "\nUNUSED = 1\n"), LATE
    ),
    "a caption of the report": Row(append("workflow/report/figure.rst", "More.\n"), NOTHING, quick=True),
    "a comment, a docstring, formatting": Row(comments, NOTHING, quick=True),
    "a YAML comment and the order of keys": Row(yaml_order, NOTHING, quick=True),
    "touched files": Row(touch, NOTHING, quick=True),
    "a deleted result": Row(remove(MAPS), NOTHING, quick=True),
    "a result cut short": Row(cut_short, NOTHING),
    "a result cut short together with the store's copy": Row(
        cut_in_place, {"predict/padim/folder/bolt/seed0"}
    ),
    "`rm -rf results`": Row(remove("results"), NOTHING, quick=True),
    "a parameter set back": Row(
        lambda r: r.git("checkout", "--quiet", "HEAD~1", "--", "params"),
        NOTHING,
        quick=True,
        first=regularise,
    ),
    "another branch and back": Row(
        lambda r: r.git("checkout", "--quiet", "HEAD~1"),
        NOTHING,
        first=regularise,
        then=lambda r: r.git("checkout", "--quiet", "main"),
    ),
}  # fmt: skip


# --- running -------------------------------------------------------------------------------------


PLANNING = threading.Lock()


def planned(repository: Repository) -> Plan:
    """Plan, in one thread at a time: Python 3.11 cannot parse in two."""
    with PLANNING:
        return repository.plan()


def run(repository: Repository, engine: str, *before: Plan) -> set[str]:
    """Run everything through an engine, and return the names of the jobs that ran."""
    done = succeeds(repository.python("-m", *ENGINES[engine]))
    return ran(done, planned(repository), *before)


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str, copied: Callable[[str], Repository]) -> None:
    row = ROWS[name]
    if not row.quick and os.environ.get("MATRIX") != "all":
        pytest.skip("a row of the long half of the matrix: make test-all")
    with ThreadPoolExecutor() as pool:  # each engine leaves a core idle half of the time
        said = pool.map(lambda engine: follow(name, engine, copied(engine)), ENGINES)
        one, other = said
    assert one == other, "both engines come to the same numbers"


def follow(name: str, engine: str, repository: Repository) -> list[Mapping[str, Any]]:
    """Edit, run through an engine, check what ran, and return the leaderboard's values."""
    row = ROWS[name]
    if row.first is not None:
        row.first(repository)
        run(repository, engine)
        repository.commit("first")
    before = planned(repository)
    row.edit(repository)
    made = run(repository, engine, before)
    assert made == row.expected, engine
    assert_clean(repository)
    said = values(repository)
    if row.then is not None:
        row.then(repository)
        assert run(repository, engine) == NOTHING
        assert_clean(repository)
    return said


CLONES = {
    "a fresh clone, pulled": NOTHING,
    "a fresh clone, pulled, and a hyperparameter": ONLY_PADIM,
}


@pytest.mark.parametrize(("edited", "name"), enumerate(CLONES))
def test_clone(edited: int, name: str, recorded: Repository, tmp_path: Path) -> None:
    """A clone that has pulled has everything; an edit there costs what it costs here."""
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda e: go_on(recorded, tmp_path / e, e, bool(edited)), ENGINES))
    assert made == [CLONES[name]] * len(ENGINES)


def go_on(recorded: Repository, folder: Path, engine: str, edited: bool) -> set[str]:
    """Clone, pull, edit, run; return which jobs ran."""
    subprocess.run(["git", "clone", "--quiet", str(recorded.root), str(folder)], check=True)
    repository = Repository(folder)
    succeeds(repository.dvc("pull"))
    assert_clean(repository)
    if edited:
        regularise(repository)
    made = run(repository, engine)
    assert_clean(repository)
    if edited:  # and back: what was pulled has come into the clone's own store
        repository.git("checkout", "--quiet", "--", "params")
        assert run(repository, engine) == NOTHING
    return made


def cell(jobs: set[str]) -> str:
    """Count jobs by stage."""
    counts = Counter(name.split("/")[0] for name in jobs)
    order = list(MESSAGES)
    parts = [f"{stage} {counts[stage]}" for stage in sorted(counts, key=order.index)]
    return f"{len(jobs)}: {', '.join(parts)}" if jobs else "0"


def test_table_of_the_documentation(recorded: Repository) -> None:
    """It says what the rows expect, and so what ran; if not, it is written anew."""
    expected = {name: row.expected for name, row in ROWS.items()} | CLONES
    lines = ["| what is edited | jobs that run, through either engine |", "|---|---|"]
    lines += [f"| {name} | {cell(jobs)} |" for name, jobs in expected.items()]
    lines.append(f"\n{len(expected)} edits; the whole has {len(recorded.plan().jobs)} jobs.")
    page = ROOT / "docs/incremental.md"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    assert rest and tail, f"{page} has no place for the matrix"
    new = f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}"
    if new != text:
        page.write_text(new, encoding="utf-8")
        pytest.fail(f"the table of {page} was out of date and is written anew: commit it")
