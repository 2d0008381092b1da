"""MVTec LOCO AD on a miniature: what is indexed, what is refused, and what is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import visionad_metrics
from params import models
from stages import aggregate, evaluate
from stages.artifacts.files import StageError, read_json
from stages.artifacts.index import read_index, usable, write_index
from stages.artifacts.maps import read_info, read_maps
from stages.check import find_problems
from stages.index import build_index
from stages.layouts.loco import read_saturation
from tests.workflow.mini_repository import Repository, do, make_repository
from visionad_metrics.saturation import read_defects_config
from workflow.fingerprint import HashCache
from workflow.sources import source_digests

WIDTH, HEIGHT = 80, 40
LAYOUT = {"layout": "loco"}
LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"
CONFIG = [
    {"defect_name": "additional_pushpin", "pixel_value": 255,
     "relative_saturation": False, "saturation_threshold": 120},
    {"defect_name": "missing_separator", "pixel_value": 252,
     "relative_saturation": True, "saturation_threshold": 1.0},
    {"defect_name": "extra_cable", "pixel_value": 246,
     "relative_saturation": True, "saturation_threshold": 0.5},
    {"defect_name": "broken", "pixel_value": 250,
     "relative_saturation": True, "saturation_threshold": 1.0},
]  # fmt: skip
# For each defective image its masks: value, rows, columns. The first two overlap.
MASKS = {
    f"{LOGICAL}/000": [(255, slice(4, 24), slice(8, 28)), (252, slice(14, 30), slice(20, 60))],
    f"{LOGICAL}/001": [(246, slice(0, 10), slice(40, 60))],
    f"{STRUCTURAL}/000": [(250, slice(20, 32), slice(4, 20))],
    f"{STRUCTURAL}/001": [(250, slice(30, 40), slice(60, 80)), (250, slice(2, 8), slice(2, 12))],
}


def draw_loco(category: Path, seed: int = 0) -> Path:
    """Draw a category: noise, brighter where a defect is."""
    rng = np.random.default_rng(seed)
    counts = {"train/good": 12, "validation/good": 3, "test/good": 4}
    names = [f"{place}/{n:03}" for place, count in counts.items() for n in range(count)]
    for name in [*names, *(f"test/{name}" for name in MASKS)]:
        pixels = rng.normal(110, 9, (HEIGHT, WIDTH, 3))
        for _, rows, columns in MASKS.get(name.removeprefix("test/"), ()):
            pixels[rows, columns] += 60
        save(category / f"{name}.png", pixels.clip(0, 255))
    for name, masks in MASKS.items():
        for number, (value, rows, columns) in enumerate(masks):
            mask = np.zeros((HEIGHT, WIDTH))
            mask[rows, columns] = value
            save(category / "ground_truth" / name / f"{number:03}.png", mask)
    write_config(category, CONFIG)
    return category


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_config(category: Path, entries: Any) -> None:
    (category / "defects_config.json").write_text(json.dumps(entries))


def spoil(path: Path) -> None:
    """Change a file, or make one."""
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """Draw a category."""
    return draw_loco(tmp_path / "pushpins")


class TestIndex:
    """What is there is listed, with what each mask's value means."""

    def test_what_is_listed(self, category):
        table = build_index(category, LAYOUT)
        assert set(table["problem"]) == {""}
        assert table.groupby("split").size().to_dict() == {"train": 12, "validation": 3, "test": 8}
        assert set(table.loc[table["split"] == "validation", "label"]) == {0}
        rows = table.set_index("image_id").loc
        folder = f"ground_truth/{LOGICAL}/000"
        assert rows[f"test/{LOGICAL}/000", "masks"] == [f"{folder}/000.png", f"{folder}/001.png"]
        assert rows[f"test/{LOGICAL}/000", "saturation"] == [
            {"value": 255, "defect": "additional_pushpin", "threshold": 120.0, "relative": False},
            {"value": 252, "defect": "missing_separator", "threshold": 1.0, "relative": True},
        ]
        assert [len(x) for x in rows[f"test/{STRUCTURAL}/001"][["masks", "mask_sha256"]]] == [2, 2]
        assert rows["test/good/000", "saturation"] == rows["validation/good/000", "masks"] == []

    def test_round_trip(self, category, tmp_path):
        table = build_index(category, LAYOUT)
        write_index(tmp_path / "x.parquet", table)
        back = read_index(tmp_path / "x.parquet")
        assert back["saturation"].tolist() == table["saturation"].tolist()
        assert len(usable(back, "validation")) == 3

    def test_capital_suffixes(self, category):
        for path in [*category.rglob("*.png")]:
            path.rename(path.with_suffix(".PNG"))
        for path in (category / "test/good").iterdir():
            Image.open(path).save(path.with_suffix(".JPG"))
            path.unlink()
        table = build_index(category, LAYOUT)
        assert len(table) == 23
        assert set(table["problem"]) == {""}

    @pytest.mark.parametrize(
        ("damage", "problem", "remedy"),
        [
            (lambda c: write_config(c, CONFIG[1:]),
             f"mask ground_truth/{LOGICAL}/000/000.png holds the value 255, which "
             "defects_config.json lacks", "correct the mask, or add a defect of pixel_value 255"),
            (lambda c: shutil.rmtree(c / f"ground_truth/{LOGICAL}/000"),
             "no mask", f"add ground_truth/{LOGICAL}/000/000.png"),
            (lambda c: shutil.rmtree(c / "ground_truth"),
             "no mask", f"add ground_truth/{LOGICAL}/000/000.png"),
            (lambda c: save(c / f"ground_truth/{LOGICAL}/000/001.png",
                            np.repeat([[0, 252], [246, 0]], 40, 1).repeat(20, 0)),
             f"mask ground_truth/{LOGICAL}/000/001.png holds several values (246, 252)",
             "give each defect a mask of its own"),
            (lambda c: save(c / f"ground_truth/{LOGICAL}/000/001.png", np.zeros((HEIGHT, WIDTH))),
             f"mask ground_truth/{LOGICAL}/000/001.png is empty",
             "mark the defect, or move the image to test/good"),
            (lambda c: save(c / f"ground_truth/{LOGICAL}/000/001.png", np.full((20, 20), 252)),
             f"mask ground_truth/{LOGICAL}/000/001.png is 20 x 20 px, the image 80 x 40",
             "make both the same size"),
        ],
        ids=["value unknown", "folder missing", "all missing", "two values", "empty", "size"],
    )  # fmt: skip
    def test_bad_masks(self, category, damage, problem, remedy):
        damage(category)
        row = build_index(category, LAYOUT).set_index("image_id").loc[f"test/{LOGICAL}/000"]
        assert (row["problem"], row["remedy"]) == (problem, remedy)

    def test_masks_may_be_all_defect(self, category):
        save(category / f"ground_truth/{LOGICAL}/001/000.png", np.full((HEIGHT, WIDTH), 246))
        assert set(build_index(category, LAYOUT)["problem"]) == {""}

    def test_an_image_is_in_one_split_only(self, category):
        shutil.copy(category / "train/good/002.png", category / "validation/good/000.png")
        shutil.copy(category / "validation/good/001.png", category / "test/good/003.png")
        table = build_index(category, LAYOUT).set_index("image_id")
        problems = table.loc[table["problem"] != "", "problem"].to_dict()
        assert problems == {
            "validation/good/000": "the same image as train/good/002.png",
            "test/good/003": "the same image as validation/good/001.png",
        }

    def test_validation_images_that_are_all_unusable_are_fatal(self, category):
        """Else training images would be held out instead."""
        assert find_problems("pushpins", build_index(category, LAYOUT), 10) == []
        for path in (category / "validation/good").iterdir():
            path.write_text("no image")
        problems = find_problems("pushpins", build_index(category, LAYOUT), 10)
        assert [one.file for one in problems if one.fatal] == ["validation"]
        shutil.rmtree(category / "validation")
        assert find_problems("pushpins", build_index(category, LAYOUT), 10) == []


