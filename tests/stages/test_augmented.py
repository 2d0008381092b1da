"""Augmented training images: what is drawn, what is read, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from params.reading import ParamsError
from stages import inputs
from stages.artifacts.files import StageError, read_json
from stages.artifacts.job import Job, read_job
from stages.augmented.draws import Draw, augment, draw, rotated
from stages.augmented.readers import Together, copies_of, open_training
from stages.batches import BatchLoader, Subset, epoch_order
from stages.command import Options, execute
from stages.devices import seed_everything
from tests.workflow.mini_repository import Repository, make_repository
from workflow.fingerprint import sha256_file

SETTINGS = {
    "copies": 2,
    "horizontal_flip": True,
    "vertical_flip": False,
    "rotation_degrees": 10.0,
    "brightness": 0.2,
    "contrast": 0.1,
}
NOTHING = Draw(False, False, 0.0, 1.0, 1.0)
MSPBA = {
    "algorithm": "mspba", "backbone": "tiny", "layers": ["stride4", "stride8"],
    "parameters": {"patch_sizes": [16, 32], "steps": [16, 32], "kernels": [[2, 3], [2, 3]],
                   "widths": [[8, 8]] * 2, "samples": 4, "draws_per_image": 1},
}  # fmt: skip
TRAIN = 12  # training images


class TestDraws:
    """Numbers: a function of seed and row, within the settings."""

    def test_same_seed_same_draws(self):
        assert draw(SETTINGS, 3, 5) == draw(SETTINGS, 3, 5)
        assert len({draw(SETTINGS, 3, row) for row in range(50)}) == 50
        assert draw(SETTINGS, 3, 5) != draw(SETTINGS, 4, 5)

    def test_range_and_share(self):
        draws = [draw(SETTINGS, 0, row) for row in range(2000)]
        assert 0.45 < np.mean([one.horizontal_flip for one in draws]) < 0.55
        assert not any(one.vertical_flip for one in draws)
        for name, middle, most in (
            ("degrees", 0, 10),
            ("brightness", 1, 0.2),
            ("contrast", 1, 0.1),
        ):
            values = np.array([getattr(one, name) for one in draws])
            assert np.abs(values - middle).max() <= most
            assert np.abs(values - middle).max() > 0.98 * most
            assert abs(values.mean() - middle) < 0.05 * most

    def test_a_setting_leaves_the_others_alone(self):
        more = draw({**SETTINGS, "vertical_flip": True, "contrast": 0.0}, 1, 2)
        one = draw(SETTINGS, 1, 2)
        assert (more.horizontal_flip, more.degrees, more.brightness) == (
            one.horizontal_flip, one.degrees, one.brightness,
        )  # fmt: skip


class TestAugment:
    """Pixels: known answers."""

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)

    def test_nothing(self):
        np.testing.assert_array_equal(augment(self.pixels, NOTHING), self.pixels)

    def test_flips(self):
        across = augment(self.pixels, replace(NOTHING, horizontal_flip=True))
        np.testing.assert_array_equal(across, self.pixels[:, ::-1])
        down = augment(self.pixels, replace(NOTHING, vertical_flip=True))
        np.testing.assert_array_equal(down, self.pixels[::-1])

    def test_brightness(self):
        grey = np.full((8, 8, 3), 100, np.uint8)
        assert np.unique(augment(grey, replace(NOTHING, brightness=1.2))).tolist() == [120]
        assert np.unique(augment(grey, replace(NOTHING, contrast=0.5))).tolist() == [100]

    def test_half_a_turn_is_both_flips(self):
        turned = augment(self.pixels, replace(NOTHING, degrees=180.0)).astype(int)
        assert np.abs(turned - self.pixels[::-1, ::-1]).max() <= 1

    @pytest.mark.parametrize("degrees", [1.0, 10.0, 45.0, 90.0, -133.0])
    def test_rotation_shows_no_black_corner(self, degrees):
        turned = rotated(torch.full((3, 32, 32), 0.75), degrees)
        assert turned.shape == (3, 32, 32)
        torch.testing.assert_close(turned, torch.full_like(turned, 0.75))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Copy the repository, with one category and augmentation; work inside."""
    repository = make_repository(tmp_path / "repository", categories=["bolt"])
    repository.write("algorithms/mspba.yaml", MSPBA)
    repository.edit("presets/tiny.yaml", algorithms=["padim", "mspba"])
    repository.edit("presets/tiny.yaml", protocol={"augmentation": SETTINGS})
    monkeypatch.chdir(repository.root)
    return repository


