"""MLflow and Weights & Biases behind one interface: what is logged there already, and log more.

Both keep, beside what their own pages show, a file `record.json`: all that the tables are made of.
Their packages are optional, and imported here alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from params.models import Logger
from stages.artifacts.files import remove, write_text

RECORD = "record.json"
FINISHED = "finished"  # beside W&B's files of a run: all of it is written
PLACE = Path("results/tracking")
DONE = "attributes.status = 'FINISHED'"  # in MLflow's words
# What MLflow takes in one request.
MOST_METRICS, MOST_PARAMETERS, LONGEST = 1000, 100, 6000


@dataclass(frozen=True)
class Entry:
    """What a tracker is told about one result."""

    fingerprint: str  # names the run: equal results are one run
    kind: str
    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any]  # dotted names
    metrics: Mapping[str, float]  # may be nan
    losses: list[Mapping[str, float]]  # of each epoch
    record: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)  # texts by name

    def text(self) -> str:
        """The record as a file."""
        return json.dumps(self.record, allow_nan=False) + "\n"


class Tracker(Protocol):
    """A place where results are logged."""

    def logged(self) -> set[str]:
        """Fingerprints of what is there, whole."""

    def log(self, entry: Entry) -> None:
        """Log a result; what a killed attempt left of it is removed first."""


def open_tracker(settings: Logger, root: Path) -> Tracker:
    """Open the tracker that the parameters name."""
    folder = (root / PLACE).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if settings.kind == "mlflow":
        return MLflow(settings.project, settings.place, folder)
    return WandB(settings.project, root / (settings.place or PLACE), settings.online)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cut into lists of at most ``size``."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def mlflow_client(uri: str) -> Any:
    """Connect to an MLflow store, which shall neither report its use elsewhere nor every file."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not minutes at a run's end
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def found_runs(client: Any, experiment: str, query: str) -> Iterator[Any]:
    """Search the runs of an experiment, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment], query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


class MLflow:
    """An MLflow store: by default a SQLite file and a folder of artefacts, no server needed.

    Parameters
    ----------
    project
        The experiment's name.
    uri
        Tracking URI; None: ``mlflow.db`` in the folder.
    folder
        Where a store without a server keeps the runs' files.
    """

    def __init__(self, project: str, uri: str | None, folder: Path) -> None:
        self.client = mlflow_client(uri or f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name(project)
        local = uri is None or uri.startswith("sqlite:")
        self.experiment = (
            self.client.create_experiment(project, (folder / "mlflow").as_uri() if local else None)
            if experiment is None
            else experiment.experiment_id
        )

    def logged(self) -> set[str]:
        """Fingerprints of finished runs."""
        runs = found_runs(self.client, self.experiment, DONE)
        return {run.data.tags["fingerprint"] for run in runs if "fingerprint" in run.data.tags}

    def log(self, entry: Entry) -> None:
        """Log one run, marked as finished at the end."""
        from mlflow.entities import Metric, Param

        same = f"tags.fingerprint = '{entry.fingerprint}'"
        for run in found_runs(self.client, self.experiment, same):
            self.client.delete_run(run.info.run_id)
        tags = {"fingerprint": entry.fingerprint, "kind": entry.kind, **entry.tags}
        run = self.client.create_run(self.experiment, run_name=entry.name, tags=tags)
        now, number = run.info.start_time, run.info.run_id
        metrics = [Metric(allowed(k), v, now, 0) for k, v in entry.metrics.items()]
        for epoch, losses in enumerate(entry.losses, 1):
            metrics += [Metric(allowed(f"loss/{k}"), v, now, epoch) for k, v in losses.items()]
        for part in chunks(metrics, MOST_METRICS):
            self.client.log_batch(number, metrics=part)
        values = [Param(allowed(k), str(v)[:LONGEST]) for k, v in entry.parameters.items()]
        for part in chunks(values, MOST_PARAMETERS):
            self.client.log_batch(number, params=part)
        for name, text in {**entry.files, RECORD: entry.text()}.items():
            self.client.log_text(number, text, name)
        self.client.set_terminated(number)


def allowed(name: str) -> str:
    """Replace what MLflow does not take in a name; the record has the true one."""
    return re.sub(r"[^/\w.\- :]", "_", name)


class WandB:
    """Runs of Weights & Biases, offline in a folder (``wandb sync`` sends them) or online.

    Parameters
    ----------
    folder
        Runs lie in its folder ``wandb``.
    online
        Send runs to the server, too.
    """

    def __init__(self, project: str, folder: Path, online: bool) -> None:
        self.project, self.folder, self.online = project, folder, online
        folder.mkdir(parents=True, exist_ok=True)

    def logged(self) -> set[str]:
        """Fingerprints of the runs in the folder that are whole."""
        return {
            path.read_text(encoding="utf-8").strip()
            for path in self.folder.glob(f"wandb/*run-*/{FINISHED}")
        }

    def log(self, entry: Entry) -> None:
        """Log one run, marked as finished at the end."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline: it would report its own
        import wandb

        number = entry.fingerprint[:32]
        for left in self.folder.glob(f"wandb/*run-*-{number}"):
            remove(left)
        run = wandb.init(
            project=self.project,
            dir=str(self.folder),
            mode="online" if self.online else "offline",
            id=number,
            resume="allow" if self.online else None,
            name=entry.name,
            job_type=entry.kind,
            config={"fingerprint": entry.fingerprint, **entry.tags, **entry.parameters},
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        try:
            for epoch, losses in enumerate(entry.losses, 1):
                run.log({f"loss/{name}": value for name, value in losses.items()}, step=epoch)
            run.summary.update(dict(entry.metrics))
            files = Path(run.dir)
            for name, text in {**entry.files, RECORD: entry.text()}.items():
                write_text(files / name, text)
                run.save(str(files / name), base_path=str(files), policy="now")
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        write_text(files.parent / FINISHED, entry.fingerprint + "\n")


def read_records(place: str) -> Iterator[dict[str, Any]]:
    """Read all records of an export.

    Parameters
    ----------
    place
        A folder below which ``record.json`` files lie, of W&B's runs or of MLflow's artefacts; or
        MLflow's tracking URI.
    """
    if "://" not in place:
        for path in sorted(Path(place).rglob(RECORD)):
            yield json.loads(path.read_text(encoding="utf-8"))
        return
    client = mlflow_client(place)
    for experiment in client.search_experiments():
        for run in found_runs(client, experiment.experiment_id, DONE):
            if "fingerprint" in run.data.tags:
                with tempfile.TemporaryDirectory() as folder:
                    copy = client.download_artifacts(run.info.run_id, RECORD, folder)
                    yield json.loads(Path(copy).read_text(encoding="utf-8"))
