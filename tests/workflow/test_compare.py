"""Two leaderboards side by side: what changed is seen, and what is missing is said."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from workflow import compare
from workflow.compare import ABSENT, SUMMARY, Cell, differences, markdown, table, verdict

OLD = {
    "toy": {
        "padim": {"auroc": 0.9, "pl": 0.5, "aupro": None},
        "random": {"auroc": 0.5, "pl": None, "aupro": 0.1},
    }
}
NEW = {
    "toy": {
        "patchcore": {"auroc": 0.99, "pl": 0.6, "aupro": None},
        "padim": {"auroc": 0.8994, "pl": 0.5004, "aupro": 0.25},
    },
    "other": {"padim": {"auroc": 1.0, "pl": 0.0, "aupro": 0.5}},
}


class TestCell:
    """A value, then and now."""

    @pytest.mark.parametrize(
        ("old", "new", "lines", "style"),
        [
            (0.5, 0.5, ["0.500"], "dim"),
            (0.5, 0.6234, ["0.500 -> 0.623", "+0.1234"], "green"),
            (0.5, 0.25, ["0.500 -> 0.250", "-0.2500"], "red"),
            (0.5, 0.5004, ["0.500 -> 0.500", "+0.0004"], ""),
            (0.5, 0.4996, ["0.500 -> 0.500", "-0.0004"], ""),
            (0.5, 0.5006, ["0.500 -> 0.501", "+0.0006"], "green"),
            (None, 0.0, ["undefined -> 0.000"], ""),
            (0, 1, ["0.000 -> 1.000", "+1.0000"], "green"),
            (0.5, None, ["0.500 -> undefined"], ""),
            (None, None, ["undefined"], "dim"),
            (ABSENT, 0.5, ["- -> 0.500"], ""),
            (ABSENT, None, ["- -> undefined"], ""),
        ],
    )
    def test_shown(self, old, new, lines, style):
        cell = Cell(old, new)
        assert (cell.lines, cell.style) == (lines, style)


class TestDifferences:
    """One row per data set and algorithm."""

    def test_rows(self):
        rows = differences(OLD, NEW)
        assert [(row.dataset, row.name) for row in rows] == [
            ("toy", "patchcore (new)"),
            ("toy", "padim"),
            ("toy", "random (gone)"),
            ("other", "padim (new)"),
        ]
        assert rows[0].cells["auroc"] == Cell(0.99, 0.99)
        assert rows[1].cells == {
            "auroc": Cell(0.9, 0.8994),
            "pl": Cell(0.5, 0.5004),
            "aupro": Cell(None, 0.25),
        }
        assert rows[2].cells["pl"] == Cell(None, None)

    def test_metrics_come_and_go(self):
        rows = differences({"toy": {"padim": {"a": 0.1, "b": 0.2}}},
                           {"toy": {"padim": {"c": 0.3, "b": 0.2}}})  # fmt: skip
        assert rows[0].cells == {
            "c": Cell(ABSENT, 0.3),
            "b": Cell(0.2, 0.2),
            "a": Cell(0.1, ABSENT),
        }

    def test_nothing(self):
        assert differences({}, {}) == []
        assert all(not row.state for row in differences(OLD, OLD))
        assert verdict(differences(OLD, OLD)) == "0 of 6 values differ"

    def test_verdict(self):
        assert verdict(differences(OLD, NEW)) == (
            "3 of 3 values differ; new: patchcore on toy, padim on other; gone: random on toy"
        )


class TestShown:
    """The same rows in a terminal and in a pull request."""

    def test_markdown(self):
        assert markdown(differences(OLD, NEW)) == (
            "| data set | algorithm | auroc | pl | aupro |\n"
            "| --- | --- | --: | --: | --: |\n"
            "| toy | patchcore (new) | 0.990 | 0.600 | undefined |\n"
            "| toy | padim | 0.900 -> 0.899 (**-0.0006**) | 0.500 -> 0.500 (+0.0004) "
            "| undefined -> 0.250 |\n"
            "| toy | random (gone) | 0.500 | undefined | 0.100 |\n"
            "| other | padim (new) | 1.000 | 0.000 | 0.500 |"
        )

    def test_colours(self):
        output = io.StringIO()
        console = Console(file=output, width=100, force_terminal=True, color_system="standard",
                          no_color=False)  # fmt: skip
        console.print(table(differences({"toy": {"x": {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}}},
                                        {"toy": {"x": {"a": 0.6, "b": 0.4, "c": 0.5, "d": 0.5001}}})))  # fmt: skip
        text = output.getvalue()
        assert "\x1b[32m0.500 -> 0.600" in text
        assert "\x1b[31m0.500 -> 0.400" in text
        assert "\x1b[2m" in text
        assert "m0.500 -> 0.500" not in text, "too little for a colour"


def git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def dvc(root: Path, *words: str) -> None:
    words = (sys.executable, "-m", "dvc", *words)
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(root.parent / "site")}
    subprocess.run(words, cwd=root, check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commits: ``bare``, without a leaderboard; ``first``, with OLD."""
    root = tmp_path_factory.mktemp("compare") / "project"
    (root / "params").mkdir(parents=True)

    def commit(name: str) -> None:
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", name)
        git(root, "tag", name)

    git(root, "init", "--quiet", "--initial-branch", "main")
    dvc(root, "init", "--quiet")
    (root / "params/a.yaml").write_text("sigma: 4\nsize: 1\n")
    commit("bare")
    (root / "dvc.yaml").write_text(
        'stages:\n  aggregate:\n    cmd: "true"\n    outs: [results/summary]\n'
    )
    (root / SUMMARY).parent.mkdir(parents=True)
    (root / SUMMARY).write_text(json.dumps(OLD))
    dvc(root, "commit", "--quiet", "--force")
    commit("first")
    return root