FIRST = CONFIG[0]
BROKEN: dict[str, tuple[Any, str]] = {
    "no list": ({}, "expected a list of defects, found dict"),
    "no object": ([7], "entry 0: expected an object, found 7"),
    "fields missing": ([{"defect_name": "x", "pixel_value": 3}],
                       "entry 0: relative_saturation, saturation_threshold: missing"),
    "value too large": ([FIRST | {"pixel_value": 256}],
                        "entry 0: pixel_value: expected an integer from 1 to 255, found 256"),
    "value is true": ([FIRST | {"pixel_value": True}], "entry 0: pixel_value: expected an integer"),
    "value twice": ([*CONFIG, FIRST | {"defect_name": "y"}],
                    "entry 4: pixel_value 255 is that of 'additional_pushpin' already"),
    "relative is 1": ([CONFIG[1], FIRST | {"relative_saturation": 1}],
                      "entry 1: relative_saturation: expected true or false, found 1"),
    "share is an integer": ([CONFIG[1] | {"saturation_threshold": 1}],
                            "entry 0: saturation_threshold: relative, so expected a float above 0"),
    "share above 1": ([CONFIG[1] | {"saturation_threshold": 1.5}], "at most 1.0, found 1.5"),
    "pixels are no integer": ([FIRST | {"saturation_threshold": 40.0}],
                              "expected a positive integer of pixels, found 40.0"),
    "no pixels": ([FIRST | {"saturation_threshold": 0}], "positive integer of pixels, found 0"),
}  # fmt: skip


