"""Trackers: everything is logged once, without a network, and the tables can be rebuilt from it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from params.models import Logger
from params.reading import ParamsError, read_benchmark
from stages.artifacts.files import StageError, read_json, write_json
from tests.workflow.mini_repository import Repository
from workflow import export, track
from workflow.trackers import FINISHED, RECORD, Entry, open_tracker, read_records

KINDS = ("mlflow", "wandb")
TABLES = ("long.csv", "costs.csv", "leaderboard.md", "tables/image_auroc.csv", "tables/pl.csv")
RESULTS = 3 * 2 * 2  # algorithms, categories, seeds
BLOCK = 32768  # bytes of LevelDB's logs
LONG = 1200  # epochs: more than MLflow takes at once


def needs(kind: str) -> None:
    """Skip where a tracker's package is absent."""
    pytest.importorskip(kind, reason=f"needs the extra [{kind}]")


@pytest.fixture
def finished(copied: Callable[..., Repository], monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A copy of a repository with all results; work inside."""
    repository = copied()
    monkeypatch.chdir(repository.root)
    return repository


def entry(fingerprint: str = "f" * 64, **changes: Any) -> Entry:
    """A made-up result."""
    values = {
        "fingerprint": fingerprint,
        "kind": "result",
        "name": "padim folder/bolt seed0",
        "tags": {"dataset": "folder"},
        "parameters": {"parameters.ratio": 0.1, "layers": ["a", "b"], "long": "x" * 9000},
        "metrics": {"pl": 0.1 + 0.2, "pl/spot+": 1.0, "aupro": math.nan},
        "losses": [{"loss": 1 / epoch} for epoch in range(1, LONG + 1)],
        "record": {"kind": "result", "fingerprint": fingerprint},
        "files": {"leaderboard.md": "# Board\n"},
    }
    return Entry(**{**values, **changes})


class TestNames:
    """What values and parameters are called."""

    def test_values(self):
        value = {"primary": True, "defect_type": "all", "method": "mean"}
        assert track.metric_name("pl", value) == "pl"
        assert track.metric_name("pl", {**value, "defect_type": "spot"}) == "pl/spot"
        other = {**value, "primary": False, "defect_type": "spot"}
        assert track.metric_name("pl", other) == "pl.mean/spot"

    def test_parameters(self):
        nested = {"a": {"b": {"c": 1}, "d": [2]}, "e": None}
        assert track.flat(nested) == {"a.b.c": 1, "a.d": [2], "e": None}

    def test_numbers(self):
        measured = {"seconds": 2, "stopped_by": "budget", "gpu_peak_bytes": None, "whole": True}
        assert track.numbers(measured, "train") == {"train/seconds": 2.0}


class TestMLflow:
    """What MLflow shows, read back through its own client."""

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Any:
        needs("mlflow")
        return open_tracker(Logger(kind="mlflow", project="mine"), tmp_path)

    def test_values_losses_parameters_files(self, tracker, tmp_path):
        tracker.log(entry())
        (run,) = tracker.client.search_runs([tracker.experiment])
        assert run.info.run_name == "padim folder/bolt seed0"
        assert run.data.metrics["pl"] == 0.1 + 0.2
        assert run.data.metrics["pl/spot_"] == 1.0
        assert math.isnan(run.data.metrics["aupro"])
        assert run.data.params["parameters.ratio"] == "0.1"
        assert len(run.data.params["long"]) == 6000
        assert run.data.tags["fingerprint"] == "f" * 64
        history = tracker.client.get_metric_history(run.info.run_id, "loss/loss")
        assert [(one.step, one.value) for one in history] == [
            (k, 1 / k) for k in range(1, LONG + 1)
        ]
        assert (tmp_path / "results/tracking/mlflow.db").is_file()
        (board,) = (tmp_path / "results/tracking/mlflow").rglob("leaderboard.md")
        assert board.read_text() == "# Board\n"

    def test_what_a_killed_attempt_left_is_replaced(self, tracker, monkeypatch):
        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tracker.client, "set_terminated", killed)
            tracker.log(entry(losses=[]))
        assert tracker.logged() == set()
        tracker.log(entry(losses=[]))
        assert len(tracker.client.search_runs([tracker.experiment])) == 1
        assert tracker.logged() == {"f" * 64}


class TestWandB:
    """Runs in a folder, as `wandb sync` takes them."""

    @pytest.fixture
    def tracker(self, tmp_path: Path) -> Any:
        needs("wandb")
        return open_tracker(Logger(kind="wandb", project="mine"), tmp_path)

    def rows(self, folder: Path) -> Iterator[Any]:
        """What the run's own file holds: LevelDB's log format, after seven bytes of W&B's."""
        from wandb.proto.wandb_internal_pb2 import Record

        (path,) = folder.glob("*.wandb")
        content, place, data = path.read_bytes(), 7, b""
        while place < len(content):
            if BLOCK - place % BLOCK < 7:  # no header fits: filled up with zeros
                place += BLOCK - place % BLOCK
                continue
            _, length, kind = struct.unpack_from("<IHB", content, place)
            data += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last of several parts
                yield Record.FromString(data)
                data = b""

    def test_values_losses_parameters_files(self, tracker, tmp_path):
        tracker.log(entry(losses=[{"loss": 0.5}, {"loss": 0.25}]))
        (folder,) = (tmp_path / "results/tracking/wandb").glob("offline-run-*")
        records = list(self.rows(folder))
        (started,) = [one.run for one in records if one.HasField("run")]
        assert (started.project, started.run_id) == ("mine", "f" * 32)
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        assert config["parameters.ratio"] == 0.1 and config["fingerprint"] == "f" * 64
        history = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
            for one in records if one.HasField("history")
        ]  # fmt: skip
        assert [(row["_step"], row["loss/loss"]) for row in history] == [(1, 0.5), (2, 0.25)]
        summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for one in records if one.HasField("summary") for item in one.summary.update
        }  # fmt: skip
        assert summary["pl"] == 0.1 + 0.2
        named = {item.path for one in records if one.HasField("files") for item in one.files.files}
        assert {RECORD, "leaderboard.md"} <= named, "sync would leave them behind"
        assert (folder / "files/leaderboard.md").read_text() == "# Board\n"

    def test_what_a_killed_attempt_left_is_replaced(self, tracker, tmp_path):
        tracker.log(entry(losses=[]))
        (folder,) = (tmp_path / "results/tracking/wandb").glob("offline-run-*")
        (folder / FINISHED).unlink()
        (folder / "left").touch()
        assert tracker.logged() == set()
        tracker.log(entry(losses=[]))
        (folder,) = (tmp_path / "results/tracking/wandb").glob("offline-run-*")
        assert not (folder / "left").exists()
        assert tracker.logged() == {"f" * 64}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_logged_once_and_the_tables_rebuilt(finished, kind):
    needs(kind)
    said = track.log({"logger": kind}, finished.root)
    assert said == f"Logged to {kind}: {RESULTS + 1} new results and leaderboards"
    assert track.log({"logger": kind}, finished.root).startswith(f"Logged to {kind}: 0 new")
    places = ["results/tracking"]
    if kind == "mlflow":
        places.append(f"sqlite:///{finished.root / 'results/tracking/mlflow.db'}")
    for place in places:
        assert len(list(read_records(place))) == RESULTS + 1
        (folder,) = export.rebuild(read_records(place), Path("rebuilt"))
        assert folder == Path("rebuilt/folder")
        for name in TABLES:
            made = Path("results/leaderboard/folder", name).read_bytes()
            assert (folder / name).read_bytes() == made, name


