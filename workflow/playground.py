"""Try an algorithm before it is one of the benchmark's: evaluate, compare, check (notebooks/).

A draft runs in a workshop: ``.plan/playground/``, a folder of links to the repository in which the
draft's file stands as it will when it is saved. There the plan makes the jobs and the stages run
them, in a fresh process each time. So the numbers are the pipeline's, and since both share the
store, what was computed here need not be computed again there.

    python -m workflow.playground JOB [JOB ...]    run stages in this process, one after another
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from params.hyperparameters import declaration, metric_parameters, teacher_parameters
from params.reading import read_algorithm, read_benchmark
from stages.artifacts.files import StageError, read_json, remove
from stages.artifacts.job import read_job
from stages.command import Options, execute, limit_threads
from stages.viewing import Category, Result, open_category, read_result
from workflow.drafts import Draft, DraftError
from workflow.job import PLAN_FOLDER, ROOT, Job
from workflow.plan import STORE, Plan, lock

WORKSHOP = PLAN_FOLDER / "playground"
LINKED = ("stages", "metrics", "workflow", "tests", "data", "pyproject.toml")
CONTRACT = "tests/algorithms/test_contract.py"


@dataclass(frozen=True)
class Check:
    """What the contract test says of a draft: by test, why it failed, or nothing."""

    name: str
    failures: Mapping[str, str]
    passed: int

    def __bool__(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.passed} tests passed, {len(self.failures)} failed"]
        return "\n".join([*lines, *(f"  {test}: {why}" for test, why in self.failures.items())])

    __repr__ = __str__


def category(name: str, *, root: Path = ROOT, **overrides: Any) -> Category:
    """Make ready the images of a category, drawn if need be, and check every file of them.

    Parameters
    ----------
    name
        A data set of ``params/datasets/`` and one of its categories: ``demo/weave``.
    root
        The repository's folder.
    overrides
        Keys of ``params/benchmark.yaml``, e.g. ``preset="cpu_real"``.

    Raises
    ------
    ParamsError, DraftError
        If there is no such category, or one of its files is unusable.
    """
    overrides = _absolute(root, overrides)
    dataset, _, own = name.partition("/")
    with _workshop(root, None) as place:
        plan = Plan(place, {**overrides, "algorithms": ["random"], "datasets": {dataset: [own]}})
        index = plan.jobs[f"index/{name}"]
        _run(plan, index, plan.jobs[f"check/{dataset}"])
        return open_category(
            place / index.outputs["index"],
            name=name,
            repository=root,
            overrides=overrides,
            folder=root / index.parameters["root"] / own,
            size=plan.protocol.evaluation_size,
            crop=plan.protocol.crop,
            interpolation=plan.protocol.interpolation,
            colour_map=plan.run.figures.colour_map,
        )


def evaluate(
    algorithm: Draft | str, category: Category, seed: int = 0, threads: int | None = None
) -> Result:
    """Train, predict and evaluate on one category, as the pipeline does.

    Parameters
    ----------
    algorithm
        A draft, or the name of a configuration in ``params/algorithms/``.
    category
        The images.
    seed
        Of the training.
    threads
        By default as many as there are cores.

    Raises
    ------
    ParamsError
        If the configuration is wrong.
    DraftError
        If a stage fails; with its traceback, whose lines are those of the draft's file.
    """
    draft = algorithm if isinstance(algorithm, Draft) else None
    name = draft.name if draft else str(algorithm)
    dataset, _, own = category.name.partition("/")
    with _workshop(category.repository, draft) as place:
        benchmark = read_benchmark(place, category.overrides)
        config = read_algorithm(place, name, benchmark.variant, "evaluate")
        needs = declaration(place / "algorithms" / f"{config.algorithm}.py").needs
        datasets = _datasets(benchmark.datasets, dataset, own, needs)
        asked = {"algorithms": [name], "seeds": [seed], "datasets": datasets, "learning_epochs": []}
        plan = Plan(place, {**category.overrides, **asked})
        key = f"{name}/{category.name}/seed{seed}"
        predict, evaluate = plan.jobs[f"predict/{key}"], plan.jobs[f"evaluate/{key}"]
        _run(plan, evaluate, threads=threads)
        metrics = {metric: place / evaluate.outputs[metric] for metric in plan.run.metrics}
        return read_result(name, category, place / predict.outputs["maps"], metrics)


def check(draft: Draft, root: Path = ROOT) -> Check:
    """Run the contract test on a draft: the very one that every algorithm must pass.

    It trains on toy data of 64 px, with the hyperparameters' defaults; one that is too large for
    that has its own settings in the test's file once it is saved.

    Raises
    ------
    DraftError
        If the tests do not run at all.
    """
    with _workshop(root, draft) as place, tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        only = f"[{draft.name}] or [{draft.name}- or -{draft.name}]"
        words = ["-m", "pytest", CONTRACT, "-k", only, f"--junitxml={report}"]
        environment = _environment(place)
        environment.pop("CI", None)  # makes pytest explain every difference, however long it takes
        done = subprocess.run(
            [sys.executable, *words, "-p", "no:cacheprovider", "--color=no"],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1) or not report.is_file():
            raise DraftError(f"the contract test does not run:\n{done.stdout[-4000:]}{done.stderr}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures, passed = {}, 0
    for case in cases:
        failed = [one for one in case if one.tag in ("failure", "error")]
        if failed:
            failures[_title(case.attrib["name"], draft.name)] = _reason(
                failed[0].attrib.get("message", "")
            )
        elif case.find("skipped") is None:
            passed += 1
    return Check(draft.name, failures, passed)


def _title(test: str, name: str) -> str:
    """Turn ``test_on_the_batch[1-coin]`` into words, without the draft's name."""
    title, _, parameters = test.removeprefix("test_").partition("[")
    others = [one for one in parameters.rstrip("]").split("-") if one not in (name, "")]
    return " ".join([title.replace("_", " "), *(f"({one})" for one in others)])


