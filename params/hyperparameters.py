"""What an algorithm's file declares, read from its syntax tree so that planning imports no torch.

``algorithms/<name>.py`` holds a dataclass ``Hyperparameters`` (the one place where a parameter,
its type and its default are written) and a class decorated with ``@register("<name>")`` whose
attribute ``inputs`` says what its batches hold.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

ANNOTATIONS: dict[str, Any] = {
    kind.__name__: kind for kind in (int, float, bool, str, tuple, list, dict)
} | {"Literal": Literal, "None": None}


class DeclarationError(ValueError):
    """An algorithm's file does not declare what the contract asks for."""


@dataclass(frozen=True)
class Declaration:
    """What the plan needs to know of an algorithm without importing it."""

    name: str
    inputs: Literal["features", "images"]
    hyperparameters: type[BaseModel]


@lru_cache
def declaration(path: Path) -> Declaration:
    """Read the declaration of the algorithm in ``path``.

    Raises
    ------
    DeclarationError
        If the registered class, its ``inputs`` or a literal default is missing.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    registered = [node for node in classes if _registered_name(node) == path.stem]
    if len(registered) != 1:
        raise DeclarationError(f'{path}: expected one class under @register("{path.stem}")')
    inputs = _literal_attribute(registered[0], "inputs")
    if inputs not in ("features", "images"):
        raise DeclarationError(f'{path}: inputs must be "features" or "images", not {inputs!r}')
    fields: dict[str, Any] = {}
    for node in classes:
        if node.name == "Hyperparameters":
            fields = dict(_field(path, statement) for statement in _annotated(node))
    model = create_model(
        f"{path.stem}_parameters", __config__=ConfigDict(extra="forbid", frozen=True), **fields
    )
    return Declaration(path.stem, inputs, model)


def registered_files(folder: Path) -> list[Path]:
    """List the files of ``algorithms/`` that register an algorithm, importing none of them."""
    files = sorted(folder.glob("*.py"))
    return [path for path in files if "@register(" in path.read_text(encoding="utf-8")]


def _registered_name(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == "register"
        ):
            return str(ast.literal_eval(decorator.args[0]))
    return None


def _annotated(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]


def _literal_attribute(node: ast.ClassDef, name: str) -> Any:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    return None


def _field(path: Path, statement: ast.AnnAssign) -> tuple[str, tuple[Any, Any]]:
    name = ast.unparse(statement.target)
    if statement.value is None:
        raise DeclarationError(f"{path}: hyperparameter {name} needs a default")
    try:
        default = ast.literal_eval(statement.value)
        # Annotations come from our own source file and see nothing but the plain types above.
        kind = eval(ast.unparse(statement.annotation), {"__builtins__": {}}, ANNOTATIONS)
    except (ValueError, NameError, TypeError) as error:
        raise DeclarationError(f"{path}: hyperparameter {name}: {error}") from error
    return name, (kind, default)
