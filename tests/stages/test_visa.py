"""VisA on a miniature: the CSV says what each image is, and is read as it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from params import models
from stages import evaluate
from stages.artifacts.files import StageError, read_json
from stages.artifacts.index import usable
from stages.index import build_index
from tests.workflow.mini_repository import Repository, do, make_repository
from workflow.fingerprint import HashCache
from workflow.sources import source_digests

LAYOUT = {"layout": "visa", "split_csv": "split_csv/1cls.csv"}
HEADER = "object,split,label,image,mask"
SIZE = (60, 36)  # width, height


def draw_visa(root: Path, names: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    """Draw categories as published: numbers of normal and anomalous images overlap."""
    rng = np.random.default_rng(0)
    lines = [HEADER]
    for name in names:
        for number in range(14):
            image = f"{name}/Data/Images/Normal/{number:04}.JPG"
            save(root / image, rng.normal(120, 9, (*SIZE[::-1], 3)))
            lines.append(f"{name},{'test' if number % 4 == 0 else 'train'},normal,{image},")
        for number in range(4):
            image = f"{name}/Data/Images/Anomaly/{number:04}.JPG"
            mask = f"{name}/Data/Masks/Anomaly/{number:04}.png"
            pixels = rng.normal(120, 9, (*SIZE[::-1], 3))
            pixels[8:20, 6:30] += 60
            save(root / image, pixels)
            values = np.zeros(SIZE[::-1])
            values[8:20, 6:30], values[8:10, 6:8] = 1 + number, 8
            save(root / mask, values)
            lines.append(f"{name},test,anomaly,{image},{mask}")
    path = root / "split_csv/1cls.csv"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    return root


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def edit(root: Path, old: str, new: str, count: int = 1) -> None:
    """Replace a text in the CSV."""
    path = root / "split_csv/1cls.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Draw two categories."""
    return draw_visa(tmp_path / "visa")


class TestIndex:
    """The CSV's rows are the images."""

    def test_what_is_listed(self, root):
        table = build_index(root / "candle", LAYOUT)
        assert set(table["problem"]) == {""}
        assert table.groupby(["split", "defect_type"]).size().to_dict() == {
            ("train", "good"): 10, ("test", "good"): 4, ("test", "anomaly"): 4,
        }  # fmt: skip
        assert table["image_id"].is_unique
        rows = table.set_index("image_id").loc
        assert rows["test/anomaly/0000", "path"] == "Data/Images/Anomaly/0000.JPG"
        assert rows["test/anomaly/0000", "masks"] == ["Data/Masks/Anomaly/0000.png"]
        assert rows["test/good/0000", "masks"] == rows["test/anomaly/0000", "saturation"] == []
        assert len(usable(table, "validation")) == 0

    def test_masks_are_what_is_above_0(self, root):
        table = usable(build_index(root / "candle", LAYOUT), "test")
        truth = evaluate.read_truth(root / "candle", table, 12, 1.0)
        assert truth.channels is None
        expected = np.zeros((12, 12), bool)
        expected[3:7, 1:6] = True  # 8:20 of 36 rows, 6:30 of 60 columns
        for mask, label in zip(truth.masks, truth.labels, strict=True):
            np.testing.assert_array_equal(mask, expected & label)

    def test_rows_that_name_absent_files(self, root):
        candle = root / "candle/Data"
        (candle / "Images/Normal/0001.JPG").unlink()
        (candle / "Images/Anomaly/0002.JPG").rename(candle / "Images/Anomaly/0002.jpg")
        (candle / "Masks/Anomaly/0003.png").unlink()
        edit(root, "candle/Data/Images/Anomaly/0000.JPG,candle/Data/Masks/Anomaly/0000.png",
             "candle/Data/Images/Anomaly/0000.JPG,")  # fmt: skip
        table = build_index(root / "candle", LAYOUT)
        bad = table[table["problem"] != ""].set_index("path")
        assert bad["problem"].to_dict() == {
            "Data/Images/Normal/0001.JPG": "no such file",
            "Data/Images/Anomaly/0000.JPG": "no mask",
            "Data/Images/Anomaly/0002.JPG": "no such file",
            "Data/Images/Anomaly/0003.JPG": "mask Data/Masks/Anomaly/0003.png: no such file",
        }
        assert bad.loc["Data/Images/Anomaly/0000.JPG", "remedy"] == "name one in split_csv/1cls.csv"
        assert bad.loc["Data/Images/Normal/0001.JPG", "remedy"].startswith("add it, or take it off")
        assert all(
            len(m) == len(h) for m, h in zip(table["masks"], table["mask_sha256"], strict=True)
        )
        assert len(usable(table, "train")) == 9

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (HEADER, "object,split,image,mask", "no column label; it needs object, split, label"),
            ("candle,", "kandle,", "no row is of the object candle"),
            ("candle,train,normal", "candle,val,normal",
             "line 3: split: expected train or test, found 'val'"),
            ("candle,test,anomaly", "candle,test,bad",
             "line 16: label: expected normal or anomaly, found 'bad'"),
            ("candle,test,anomaly", "candle,train,anomaly",
             "line 16: label: an anomaly to train on; the one-class split is split_csv/1cls.csv"),
            ("Normal/0002.JPG", "Normal/0001.JPG",
             "line 4: image: Data/Images/Normal/0001.JPG is that of line 3 already"),
            ("candle/Data/Images/Normal/0001.JPG", "pcb1/Data/Images/Normal/0001.JPG",
             "line 3: image: expected a path below candle/, found 'pcb1/Data"),
            ("candle/Data/Masks/Anomaly/0000.png", "candle/../x.png",
             "line 16: mask: expected a path below candle/, found 'candle/../x.png'"),
            ("candle,train,normal,candle/Data/Images/Normal/0001.JPG,", "candle,train",
             "line 3: label: expected normal or anomaly, found ''"),
        ],
    )  # fmt: skip
    def test_a_wrong_csv_is_refused(self, root, old, new, message):
        edit(root, old, new, count=99 if new == "kandle," else 1)
        with pytest.raises(StageError) as caught:
            build_index(root / "candle", LAYOUT)
        assert str(caught.value).startswith(f"{root}/split_csv/1cls.csv: ")
        assert message in str(caught.value)
        if "no column" not in message:
            assert len(build_index(root / "pcb1", LAYOUT)) == 18, "others are not concerned"

    def test_a_missing_csv(self, root):
        with pytest.raises(StageError, match=r"other\.csv: no such file; .*spot-diff.*split_csv"):
            build_index(root / "candle", {**LAYOUT, "split_csv": "other.csv"})

    def test_windows_line_ends_and_a_byte_order_mark(self, root):
        path = root / "split_csv/1cls.csv"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        table = build_index(root / "candle", LAYOUT)
        assert len(table) == 18
        assert set(table["problem"]) == {""}


