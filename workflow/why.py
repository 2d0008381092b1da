"""Say in words why a job must run: which parameter, function, image, package or job above it.

The artefact's stamp holds what it was made with; the plan knows what it would be made with now.
What the code was is remembered in ``.plan/code/``, of recorded results also in ``results/code/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.files import StageError
from stages.artifacts.stamp import Stamp
from stages.layouts.row import layout
from workflow.job import ADDRESSES, Job
from workflow.plan import CODE_FOLDER, Plan
from workflow.sources import file_hashes

RECORDED_CODE = Path("results/code")
MANY = 5  # so many of a kind are named, the rest counted
LONG = 60  # a value's first characters are quoted
# What a stamp says that a reason can be found in; older ones say less.
SAID = ("parameters", "code", "versions", "data", "upstream")


def quoted(value: Any) -> str:
    """Write a value as JSON, or the beginning of it."""
    text = json.dumps(value)
    return text if len(text) <= LONG else f"{text[:LONG]}..."


def is_names(value: Any) -> bool:
    """Tell whether a value is a list of names, as of metrics."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Name the leaves in which nested values differ: ``key.key: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*new, *(key for key in old if key not in new)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in old:
                yield f"{below}: new, {quoted(new[key])}"
            elif key not in new:
                yield f"{below}: gone, was {quoted(old[key])}"
            else:
                yield from differences(old[key], new[key], below)
    elif is_names(old) and is_names(new) and old != new:
        words = [f"{name} added" for name in new if name not in old]
        words += [f"{name} removed" for name in old if name not in new]
        yield f"{path}: {', '.join(shortened(words)) or 'another order'}"
    elif json.dumps(old) != json.dumps(new):  # 4 is not 4.0: neither is it in a fingerprint
        yield f"{path}: {quoted(old)} -> {quoted(new)}"


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

    def place(self, path: Path) -> str:
        """Write a path relative to the repository, if it lies there."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def module(self, name: str) -> str:
        """Name a module's file."""
        path = self.plan.source.path(name)
        return self.place(path) if path else f"{name.replace('.', '/')}.py"  # deleted, maybe

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
            if module not in old or module not in new:
                verb = "used now" if module in new else "no longer used"
                words.append(f"code: {self.module(module)}: {verb}")
                continue
            for word in changed_names(old[module], new[module]):
                name, _, verb = word.rpartition(" ")
                words.append(f"code: {self.module(module)}: {name or 'top level'} {verb}")
        return shortened(words) or ["code changed: the order of definitions"]

    def data(self, job: Job, old: Mapping[str, str | None]) -> list[str]:
        """Name the images, or other source files, that differ from what the stamp says."""
        if job.stage != "index":
            return [f"data: {name} changed" for name in job.data if old.get(name) != job.data[name]]
        parts = " or ".join(part for part in job.data if old.get(part) != job.data[part])
        before = self.indexed(job)
        if before is None:
            return [f"data: files below {parts} changed"]
        folder = self.root / job.parameters["root"] / job.key["category"]
        try:
            # What an index would list: other files may lie beside the images.
            rows = list(layout(job.parameters["layout"]).find_images(folder, job.parameters))
        except StageError as error:
            return [f"data: {error}"]
        names = [name for row in rows for name in (row.path, *row.masks)]
        hashes = file_hashes([folder / name for name in names], self.plan.cache)
        now = {name: value or "" for name, value in zip(names, hashes, strict=True)}
        words = [f"data: {self.place(folder)}/{word}" for word in changed_names(before, now)]
        return shortened(words) or [f"data: a file below {parts} changed that is no image in use"]

    def indexed(self, job: Job) -> dict[str, str] | None:
        """Hashes of images and masks that the index lists; None if it is missing or broken."""
        from stages.artifacts.index import read_index

        try:
            table = read_index(self.root / job.outputs["index"])
        except StageError:
            return None
        found = dict(zip(table["path"], table["sha256"], strict=True))
        for masks, hashes in zip(table["masks"], table["mask_sha256"], strict=True):
            found.update(zip(masks, hashes, strict=True))
        return found

    def reasons(self, job: Job) -> tuple[list[str], list[Job]]:
        """Return a job's own reasons to run, and the jobs above it that are a reason."""
        stamp = self.plan.stamps[job.name]
        if job.forced:
            above = [one for one in job.upstream if one.forced]
            return ([] if above else ["asked for by --forcerun"]), above
        if stamp is None:
            path = job.outputs["provenance"]
            there = (self.root / path).exists()
            return [f"cannot be read: {path}" if there else f"not there: {path}"], []
        if stamp.fingerprint == job.fingerprint:
            return [] if stamp.is_whole() else [f"missing or cut short: {self.broken(stamp)}"], []
        stamped = stamp.data
        old, new = (
            {key: value for key, value in parameters.items() if key not in ADDRESSES}
            # As a stamp has them: lists, and keys that are text.
            for parameters in (
                stamped.get("parameters", {}),
                json.loads(json.dumps(job.parameters)),
            )
        )
        words = shortened([f"parameter {word}" for word in differences(old, new)])
        if stamped.get("code") != job.program.digest:
            words += self.code(job, str(stamped.get("code")))
        if missing := [name for name in SAID if name not in stamped]:
            return [*words, f"made by an older version, whose stamp lacks {', '.join(missing)}"], []
        versions = stamped["versions"]
        for name in sorted({*versions, *job.versions}):
            before, now = versions.get(name, "not used"), job.versions.get(name, "not used")
            if before != now:
                words.append(f"package {name}: {before} -> {now}")
        if stamped["data"] != job.data:
            words += self.data(job, stamped["data"])
        before, seen = stamped["upstream"], job.above()
        above = [one for one in job.upstream if before.get(one.name) != seen[one.name]]
        words += shortened([f"no longer reads {name}" for name in before if name not in seen])
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
        return words or ["made by another version of workflow/jobs.py"]

    def broken(self, stamp: Stamp) -> str:
        """Name an artefact's files that are missing or have another size."""
        bad = [
            self.place(path)
            for path, size in zip(stamp.places(), stamp.files.values(), strict=True)
            if not path.is_file() or path.stat().st_size != size
        ]
        return ", ".join(shortened(bad))

    def facts(self, job: Job) -> dict[str, Any]:
        """Lay out a job's reasons for programs."""
        stale = self.plan.must_run(job)
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
        """Explain a job, and indented what above it is a reason."""
        if self.plan.valid[job.name]:
            state = "made anew since" if indent else "valid, need not run"
            lines.append(f"{indent}{job.name}: {state}")
        elif job.name in self.plan.restorable:
            state = "made anew since, and in" if indent else "need not run, its result is in"
            lines.append(f"{indent}{job.name}: {state} the store")
        elif job.name in seen:
            lines.append(f"{indent}{job.name}: see above")
        else:
            seen.add(job.name)
            words, above = self.reasons(job)
            lines.append(f"{indent}{job.name}:")
            lines += [f"{indent}  {word}" for word in words]
            for one in above[:MANY]:
                self._explain(one, indent + "  ", lines, seen)
            if len(above) > MANY:
                lines.append(f"{indent}  ... and {len(above) - MANY} more above it")
