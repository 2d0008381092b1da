"""Log finished results to a tracker, and rebuild the tables from what it holds.

    python -m workflow.track                 log what is finished (logger in params/benchmark.yaml)
    python -m workflow.track --config preset=demo_all logger=wandb
    python -m workflow.track --watch 30      look every 30 s, while snakemake runs elsewhere
    python -m workflow.track --export results/tracking --to tables    tables of the newest boards
    python -m workflow.track --export http://localhost:5000 --list    which leaderboards there are

Snakemake calls the first when it ends. A run of the tracker is one result (training, prediction and
metrics of an algorithm on a category with a seed) or one leaderboard. It is named by its
fingerprint, so that logging twice adds nothing. What the tracker is told comes from finished files
alone: its failure costs no result, and no result depends on it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from params.reading import ParamsError
from stages.artifacts.files import StageError, read_json
from workflow.export import LEADERBOARD, RESULT, listed, rebuild
from workflow.job import PLAN_FOLDER, ROOT, Job
from workflow.plan import Plan, parse_overrides
from workflow.trackers import Entry, Tracker, open_tracker, read_records


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested values with dotted names: ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def metric_name(metric: str, value: Mapping[str, Any]) -> str:
    """Name a value: ``pl``; of one defect type ``pl/spot``; of another method ``pl.mean/spot``."""
    name = metric if value["primary"] else f"{metric}.{value['method']}"
    return name if value["defect_type"] == "all" else f"{name}/{value['defect_type']}"


def numbers(measured: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Select what is a number of what a stage measured."""
    return {
        f"{prefix}/{name}": float(value)
        for name, value in measured.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def above(job: Job, stage: str) -> Job:
    """Find the job of a stage directly above another, of the same key where it has one."""
    return next(
        one for one in job.upstream if one.stage == stage and one.key.items() <= job.key.items()
    )


def result_entry(plan: Plan, evaluate: Job) -> Entry:
    """Read what is to be logged of one result: training, prediction, all metrics."""
    predict, index = above(evaluate, "predict"), above(evaluate, "index")
    train, key = above(predict, "train"), evaluate.key
    stamps = {
        job.stage: read_json(plan.root / job.outputs["provenance"]) for job in (train, predict)
    }
    training = read_json(plan.root / train.outputs["training"])
    metrics = [
        read_json(plan.root / path)
        for name, path in evaluate.outputs.items()
        if name != "provenance"
    ]
    values = {
        metric_name(record["metric"], value): float("nan")
        if value["value"] is None
        else value["value"]
        for record in metrics
        for value in record["values"]
    }
    for record in metrics:
        for value in record["values"]:
            value.pop("curve", None)  # for figures only, and long
    stamp = stamps["train"]
    parameters = flat({**stamp["parameters"], **stamps["predict"]["parameters"]})
    parameters["implementation"] = parameters.pop("algorithm")  # its tag says which configuration
    return Entry(
        fingerprint=evaluate.fingerprint,
        kind=RESULT,
        name=" ".join([key["algorithm"], f"{key['dataset']}/{key['category']}", key["seed"]]),
        tags={
            **key,
            "title": plan.run.benchmark.title,
            "training": train.fingerprint,
            "data": index.fingerprint,
            "code": train.program.digest,
            "commit": str(stamp["commit"]),
            "versions": json.dumps(stamp["versions"]),
            "processor": str(stamp["machine"]["processor"]),
            "gpu": str(stamp["machine"]["gpu"]),
        },
        parameters=parameters,
        metrics={
            **values,
            **numbers(stamp["measured"], "train"),
            **numbers(stamps["predict"]["measured"], "predict"),
        },
        losses=training["losses"],
        record={
            "kind": RESULT,
            "fingerprint": evaluate.fingerprint,
            "train": stamp,
            "predict": stamps["predict"],
            "data": {"fingerprint": index.fingerprint, "sources": index.data},
            "losses": training["losses"],
            "metrics": metrics,
        },
    )


def leaderboard_entry(plan: Plan, aggregate: Job, evaluates: list[Job]) -> Entry:
    """Read what is to be logged of one leaderboard: how it is laid out, and of which results."""
    parameters = json.loads(json.dumps(aggregate.parameters))
    text = (plan.root / aggregate.outputs["leaderboard"]).read_text(encoding="utf-8")
    return Entry(
        fingerprint=aggregate.fingerprint,
        kind=LEADERBOARD,
        name=f"leaderboard {aggregate.key['dataset']}: {parameters['title']}",
        tags={**aggregate.key, "title": parameters["title"]},
        parameters={name: parameters[name] for name in ("algorithms", "categories", "seeds")},
        metrics={},
        losses=[],
        record={
            "kind": LEADERBOARD,
            "fingerprint": aggregate.fingerprint,
            "logged": datetime.now(UTC).isoformat(),
            "parameters": parameters,
            "results": [job.fingerprint for job in evaluates],
        },
        files={"leaderboard.md": text},
    )


def entries(plan: Plan, logged: set[str]) -> Iterator[Entry]:
    """Read what is finished and not logged yet, results before the leaderboards of them."""

    def are_valid(*jobs: Job) -> bool:
        return all(plan.valid[job.name] for job in jobs)

    new = [job for job in plan.jobs.values() if job.fingerprint not in logged]
    for job in new:
        if job.stage == "evaluate":
            predict = above(job, "predict")
            if are_valid(job, predict, above(predict, "train")):
                yield result_entry(plan, job)
    for job in new:
        if job.stage == "aggregate" and are_valid(job, *job.upstream):
            yield leaderboard_entry(plan, job, [j for j in job.upstream if j.stage == "evaluate"])


def track(plan: Plan, tracker: Tracker) -> int:
    """Log what is finished, and count it.

    Raises
    ------
    StageError
        If the tracker fails; what it has taken stays.
    """
    count = 0
    kind = plan.run.benchmark.logger.kind
    with (plan.root / PLAN_FOLDER / "track").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one at a time, or a result would be logged twice
        try:
            for entry in entries(plan, tracker.logged()):
                tracker.log(entry)
                count += 1
        except StageError:
            raise
        except Exception as error:  # whatever a tracker's package raises
            raise StageError(f"{kind}: {type(error).__name__}: {error}") from error
    return count


def log(overrides: dict[str, Any], root: Path = ROOT) -> str:
    """Log what is finished to the tracker that the parameters name, and say what was done."""
    plan = Plan(root, overrides)
    logger = plan.run.benchmark.logger
    if logger.kind == "none":
        return "logger: none: nothing is logged (params/benchmark.yaml)"
    try:
        tracker = open_tracker(logger, root)
    except Exception as error:  # a server that does not answer, a store that is no store
        raise StageError(f"{logger.kind}: {type(error).__name__}: {error}") from error
    return f"Logged to {logger.kind}: {track(plan, tracker)} new results and leaderboards"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.track",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="log again and again")
    parser.add_argument(
        "--export", metavar="PLACE", help="folder with record.json files, or MLflow's tracking URI"
    )
    parser.add_argument("--list", action="store_true", help="print an export's leaderboards")
    parser.add_argument("--board", metavar="FINGERPRINT", help="its beginning; default: the newest")
    parser.add_argument("--to", type=Path, default=Path("tables"), help="where tables are written")
    arguments = parser.parse_args()
    try:
        if arguments.export is not None:
            records = read_records(arguments.export)
            if arguments.list:
                print("\n".join(listed(records)))
                return
            for folder in rebuild(records, arguments.to, arguments.board):
                print(folder / "leaderboard.md")
            return
        while True:
            print(log(parse_overrides(arguments.config)), flush=True)
            if arguments.watch is None:
                return
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return
    except ParamsError as error:
        sys.exit(f"error: {error}")
    except StageError as error:
        sys.exit(
            f"error: {error}\nNo result is lost. Once that is mended: python -m workflow.track"
        )


if __name__ == "__main__":
    main()
