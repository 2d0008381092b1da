"""Small copies of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.mini_repository import Repository, make_repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Copy the repository, with the preset tiny on two drawn categories."""
    return make_repository(tmp_path / "repository")