def do(*names: str) -> None:
    """Run planned jobs in this process."""
    for name in names:
        path = Path(f".plan/{name}.json")
        module = read_json(path)["stage"]
        job = read_job(path, module)
        execute(job, Options(2, "cpu", False), import_module(f"stages.{module}").body)


def images_job(**parameters: Any) -> Job:
    """The training of MSPBA, which reads images, with other parameters."""
    job = read_job(Path(".plan/train/mspba/folder/bolt/seed0.json"), "augmented.train")
    return replace(job, parameters={**job.parameters, **parameters})


@pytest.fixture
def indexed(repository: Repository) -> Repository:
    """Have the index, too."""
    repository.write_plan()
    do("index/folder/bolt")
    return repository


@pytest.mark.usefixtures("indexed")
class TestImages:
    """What an algorithm on images reads."""

    def epochs(self, *epochs: int, seed: int = 0, threads: int = 2) -> Iterator[list[np.ndarray]]:
        """Batches of some epochs, in the order of the rows, as the trainer asks for them."""
        with open_training(images_job(), threads) as (reader, held):
            assert held is None and len(reader) == 3 * TRAIN
            for epoch in epochs:
                seed_everything(seed, 1 + epoch)
                order = epoch_order(len(reader), 0, 0, shuffle=False)
                loader = BatchLoader(reader, order, 7, torch.device("cpu"))
                yield torch.cat([batch[0] for batch in loader]).numpy()

    def test_same_seed_same_batches_and_epochs_differ(self):
        first, second = self.epochs(0, 1)
        again, other = self.epochs(0, 1, threads=1)
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(second, other)
        (seed_1,) = self.epochs(0, seed=1)
        for changed in (second, seed_1):
            same = [np.array_equal(a, b) for a, b in zip(first, changed, strict=True)]
            assert same == [True] * TRAIN + [False] * 2 * TRAIN

    def test_images_as_they_are_come_first_and_copies_are_of_them(self):
        (read,) = self.epochs(0)
        with inputs.open_training(images_job(), 1) as (plain, _):
            (expected,) = plain.read(np.arange(TRAIN))
        np.testing.assert_array_equal(read[:TRAIN], expected)
        # Light within 20 %, contrast within 10 %: a copy is nearer to its image than to black.
        for copy in (1, 2):
            light = read[copy * TRAIN : (copy + 1) * TRAIN].mean((1, 2, 3))
            assert np.abs(light - expected.mean((1, 2, 3))).max() < 0.6
        assert not np.array_equal(read[TRAIN : 2 * TRAIN], read[2 * TRAIN :])

    def test_what_the_algorithm_draws_plays_no_part(self):
        with open_training(images_job(), 1) as (reader, _):
            seed_everything(0, 1)
            (before,) = reader.read(np.array([20]))
            torch.rand(10), np.random.rand(3)
            (after,) = reader.read(np.array([20]))
        np.testing.assert_array_equal(before, after)

    def test_held_out_images_are_as_they_are_and_have_no_copies(self):
        job = images_job(validation=0.25)
        with (
            open_training(job, 1) as (reader, held),
            inputs.open_training(job, 1) as (plain, plain_held),
        ):
            assert held is not None and plain_held is not None and isinstance(plain, Subset)
            assert (len(reader), len(held)) == (3 * 9, 3)
            np.testing.assert_array_equal(held.read(np.arange(3)), plain_held.read(np.arange(3)))
            assert isinstance(reader, Together) and isinstance(reader.second, Subset)
            assert sorted(reader.second.rows % TRAIN) == sorted([*plain.rows, *plain.rows])


def test_rows_of_two_readers_come_in_the_order_asked_for():
    class Rows:
        shapes = ((1, 1, 1),)

        def __init__(self, start: int, count: int) -> None:
            self.start, self.count = start, count

        def __len__(self) -> int:
            return self.count

        def read(self, rows: np.ndarray) -> list[np.ndarray]:
            return [(self.start + rows)[:, None, None, None].astype(np.float32)]

    both = Together(Rows(0, 4), Rows(4, 8))
    rows = np.array([11, 0, 4, 3, 7])
    assert both.read(rows)[0].ravel().tolist() == rows.tolist()
    assert both.read(np.array([1, 2]))[0].ravel().tolist() == [1, 2]
    assert copies_of(np.array([0, 2]), 4, 2).tolist() == [0, 2, 4, 6]


