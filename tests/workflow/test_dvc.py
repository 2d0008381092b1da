"""DVC does with this project what its users expect."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.workflow.mini_repository import Repository, recolour
from tests.workflow.running import LATE, assert_clean, of, ran, succeeds
from workflow.plan import Plan

pytestmark = pytest.mark.slow

Copied = Callable[[str], Repository]
MINE = "params/algorithms/padim.yaml"


def said(repository: Repository, *words: str) -> Any:
    """Run a DVC command with --json, and read what it says."""
    return json.loads(succeeds(repository.dvc(*words, "--json")).stdout)


class TestStages:
    """What dvc.yaml holds, without anybody having listed algorithms in it."""

    def test_names_and_graph(self, recorded):
        listed = succeeds(recorded.dvc("stage", "list", "--name-only")).stdout.split()
        by_algorithm = {
            f"{stage}@{algorithm}"
            for stage in ("train", "predict", "evaluate")
            for algorithm in ("random", "padim", "patchcore")
        }
        others = {"data", "plan", "index", "features", "aggregate", "figures", "report"}
        assert set(listed) == by_algorithm | others
        graph = succeeds(recorded.dvc("dag", "--dot")).stdout
        for edge in (
            ("data", "plan"),
            ("data/parts.dvc", "plan"),
            ("plan", "index"),
            ("index", "features"),
            ("features", "train@padim"),
            ("train@padim", "predict@padim"),
            ("predict@padim", "evaluate@padim"),
            ("evaluate@padim", "aggregate"),
            ("aggregate", "figures"),
            ("aggregate", "report"),
        ):
            assert f'"{edge[0]}" -> "{edge[1]}"' in graph, edge
        assert '"train@padim" -> "predict@patchcore"' not in graph

    def test_all_results_are_somebodys(self, recorded):
        """What is not an output is neither pushed nor pulled."""
        import yaml

        lock = yaml.safe_load((recorded.root / "dvc.lock").read_text())
        folders = [out["path"] for stage in lock["stages"].values() for out in stage["outs"]]
        for job in recorded.plan().jobs.values():
            for path in job.outputs.values():
                assert any(f"{path}/".startswith(f"{folder}/") for folder in folders), path


@pytest.fixture(scope="module")
def edited(recorded, tmp_path_factory) -> tuple[Repository, dict[str, Any]]:
    target = tmp_path_factory.mktemp("edited") / "copy"
    subprocess.run(["cp", "-a", str(recorded.root), str(target)], check=True)
    repository = Repository(target)
    before = repository.plan()
    repository.edit("algorithms/padim.yaml", parameters={"sigma": 1.0})
    status = said(repository, "status")
    one = succeeds(repository.dvc("repro", "evaluate@padim"))
    rest = succeeds(repository.dvc("repro"))
    after = repository.plan()
    return repository, {
        "status": status,
        "one": ran(one, before, after),
        "rest": ran(rest, before, after),
    }


class TestCommands:
    """One edit, seen through DVC's commands."""

    def test_status_names_the_parameter(self, edited):
        changed = edited[1]["status"]["train@padim"]
        assert changed == [{"changed deps": {MINE: {"parameters": "modified"}}}]

    def test_repro_of_one_target_makes_that_and_no_more(self, edited):
        repository, facts = edited
        assert facts["one"] == of("predict", "evaluate", "resample", algorithms=["padim"])
        assert facts["rest"] == of("sheet", "gallery", algorithms=["padim"]) | LATE
        assert_clean(repository)

    def test_metrics(self, edited):
        repository, _ = edited
        shown = said(repository, "metrics", "show")[""]["data"]
        summary = json.loads((repository.root / "results/summary/metrics.json").read_text())
        assert shown["results/summary/metrics.json"]["data"] == summary
        diff = said(repository, "metrics", "diff")["results/summary/metrics.json"]
        assert set(diff) <= {f"folder.padim.{m}" for m in summary["folder"]["padim"]}
        change = diff["folder.padim.pixel_auroc"]
        assert change["new"] == summary["folder"]["padim"]["pixel_auroc"]
        assert change["diff"] == pytest.approx(change["new"] - change["old"])

    def test_params(self, edited):
        diff = said(edited[0], "params", "diff")
        assert diff[MINE]["parameters.sigma"]["new"] == 1.0

    def test_plots(self, edited, tmp_path):
        repository, _ = edited
        succeeds(repository.dvc("plots", "diff", "HEAD", "-o", str(tmp_path)))
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        for title in ("image_auroc", "aupro", "pixel_auroc"):
            assert title in page
        assert "folder padim" in page, "the row of an algorithm"
        shown = said(repository, "plots", "show")
        assert set(shown["data"]) >= {"image_auroc", "aupro"}
        assert not shown.get("errors")


