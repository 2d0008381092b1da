"""How the report's files are written: templates that escape, data as scripts, names as safe paths.

A page that is opened from a disk may not read other files, but may run scripts: so data is written
as scripts that set a variable.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

PACKAGE = "stages.reporting"


def slug(name: str) -> str:
    """Make a name safe in paths and links; one that is changed gets digits of its own."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    if safe == name and name.strip("."):
        return name
    return f"{safe.strip('.')[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def as_json(data: Any) -> str:
    """Write JSON that can stand in a script: it can neither end it nor begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def decimals(value: float | None, digits: int = 3) -> str:
    """Write a number, or what stands for one that is missing."""
    return "nan" if value is None or value != value else f"{value:.{digits}f}"


def quantity(value: float | None, unit: str = "") -> str:
    """Write a measured number with about three digits; a dash if it was not measured."""
    if value is None or value != value:
        return "–"
    if abs(value) < 0.001:
        return f"{'0' if value == 0 else '< 0.001'} {unit}".rstrip()
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace(",", "\u202f") + (f" {unit}" if unit else "")


def environment() -> Environment:
    """Make the templates' environment: everything is escaped, and a missing name is an error."""
    env = Environment(
        loader=PackageLoader(PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"slug": slug, "decimals": decimals, "quantity": quantity}
    return env


class Site:
    """A folder of pages.

    Parameters
    ----------
    folder
        Where they go.
    common
        What all templates may name.
    """

    def __init__(self, folder: Path, common: Mapping[str, Any]) -> None:
        self.folder = folder
        self.environment = environment()
        self.common = dict(common)
        folder.mkdir(parents=True, exist_ok=True)

    def assets(self) -> None:
        """Copy scripts and styles."""
        (self.folder / "assets").mkdir()
        for file in sorted(resources.files(PACKAGE).joinpath("assets").iterdir(), key=str):
            text = file.read_text(encoding="utf-8")
            (self.folder / "assets" / file.name).write_text(text, encoding="utf-8")

    def page(self, path: str, template: str, data: Any = None, **context: Any) -> None:
        """Render a page; ``data`` is what its own scripts read."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(Path(path).parts) - 1)
        text = self.environment.get_template(template).render(
            **self.common, **context, up=up, path=path, data=None if data is None else as_json(data)
        )
        target.write_text(text, encoding="utf-8")

    def script(self, path: str, variable: str, data: Any) -> None:
        """Write data as a script that sets ``window.<variable>``."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"window.{variable}={as_json(data)};\n", encoding="utf-8")

    def take(self, source: Path, path: str) -> str:
        """Put a file beside the pages: a hard link where the disk has them, else a copy."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        return path


def first_sentence(html_free: str) -> str:
    """Cut a text after its first sentence."""
    text = " ".join(html_free.split())
    found = re.match(r".+?[.!?](?=\s|$)", text)
    return found.group() if found else text


def unique(values: Iterable[Any]) -> list[Any]:
    """List different values in order."""
    return list(dict.fromkeys(values))