def test_a_record_says_what_a_result_was_made_with(finished):
    plan = finished.plan()
    name = "padim/folder/bolt/seed1"
    one = track.result_entry(plan, plan.jobs[f"evaluate/{name}"])
    assert one.fingerprint == plan.jobs[f"evaluate/{name}"].fingerprint
    assert one.parameters["parameters.max_features"] == 20
    assert one.parameters["seed"] == 1 and one.parameters["implementation"] == "padim"
    assert not {"algorithm", "dataset", "category"} & set(one.parameters), (
        "W&B has one place for both"
    )
    assert one.tags["training"] == plan.jobs[f"train/{name}"].fingerprint
    assert set(one.record["data"]["sources"]) >= {"train", "test", "ground_truth"}
    assert one.record["train"]["versions"]["torch"] and "commit" in one.record["train"]
    assert one.metrics["train/train_seconds"] > 0
    stored = read_json(Path(f"results/metrics/{name}/pl.json"))["values"]
    for value in stored:
        expected = math.nan if value["value"] is None else value["value"]
        assert one.metrics[track.metric_name("pl", value)] == pytest.approx(expected, nan_ok=True)
    assert "curve" not in one.record["metrics"][0]["values"][0]


def test_what_is_not_finished_is_not_logged(finished):
    Path("results/models/padim/folder/bolt/seed0/provenance.json").unlink()
    found = list(track.entries(finished.plan(), set()))
    assert len(found) == RESULTS - 1, "without that result, and without the leaderboard"
    assert all(one.kind == export.RESULT for one in found)