class TestExperiments:
    """`dvc exp run -S` is an edit, a run and a record of it."""

    def test_run_and_show(self, copied):
        repository = copied("experiment")
        before = repository.plan()
        done = succeeds(
            repository.dvc("exp", "run", "--name", "few", "-S", f"{MINE}:parameters.max_features=7")
        )
        expected = (
            of("train", "predict", "evaluate", "resample", "sheet", "gallery", algorithms=["padim"])
            | LATE
        )
        assert ran(done, before, repository.plan()) == expected
        assert repository.read("algorithms/padim.yaml")["parameters"]["max_features"] == 7
        assert_clean(repository)
        table = succeeds(repository.dvc("exp", "show", "--csv")).stdout
        rows = {row["Experiment"]: row for row in csv.DictReader(table.splitlines())}
        assert rows["few"]["parameters.max_features"] == "7"
        summary = json.loads((repository.root / "results/summary/metrics.json").read_text())
        shown = float(rows["few"]["folder.padim.aupro"])
        assert shown == pytest.approx(summary["folder"]["padim"]["aupro"], abs=1e-5)


class TestRecording:
    """A `snakemake` run leaves `dvc status` clean, and records what it should only."""

    def lock(self, repository: Repository) -> str:
        return (repository.root / "dvc.lock").read_text(encoding="utf-8")

    def test_only_what_changed(self, copied):
        import yaml

        repository = copied("record")
        before = yaml.safe_load(self.lock(repository))["stages"]
        repository.edit("figures.yaml", dpi=60)
        done = succeeds(repository.snakemake())
        after = yaml.safe_load(self.lock(repository))["stages"]
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {"data", "plan", "figures"}  # the first two read params/
        assert "Recorded in dvc.lock: data, plan, figures" in done.stdout + done.stderr
        assert_clean(repository)

    def test_switched_off(self, copied):
        repository = copied("off")
        before = self.lock(repository)
        repository.edit("presets/tiny.yaml", pipeline={"record": False})
        repository.edit("figures.yaml", dpi=60)
        succeeds(repository.snakemake())
        assert self.lock(repository) == before
        assert "Nothing to be done" in repository.snakemake("-n").stdout
        assert "figures" in said(repository, "status")

    def test_a_changed_data_set_gets_its_new_version(self, copied):
        repository = copied("data")
        recolour(repository.images / "bolt/test/spot/000.png")
        done = succeeds(repository.snakemake())
        assert "data/parts.dvc" in done.stdout + done.stderr
        assert "data/parts.dvc" in repository.git("diff", "--name-only")
        assert_clean(repository)

    def test_another_run_is_not_recorded_as_this_one(self, copied):
        """`--config` overrides params/benchmark.yaml, which is what dvc.lock is about."""
        repository = copied("other")
        before = self.lock(repository)
        done = succeeds(repository.snakemake(config=("protocol={evaluation_size: 32}",)))
        text = done.stdout + done.stderr
        assert "Not as params/benchmark.yaml asks, and not recorded: evaluate@random" in text
        assert self.lock(repository) == before
        again = succeeds(repository.snakemake())
        assert ran(again, repository.plan()) == set(), "the store has it"
        assert_clean(repository)

    def test_more_than_this_run_has_is_kept_beside_it(self, copied):
        """Results of other seeds lie in the same folders, and are pushed with them."""
        repository = copied("more")
        succeeds(repository.snakemake("--until", "train", config=("seeds=[0,1,2]",)))
        assert_clean(repository)
        more = repository.plan(seeds=[0, 1, 2])
        assert {name for name, valid in more.valid.items() if valid} >= of("train", seeds=[2])

    def test_algorithms_that_dvc_cannot_see(self, copied):
        repository = copied("unseen")
        repository.edit("presets/tiny.yaml", algorithms=["padim"])
        wanted = "dvc.yaml reads them here: write that list"
        done = repository.snakemake()
        assert done.returncode == 0
        assert wanted in done.stderr
        refused = repository.dvc("repro")
        assert refused.returncode != 0
        assert wanted in refused.stderr + refused.stdout
        assert "Traceback" not in refused.stderr

    def test_outside_of_git_nothing_is_recorded_and_that_is_said(self, repository):
        repository.edit("presets/tiny.yaml", pipeline={"record": True}, algorithms=["random"])
        done = succeeds(repository.snakemake())
        assert "not recorded: no DVC project in a Git repository here" in done.stdout


class TestPlans:
    """What DVC's stages depend on."""

    def test_digests_are_those_of_the_plan(self, recorded):
        plan: Plan = recorded.plan()
        folder = recorded.root / "results/plan"
        found: dict[str, str] = {}
        for path in folder.rglob("*.json"):
            found |= json.loads(path.read_text())
        assert found == {name: job.fingerprint for name, job in plan.jobs.items()}
        assert recorded.git("status", "--porcelain") == ""
        codes = {path.stem for path in (recorded.root / "results/code").iterdir()}
        assert codes == {job.program.digest for job in plan.jobs.values()}
