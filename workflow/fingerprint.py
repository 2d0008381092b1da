"""Digests of code and data: what decides whether an artefact is still valid.

Code counts as its syntax tree, so that comments, docstrings and formatting change nothing, and
only the repository's modules that a job really imports count, found by following import
statements; of the packages they import, those that decide results count by version. Data counts
by content; hashes are remembered by (path, size, times).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Packages whose version can change a number: the import's name and the distribution's.
DECIDING = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "FrEIA": "FrEIA",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "shapely": "shapely",
}
# A file this young may change again within its clock's tick, unseen.
RACY_SECONDS = 2.5


def digest(data: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a file that can be made again: replaced in one step, not flushed to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def update_text(path: Path, text: str) -> None:
    """Write a file as :func:`replace_text` does, unless it holds the text already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        replace_text(path, text)


class HashCache:
    """Remembers what was computed from a file as long as its size and times stay the same.

    As in Git's index, what was computed from a file that had just been written is not trusted: a
    second change within one tick of the file system's clock would leave size and times alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        self.entries: dict[str, list[Any]] = {}
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self.entries = {key: list(entry) for key, entry in entries.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # a lost or damaged cache costs time only

    def get(self, kind: str, path: Path, compute: Callable[[Path], Any]) -> Any:
        """Return ``compute(path)``, from memory if the file has not changed."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        key = f"{kind}:{path}"
        entry = self.entries.get(key)
        if entry is None or entry[:3] != stamp or len(entry) != 4:
            value = compute(path)
            newest = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
            if time.time() - newest < RACY_SECONDS:
                self.entries.pop(key, None)
                return value
            entry = [*stamp, value]
            self.entries[key] = entry
            self.changed = True
        return entry[3]

    def save(self) -> None:
        """Write the cache if anything is new."""
        if self.changed:
            replace_text(self.path, json.dumps(self.entries))
            self.changed = False


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hashes(folder: Path, part: str, cache: HashCache) -> dict[str, str]:
    """SHA-256 of all files below one part of a folder, by path relative to the folder."""
    files = [
        Path(place, name)
        for place, _, names in os.walk(folder / part, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    files.sort()
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter
        hashes = pool.map(lambda path: cache.get("sha256", path, sha256_file), files)
        return {
            path.relative_to(folder).as_posix(): value
            for path, value in zip(files, hashes, strict=True)
        }


def folder_content(folder: Path, part: str, cache: HashCache) -> str | None:
    """Digest of names and contents of all files below one part of a folder; None if absent."""
    if not (folder / part).is_dir():
        return None
    return digest(list(folder_hashes(folder, part, cache).items()))


def without_docstrings(source: str) -> ast.Module:
    """Parse a module and drop its docstrings."""
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
    return tree


def dump(node: Any) -> str:
    """Write a syntax tree as text, without positions.

    Unlike :func:`ast.dump`, the same for all Pythons from 3.11 on: fields that are empty are left
    out, since each version adds some.
    """
    if isinstance(node, list):
        return f"[{','.join(map(dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        f"{name}={dump(value)}"
        for name, value in sorted(ast.iter_fields(node))
        # A constant's value may be None or empty, and `kind` tells u"" from "".
        if name != "kind" and (isinstance(node, ast.Constant) or value not in (None, []))
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def normalised_tree(source: str) -> str:
    """Syntax tree of a module as text, without docstrings and positions."""
    return dump(without_docstrings(source))


def definitions(source: str) -> dict[str, str]:
    """Short digests of a module's functions, methods and classes, and (``""``) of all the rest."""
    found: dict[str, list[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            name = prefix
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}.{node.name}" if prefix else node.name
            if isinstance(node, ast.ClassDef):
                visit(node.body, name)
                node.body = []  # what is left of a class: its bases and decorators
            found.setdefault(name, []).append(dump(node))

    visit(without_docstrings(source).body, "")
    return {name: digest(texts)[:12] for name, texts in found.items()}


@lru_cache
def version(distribution: str) -> str | None:
    """Installed version of a package, without a build's label (``+cpu``); None if absent."""
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Program:
    """What a job executes: modules with all that they import, and packages that decide results."""

    modules: tuple[str, ...]
    digest: str
    versions: dict[str, str]


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
        self._paths: dict[str, Path | None] = {}
        self._closures: dict[str, frozenset[str]] = {}
        self._programs: dict[tuple[str, ...], Program] = {}
        self._read: dict[str, list[Any]] = {}

    def path(self, module: str) -> Path | None:
        """File of a repository module, or None if it is not one."""
        if module not in self._paths:
            self._paths[module] = self._find(module)
        return self._paths[module]

    def _find(self, module: str) -> Path | None:
        top = module.split(".")[0]
        if top not in self.packages:
            return None
        base = self.packages[top].joinpath(*module.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
        return None

    def _facts(self, module: str, path: Path) -> list[Any]:
        """Digest of the syntax tree, imported names, digests of definitions."""

        def compute(file: Path) -> Any:
            source = file.read_text(encoding="utf-8")
            tree = hashlib.sha256(normalised_tree(source).encode()).hexdigest()
            names = imported_names(source, module, file.name == "__init__.py")
            return [tree, names, definitions(source)]

        if module not in self._read:
            self._read[module] = self.cache.get("code", path, compute)
        return self._read[module]

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

    def _all(self, modules: tuple[str, ...]) -> dict[str, list[Any]]:
        """Facts of some modules and of all that they import."""
        names = sorted(set().union(*(self.closure(module) for module in modules)))
        paths = {name: self.path(name) for name in names}
        return {name: self._facts(name, path) for name, path in paths.items() if path}

    def program(self, *modules: str) -> Program:
        """Digest some modules and all they import, and find the packages that decide results."""
        if modules not in self._programs:
            facts = self._all(modules)
            imported = {name.split(".")[0] for fact in facts.values() for name in fact[1]}
            versions = {
                distribution: found
                for name, distribution in sorted(DECIDING.items())
                if name in imported and (found := version(distribution))
            }
            trees = [(name, fact[0]) for name, fact in facts.items()]
            self._programs[modules] = Program(modules, digest(trees), versions)
        return self._programs[modules]

    def manifest(self, *modules: str) -> dict[str, dict[str, str]]:
        """Digests of all definitions of some modules and all they import, by module."""
        return {name: fact[2] for name, fact in self._all(modules).items()}
