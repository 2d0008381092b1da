"""Turn a grid of parameters into configurations of an algorithm, each a row of the leaderboard.

    python -m workflow.sweep grid.yaml              write params/algorithms/<name>.yaml
    python -m workflow.sweep grid.yaml --dry-run    only say what would be written
    python -m workflow.sweep grid.yaml --remove     delete what it wrote
    python -m workflow.sweep grid.yaml --dvc        print a `dvc exp run --queue` for each instead
    python -m workflow.sweep grid.yaml --dvc --queue    and run those

A grid is a YAML file:

    extends: patchcore                  # a configuration of params/algorithms/
    set: {batch_size: 16}               # the same in all
    grid:                               # every combination
      parameters.coreset_ratio: [0.01, 0.1]
      backbone: [resnet18, wide_resnet50_2]
    zip:                                # side by side: lists of one length
      epochs: [10, 20]
      parameters.rate: [0.01, 0.005]

Nothing is overwritten, and nothing is written unless all of it is valid. `extends` reads the
variant that a run asks for; what the grid says is laid over it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from params.reading import ParamsError, read_benchmark, read_run, read_yaml
from stages.artifacts.files import remove, write_text
from workflow.grid import Grid, Values, combinations, names, nested, read_grid
from workflow.job import ROOT
from workflow.plan import parse_overrides

FOLDER = Path("params/algorithms")
MADE = "# Made by python -m workflow.sweep"


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep."""

    name: str
    values: Values  # what differs between points
    text: str  # of its file


def points(grid: Grid, path: Path, root: Path) -> list[Point]:
    """Lay out the configurations of a grid, as files."""
    varied = list(combinations(grid))
    schema = yaml_schema(root, grid.extends)
    made = []
    for name, values in zip(names(grid.extends, varied), varied, strict=True):
        body = yaml.safe_dump(
            {"extends": grid.extends, **nested({**grid.set, **values})}, sort_keys=False
        )
        text = f"{schema}{MADE} from {path.name}: change that, or rename this file\n{body}"
        made.append(Point(name, values, text))
    return made


def yaml_schema(root: Path, name: str) -> str:
    """Return the line of a configuration by which editors find its schema, if it has one."""
    path = root / FOLDER / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").split("\n", 1)[0] if path.is_file() else ""
    return f"{first}\n" if first.startswith("# yaml-language-server") else ""


def check(made: Sequence[Point], grid: Path, root: Path, overrides: Mapping[str, Any]) -> None:
    """Read all configurations as a run would, from a copy of ``params/``.

    Raises
    ------
    ParamsError
        Naming the grid, the configuration, the key and what is allowed.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for entry in ("algorithms", "metrics"):
            (copy / entry).symlink_to((root / entry).resolve())
        for file in (root / "params").rglob("*.yaml"):
            target = copy / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.resolve())
        for point in made:
            path = copy / FOLDER / f"{point.name}.yaml"
            path.unlink(missing_ok=True)
            path.write_text(point.text, encoding="utf-8")
        # On the demo's images, which need not be there: a sweep says nothing about data.
        listed = {"algorithms": [point.name for point in made], "datasets": {"demo": "all"}}
        try:
            read_run(copy, {**overrides, **listed})
        except ParamsError as error:
            problem = str(error).replace(f"{copy}{os.sep}", "")
            raise ParamsError(f"{grid}: {problem}") from None


def write(made: Sequence[Point], root: Path) -> list[str]:
    """Write configurations, and name those that are new.

    Raises
    ------
    ParamsError
        If a file of that name says something else; then nothing is written.
    """
    paths = {point.name: root / FOLDER / f"{point.name}.yaml" for point in made}
    new = [point for point in made if not paths[point.name].exists()]
    other = [
        point.name
        for point in made
        if point not in new and paths[point.name].read_text(encoding="utf-8") != point.text
    ]
    if other:
        raise ParamsError(
            f"{FOLDER}: {', '.join(other)}: is there already and says something else; "
            "rename or delete it"
        )
    for point in new:
        write_text(paths[point.name], point.text)
    return [point.name for point in new]


def delete(made: Sequence[Point], root: Path) -> list[str]:
    """Delete the configurations of a grid, and name them; those that were edited stay.

    Raises
    ------
    ParamsError
        If one was edited; then nothing is deleted.
    """
    paths = [root / FOLDER / f"{point.name}.yaml" for point in made]
    there = [(point, path) for point, path in zip(made, paths, strict=True) if path.exists()]
    edited = [path.name for point, path in there if path.read_text("utf-8") != point.text]
    if edited:
        raise ParamsError(f"{FOLDER}: {', '.join(edited)}: was edited since; delete it by hand")
    for _, path in there:
        remove(path)
    return [point.name for point, _ in there]


def experiments(
    grid: Grid, made: Sequence[Point], root: Path, overrides: Mapping[str, Any]
) -> list[list[str]]:
    """Return the command that queues each point as an experiment of DVC, in place of a row.

    What a variant says is laid over what the file says: there the value is set in the variant.
    """
    path = FOLDER / f"{grid.extends}.yaml"
    data = read_yaml(root / path)
    variant = read_benchmark(root, overrides).variant
    over = (data.get("variants") or {}).get(variant) or {}
    commands = []
    for point in made:
        command = ["dvc", "exp", "run", "--queue", "--name", point.name]
        for key, value in {**grid.set, **point.values}.items():
            place = f"variants.{variant}.{key}" if holds(over, key.split(".")) else key
            text = "null" if value is None else yaml_flow(value)
            command += ["-S", f"{path}:++{place}={text}"]
        commands.append(command)
    return commands


def holds(data: Any, keys: Sequence[str]) -> bool:
    """Tell whether nested mappings have a value under some keys."""
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def yaml_flow(value: Any) -> str:
    """Write a value in one line, as DVC reads it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def command(made: Sequence[Point], words: Sequence[str]) -> str:
    """Return the command that makes a leaderboard of a sweep."""
    listed = f"algorithms=[{', '.join(point.name for point in made)}]"
    return shlex.join(["snakemake", "--config", *words, listed])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE", help="of the run")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="write nothing")
    either.add_argument("--remove", action="store_true", help="delete what the grid has written")
    parser.add_argument("--dvc", action="store_true", help="experiments of DVC instead of rows")
    parser.add_argument("--queue", action="store_true", help="with --dvc: queue them")
    arguments = parser.parse_args()
    if arguments.queue and not arguments.dvc:
        parser.error("--queue goes with --dvc")
    overrides = parse_overrides(arguments.config)
    try:
        grid = read_grid(arguments.grid)
        made = points(grid, arguments.grid, ROOT)
        if arguments.remove:
            print(f"deleted {len(delete(made, ROOT))} configurations; their results stay")
            return
        check(made, arguments.grid, ROOT, overrides)
        if arguments.dvc:
            for words in experiments(grid, made, ROOT, overrides):
                print(shlex.join(words), flush=True)
                if arguments.queue and not arguments.dry_run:
                    subprocess.run(words, cwd=ROOT, check=True, env=os.environ)
            print("dvc exp run --run-all" if arguments.queue else "# then: dvc exp run --run-all")
            return
        new = [point.name for point in made] if arguments.dry_run else write(made, ROOT)
    except ParamsError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(error.cmd)} failed")
    verb = "would write" if arguments.dry_run else "wrote"
    print(f"# {verb} {len(new)} of {len(made)} configurations to {FOLDER}/; make them:")
    print(command(made, arguments.config))


if __name__ == "__main__":
    main()