@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
class TestCommand:
    """A project with a leaderboard that is recorded, and another one since."""

    @pytest.fixture
    def root(self, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Copy the project, where another leaderboard lies now."""
        root = tmp_path / "project"
        shutil.copytree(origin, root)
        (root / SUMMARY).unlink()
        (root / SUMMARY).write_text(json.dumps(NEW))
        monkeypatch.setattr(compare, "ROOT", root)
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
        return root

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
        def run(*words: str) -> str:
            monkeypatch.setattr(sys, "argv", ["compare", *words])
            compare.main()
            return capsys.readouterr().out

        return run

    def test_compared(self, root, run):
        (root / "params/a.yaml").write_text("sigma: 2\nsize: 1\n")
        (root / "params/b.yaml").write_text("new: 1\n")
        text = run()
        assert text.startswith("HEAD (")
        assert " -> here: 3 of 3 values differ; new: patchcore on toy" in text
        lines = text.splitlines()
        padim = next(number for number, line in enumerate(lines) if "padim  " in line)
        values = " ".join(lines[padim].split())
        assert values == "toy padim 0.900 -> 0.899 0.500 -> 0.500 undefined -> 0.250"
        assert lines[padim + 1].split() == ["-0.0006", "+0.0004"]
        assert lines[-3:] == [
            "Files that differ:", "  params/a.yaml  +1 -1", "  params/b.yaml  not added to Git",
        ]  # fmt: skip

    def test_markdown(self, root, run):
        (root / "params/a.yaml").write_text("sigma: 2\n")
        text = run("first", "--markdown")
        assert text.startswith("first (")
        assert markdown(differences(OLD, NEW)) in text
        assert text.endswith("\n\nFiles that differ:\n\n- `params/a.yaml` +1 -2\n")

    def test_nothing_differs(self, root, run):
        (root / SUMMARY).write_text(json.dumps(OLD))
        text = run()
        assert "0 of 6 values differ" in text
        assert "->" not in text.split("here:")[1]
        assert text.endswith("No file of params, algorithms, stages, metrics differs.\n")

    def test_from_a_remote(self, root, run, tmp_path):
        """What is not in the cache comes from where it was pushed to."""
        dvc(root, "remote", "add", "--default", "there", str(tmp_path / "remote"))
        git(root, "commit", "--quiet", "--all", "--message", "remote")
        dvc(root, "push", "--quiet", "--all-commits")
        shutil.rmtree(root / ".dvc/cache")
        assert "3 of 3 values differ" in run("HEAD")

    def test_no_such_revision(self, root, run):
        with pytest.raises(SystemExit, match="error: nowhere: no such revision"):
            run("nowhere")

    def test_no_leaderboard_there(self, root, run):
        with pytest.raises(SystemExit, match="error: bare: has no recorded leaderboard"):
            run("bare")

    def test_not_in_the_cache(self, root, run):
        shutil.rmtree(root / ".dvc/cache")
        with pytest.raises(SystemExit, match="error: first: .*: dvc fetch --all-commits") as caught:
            run("first")
        assert "neither in DVC's cache nor on a remote" in str(caught.value)

    def test_no_leaderboard_here(self, root, run):
        (root / SUMMARY).unlink()
        with pytest.raises(SystemExit, match=r"metrics\.json: no such file; run snakemake"):
            run()

    def test_no_git(self, root, run):
        shutil.rmtree(root / ".git")
        with pytest.raises(
            SystemExit, match="error: HEAD: no such revision .*not a git repository"
        ):
            run()
