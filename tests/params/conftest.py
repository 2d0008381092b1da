"""A copy of ``params/`` and of what it is checked against, for tests that edit it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[str, Any], Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Copy the parameters, the algorithms and the catalogue of metrics."""
    for part in ("params", "algorithms", "metrics/visionad_metrics/catalogue"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def write(root: Path) -> Write:
    """Write text, or data as YAML, to a path below ``params/``."""

    def write_file(path: str, data: Any) -> Path:
        file = root / "params" / path
        text = data if isinstance(data, str) else yaml.safe_dump(data)
        file.write_text(text, encoding="utf-8")
        return file

    return write_file
