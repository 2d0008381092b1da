"""An algorithm that is being written: a class in a notebook's cell, and the file it will be.

The cell that defines the class becomes the file, all of it, so it holds what a file does: a
docstring, imports, ``Hyperparameters``, functions, the class. What is added is its registration.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import linecache
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from params import models
from params.reading import read_yaml, validate
from stages.artifacts.files import write_text
from workflow.job import ROOT

SCHEMA = "# yaml-language-server: $schema=../../workflow/schemas/algorithms/{}.schema.json\n"
IN_A_FILE = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign)


class DraftError(ValueError):
    """A draft cannot become a file, or does not run; says why."""


@dataclass(frozen=True)
class Draft:
    """An algorithm that is not in ``algorithms/`` yet.

    Attributes
    ----------
    name
        Of its file and of its configuration.
    source
        Contents of ``algorithms/<name>.py``.
    configuration
        Contents of ``params/algorithms/<name>.yaml``.
    """

    name: str
    source: str = field(repr=False)
    configuration: str = field(repr=False)

    def write(self, root: Path) -> list[Path]:
        """Write both files below ``root``; return their paths relative to it."""
        files = {
            Path("algorithms", f"{self.name}.py"): self.source,
            Path("params", "algorithms", f"{self.name}.yaml"): self.configuration,
        }
        for path, text in files.items():
            write_text(root / path, text)
        return list(files)


def draft(cls: type, name: str | None = None, **settings: Any) -> Draft:
    """Take a class, and the cell or file that defines it, for a draft.

    Parameters
    ----------
    cls
        A class with the methods of ``algorithms.base.Algorithm``.
    name
        By default the class's, with underscores: ``MeanDistance`` is ``mean_distance``.
    settings
        What the YAML says: ``backbone``, ``layers``, ``epochs``, ``batch_size``, ``parameters``...

    Raises
    ------
    DraftError
        If the cell holds what a file must not, or is not to be found.
    ParamsError
        If a setting is unknown or has a wrong value.
    """
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
    content = {"algorithm": name, **settings}
    validate(models.Algorithm, content, f"settings of {name}")
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    return Draft(name, as_file(cell_of(cls), cls.__name__, name), SCHEMA.format(name) + text)


def save(draft: Draft, root: Path = ROOT, overwrite: bool = False) -> str:
    """Write a draft into the repository; return what to do next.

    Raises
    ------
    DraftError
        If there is an algorithm or a configuration of this name, and it may not be overwritten.
    """
    places = [f"algorithms/{draft.name}.py", f"params/algorithms/{draft.name}.yaml"]
    there = [place for place in places if (root / place).exists()]
    if there and not overwrite:
        raise DraftError(f"{there[0]} is there: give the draft another name, or overwrite=True")
    draft.write(root)
    listed = read_yaml(root / "params" / "benchmark.yaml")["algorithms"]
    row = ", ".join([*listed, *({draft.name} - {*listed})])
    return (
        f"wrote {' and '.join(places)}\n"
        f"on the leaderboard: snakemake --config algorithms='[{row}]'\n"
        "before a commit:    make schemas docs test"
    )


def cell_of(cls: type) -> str:
    """Return the source of the cell, or of the file, that defines a class.

    Raises
    ------
    DraftError
        If it is not known: the class was made by other means than a cell or a file.
    """
    codes = (getattr(value, "__code__", None) for value in vars(cls).values())
    file = next((code.co_filename for code in codes if inspect.iscode(code)), None)
    source = "".join(linecache.getlines(file)) if file else ""
    if not source:
        raise DraftError(f"{cls.__name__}: its source is not to be found; run its cell again")
    return source


def as_file(cell: str, cls: str, name: str) -> str:
    """Turn a cell into the file ``algorithms/<name>.py``: register its class, and format it.

    Raises
    ------
    DraftError
        If the cell does more than to define, so that importing the file would do it, too.
    """
    tree = ast.parse(cell)
    for number, node in enumerate(tree.body):
        docstring = number == 0 and ast.get_docstring(tree) is not None
        if not docstring and not isinstance(node, IN_A_FILE):
            raise DraftError(
                f"line {node.lineno} of the cell of {cls}: `{ast.unparse(node).splitlines()[0]}`: "
                "the cell becomes a file, so it may only import and define; "
                "move this to another cell"
            )
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    if len(classes) != 1:
        raise DraftError(f"the cell defines {len(classes)} classes {cls}, expected one")
    lines = cell.splitlines()
    first = min([classes[0].lineno, *(one.lineno for one in classes[0].decorator_list)])
    lines.insert(first - 1, f'@register("{name}")')
    if "register" not in _imported(tree):
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        last = imports[-1].end_lineno if imports else 0
        lines.insert(last or 0, "from algorithms.base import register")
    return _formatted("\n".join(lines) + "\n", name)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "algorithms.base":
            yield from (alias.name for alias in node.names)


def _formatted(source: str, name: str) -> str:
    """Sort imports and format, as `make lint` wants it, where Ruff is installed."""
    if importlib.util.find_spec("ruff") is None:
        return source
    file = f"algorithms/{name}.py"
    for command in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", file, "-"],
            input=source,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DraftError(f"{file}: {done.stderr.strip()}")
        source = done.stdout
    return source
