"""The report's data and files: numbers as in the tables, names escaped, links that lead somewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import visionad_metrics
from stages import gallery, pictures, report
from stages.artifacts.files import StageError
from stages.artifacts.index import write_index
from stages.artifacts.job import Job
from stages.artifacts.maps import write_maps
from stages.command import Options
from stages.reporting import algorithms, values
from stages.reporting.site import as_json, first_sentence, quantity, slug
from tests.stages.report_run import FakedRun
from tests.stages.test_sheet import index_table

HOSTILE = "<script>alert(1)</script>"
QUOTES = "\"quoted\" & 'apart' </title>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return FakedRun(folder, ["padim", HOSTILE], {"one": ["bolt", HOSTILE]}, title=QUOTES).build()


def script(path: Path) -> Any:
    """The data that a script sets."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.partition("=")[2].rstrip().rstrip(";"))


class Page(HTMLParser):
    """Which elements and links a page has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        assert not [name for name in found if name.startswith("on")]
        self.links += [found[name] for name in ("href", "src") if name in found]


def test_values_are_those_of_the_tables(tmp_path: Path) -> None:
    run = FakedRun(tmp_path, ["a", "b"], {"one": ["x", "y"]}, seeds=(0, 3))
    data = script(run.build() / "data" / "report.js")
    one = data["datasets"]["one"]
    assert one["values"]["pl"]["b"] == [
        [pytest.approx(0.79), pytest.approx(0.793)],
        [pytest.approx(0.80), pytest.approx(0.803)],
    ]
    assert one["values"]["image_auroc"]["b"][0] == [None, None]
    assert one["reasons"] == [{"metric": "image_auroc", "category": "x", "reason": "no good image"}]
    assert one["costs"]["b"][1]["train_seconds"] == 20
    assert one["costs"]["b"][1]["model_mb"] == 2
    assert one["costs"]["b"][1]["gpu_mb"] is None
    assert one["intervals"]["pl"]["a"]["mean"] == [0.75, 0.85] and one["confidence"] == 0.95
    # A published value of another data set stays out.
    assert data["published"] == {
        "one": {"image_auroc": {"a": {"mean": {"one": 0.95}, "x": {"one": 0.96}}}}
    }


def test_the_same_files_make_the_same_bytes(tmp_path: Path) -> None:
    job = FakedRun(tmp_path, ["a", "b"], {"one": ["x"]}).write()
    found = []
    for _ in range(2):
        report.body(job, Options(1, "cpu", False))
        folder = job.outputs["report"]
        found.append(
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*.*")
                if path.is_file()
            }
        )
    assert found[0] == found[1] and len(found[0]) > 20


def test_hostile_names_are_text_everywhere(hostile: Path) -> None:
    for path in hostile.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert HOSTILE not in text and "</title>" in text
        assert text.count("</title>") == 1 and "javascript:" not in re.sub(
            r"<[^>]*>", "", text
        ).replace("a link](javascript:", "")
        assert not [tag for tag in Page(path).tags if tag in ("b", "i")]
    for path in hostile.rglob("data/*.js"):
        assert "<" not in path.read_text(encoding="utf-8")
    assert HOSTILE in script(hostile / "data" / "report.js")["datasets"]["one"]["categories"]


def test_links_are_relative_and_lead_somewhere(hostile: Path) -> None:
    pages = list(hostile.rglob("*.html"))
    assert len(pages) == 7 + 2 + 2
    for path in pages:
        for link in Page(path).links:
            parts = urlsplit(link)
            if link == "data:,":
                continue
            assert not parts.scheme and not parts.netloc, (path, link)
            target = path if not parts.path else path.parent / unquote(parts.path)
            assert target.resolve().is_file(), (path, link)


def test_scripts_name_no_other_host() -> None:
    assets = Path(report.__file__).parent / "reporting" / "assets"
    for path in assets.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?://|innerHTML|outerHTML|document\.write|eval\(|fetch\(|@import", text
        ), path


def test_without_significance_the_page_says_how_to_make_it(tmp_path: Path) -> None:
    site = FakedRun(tmp_path, ["a"], {"one": ["x"]}, significance=False).build()
    text = (site / "significance.html").read_text()
    assert "snakemake results/significance/one/intervals.csv" in text
    assert "intervals" not in script(site / "data" / "report.js")["datasets"]["one"]


def test_a_page_per_category_has_its_defect_types(hostile: Path) -> None:
    text = (hostile / "categories" / "one" / "bolt.html").read_text()
    assert re.search(r"cut<small>5 images</small>", text)
    assert text.count('class="number best"') == 4 * 3  # four metrics: all and two defect types
    assert "5 good and 10 defective test images" in text


def test_an_algorithm_page_has_parameters_and_provenance(hostile: Path) -> None:
    text = (hostile / "algorithms" / "padim.html").read_text()
    for fact in (
        "f" * 64,
        "e" * 64,
        "d" * 64,
        "A processor, 2 cores, 1 threads, GPU none",
        "0.1",
        "<li>one</li>",
    ):
        assert fact in text
    data = json.loads(re.search(r'id="data">(.*)</script>', text).group(1))  # type: ignore[union-attr]
    assert data["one/bolt"]["losses"] == {"loss": [3.0, 2.0, 1.5]}
    curve = data["one/bolt"]["curves"]["aupro"]
    assert curve["limit"] == 0.3 and len(curve["x"]) == algorithms.CURVE_POINTS
    assert (curve["x"][0], curve["x"][-1]) == (0, 1)
    assert data["one/bolt"]["curves"]["pl"]["mark"] == 0.5


@pytest.mark.parametrize(
    ("columns", "row", "match"),
    [("algorithm,metric,mean_rank,wins", "a,pl,high,1", "mean_rank: expected a number"),
     ("algorithm,metric", "a,pl", "lacks the columns mean_rank")],
)  # fmt: skip
def test_a_broken_table_is_named(tmp_path: Path, columns: str, row: str, match: str) -> None:
    run = FakedRun(tmp_path, ["a", "b"], {"one": ["x"]})
    job = run.write()
    path = job.inputs["significance"][0] / "ranks.csv"
    path.write_text(f"{columns}\n{row}\n")
    with pytest.raises(StageError, match=rf"ranks\.csv: .*{match}"):
        report.body(job, Options(1, "cpu", False))


def test_maps_of_other_images_are_refused(tmp_path: Path) -> None:
    run = FakedRun(tmp_path, ["a"], {"one": ["x"]})
    job = run.write()
    path = run.inputs["gallery"][0] / "gallery.json"
    path.write_text(path.read_text().replace("test/cut/000", "test/cut/999"))
    with pytest.raises(StageError, match="x: not of the images"):
        report.body(job, Options(1, "cpu", False))


def test_weight_of_a_scaled_down_run(tmp_path: Path) -> None:
    """A twentieth of 20 algorithms x 15 categories, with all images: under a twentieth of 60 MB."""
    run = FakedRun(
        tmp_path, ["a", "b", "c", "d", "e"], {"one": ["x", "y", "z"]}, images=24, side=256
    )
    site = run.build()
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 3e6


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("padim", True),
        ("a.b-c_1", True),
        ("", False),
        ("..", False),
        ("a/b", False),
        (HOSTILE, False),
        ("Ä", False),
    ],
)
def test_slugs_are_safe_and_different(name: str, safe: bool) -> None:
    assert (slug(name) == name) == safe
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", slug(name)) and slug(name).strip(".")


def test_slugs_of_names_that_look_alike_differ() -> None:
    assert len({slug(name) for name in ("a b", "a_b", "a/b", "a?b")}) == 4


def test_json_in_a_script_cannot_end_it() -> None:
    text = as_json({"x": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"x": "</script><!-- & \u2028"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1e-5, "< 0.001"),
        (0.0123, "0.012"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (12345.6, "12\u202f346"),
    ],
)
def test_quantities_have_three_digits(value: float | None, text: str) -> None:
    assert quantity(value) == text


def test_first_sentence() -> None:
    assert first_sentence("Goes 1.5 times\nas far. And more.") == "Goes 1.5 times as far."


# --- the gallery's stages -------------------------------------------------------------------------

IDS = ["good/000", "good/001", "good/002", "bent/000", "bent/001", "bent/002", "crack/000"]


def test_choice_takes_turns_and_a_sixth_is_good() -> None:
    table = index_table(IDS)
    short = [one.removeprefix("test/") for one in pictures.choose(table, 4)]
    assert short == ["bent/000", "crack/000", "bent/001", "good/000"]
    assert sorted(pictures.choose(table, 99)) == sorted(table["image_id"])


def test_outline_goes_around_the_mask() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:50, 60:100] = True  # to the image's border
    points = [
        tuple(map(int, pair.split())) for pair in pictures.outline(mask).strip("MZ").split("L")
    ]
    x, y = zip(*points, strict=True)
    assert np.allclose((min(x), max(x), min(y), max(y)), (600, 1000, 200, 500), atol=6)
    assert pictures.outline(np.zeros((4, 4), bool)) == ""


def test_mean_share_of_defective_images_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.5
    found = gallery.shares(scores, labels)
    auroc = visionad_metrics.compute("image_auroc", None, None, scores, labels).value
    assert found[labels].mean() == pytest.approx(auroc)
    assert found[~labels].mean() == pytest.approx(auroc)
    assert np.isnan(gallery.shares(scores, np.ones(40, bool))).all()


def test_scale_runs_from_the_usual_to_the_middle_defect() -> None:
    maps = np.zeros((4, 10, 10))
    maps[1:, 0] = np.array([1, 2, 50])[:, np.newaxis]
    assert gallery.scale_of(maps, np.array([False, True, True, True])) == [0, 2]
    assert [int(one.max()) for one in gallery.grey(maps, [0, 2])] == [0, 128, 255, 255]
    assert gallery.grey(np.ones((1, 2, 2)), [1, 1])[0].max() == 0


@pytest.fixture
def category(tmp_path: Path) -> dict[str, Any]:
    """Grey images with a square defect; maps that find it, but for one."""
    names = ["good/000", "bent/000", "bent/001"]
    table = index_table(names)
    table["masks"] = [[], ["m0.png"], ["m1.png"]]
    maps = np.zeros((3, 32, 32), np.float32)
    for number, name in enumerate(names):
        path = tmp_path / "root" / "bolt" / f"test/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), 60 * (number + 1), np.uint8)).save(path)
    for number in range(2):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8:16] = 255
        Image.fromarray(mask).save(tmp_path / "root" / "bolt" / f"m{number}.png")
    maps[1, 8:16, 8:16] = 1
    maps[2, 24:28, 24:28] = 1
    write_index(tmp_path / "index.parquet", table)
    write_maps(
        tmp_path / "maps.h5",
        [f"test/{n}" for n in names],
        {"main": maps},
        {"main": np.array([0.5, 0.9, 0.1])},
        ("main", "main"),
    )
    parameters = {"categories": ["bolt"], "root": str(tmp_path / "root"), "evaluation_size": 32, "crop": 1.0, "pl": {},
                  "interpolation": "bilinear", "images_per_category": 6, "thumbnail": 64, "quality": 80}  # fmt: skip
    inputs = {
        "index": [tmp_path / "index.parquet"],
        "maps": [tmp_path / "maps.h5"],
        "pictures": [tmp_path / "images"],
    }
    outputs = {"pictures": tmp_path / "images", "gallery": tmp_path / "padim"}
    return {"parameters": parameters, "inputs": inputs, "outputs": outputs}


def run_stage(stage: Any, made: dict[str, Any]) -> None:
    key = {"algorithm": "padim", "dataset": "one"}
    job = Job("x", key, made["parameters"], made["inputs"], made["outputs"], "", {}, "", "cpu")
    stage.body(job, Options(1, "cpu", False))


def test_gallery_says_what_was_found(category: dict[str, Any]) -> None:
    run_stage(pictures, category)
    run_stage(gallery, category)
    shown = json.loads((category["outputs"]["pictures"] / "images.json").read_text())["categories"][
        "bolt"
    ]
    said = json.loads((category["outputs"]["gallery"] / "gallery.json").read_text())["categories"][
        "bolt"
    ]
    ids = [image["id"] for image in shown["images"]]
    assert (
        ids
        == [image["id"] for image in said["images"]]
        == ["test/bent/000", "test/bent/001", "test/good/000"]
    )
    assert [image["boxes"] for image in shown["images"]] == [
        ["M250 250L500 250L500 500L250 500Z"]
    ] * 2 + [[]]
    assert [image["overlaps"] for image in said["images"]] == [[1.0], [0.0], []]
    assert [image["share"] for image in said["images"]] == [1.0, 0.0, 0.5]
    with Image.open(category["outputs"]["pictures"] / "bolt.webp") as image:
        assert image.size == (3 * 64, 64)
        greys = [image.convert("L").getpixel((64 * i + 32, 32)) for i in range(3)]
    assert np.allclose(greys, [120, 180, 60], atol=4)
    with Image.open(category["outputs"]["gallery"] / "bolt.webp") as image:
        grey = np.asarray(image.convert("L"))
    assert grey[24, 24] > 240 and grey[24, 64 + 24] < 15 and grey[52, 64 + 52] > 240


def test_gallery_refuses_maps_of_another_index(category: dict[str, Any]) -> None:
    run_stage(pictures, category)
    write_index(category["inputs"]["index"][0], index_table(["good/000", "bent/000"]))
    with pytest.raises(StageError, match=r"maps\.h5: not of the images of .*test/bent/001"):
        run_stage(gallery, category)


def test_types_come_in_the_tables_order() -> None:
    rows = [
        {
            "category": "x",
            "metric": "pl",
            "algorithm": "a",
            "primary": True,
            "defect_type": kind,
            "value": value,
        }
        for kind, value in (("all", 0.5), ("zigzag", 0.25), ("bent", 0.75), ("mean_of_types", 0.5))
    ]
    table = values.types_of(pd.DataFrame(rows), "x")
    assert list(table.columns) == ["all", "mean_of_types", "zigzag", "bent"]
    assert table.loc[("pl", "a"), "bent"] == 0.75