class TestParts:
    """Each file and each cell belongs to one part of the data: a changed mask trains nothing."""

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ("candle/Data/Images/Normal/0001.JPG", {"train"}),
            ("candle/Data/Images/Normal/0004.JPG", {"test"}),
            ("candle/Data/Images/Anomaly/0001.JPG", {"test"}),
            ("candle/Data/Masks/Anomaly/0001.png", {"ground_truth"}),
            ("pcb1/Data/Images/Normal/0001.JPG", set()),
            ("candle/image_anno.csv", set()),
            ("candle/Data/Images/Normal/0999.JPG", set()),  # which no row names
        ],
    )
    def test_files(self, root, change, parts):
        def spoil() -> None:
            path = root / change
            path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")

        assert changed(root, spoil) == parts

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("candle,train,normal,candle/Data/Images/Normal/0001.JPG,\n", "", {"train"}),
            ("candle,train,normal", "candle,test,normal", {"train", "test"}),
            ("candle,test,normal", "candle,test,anomaly", {"test"}),
            ("Masks/Anomaly/0001.png", "Masks/Anomaly/0002.png", {"ground_truth"}),
            ("pcb1,train,normal", "pcb1,test,normal", set()),
            ("\n", "\r\n", set()),
        ],
    )
    def test_rows(self, root, old, new, parts):
        assert changed(root, lambda: edit(root, old, new, 1 if old != "\n" else 99)) == parts

    def test_planning_goes_on_with_a_broken_csv(self, root):
        """It is the index stage that says what is wrong, and all that reads it is stale."""
        everything = {"train", "test", "ground_truth"}
        assert changed(root, lambda: edit(root, "candle,train", "candle,val")) == everything
        assert changed(root, lambda: edit(root, "candle,val", "candle,vol")) == everything
        assert changed(root, (root / "split_csv/1cls.csv").unlink) == everything
        assert changed(root, lambda: None) == set()


def changed(root: Path, change: Callable[[], object]) -> set[str]:
    """Name the parts of a category's data that a change concerns."""
    config = models.Visa(kind="visa", root=str(root), categories=["candle"])
    cache = HashCache(root / ".hashes.json")
    before = source_digests(config, root / "candle", cache)
    change()
    after = source_digests(config, root / "candle", cache)
    return {part for part in before if before[part] != after[part]}


VISA = {
    "datasets": {"visa": ["candle"]},
    "roots": {"visa": "data/visa"},
    "metrics": ["image_auroc", "pixel_auroc", "spro"],
    "algorithms": ["random"],
}
RUN = "random/visa/candle/seed0"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the repository, with two categories; work inside."""
    repository = make_repository(tmp_path / "repository", categories=[])
    draw_visa(repository.root / "data/visa")
    monkeypatch.chdir(repository.root)
    return repository


def test_chance_level(repository):
    repository.write_plan(**VISA)
    do("index/visa/candle", "check/visa", f"train/{RUN}", f"predict/{RUN}")
    do(f"evaluate/{RUN}", "aggregate/visa")
    values = read_json(Path(f"results/metrics/{RUN}/pixel_auroc.json"))["values"]
    assert {one["defect_type"] for one in values} == {"all", "anomaly"}
    assert abs(values[0]["value"] - 0.5) < 0.1
    (spro,) = {
        (one["value"], one["reason"])
        for one in read_json(Path(f"results/metrics/{RUN}/spro.json"))["values"]
    }
    assert spro == (None, "no saturation thresholds: the data set states none")
    text = Path("results/leaderboard/visa/leaderboard.md").read_text()
    assert "no saturation thresholds" in text
    assert "mean_of_types" not in text
