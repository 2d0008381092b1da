"""Sweeps: a grid becomes configurations that a run reads, or experiments of DVC."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from params.reading import ParamsError, read_run
from tests.workflow.mini_repository import Repository
from workflow import grid as grids
from workflow import sweep

GRID = {
    "extends": "padim",
    "set": {"batch_size": 4},
    "grid": {"parameters.max_features": [5, 10], "layers": [["stride4"], ["stride4", "stride8"]]},
}
NAMES = [
    "padim-max_features-5-layers-stride4",
    "padim-max_features-5-layers-stride4_stride8",
    "padim-max_features-10-layers-stride4",
    "padim-max_features-10-layers-stride4_stride8",
]


def written(path: Path, data: Any) -> Path:
    """Write a grid."""
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def made(repository: Repository, grid: Path) -> list[sweep.Point]:
    return sweep.points(grids.read_grid(grid), grid, repository.root)


class TestGrid:
    """Which points a grid has, and what they are called."""

    def test_every_combination(self, tmp_path):
        found = list(grids.combinations(grids.read_grid(written(tmp_path / "g.yaml", GRID))))
        assert found == [
            {"parameters.max_features": number, "layers": layers}
            for number in (5, 10)
            for layers in (["stride4"], ["stride4", "stride8"])
        ]
        assert grids.names("padim", found) == NAMES

    def test_side_by_side(self, tmp_path):
        data = {
            "extends": "padim",
            "zip": {"epochs": [1, 2], "parameters.rate": [0.1, 0.2]},
            "grid": {"batch_size": [4, 8]},
        }
        found = list(grids.combinations(grids.read_grid(written(tmp_path / "g.yaml", data))))
        rows = [(one["epochs"], one["parameters.rate"], one["batch_size"]) for one in found]
        assert rows == [(1, 0.1, 4), (1, 0.1, 8), (2, 0.2, 4), (2, 0.2, 8)]

    def test_names_are_unique_short_and_allowed(self):
        values = ["a b", "a/b", None, True, "x" * 200, [1, "b"], "\u00e9\u00e9"]
        found = grids.names("padim", [{"parameters.mode": value} for value in values])
        assert len(set(found)) == len(values)
        assert found[0] == "padim-mode-a_b" and found[2:4] == ["padim-mode-null", "padim-mode-True"]
        assert found[5] == "padim-mode-1_b"
        for name in found:
            grids.Grid(extends=name)  # a name like any other

    def test_dots(self):
        assert grids.nested({"a.b.c": 1, "a.d": 2, "e": 3}) == {
            "a": {"b": {"c": 1}, "d": 2},
            "e": 3,
        }

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"extends": "padim"}, "give grid, zip, or both"),
            ({"extends": "padim", "grid": {"epochs": []}}, "grid.epochs: an empty list"),
            ({"extends": "padim", "grid": {"epochs": [1, 1]}}, "grid.epochs: 1 stands twice"),
            ({"extends": "padim", "grid": {"epochs": 3}}, "grid.epochs: .*list.*given: 3"),
            ({"extends": "padim", "gird": {"epochs": [1]}}, "gird: unknown key; did you mean grid"),
            ({"extends": "padim", "zip": {"epochs": [1], "batch_size": [1, 2]}}, "must have one length"),
            ({"extends": "padim", "set": {"epochs": 2}, "grid": {"epochs": [1]}}, "epochs: is given twice"),
            ({"extends": "padim", "set": {"parameters": {}}, "grid": {"parameters.a": [1]}}, "parameters.a: is given twice, also by parameters"),
        ],
    )  # fmt: skip
    def test_mistakes(self, tmp_path, data, message):
        with pytest.raises(ParamsError, match=f"g.yaml: .*{message}|g.yaml: {message}"):
            grids.read_grid(written(tmp_path / "g.yaml", data))


class TestConfigurations:
    """Files below params/algorithms/."""

    def test_a_run_reads_them(self, repository):
        grid = written(repository.root / "grid.yaml", GRID)
        before = {path.name for path in (repository.root / sweep.FOLDER).iterdir()}
        done = repository.python("-m", "workflow.sweep", str(grid), "--config", "preset=tiny")
        assert done.returncode == 0, done.stderr
        first, command = done.stdout.splitlines()
        assert "wrote 4 of 4 configurations" in first
        words = shlex.split(command)
        assert words == ["snakemake", "--config", "preset=tiny", f"algorithms=[{', '.join(NAMES)}]"]
        run = read_run(repository.root, {"preset": "tiny", "algorithms": NAMES})
        assert [one.parameters["max_features"] for one in run.algorithms.values()] == [5, 5, 10, 10]
        assert {one.batch_size for one in run.algorithms.values()} == {4}
        assert run.algorithms[NAMES[1]].layers == ["stride4", "stride8"]
        plan = repository.plan(algorithms=NAMES)
        features = [name for name in plan.jobs if name.startswith("features/")]
        assert len(features) == 2, "one for each category: shared by all points"

        again = repository.python("-m", "workflow.sweep", str(grid))
        assert "wrote 0 of 4" in again.stdout
        gone = repository.python("-m", "workflow.sweep", str(grid), "--remove")
        assert "deleted 4" in gone.stdout
        assert {path.name for path in (repository.root / sweep.FOLDER).iterdir()} == before

    def test_a_dry_run_writes_nothing(self, repository):
        grid = written(repository.root / "grid.yaml", GRID)
        done = repository.python("-m", "workflow.sweep", str(grid), "--dry-run")
        assert "would write 4 of 4" in done.stdout and NAMES[0] in done.stdout
        assert not (repository.root / sweep.FOLDER / f"{NAMES[0]}.yaml").exists()

    def test_nothing_is_overwritten(self, repository):
        grid = written(repository.root / "grid.yaml", GRID)
        mine = repository.root / sweep.FOLDER / f"{NAMES[2]}.yaml"
        mine.write_text("extends: padim\n")
        with pytest.raises(ParamsError, match=f"{NAMES[2]}: is there already"):
            sweep.write(made(repository, grid), repository.root)
        assert mine.read_text() == "extends: padim\n"
        assert not (repository.root / sweep.FOLDER / f"{NAMES[0]}.yaml").exists()

    def test_a_larger_grid_adds(self, repository):
        grid = written(repository.root / "grid.yaml", GRID)
        sweep.write(made(repository, grid), repository.root)
        larger = {**GRID, "grid": {**GRID["grid"], "parameters.max_features": [5, 10, 15]}}
        new = sweep.write(made(repository, written(grid, larger)), repository.root)
        assert new == [name.replace("-10-", "-15-") for name in NAMES[2:]]

    def test_what_was_edited_is_not_deleted(self, repository):
        grid = written(repository.root / "grid.yaml", GRID)
        points = made(repository, grid)
        sweep.write(points, repository.root)
        edited = repository.root / sweep.FOLDER / f"{NAMES[1]}.yaml"
        edited.write_text(edited.read_text() + "epochs: 1\n")
        with pytest.raises(ParamsError, match=f"{NAMES[1]}.yaml: was edited since"):
            sweep.delete(points, repository.root)
        assert all((repository.root / sweep.FOLDER / f"{name}.yaml").exists() for name in NAMES)

    @pytest.mark.parametrize(
        ("key", "values", "message"),
        [
            (
                "parameters.max_featuers",
                [5],
                "max_featuers: unknown key; did you mean max_features",
            ),
            ("parameters.max_features", [5, "many"], "max_features: .*'many'"),
            ("backbone", ["nothing"], "backbone: nothing: no file"),
            ("layers", [["stride4"], ["stride32"]], "layers: stride32 is not a layer of tiny"),
            ("epoch", [3], "epoch: unknown key; did you mean epochs"),
        ],
    )
    def test_nothing_is_written_unless_all_is_valid(self, repository, key, values, message):
        grid = written(repository.root / "grid.yaml", {"extends": "padim", "grid": {key: values}})
        points = made(repository, grid)
        with pytest.raises(ParamsError, match=f"grid.yaml: params/algorithms/padim-.*{message}"):
            sweep.check(points, grid, repository.root, {"preset": "tiny"})

    def test_what_is_extended_must_be_there(self, repository):
        data = {"extends": "padin", "grid": {"epochs": [1]}}
        grid = written(repository.root / "grid.yaml", data)
        done = repository.python("-m", "workflow.sweep", str(grid))
        assert done.returncode == 1
        assert "extends: padin: no file" in done.stderr and "did you mean padim" in done.stderr


class TestExperiments:
    """Commands for DVC."""

    def test_what_a_variant_says_is_set_there(self, repository):
        """It is laid over what the file says: set in the file alone, a value would do nothing."""
        padim = repository.read("algorithms/padim.yaml")
        padim["variants"] = {"tiny": {"parameters": {"max_features": 7}}}
        repository.write("algorithms/padim.yaml", padim)
        grid = written(repository.root / "grid.yaml", GRID)
        points = made(repository, grid)
        commands = sweep.experiments(
            grids.read_grid(grid), points, repository.root, {"preset": "tiny"}
        )
        path = "params/algorithms/padim.yaml"
        assert commands[1] == [
            "dvc", "exp", "run", "--queue", "--name", NAMES[1], "-S", f"{path}:++batch_size=4",
            "-S", f"{path}:++variants.tiny.parameters.max_features=5",
            "-S", f"{path}:++layers=[stride4, stride8]",
        ]  # fmt: skip

    @pytest.mark.slow
    def test_dvc_takes_them(self, copied: Callable[[], Repository]):
        repository = copied()
        data = {
            "extends": "padim",
            "grid": {"parameters.max_features": [5]},
            "set": {"layers": ["stride4"]},
        }
        grid = written(repository.root / "grid.yaml", data)
        done = repository.python("-m", "workflow.sweep", str(grid), "--dvc", "--queue")
        assert done.returncode == 0, done.stdout + done.stderr
        assert repository.read("algorithms/padim.yaml")["parameters"]["max_features"] == 20
        shown = json.loads(repository.dvc("exp", "show", "--json").stdout)
        experiments = [
            revision["data"]["params"]["params/algorithms/padim.yaml"]["data"]
            for baseline in shown
            for experiment in baseline.get("experiments") or []
            for revision in experiment["revs"]
            if revision["name"] == "padim-max_features-5"
        ]
        assert [(one["parameters"]["max_features"], one["layers"]) for one in experiments] == [
            (5, ["stride4"])
        ]
