"""Published values: what lies in params/published/ is whole, and a broken table is named."""

from pathlib import Path

import pytest

from params.reading import ParamsError
from stages.artifacts.files import StageError
from stages.published import COLUMNS, MEAN, measured_on, read_published, read_sources, read_values
from tests.workflow.mini_repository import make_repository

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "params" / "published"
SOURCES = """one:
  title: A paper
  url: https://example.org
  year: 2024
  protocol: The authors' own.
"""
HEAD = ",".join(COLUMNS) + "\n"
ROW = "one,mvtec_ad,pl,padim,screw,0.5\n"


def write(folder: Path, rows: str, head: str = HEAD, sources: str = SOURCES) -> Path:
    (folder / "sources.yaml").write_text(sources)
    (folder / "table.csv").write_text(head + rows)
    return folder / "table.csv"


def test_what_is_shipped_is_whole() -> None:
    values, sources = read_published(sorted(FOLDER.glob("*.csv")))
    assert set(sources) == set(read_sources(FOLDER / "sources.yaml")), "a source without values"
    configurations = {path.stem for path in (ROOT / "params" / "algorithms").glob("*.yaml")}
    assert set(values["algorithm"]) <= configurations
    assert set(values["dataset"]) <= {p.stem for p in (ROOT / "params" / "datasets").glob("*.yaml")}


def test_visionads_means_are_those_of_its_categories() -> None:
    """The tables were copied whole: 4 metrics of 15 algorithms on 15 categories."""
    table = read_values(FOLDER / "visionad.csv")
    assert len(table) == 4 * 15 * 16
    keys = ["metric", "algorithm"]
    mean = table[table["category"] == MEAN].set_index(keys)["value"]
    computed = table[table["category"] != MEAN].groupby(keys)["value"].mean()
    assert (mean - computed).abs().max() < 0.0006  # three digits, rounded twice
    assert mean["pl", "reverse_distillation"] == 0.899
    assert mean["image_auroc", "efficientad_m"] == 0.992


def test_names_stay_text_and_data_sets_of_other_sizes_count(tmp_path: Path) -> None:
    rows = ROW + "one,mvtec_ad,pl,padim,NA,0\none,mvtec_loco,pl,padim,01,1\n"
    values, sources = read_published([write(tmp_path, rows)])
    assert list(values["category"]) == ["screw", "NA", "01"]
    assert list(measured_on(values, "mvtec_ad_320")["category"]) == ["screw", "NA"]
    assert measured_on(values, "mvtec").empty and measured_on(values, "mvtec_adx").empty
    assert sources["one"].year == 2024


def test_no_table_has_no_values() -> None:
    values, sources = read_published([])
    assert list(values.columns) == COLUMNS and values.empty and sources == {}
    assert list(measured_on(values, "mvtec_ad").columns) == COLUMNS


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ("one,mvtec_ad,pl,padim,screw,98.1\n", r"line 2: the value is not in \[0, 1\]"),
        ("one,mvtec_ad,pl,padim,screw,nan\n", "line 2: the value is not|cannot be read|empty"),
        ("one,mvtec_ad,pl,padim,,0.5\n", "line 2: an empty cell"),
        ("one,mvtec_ad,pl,padim,screw,high\n", "cannot be read"),
        (ROW + "two,mvtec_ad,pl,padim,screw,0.5\n", "line 3: a source that sources.yaml"),
        (ROW + ROW, "line 3: a second value"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, rows: str, what: str) -> None:
    with pytest.raises(StageError, match=rf"table\.csv: .*({what})"):
        read_values(write(tmp_path, rows))


def test_other_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"table\.csv: expected the columns source, dataset"):
        read_values(write(tmp_path, "pl,padim\n", "metric,algorithm\n"))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("  year: 2024\n", "", "one.year: Field required"),
        ("year: 2024", "year: soon", "one.year: Input should be a valid integer"),
        ("https://example.org", "javascript:alert(1)", "one.url: String should match"),
        (SOURCES, "[1]", "whole file: Input should be a valid dict"),
        (SOURCES, "a: [", "cannot be read"),
    ],
)
def test_broken_sources_are_named(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = write(tmp_path, ROW, sources=SOURCES.replace(old, new))
    with pytest.raises(StageError, match=rf"sources\.yaml: {what}"):
        read_values(path)


def test_a_page_depends_on_its_values_and_on_their_sources(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    page = {"path": "docs/results.md", "published": "params/published/visionad.csv"}
    before = repository.plan(page=page).jobs["page/results"]
    assert before.inputs["published"] == ["params/published/visionad.csv"]
    repository.replace("params/published/sources.yaml", "TMLR 2024", "TMLR, 2024")
    after = repository.plan(page=page).jobs["page/results"]
    assert after.fingerprint != before.fingerprint
    page["published"] = "params/published/none.csv"
    with pytest.raises(ParamsError, match=r"page\.published: .*none\.csv: no such file"):
        repository.plan(page=page)