def _reason(message: str) -> str:
    """Shorten a failure's message: what the test says, else the assertion; no values compared."""
    lines = [line.strip() for line in message.removeprefix("AssertionError:").splitlines()]
    lines = [line for line in lines if line]
    said = itertools.takewhile(lambda line: not line.startswith("assert "), lines)
    return "; ".join([*itertools.islice(said, 2)] or lines[:1])


@contextmanager
def _workshop(root: Path, draft: Draft | None) -> Iterator[Path]:
    """Lay out the repository by links, with a draft in its place, and lock the folder."""
    place = root / WORKSHOP
    place.mkdir(parents=True, exist_ok=True)
    with lock(place):
        for remembered in (declaration, metric_parameters, teacher_parameters):
            remembered.cache_clear()  # by path, and this session lives on while files change
        for old in place.iterdir():
            if old.name != PLAN_FOLDER.name:  # it remembers hashes
                remove(old)
        for name in LINKED:
            (place / name).symlink_to(root / name)
        if (root / STORE).is_dir() or read_benchmark(root, {}).pipeline.store_gb:
            (root / STORE).mkdir(exist_ok=True)
            (place / STORE).symlink_to(root / STORE)
        for folder, real in (
            ("algorithms", ()),
            ("params", ("algorithms",)),
            ("params/algorithms", ()),
        ):
            (place / folder).mkdir()
            for source in (root / folder).iterdir():
                if source.name not in (*real, "__pycache__"):
                    (place / folder / source.name).symlink_to(source)
        if draft is not None:
            draft.write(place)
        yield place


def _absolute(root: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Make folders outside the repository absolute: the workshop is not where it is."""
    benchmark = read_benchmark(root, overrides)
    found = {name: str((root / path).resolve()) for name, path in benchmark.roots.items()}
    folders = {key: getattr(benchmark, key) for key in ("pretraining_images", "textures")}
    given = {key: str((root / path).resolve()) for key, path in folders.items() if path}
    return {**overrides, **given, "roots": found}


def _datasets(
    listed: Mapping[str, Any], dataset: str, category: str, needs: Collection[str]
) -> dict[str, Any]:
    """Choose what a run holds: the category, or all of it where an algorithm sees other images."""
    if not {"teacher", "outside"} & {*needs}:
        return {dataset: [category]}
    own = listed.get(dataset, [])
    return {**listed, dataset: own if own == "all" or category in own else [*own, category]}


def _above(*jobs: Job) -> list[Job]:
    """Jobs and all that they need, the latter first."""
    found: dict[str, Job] = {}
    for job in jobs:
        for above in _above(*job.upstream, *job.waits_for):
            found.setdefault(above.name, above)
        found.setdefault(job.name, job)
    return list(found.values())


def _run(plan: Plan, *jobs: Job, threads: int | None = None) -> None:
    """Run what some jobs need and neither the workshop nor the store has.

    What the stages print is printed here as it comes.
    """
    plan.restore()
    plan.write()
    stale = [job for job in _above(*jobs) if plan.must_run(job)]
    if not stale:
        return
    words = [sys.executable, "-m", "workflow.playground", *(str(job.file) for job in stale)]
    environment = _environment(plan.root) | {"PLAYGROUND_THREADS": str(threads or os.cpu_count())}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words, cwd=plan.root, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for line in process.stdout or ():
                print(line, end="")
            process.wait()
        finally:
            process.kill()
        errors.seek(0)
        if process.returncode:
            raise DraftError(errors.read().strip() or f"a stage ended with {process.returncode}")


def _environment(place: Path) -> dict[str, str]:
    """Environment of a process whose imports come from the workshop."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(place / "metrics")])}


def main() -> None:
    """Run the stages of the job files that the command line names."""
    os.environ["TQDM_DISABLE"] = "1"
    threads = int(os.environ["PLAYGROUND_THREADS"])
    limit_threads(threads)
    for path in map(Path, sys.argv[1:]):
        stage = read_json(path)["stage"]
        job = read_job(path, stage)
        try:
            execute(job, Options(threads, job.device, False), import_module(f"stages.{stage}").body)
        except StageError as error:
            sys.exit(f"{stage}: {error}")


if __name__ == "__main__":
    main()