def test_from_images_to_maps_on_features_and_on_images(repository):
    """Models differ from plain ones, test features do not, and every stamp says what was done."""
    predicted = {}
    for augmentation in (None, SETTINGS):
        repository.edit("presets/tiny.yaml", protocol={"augmentation": augmentation})
        plan = repository.write_plan()
        features = Path("results/features/tiny/folder/bolt.h5")
        if augmentation is None:
            do("index/folder/bolt", "features/tiny/folder/bolt")
            before = sha256_file(features)
        else:
            assert plan.valid["features/tiny/folder/bolt"]
            do("augment/tiny/folder/bolt")
        for algorithm in ("padim", "mspba"):
            do(*(f"{stage}/{algorithm}/folder/bolt/seed0" for stage in ("train", "predict")))
            folder = Path(f"results/models/{algorithm}/folder/bolt/seed0")
            count = TRAIN if augmentation is None else 3 * TRAIN
            assert read_json(folder / "training.json")["train_images"] == count
            stamped = read_json(folder / "provenance.json")["parameters"]
            assert stamped.get("augmentation") == augmentation
            with h5py.File(f"results/maps/{algorithm}/folder/bolt/seed0.h5") as file:
                (maps,) = file["maps"].values()
                predicted[algorithm, augmentation is None] = maps[:]
        assert sha256_file(features) == before
    for algorithm in ("padim", "mspba"):
        plain, augmented = (predicted[algorithm, one] for one in (True, False))
        assert plain.shape == augmented.shape and not np.allclose(plain, augmented)
    with h5py.File("results/features/tiny/folder/augmented/bolt.h5") as file:
        assert list(file) == ["train"]
        ids = [name.decode() for name in file["train/ids"][:]]
        assert len(set(ids)) == 2 * TRAIN and all(name.endswith(("#1", "#2")) for name in ids)
    done = repository.plan()
    assert all(
        done.valid[name]
        for name in done.jobs
        if name.split("/")[0] in ("train", "predict", "augment")
    )


class TestPlan:
    """What augmentation makes stale, and what it refuses."""

    def test_only_what_is_trained(self, repository):
        augmented = repository.plan().jobs
        plain = repository.plan(protocol={"augmentation": None}).jobs
        same = {name for name in plain if plain[name].fingerprint == augmented[name].fingerprint}
        unchanged = {name.split("/")[0] for name in same}
        assert {"index", "check", "features"} <= unchanged
        assert not {"train", "predict", "evaluate", "aggregate", "sheet"} & unchanged
        assert set(augmented) - set(plain) == {"augment/tiny/folder/bolt"}
        assert all("augmentation" not in job.parameters for job in plain.values())
        assert not any(
            "augmented" in module for job in plain.values() for module in job.program.modules
        )
        assert "copies 2, horizontal_flip True" in augmented["aggregate/folder"].parameters["title"]

    def test_the_plain_stage_refuses_an_augmented_job(self, repository):
        repository.write_plan()
        path = Path(".plan/train/padim/folder/bolt/seed0.json")
        with pytest.raises(StageError, match=r"stage 'augmented\.train', expected 'train'"):
            read_job(path, "train")

    def test_a_test_image_changes_no_copy(self, repository):
        name = "augment/tiny/folder/bolt"
        before = repository.plan().jobs[name].fingerprint
        (repository.images / "bolt/test/good/000.png").unlink()
        assert repository.plan().jobs[name].fingerprint == before
        (repository.images / "bolt/train/good/000.png").unlink()
        assert repository.plan().jobs[name].fingerprint != before

    def test_augmentation_that_changes_nothing(self, repository):
        with pytest.raises(ParamsError, match="protocol.augmentation: .*give a flip"):
            repository.plan(protocol={"augmentation": dict.fromkeys(SETTINGS, 0) | {"copies": 2}})


@pytest.mark.slow
def test_it_runs_as_a_pipeline(repository):
    done = repository.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    board = (repository.root / "results/leaderboard/folder/leaderboard.md").read_text()
    assert "training images augmented: copies 2, horizontal_flip True" in board
    assert all(repository.plan().valid.values())
    assert "Nothing to be done" in (again := repository.snakemake("-n")).stdout + again.stderr