def test_of_several_leaderboards_the_newest_or_the_one_asked_for(finished):
    plan, records = finished.plan(), []
    for one in track.entries(plan, set()):
        records.append(json.loads(one.text()))
    board = records.pop()
    assert board["kind"] == export.LEADERBOARD
    old = {
        **board,
        "fingerprint": "a" * 64,
        "logged": "2020-01-01",
        "parameters": {**board["parameters"], "title": "Old"},
    }
    both = [old, *records, board, board]
    (folder,) = export.rebuild(both, Path("new"))
    assert "# Tiny (folder)" in (folder / "leaderboard.md").read_text()
    (folder,) = export.rebuild(both, Path("old"), "aaa")
    assert "# Old (folder)" in (folder / "leaderboard.md").read_text()
    lines = export.listed(both)
    assert [line[:3] for line in lines] == [board["fingerprint"][:3], "aaa"]
    assert "12 results of 3 algorithms  folder: Tiny" in lines[0]
    with pytest.raises(StageError, match="no leaderboard 123 among"):
        export.rebuild(both, Path("none"), "123")
    with pytest.raises(StageError, match=r"1 of 12 results of leaderboard .* are missing"):
        export.rebuild(both[:1] + both[2:], Path("none"))
    assert not Path("none").exists()


class TestFailure:
    """A tracker that fails, or is not there, costs nothing but its own log."""

    def test_a_store_that_cannot_be_opened(self, finished):
        needs("mlflow")
        config = {"logger": {"kind": "mlflow", "place": "sqlite:////proc/nowhere/mlflow.db"}}
        with pytest.raises(StageError, match="mlflow: "):
            track.log(config, finished.root)

    def test_a_run_ends_well_and_says_what_was_not_logged(self, finished):
        needs("mlflow")
        place = "logger={kind: mlflow, place: 'sqlite:////proc/nowhere/mlflow.db'}"
        done = finished.snakemake(config=(place,))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "error: mlflow: " in done.stderr and "No result is lost" in done.stderr

    def test_a_package_that_is_missing_is_named_while_planning(self, monkeypatch):
        def absent(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", absent)
        root = Path(track.ROOT)
        for kind, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
            with pytest.raises(ParamsError, match=f"logger: {kind}: the package {package} is not"):
                read_benchmark(root, {"logger": kind})
        assert read_benchmark(root, {"logger": "none"}).logger.kind == "none"

    def test_an_unknown_tracker(self):
        with pytest.raises(ParamsError, match="logger.kind: .*'tensorboard'"):
            read_benchmark(Path(track.ROOT), {"logger": "tensorboard"})

    def test_none_logs_nothing(self, finished):
        assert "nothing is logged" in track.log({"logger": "none"}, finished.root)
        assert not Path("results/tracking").exists()


def test_no_job_knows_of_it(finished):
    needs("mlflow")
    plain, logged = finished.plan(), finished.plan(logger="mlflow")
    for name, job in plain.jobs.items():
        assert job.text("cpu", None) == logged.jobs[name].text("cpu", None)


def test_a_run_of_snakemake_logs_at_its_end(finished):
    needs("wandb")
    done = finished.snakemake(config=("logger=wandb",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Logged to wandb: {RESULTS + 1} new" in done.stdout + done.stderr
    listed = finished.python("-m", "workflow.track", "--export", "results/tracking", "--list")
    assert "12 results of 3 algorithms  folder: Tiny" in listed.stdout, listed.stderr
    words = ("--export", "results/tracking", "--to", "out")
    assert finished.python("-m", "workflow.track", *words).stdout == "out/folder/leaderboard.md\n"


def test_records_of_an_empty_folder(tmp_path):
    write_json(tmp_path / "other.json", {})
    with pytest.raises(StageError, match="no leaderboard  among 0 records"):
        export.rebuild(read_records(str(tmp_path)), tmp_path / "out")