class TestConfiguration:
    """What values of masks mean is checked where it is read: file, entry and field are named."""

    @pytest.mark.parametrize("kind", BROKEN)
    def test_is_refused(self, category, kind):
        entries, message = BROKEN[kind]
        write_config(category, entries)
        with pytest.raises(StageError) as caught:
            build_index(category, LAYOUT)
        assert str(caught.value).startswith(f"{category}/defects_config.json: ")
        assert message in str(caught.value)
        with pytest.raises(ValueError, match="defects_config"):
            read_defects_config(category / "defects_config.json")  # the package agrees

    def test_no_json_and_no_file(self, category):
        (category / "defects_config.json").write_text("[{")
        with pytest.raises(StageError, match=r"defects_config\.json: not JSON"):
            build_index(category, LAYOUT)
        (category / "defects_config.json").unlink()
        with pytest.raises(StageError, match=r"defects_config\.json: no such file"):
            build_index(category, LAYOUT)

    def test_means_what_the_package_reads(self, category):
        ours = read_saturation(category)
        theirs = read_defects_config(category / "defects_config.json")
        assert {value: (one["threshold"], one["relative"], one["defect"])
                for value, one in ours.items()} == {
            value: (one.threshold, one.relative, one.name) for value, one in theirs.items()
        }  # fmt: skip


class TestTruth:
    """Channels at the size of evaluation, where overlapping ones stay apart."""

    def read(self, category: Path, size: int, crop: float = 1.0) -> evaluate.Truth:
        table = usable(build_index(category, LAYOUT), "test").sort_values("image_id")
        return evaluate.read_truth(category, table.reset_index(drop=True), size, crop)

    def test_overlapping_channels(self, category):
        truth = self.read(category, 40)
        assert truth.channels is not None
        image = list(truth.defect_types).index(LOGICAL)
        first, second = (one for one in truth.channels if one.image == image)
        # Half the width: 20 x 10 of 20 x 20 pixels, and 120 pixels of the image are 60 here.
        assert (first.places.size, first.saturation) == (200, 60)
        assert (second.places.size, second.saturation) == (16 * 20, 16 * 20)
        both = np.intersect1d(first.places, second.places)
        assert both.size == 10 * 4
        united = np.flatnonzero(truth.masks[image])
        np.testing.assert_array_equal(united, np.union1d(first.places, second.places))

    def test_saturation_areas(self, category):
        truth = self.read(category, 40)
        half = [one for one in truth.channels or () if one.image == 5]
        assert [(one.places.size, one.saturation) for one in half] == [(100, 50)]
        assert len(truth.channels or ()) == 6

    def test_a_crop_keeps_pixels_pixels(self, category):
        """Half of each side at 20 px is the image at half its width, as above: 120 px are 60."""
        truth = self.read(category, 20, crop=0.5)
        areas = {one.image: one.saturation for one in truth.channels or ()}
        first = next(one for one in truth.channels or () if one.image == 4)
        assert first.saturation == min(first.places.size, 60)
        assert 5 not in areas, "a defect outside of the crop is none"

    def test_groups_number_images_anew(self, category):
        truth = self.read(category, 40)
        rows = truth.groups(by_defect_type=True)[STRUCTURAL]
        channels = truth.channels_of(rows)
        assert [one.image for one in channels] == [4, 5, 5]
        for one in channels:
            assert truth.masks[rows][one.image].reshape(-1)[one.places].all()

    def test_data_sets_without_saturation_have_no_channels(self, category):
        table = usable(build_index(category), "test")  # as MVTec AD: masks are not found there
        assert not table["label"].any()
        table = usable(build_index(category, LAYOUT), "test")
        table["saturation"] = [[]] * len(table)
        assert evaluate.read_truth(category, table, 40, 1.0).channels is None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("train/good/003.png", {"train"}),
        ("validation/good/001.png", {"validation"}),
        ("test/good/001.png", {"test"}),
        (f"ground_truth/{LOGICAL}/000/001.png", {"ground_truth"}),
        ("defects_config.json", {"ground_truth"}),
        ("readme.txt", set()),
    ],
)
def test_each_file_belongs_to_one_part_of_the_data(category, change, parts):
    """Jobs depend on parts: a changed meaning of a mask's value trains nothing anew."""
    config = models.Loco(kind="loco", root=str(category.parent))
    cache = HashCache(category / ".hashes.json")
    before = source_digests(config, category, cache)
    spoil(category / change)
    after = source_digests(config, category, cache)
    assert set(before) == {"train", "validation", "test", "ground_truth"}
    assert {part for part in before if before[part] != after[part]} == parts


