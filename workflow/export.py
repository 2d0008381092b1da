"""Rebuild leaderboards from the records that a tracker holds, by the code of stage `aggregate`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError, write_json
from stages.artifacts.job import Job
from stages.command import Options

RESULT, LEADERBOARD = "result", "leaderboard"
TABLES = {
    "long": "long.csv",
    "costs": "costs.csv",
    "leaderboard": "leaderboard.md",
    "tables": "tables",
}


def boards(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select leaderboards, the newest first, each once."""
    found = {one["fingerprint"]: one for one in records if one["kind"] == LEADERBOARD}
    return sorted(found.values(), key=lambda one: one["logged"], reverse=True)


def rebuild(
    records: Iterable[Mapping[str, Any]], target: Path, asked: str | None = None
) -> list[Path]:
    """Write the tables of leaderboards, as stage `aggregate` does: by its code, from records alone.

    Parameters
    ----------
    target
        Gets a folder for each data set.
    asked
        Beginning of a leaderboard's fingerprint; None: the newest of each data set.

    Raises
    ------
    StageError
        If there is no such leaderboard, or a result of it is missing.
    """
    from stages.aggregate import body

    records = list(records)
    results = {one["fingerprint"]: one for one in records if one["kind"] == RESULT}
    chosen: dict[str, Mapping[str, Any]] = {}
    for board in boards(records):
        if board["fingerprint"].startswith(asked or ""):
            chosen.setdefault(board["parameters"]["dataset"], board)
    if not chosen:
        raise StageError(f"no leaderboard {asked or ''} among {len(records)} records; see --list")
    written = []
    for dataset, board in chosen.items():
        missing = [one for one in board["results"] if one not in results]
        if missing:
            raise StageError(
                f"{len(missing)} of {len(board['results'])} results of leaderboard "
                f"{board['fingerprint'][:12]} ({dataset}) are missing, e.g. {missing[0][:12]}"
            )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            inputs: dict[str, list[Path]] = {}
            for number, one in enumerate(board["results"]):
                record = results[one]
                files = {
                    "train_provenance": [record["train"]],
                    "predict_provenance": [record["predict"]],
                    "metrics": record["metrics"],
                }
                for kind, contents in files.items():
                    for place, content in enumerate(contents):
                        path = folder / f"{number}-{kind}-{place}.json"
                        write_json(path, content)
                        inputs.setdefault(kind, []).append(path)
            job = Job(
                stage="aggregate",
                key={"dataset": dataset},
                parameters=board["parameters"],
                inputs=inputs,
                outputs={kind: target / dataset / name for kind, name in TABLES.items()},
                fingerprint=board["fingerprint"],
                parts={},
                code="",
                device="cpu",
            )
            body(job, Options(1, "cpu", False))
        written.append(target / dataset)
    return written


def listed(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say which leaderboards there are, the newest first."""
    return [
        f"{one['fingerprint'][:12]}  {one['logged'][:19]}  {len(one['results'])} results of "
        f"{len(one['parameters']['algorithms'])} algorithms  {one['parameters']['dataset']}: "
        f"{one['parameters']['title']}"
        for one in boards(records)
    ]
