"""Say in words why a job must run: which parameter, function, image, package or job above it.

The artefact's stamp holds what it was made with; the plan knows what it would be made with now.
What the code was is remembered in ``.plan/code/``, of recorded results also in ``results/code/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.stamp import Stamp
from workflow.fingerprint import folder_hashes
from workflow.jobs import ADDRESSES, DATA_PARTS, Job
from workflow.plan import CODE_FOLDER, Plan

RECORDED_CODE = Path("results/code")
MANY = 5  # so many of a kind are named, the rest counted


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Name the leaves in which nested values differ: ``key.key: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in old:
                yield f"{below}: new, {json.dumps(new[key])}"
            elif key not in new:
                yield f"{below}: gone, was {json.dumps(old[key])}"
            else:
                yield from differences(old[key], new[key], below)
    elif json.dumps(old) != json.dumps(new):
        yield f"{path}: {json.dumps(old)} -> {json.dumps(new)}"


def changed_names(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Name what was changed, added and removed between two mappings of names to digests."""
    words = [f"{name} changed" for name in new if name in old and new[name] != old[name]]
    words += [f"{name} added" for name in new if name not in old]
    return words + [f"{name} removed" for name in old if name not in new]


def shortened(words: list[str]) -> list[str]:
    """Cut a long list, and say how much was cut."""
    rest = len(words) - MANY
    return words if rest <= 1 else [*words[:MANY], f"... and {rest} more"]


class Why:
    """Explains the jobs of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.root = plan, plan.root

    def code(self, job: Job, was: str) -> list[str]:
        """Name the functions in which the code differs from what it was."""
        new = self.plan.source.manifest(*job.program.modules)
        for folder in (CODE_FOLDER, RECORDED_CODE):
            try:
                old = json.loads((self.root / folder / f"{was}.json").read_text(encoding="utf-8"))
                break
            except (OSError, ValueError):
                continue
        else:
            return [f"code changed (what it was, {was[:12]}, is not known here)"]
        words = []
        for module in sorted({*old, *new}):
            for word in changed_names(old.get(module, {}), new.get(module, {})):
                path = self.plan.source.path(module)
                place = path.relative_to(self.root) if path else module
                name, _, verb = word.rpartition(" ")
                words.append(f"code: {place}: {name or 'top level'} {verb}")
        return shortened(words)

    def data(self, job: Job) -> list[str]:
        """Name the images that differ from those of the index that is there."""
        if job.stage != "index":
            return [f"data: {name} changed" for name in job.data]
        from stages.artifacts.files import StageError
        from stages.artifacts.index import read_index

        try:
            table = read_index(self.root / job.outputs["index"])
        except StageError:
            return ["images or masks changed"]
        old = dict(zip(table["path"], table["sha256"], strict=True))
        for masks, hashes in zip(table["masks"], table["mask_sha256"], strict=True):
            old.update(zip(masks, hashes, strict=True))
        folder = self.root / job.parameters["root"] / job.key["category"]
        new: dict[str, str] = {}
        for part in DATA_PARTS:
            new |= folder_hashes(folder, part, self.plan.cache)
        words = [f"data: {folder}/{word}" for word in changed_names(old, new)]
        return shortened(words) or ["data: another file below train, test or ground_truth changed"]

    def reasons(self, job: Job) -> tuple[list[str], list[Job]]:
        """Return a job's own reasons to run, and the jobs above it that are a reason."""
        stamp = self.plan.stamps[job.name]
        if job.forced:
            return ["asked for by --forcerun"], []
        if stamp is None:
            return [f"never made, or removed: no {job.outputs['provenance']}"], []
        if stamp.fingerprint == job.fingerprint:
            return [] if stamp.is_whole() else [f"missing or cut short: {self.broken(stamp)}"], []
        data = stamp.data
        old, new = data.get("parameters", {}), job.parameters
        words = [
            f"parameter {word}"
            for word in differences(
                {key: value for key, value in old.items() if key not in ADDRESSES},
                {key: value for key, value in new.items() if key not in ADDRESSES},
            )
        ]
        words = shortened(words)
        if data.get("code") != job.program.digest:
            words += self.code(job, str(data.get("code")))
        for name in sorted({*(data.get("versions") or {}), *job.versions}):
            before, now = (data.get("versions") or {}).get(name), job.versions.get(name)
            if before != now:
                words.append(f"package {name}: {before or 'absent'} -> {now or 'absent'}")
        if (data.get("data") or {}) != job.data:
            words += self.data(job)
        before, seen = data.get("upstream") or {}, job.above()
        above = [one for one in job.upstream if before.get(one.name) != seen[one.name]]
        gone = [name for name in before if name not in seen]
        words += shortened([f"no longer uses {name}" for name in gone])
        if not words and not above:
            words = self.part_reasons(job)
        return words, above

    def part_reasons(self, job: Job) -> list[str]:
        """Name the parts of a job, metrics, that are stale by their own code."""
        words = []
        for name in job.parts:
            try:
                text = (self.root / job.outputs[name]).read_text(encoding="utf-8")
                current = json.loads(text).get("fingerprint") == job.parts[name]
            except (OSError, ValueError):
                current = False
            if not current:
                words.append(f"code of the metric {name} changed")
        return words or ["made by another version of the plan"]

    def broken(self, stamp: Stamp) -> str:
        """Name an artefact's files that are missing or have another size."""
        bad = [
            str(path.relative_to(self.root))
            for path, size in zip(stamp.places(), stamp.files.values(), strict=True)
            if not path.is_file() or path.stat().st_size != size
        ]
        return ", ".join(shortened(bad))

    def facts(self, job: Job) -> dict[str, Any]:
        """Lay out a job's reasons for programs."""
        stale = not self.plan.valid[job.name] and job.name not in self.plan.restorable
        words, above = self.reasons(job) if stale else ([], [])
        names = [one.name for one in above]
        return {"job": job.name, "must_run": stale, "reasons": words, "because_of": names}

    def explain(self, jobs: Iterable[Job]) -> list[str]:
        """Explain jobs in lines; what is above a job is explained below it, once."""
        lines: list[str] = []
        seen: set[str] = set()
        for job in jobs:
            if job.name not in seen:
                self._explain(job, "", lines, seen)
        return lines

    def _explain(self, job: Job, indent: str, lines: list[str], seen: set[str]) -> None:
        if self.plan.valid[job.name]:
            lines.append(f"{indent}{job.name}: valid, need not run")
            return
        if job.name in self.plan.restorable:
            lines.append(f"{indent}{job.name}: need not run, the store has its result")
            return
        if job.name in seen:
            lines.append(f"{indent}{job.name}: see above")
            return
        seen.add(job.name)
        words, above = self.reasons(job)
        lines.append(f"{indent}{job.name}:")
        lines += [f"{indent}  {word}" for word in words]
        for one in above[:MANY]:
            self._explain(one, indent + "  ", lines, seen)
        if len(above) > MANY:
            lines.append(f"{indent}  ... and {len(above) - MANY} more above it")
