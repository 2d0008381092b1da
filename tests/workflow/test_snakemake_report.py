"""Snakemake's own report of a finished run: everything that people look at, with words to it."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.mini_repository import make_repository
from tests.workflow.running import succeeds

SHOWN = {
    "Leaderboard": {"leaderboard.md", "pl.csv", "pl.svg", "pl_latency.svg", "aupro_memory.svg"},
    "Anomaly maps": {"sheet.png"},
    "Proportion Localised": {"regions.png", "thresholds.png"},
    "Significance": {"critical_difference_pl.svg"},
}


def variable(html: str, name: str) -> dict[str, Any]:
    """What a report's script sets a variable to."""
    (place,) = [match.end() for match in re.finditer(rf"var {name} = (?=\{{)", html)]
    found: dict[str, Any] = json.JSONDecoder().raw_decode(html, place)[0]
    return found


@pytest.mark.slow
def test_report_has_captions_labels_and_categories(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    repository.edit("presets/tiny.yaml", localisation=["padim"], metrics=["aupro", "pl"])
    succeeds(repository.snakemake())
    succeeds(repository.snakemake("--report", "report.zip"))
    with zipfile.ZipFile(repository.root / "report.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
        html = archive.read("report/report.html").decode()
    assert set().union(*SHOWN.values()) <= names
    results, categories = variable(html, "results"), variable(html, "categories")
    listed: set[str] = set()
    for category, expected in SHOWN.items():
        paths = [path for some in categories[category].values() for path in some]
        assert expected <= {Path(path).name for path in paths}
        listed |= set(paths)
    assert listed == set(results)
    for path, result in results.items():
        assert len(result["caption"]) > 60 and "{{" not in result["caption"], path
        assert result["labels"]["data set"] == "folder", path
    succeeds(repository.snakemake("--report", "report.html"))
    page = (repository.root / "report.html").read_text()
    assert set(variable(page, "results")) == set(results)
    assert variable(page, "categories") == categories