DATASET = {
    "datasets": {"mvtec_loco": ["pushpins"]},
    "roots": {"mvtec_loco": "data/loco"},
    "metrics": ["image_auroc", "aupro", "spro"],
    "algorithms": ["random"],
    "protocol": {"evaluation_size": 40},
}
RUN = "random/mvtec_loco/pushpins/seed0"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the repository, with one category; work inside."""
    repository = make_repository(tmp_path / "repository", categories=[])
    draw_loco(repository.root / "data/loco/pushpins")
    monkeypatch.chdir(repository.root)
    return repository


class TestPipeline:
    """From images to the leaderboard."""

    def test_chance_level(self, repository):
        plan = repository.write_plan(**DATASET)
        do("index/mvtec_loco/pushpins", "check/mvtec_loco", f"train/{RUN}", f"predict/{RUN}")
        do(f"evaluate/{RUN}", "aggregate/mvtec_loco")
        report = Path("results/check/mvtec_loco/report.md").read_text()
        assert "validation" in report and "No problems found." in report
        for metric in ("image_auroc", "spro"):
            record = read_json(Path(f"results/metrics/{RUN}/{metric}.json"))
            found = {one["defect_type"]: one for one in record["values"] if one["primary"]}
            assert list(found) == ["all", LOGICAL, STRUCTURAL, "mean_of_types"]
            values = [found[kind]["value"] for kind in (LOGICAL, STRUCTURAL)]
            assert found["mean_of_types"]["value"] == pytest.approx(np.mean(values), abs=1e-15)
            assert found["mean_of_types"]["defective_images"] == 4
        self.check_spro(repository, found)
        long = aggregate.read_table(Path("results/leaderboard/mvtec_loco/long.csv"), aggregate.LONG)
        own = long[(long["metric"] == "spro") & long["primary"]]
        mean = own[own["defect_type"] == "mean_of_types"]
        assert mean["value"].tolist() == [found["mean_of_types"]["value"]]
        text = Path("results/leaderboard/mvtec_loco/leaderboard.md").read_text()
        assert " spro_mean_of_types |" in text.splitlines()[2]
        assert "## image_auroc_mean_of_types" in text
        assert "`mean_of_types`: the mean over defect types, each against all good" in text
        tables = Path("results/leaderboard/mvtec_loco/tables")
        shown = pd.read_csv(tables / "spro_mean_of_types.csv", index_col=0)
        assert shown.loc["pushpins", "random"] == found["mean_of_types"]["value"]
        pooled = pd.read_csv(tables / "spro.csv", index_col=0)
        assert pooled.loc["mean", "random"] == found["all"]["value"]
        assert repository.plan(**DATASET).valid[f"evaluate/{RUN}"]
        assert plan.jobs[f"evaluate/{RUN}"].parameters["mean_of_types"] == [LOGICAL, STRUCTURAL]

    def check_spro(self, repository: Repository, found: dict[str, Any]) -> None:
        """Compare with the package's own function on masks read another way."""
        path = Path(f"results/maps/{RUN}.h5")
        info = read_info(path)
        maps = evaluate.resize_maps(read_maps(path, info.primary_map), 40)
        config = read_defects_config(Path("data/loco/pushpins/defects_config.json"))
        masks = []
        for one in info.ids:
            folder = Path("data/loco/pushpins/ground_truth") / one.removeprefix("test/")
            files = sorted(folder.glob("*.png"))
            masks.append([np.asarray(Image.open(file))[:, 1::2] for file in files])
        kinds = [one.split("/")[1] for one in info.ids]
        for kind in ("all", LOGICAL, STRUCTURAL):
            rows = [n for n, own in enumerate(kinds) if kind == "all" or own in (kind, "good")]
            expected = visionad_metrics.spro(
                maps[rows], [masks[row] for row in rows], config, 0.05, scale=0.5
            )
            assert found[kind]["value"] == pytest.approx(expected.value, abs=1e-12)
            assert found[kind]["details"]["defects"] == sum(len(masks[row]) for row in rows)

    def test_features_of_validation_images(self, repository):
        settings = {**DATASET, "algorithms": ["padim"], "protocol": {"image_size": 32}}
        repository.write_plan(**settings)
        do("index/mvtec_loco/pushpins", "features/tiny/mvtec_loco/pushpins")
        index = read_index(Path("results/index/mvtec_loco/pushpins.parquet"))
        with h5py.File("results/features/tiny/mvtec_loco/pushpins.h5") as file:
            assert set(file) == {"train", "test", "validation"}
            ids = [name.decode() for name in file["validation/ids"]]
            assert ids == usable(index, "validation")["image_id"].tolist()
            assert file["validation/stride4"].shape[0] == 3
        shutil.rmtree("data/loco/pushpins/validation")
        repository.write_plan(**settings)
        do("index/mvtec_loco/pushpins", "features/tiny/mvtec_loco/pushpins")
        with h5py.File("results/features/tiny/mvtec_loco/pushpins.h5") as file:
            assert set(file) == {"train", "test"}

    def test_what_depends_on_what(self, repository):
        """Features of validation images are made for all, and padim calibrates nothing by them."""
        settings = {**DATASET, "algorithms": ["padim"]}
        before = repository.plan(**settings).jobs
        spoil(repository.root / "data/loco/pushpins/validation/good/001.png")
        after = repository.plan(**settings).jobs
        changed = {name.split("/")[0] for name in before
                   if before[name].fingerprint != after[name].fingerprint}  # fmt: skip
        assert {"index", "check", "features"} <= changed
        assert not changed & {"train", "predict", "evaluate"}

    def test_a_readers_code_concerns_its_own_data_sets(self, repository):
        jobs = repository.plan(**DATASET).jobs
        assert "stages.layouts.loco" in jobs["index/mvtec_loco/pushpins"].program.modules
        plan = repository.plan(datasets={"demo": ["kit"]})
        modules = plan.jobs["index/demo/kit"].program.modules
        assert modules == ("stages.index", "stages.layouts.mvtec")
        names = plan.source.manifest(*jobs["index/mvtec_loco/pushpins"].program.modules)
        assert not [name for name in names if name.startswith("visionad_metrics")], (
            "a change of a metric would train everything anew"
        )


def test_both_stages_call_the_mean_the_same():
    assert aggregate.MEAN == evaluate.MEAN


def test_a_type_without_images_leaves_the_mean_undefined():
    common = {"method": "m", "primary": True, "good_images": 2, "details": {}, "curve": None}
    records = [
        {**common, "defect_type": "all", "value": 0.7, "reason": None, "defective_images": 3},
        {**common, "defect_type": "a", "value": 0.7, "reason": None, "defective_images": 3},
    ]
    mean = evaluate.mean_of_types(records, ["a", "b"])
    assert (mean["value"], mean["reason"]) == (None, "b: no such image")
    records.append({**records[1], "defect_type": "b", "value": None, "reason": "no normal pixel"})
    mean = evaluate.mean_of_types(records, ["a", "b"])
    assert (mean["value"], mean["reason"]) == (None, "b: no normal pixel")
