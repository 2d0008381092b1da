"""An artefact's stamp as the plan reads it: what it was made with, and whether it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stamp:
    """An artefact's provenance, as found on the disk."""

    path: Path
    fingerprint: str
    files: dict[str, int]  # sizes in bytes, by path relative to the stamp's folder
    data: dict[str, Any]  # all of it

    @property
    def versions(self) -> dict[str, str] | None:
        """Versions of the packages that decided the result."""
        return self.data.get("versions")

    def places(self) -> list[Path]:
        """Paths of the artefact's files, in the order of ``files``."""
        return [Path(os.path.normpath(self.path.parent / name)) for name in self.files]

    def is_whole(self) -> bool:
        """Tell whether all files are there and have the sizes that were stamped."""
        try:
            return all(
                os.stat(path).st_size == size
                for path, size in zip(self.places(), self.files.values(), strict=True)
            )
        except OSError:
            return False


def read_stamp(path: Path) -> Stamp | None:
    """Read a stamp; None if it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): int(size) for name, size in data["files"].items()}
        return Stamp(path, str(data["fingerprint"]), files, data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
