"""What the files of algorithms and metrics declare, read from their syntax trees.

So planning imports neither torch nor any metric. ``algorithms/<name>.py`` holds a dataclass
``Hyperparameters`` (the one place where a parameter, its type and its default are written) and a
class decorated with ``@register("<name>")`` whose attribute ``inputs`` says what its batches hold,
``builds_on_backbone`` whether it needs a network, too, ``needs`` what else, and
``prediction_parameters`` which of the parameters training does not read.
``algorithms/teachers/<kind>.py`` holds such a dataclass, too, and a class decorated with
``@register_teacher("<kind>")``.
A metric's file holds a function decorated with ``@register("<name>", level=...)``; its parameters
after the samples are the metric's.
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


NEEDS = ("teacher", "base", "outside", "textures", "validation")


class DeclarationError(ValueError):
    """A file does not declare what the contract of algorithms or of metrics asks for."""


@dataclass(frozen=True)
class Declaration:
    """What the plan needs to know of an algorithm without importing it."""

    name: str
    inputs: Literal["features", "images"]
    hyperparameters: type[BaseModel]
    prediction_parameters: tuple[str, ...] = ()
    builds_on_backbone: bool = False
    needs: tuple[str, ...] = ()


@lru_cache
def declaration(path: Path) -> Declaration:
    """Read the declaration of the algorithm in ``path``.

    Raises
    ------
    DeclarationError
        If the registered class, its ``inputs`` or a literal default is missing, or
        ``prediction_parameters`` names none of the hyperparameters, or ``needs`` something unknown.
    """
    registered, fields = _registered_class(path, "register")
    inputs = _literal_attribute(registered, "inputs")
    if inputs not in ("features", "images"):
        raise DeclarationError(f'{path}: inputs must be "features" or "images", not {inputs!r}')
    late = tuple(_literal_attribute(registered, "prediction_parameters") or ())
    if unknown := [name for name in late if name not in fields]:
        raise DeclarationError(f"{path}: prediction_parameters: {unknown} are no hyperparameters")
    needs = tuple(_literal_attribute(registered, "needs") or ())
    if unknown := [name for name in needs if name not in NEEDS]:
        raise DeclarationError(f"{path}: needs: {unknown} are none of {', '.join(NEEDS)}")
    builds = bool(_literal_attribute(registered, "builds_on_backbone"))
    return Declaration(path.stem, inputs, _model(path, fields), late, builds, needs)


@lru_cache
def teacher_parameters(path: Path) -> type[BaseModel]:
    """Read the hyperparameters of the teacher in ``path``.

    Raises
    ------
    DeclarationError
        If the registered class or a literal default is missing.
    """
    return _model(path, _registered_class(path, "register_teacher")[1])


def _registered_class(path: Path, decorator: str) -> tuple[ast.ClassDef, dict[str, Any]]:
    """Find the class that a file registers, and the fields of its ``Hyperparameters``."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    registered = [node for node in classes if _registered_name(node, decorator) == path.stem]
    if len(registered) != 1:
        raise DeclarationError(f'{path}: expected one class under @{decorator}("{path.stem}")')
    fields: dict[str, Any] = {}
    for node in classes:
        if node.name == "Hyperparameters":
            fields = dict(_field(path, statement) for statement in _annotated(node))
    return registered[0], fields


@lru_cache
def metric_parameters(path: Path) -> type[BaseModel]:
    """Read the parameters of the metric in ``path``, with their types and defaults.

    Raises
    ------
    DeclarationError
        If the registered function is missing, or a parameter has no type or literal default.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    registered = [node for node in functions if _registered_name(node) == path.stem]
    if len(registered) != 1:
        raise DeclarationError(f'{path}: expected one function under @register("{path.stem}")')
    arguments = registered[0].args
    named = [*arguments.posonlyargs, *arguments.args][1:]
    missing = [None] * (len(named) - len(arguments.defaults))
    pairs = [
        *zip(named, [*missing, *arguments.defaults], strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    fields = dict(
        _typed(path, argument.arg, argument.annotation, default) for argument, default in pairs
    )
    return _model(path, fields)


def registered_files(folder: Path) -> list[Path]:
    """List the files of ``algorithms/`` that register an algorithm, importing none of them."""
    files = sorted(folder.glob("*.py"))
    return [path for path in files if "@register(" in path.read_text(encoding="utf-8")]


def _model(path: Path, fields: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(extra="forbid", frozen=True)
    return create_model(f"{path.stem}_parameters", __config__=config, **fields)


def _registered_name(node: ast.ClassDef | ast.FunctionDef, name: str = "register") -> str | None:
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == name
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
    return _typed(path, name, statement.annotation, statement.value)


def _typed(
    path: Path, name: str, annotation: ast.expr | None, value: ast.expr | None
) -> tuple[str, tuple[Any, Any]]:
    if annotation is None or value is None:
        raise DeclarationError(f"{path}: parameter {name} needs a type and a default")
    try:
        default = ast.literal_eval(value)
        # Annotations come from our own source file and see nothing but the plain types above.
        kind = eval(ast.unparse(annotation), {"__builtins__": {}}, ANNOTATIONS)
    except (ValueError, NameError, TypeError) as error:
        raise DeclarationError(f"{path}: parameter {name}: {error}") from error
    return name, (kind, default)
