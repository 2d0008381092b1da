"""Digests of code and data: what decides whether an artefact is still valid.

Code counts as its syntax tree, so that comments, docstrings and formatting change nothing, and
only the repository's modules that a job really imports count, found by following import
statements. Data counts by content; hashes are remembered by (path, size, modification time).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def digest(data: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class HashCache:
    """Remembers what was computed from a file as long as its size and time stay the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        try:
            self.entries: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.entries = {}  # a lost or damaged cache costs time only

    def get(self, kind: str, path: Path, compute: Callable[[Path], Any]) -> Any:
        """Return ``compute(path)``, from memory if the file has not changed."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        key = f"{kind}:{path}"
        entry = self.entries.get(key)
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, compute(path)]
            self.entries[key] = entry
            self.changed = True
        return entry[2]

    def save(self) -> None:
        """Write the cache, atomically, if anything is new."""
        if not self.changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        temporary.write_text(json.dumps(self.entries), encoding="utf-8")
        os.replace(temporary, self.path)
        self.changed = False


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_content(folder: Path, parts: Iterable[str], cache: HashCache) -> str | None:
    """Digest of names and contents of all files below some parts of a folder; None if absent."""
    if not folder.is_dir():
        return None
    files = [
        Path(place, name)
        for part in parts
        for place, folders, names in os.walk(folder / part, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    files.sort()
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter
        hashes = pool.map(lambda path: cache.get("sha256", path, sha256_file), files)
        return digest(
            [
                (path.relative_to(folder).as_posix(), value)
                for path, value in zip(files, hashes, strict=True)
            ]
        )


def normalised_tree(source: str) -> str:
    """Syntax tree of a module as text, without docstrings and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


def imported_names(source: str, module: str, is_package: bool) -> list[str]:
    """Dotted names that a module's import statements may load, inside functions too."""
    names: list[str] = []
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


class Code:
    """The repository's modules: which import which, and what each says.

    Parameters
    ----------
    root
        The repository's folder.
    packages
        Top-level packages of the repository and the folders that hold them.
    """

    def __init__(self, root: Path, cache: HashCache) -> None:
        self.packages = {
            "stages": root,
            "algorithms": root,
            "visionad_metrics": root / "metrics",
        }
        self.cache = cache
        self._closures: dict[str, frozenset[str]] = {}
        self._digests: dict[tuple[str, ...], str] = {}

    def path(self, module: str) -> Path | None:
        """File of a repository module, or None if it is not one."""
        top = module.split(".")[0]
        if top not in self.packages:
            return None
        base = self.packages[top].joinpath(*module.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
        return None

    def _facts(self, module: str, path: Path) -> tuple[str, list[str]]:
        def compute(file: Path) -> Any:
            source = file.read_text(encoding="utf-8")
            tree = hashlib.sha256(normalised_tree(source).encode()).hexdigest()
            return [tree, imported_names(source, module, file.name == "__init__.py")]

        tree, names = self.cache.get("code", path, compute)
        return tree, names

    def _imports(self, module: str) -> Iterator[str]:
        path = self.path(module)
        if path is None:
            return
        for name in self._facts(module, path)[1]:
            parts = name.split(".")
            # Importing a.b.c runs a, a.b and a.b.c; a trailing attribute is no module.
            for length in range(1, len(parts) + 1):
                prefix = ".".join(parts[:length])
                if self.path(prefix) is not None:
                    yield prefix

    def closure(self, module: str) -> frozenset[str]:
        """All repository modules that importing ``module`` may load, itself included."""
        if module not in self._closures:
            seen: set[str] = set()
            parts = module.split(".")
            todo = [".".join(parts[: length + 1]) for length in range(len(parts))]
            while todo:
                current = todo.pop()
                if current not in seen and self.path(current) is not None:
                    seen.add(current)
                    todo += self._imports(current)
            self._closures[module] = frozenset(seen)
        return self._closures[module]

    def digest(self, *modules: str) -> str:
        """Digest of the syntax trees of some modules and all they import."""
        if modules not in self._digests:
            names = sorted(set().union(*(self.closure(module) for module in modules)))
            facts = []
            for name in names:
                path = self.path(name)
                assert path is not None
                facts.append((name, self._facts(name, path)[0]))
            self._digests[modules] = digest(facts)
        return self._digests[modules]
