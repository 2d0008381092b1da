"""What every registered algorithm must do (``algorithms/base.py``); a new one is tested unasked.

An algorithm that needs other than default hyperparameters to be small and quick says so in
``SETTINGS``; nothing else is edited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata

import algorithms.base
from algorithms.base import Algorithm, Prediction, save_tensors
from stages import predict as predict_stage
from stages import train as train_stage
from stages.artifacts.features import FeatureWriter
from stages.artifacts.files import write_json
from stages.artifacts.index import usable, write_index
from stages.artifacts.job import read_job
from stages.artifacts.maps import read_info, read_maps, read_scores
from stages.command import Options
from stages.devices import seed_everything
from stages.index import build_index
from stages.trainer import Checkpoint
from tests.algorithms.conftest import (
    BASES,
    HELD_OUT,
    MEMBERS,
    NETWORK,
    SIZE,
    declared,
    teachers,
    trained_base,
)

# They learn nothing, or nothing from noise, so they find nothing.
NO_LEARNING = {
    "random": "it learns nothing",
    "dsr": "its discrete latent model, untrained, gives all images the same few codes",
}
LAYERS = ("stride4", "stride8", "stride16")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters for toy data, and the epochs after which a defect must be found."""

    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    size: int = SIZE  # of images
    pixel_auroc: float = 0.9  # that a defective image's map must exceed


SETTINGS = {
    "cflow": Settings(
        {"blocks": 2, "fibre_batch": 64, "meta_epochs": 10, "sub_epochs": 1, "learning_rate": 2e-3}
    ),
    "altub": Settings({"flow_steps": 2, "interval": 2}),  # so that resuming needs both optimisers
    "ast": Settings(
        {"teacher_epochs": 2, "kernel_sizes": (3, 5), "teacher_channels": 16}
        | {"student_channels": 32, "student_blocks": 1, "learning_rate": 2e-3},
        epochs=20,
    ),
    # Toy images are not centred: zeros around them are like noise, of which there must be enough.
    "cdo": Settings(
        {"skip_background": False, "half_sides": (16, 4), "learning_rate": 1e-2, "sigma": 2.0},
        epochs=25,
    ),
    "cfa": Settings({"sigma": 2.0}),
    "efficientad": Settings(  # at 64 px a map has 8 x 8 cells and hardly reaches the defect
        {"steps_per_epoch": 4, "learning_rate": 1e-3, "autoencoder_width": 0.25}, size=128
    ),
    "draem": Settings(
        {"reconstruction_width": 8, "discrimination_width": 8, "rotated": 0.0}
        | {"learning_rate": 3e-3, "milestones": (22, 26)},
        epochs=30,
        pixel_auroc=0.7,  # 0.75 to 0.95 by seed: synthetic anomalies are unlike the toy's
    ),
    "dsr": Settings(
        {"restriction_width": 8, "decoder_width": 16, "detection_width": 8, "feature_epochs": 3}
        | {"draws_per_epoch": 20, "learning_rate": 5e-3},
        epochs=4,
    ),
    "fastflow2d": Settings({"flow_steps": 2}),
    "mspba": Settings(
        {
            "patch_sizes": (8, 16, 32),
            "steps": (4, 8, 8),
            "kernels": ((2, 3), (2, 3), (2, 3)),
            "widths": ((8, 8), (8, 8), (8, 8)),
            "learning_rate": 1e-3,
            "draws_per_image": 2,
            "samples": 8,
        },
        epochs=4,
    ),
    "memseg": Settings(
        {"memory_items": 5, "decoder_channels": 8, "steps_per_epoch": 8, "worst_pixels": 20}
        # Toy images leave [0, 1]: what is pasted is darker, and a stem would learn that alone.
        | {"steps": 80, "warmup_steps": 8, "tune_backbone": False}
    ),
    "cutpaste": Settings(
        {"pretrained": True, "frozen_steps": 0, "head_widths": (16,), "crop": 32, "stride": 8}
        | {"steps": 12, "steps_per_epoch": 3, "density_crops": 8, "sigma": 4.0},
        epochs=4,
    ),
    "msflow": Settings(
        {"blocks": (1, 1, 1), "condition_channels": 8, "learning_rate": 1e-3, "warmup_epochs": 3}
    ),
    "padim": Settings({"max_features": 30, "sigma": 2.0}, epochs=1),
    "patchcore": Settings(
        {"pretrain_dimension": None, "target_dimension": None, "sigma": 2.0}, epochs=1
    ),
    "pni": Settings(
        {"pretrain_dimension": None, "target_dimension": None, "coreset_ratio": 0.05}
        | {"window": 5, "width": 64, "depth": 3, "window_batch": 512, "sigma": 2.0}
    ),
    "pfm": Settings({"latents": (12, 16, 20), "learning_rates": (3e-3, 3e-3, 3e-3)}, epochs=20),
    "ppdm": Settings(
        {"mode": "sp", "width": 4, "reduced_channels": 16, "codes": 20, "cosine_epochs": 20}
        | {"bottleneck_blocks": 1, "decoder_blocks": (1, 1, 1), "sigma": 2.0},
        epochs=20,
    ),
    "puad": Settings(epochs=1, size=128),
    "random": Settings(epochs=1),
    "simplenet": Settings(
        {
            "pretrain_dimension": None,
            "target_dimension": None,
            "hidden_dimension": 64,
            "noise": 0.3,
            "discriminator_rate": 2e-3,
            "sigma": 2.0,
        },
        epochs=40,
    ),
    "student_teacher": Settings({"learning_rate": 3e-3, "stride": 2, "training_stride": 8}),
    "reverse_distillation": Settings(
        {"bottleneck_blocks": 1, "decoder_blocks": (1, 1, 1), "sigma": 2.0}, epochs=20
    ),
}

pytestmark = pytest.mark.parametrize("name", algorithms.base.names(), scope="module")


@pytest.fixture(scope="module")
def settings(name: str) -> Settings:
    return SETTINGS.get(name, Settings())


@pytest.fixture(scope="module")
def toy(name: str, settings: Settings, feature_toys: Any, image_toys: Any) -> Any:
    if declared(name).inputs == "features":
        return feature_toys(MEMBERS.get(name, 1))
    return image_toys(settings.size)


@pytest.fixture(scope="module")
def fitted(name: str, settings: Settings, toy: Any, fit: Any) -> Any:
    """The algorithm after a full training, shared by the tests that only predict with it."""
    return fit(name, settings.parameters, toy.train, epochs=settings.epochs)


def arrays(prediction: Prediction) -> dict[str, np.ndarray]:
    """All outputs of a prediction by kind and method."""
    return {
        f"{kind}/{method}": values.numpy()
        for kind, outputs in (("maps", prediction.maps), ("scores", prediction.scores))
        for method, values in outputs.items()
    }


def assert_same_bytes(left: Prediction, right: Prediction) -> None:
    one, other = arrays(left), arrays(right)
    assert one.keys() == other.keys()
    for output, values in one.items():
        # Not within the assertion: pytest would explain the difference, for many minutes.
        same = values.tobytes() == other[output].tobytes()
        assert same, output


def assert_close(left: Prediction, right: Prediction) -> None:
    """Equal but for the rounding of sums taken in another order."""
    one, other = arrays(left), arrays(right)
    assert one.keys() == other.keys()
    for output, values in one.items():
        tolerance = 1e-4 * float(np.ptp(values))
        np.testing.assert_allclose(other[output], values, rtol=1e-3, atol=tolerance, err_msg=output)


def test_output(fitted: Any, toy: Any, predict: Any) -> None:
    prediction = predict(fitted.algorithm, toy.test)
    map_method, score_method = fitted.algorithm.primary
    assert map_method in prediction.maps
    assert score_method in prediction.scores
    count, size = len(toy.test), fitted.algorithm.context.image_size
    for method, maps in prediction.maps.items():
        assert maps.shape == (count, *size), method
    for method, scores in prediction.scores.items():
        assert scores.shape == (count,), method
    for output, values in arrays(prediction).items():
        assert values.dtype == np.float32 or output.startswith("scores"), output
        assert np.issubdtype(values.dtype, np.floating), output
        assert np.isfinite(values).all(), output


def test_same_seed_gives_same_bytes(
    name: str, settings: Settings, fitted: Any, toy: Any, fit: Any, predict: Any
) -> None:
    again = fit(name, settings.parameters, toy.train, epochs=settings.epochs)
    assert again.same_model(fitted)
    assert_same_bytes(predict(again.algorithm, toy.test), predict(fitted.algorithm, toy.test))


def test_what_only_prediction_reads_trains_nothing(
    name: str, settings: Settings, toy: Any, fit: Any
) -> None:
    """The plan keeps the model when one of these changes."""
    says = declared(name)
    if not says.prediction_parameters:
        pytest.skip("all its parameters count in training")
    defaults = says.hyperparameters().model_dump() | settings.parameters
    others = {key: defaults[key] + 1 for key in says.prediction_parameters}
    one = fit(name, settings.parameters, toy.train, epochs=1).algorithm
    other = fit(name, settings.parameters | others, toy.train, epochs=1).algorithm
    assert type(one).prediction_parameters == says.prediction_parameters
    states = [*one.state().items()], [*other.state().items()]
    for (key, left), (same_key, right) in zip(*states, strict=True):
        assert key == same_key
        same = left.numpy().tobytes() == right.numpy().tobytes()
        assert same, key


def test_loaded_model_predicts_the_same(
    name: str, settings: Settings, fitted: Any, toy: Any, build: Any, predict: Any
) -> None:
    # Built from other random numbers: whatever prediction needs must come out of the file.
    seed_everything(99, 0)
    fresh = build(name, settings.parameters, toy.train)
    with torch.inference_mode():
        fresh.load(fitted.folder)
    assert_same_bytes(predict(fresh, toy.test), predict(fitted.algorithm, toy.test))


@pytest.mark.parametrize("batch", [1, 3])
def test_prediction_does_not_depend_on_the_batch(
    fitted: Any, toy: Any, predict: Any, batch: int
) -> None:
    together = predict(fitted.algorithm, toy.test, batch=len(toy.test))
    assert_close(together, predict(fitted.algorithm, toy.test, batch=batch))


def test_prediction_does_not_depend_on_the_order(fitted: Any, toy: Any, predict: Any) -> None:
    backwards = type(toy.test)([array[::-1].copy() for array in toy.test.arrays])
    turned = predict(fitted.algorithm, backwards, batch=3)
    assert_close(
        predict(fitted.algorithm, toy.test),
        Prediction(
            {method: maps.flip(0) for method, maps in turned.maps.items()},
            {method: scores.flip(0) for method, scores in turned.scores.items()},
        ),
    )


def test_predicting_changes_nothing(fitted: Any, toy: Any, predict: Any) -> None:
    before = {key: value.clone() for key, value in fitted.algorithm.state().items()}
    inputs_before = [array.copy() for array in toy.test.arrays]
    first = predict(fitted.algorithm, toy.test)
    after = fitted.algorithm.state()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    for array, kept in zip(toy.test.arrays, inputs_before, strict=True):
        np.testing.assert_array_equal(array, kept)
    assert_same_bytes(first, predict(fitted.algorithm, toy.test))


def test_last_batch_of_one_image(
    name: str, settings: Settings, toy: Any, fit: Any, predict: Any
) -> None:
    trained = fit(name, settings.parameters, toy.train.take(5), batch=4)
    assert trained.progress.epochs == 1
    for output, values in arrays(predict(trained.algorithm, toy.test)).items():
        assert np.isfinite(values).all(), output


def test_planted_defect_is_found(
    name: str, settings: Settings, fitted: Any, toy: Any, predict: Any
) -> None:
    if name in NO_LEARNING:
        pytest.skip(NO_LEARNING[name])
    clean, defective = (predict(fitted.algorithm, part) for part in (toy.clean, toy.defective))
    map_method, score_method = fitted.algorithm.primary
    assert (defective.scores[score_method] > clean.scores[score_method]).all()
    maps, twins = defective.maps[map_method].numpy(), clean.maps[map_method].numpy()
    assert (maps[:, toy.mask].mean(axis=1) > twins[:, toy.mask].mean(axis=1)).all()
    # The area under the ROC curve over pixels, image by image.
    inside = int(toy.mask.sum())
    for image in maps:
        ranks = rankdata(image).reshape(image.shape)[toy.mask].sum()
        area = (ranks - inside * (inside + 1) / 2) / (inside * (image.size - inside))
        assert area > settings.pixel_auroc


class Killed(Exception):  # noqa: N818 - an event of the test, not an error of the code
    """Stands for the signal that ends a process."""


def test_killed_training_resumes_to_the_same_bytes(
    name: str,
    settings: Settings,
    toy: Any,
    fit: Any,
    predict: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = fit(name, settings.parameters, toy.train, epochs=4)
    cls = type(straight.algorithm)
    train_one_epoch, epochs = cls.train_one_epoch, iter(range(1, 100))

    def killed_in_the_third(self: Any, loader: Any) -> dict[str, float]:
        if next(epochs) == 3:
            raise Killed
        losses: dict[str, float] = train_one_epoch(self, loader)
        return losses

    monkeypatch.setattr(cls, "train_one_epoch", killed_in_the_third)
    monkeypatch.setattr("stages.trainer.CHECKPOINT_SECONDS", -1.0)  # after every epoch
    with pytest.raises(Killed):
        fit(name, settings.parameters, toy.train, epochs=4, folder=tmp_path)
    resumed = fit(name, settings.parameters, toy.train, epochs=4, folder=tmp_path)
    assert next(epochs) == 6, "two epochs, one killed, two more: the first two were not repeated"
    assert resumed.progress.resumed == 1
    assert resumed.progress.epochs == 4
    assert resumed.progress.losses == straight.progress.losses
    assert resumed.same_model(straight)
    assert_same_bytes(predict(resumed.algorithm, toy.test), predict(straight.algorithm, toy.test))


def test_training_goes_on_after_a_preparation_for_prediction(
    name: str, settings: Settings, toy: Any, fit: Any, tmp_path: Path
) -> None:
    """As the stage ``learning`` has it: prepare and predict, then learn on from there."""
    first = fit(name, settings.parameters, toy.train, epochs=2, folder=tmp_path)
    cls = type(first.algorithm)
    if (cls.before_eval, cls.calibrate) == (Algorithm.before_eval, Algorithm.calibrate):
        pytest.skip("it prepares nothing")
    Checkpoint(tmp_path / "checkpoint", "a fingerprint").save(first.algorithm, first.progress)
    longer = fit(name, settings.parameters, toy.train, epochs=3, folder=tmp_path)
    assert longer.progress.resumed == 1
    assert longer.same_model(fit(name, settings.parameters, toy.train, epochs=3))


def test_spent_budget_stops_after_one_epoch(
    name: str, settings: Settings, toy: Any, fit: Any, predict: Any
) -> None:
    trained = fit(name, settings.parameters, toy.train, epochs=4, train_seconds=1e-9)
    assert trained.progress.epochs == 1
    assert trained.progress.stopped_by == "budget"
    for output, values in arrays(predict(trained.algorithm, toy.test)).items():
        assert np.isfinite(values).all(), output


# --- no access to labels: the real stages, on files ------------------------------------------

TRUE_TYPES = ("good", "hole", "good", "hole", "crack")  # of the test images
FALSE_TYPES = ("stain", "good", "hole", "good", "good")


def write_category(category: Path, types: tuple[str, ...]) -> None:
    """Write a category in MVTec's layout; the pixels are the same whatever the types say."""
    rng = np.random.default_rng(5)
    picture = rng.integers(60, 190, (64, 64, 3))
    places = [("train", "good")] * 5 + [("test", kind) for kind in types]
    for number, (split, kind) in enumerate(places):
        pixels = np.clip(picture + rng.integers(-20, 20, picture.shape), 0, 255)
        path = category / split / kind / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if kind != "good":
            mask = np.zeros((64, 64), np.uint8)
            mask[: 5 * number, :20] = 255
            path = category / "ground_truth" / kind / f"{number:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


def write_inputs(folder: Path, types: tuple[str, ...]) -> dict[str, Path]:
    """Index a category, and write features that follow from its pixels alone."""
    category = folder / "data" / "thing"
    write_category(category, types)
    index = build_index(category)
    assert set(index["problem"]) == {""}
    write_index(folder / "index.parquet", index)
    with h5py.File(folder / "features.h5", "w") as file:
        for split in ("train", "test"):
            table = usable(index, split)
            writer = FeatureWriter(file, split, table["image_id"].tolist(), "float16")
            images = [np.asarray(Image.open(category / path), np.float32) for path in table["path"]]
            pixels = np.stack(images).transpose(0, 3, 1, 2) / 255
            writer.append(
                {
                    layer: np.repeat(pixels, 4, axis=1)[:, :, ::stride, ::stride]
                    for layer, stride in zip(LAYERS, (4, 8, 16), strict=True)
                }
            )
    return {"index": folder / "index.parquet", "features": folder / "features.h5"}


def write_needs(
    name: str, settings: Settings, folder: Path, parameters: dict[str, Any]
) -> dict[str, Path]:
    """Write what an algorithm needs besides; add to the job's parameters, return its inputs."""
    needs, inputs = declared(name).needs, {}
    if "validation" in needs:
        parameters["validation"] = HELD_OUT
    if "teacher" in needs:
        inputs["teacher"] = folder / "teacher"
        inputs["teacher"].mkdir()
        save_tensors(teachers(name, settings.size), folder / "teacher" / "model.safetensors")
    if "outside" in needs:
        write_category(folder / "data" / "other", ("good",))
        write_index(folder / "other.parquet", build_index(folder / "data" / "other"))
        inputs["outside"] = folder / "other.parquet"
        parameters["outside_folders"] = [str(folder / "data" / "other")]
    if "base" in needs:
        below, given = BASES[name]
        base = trained_base(name, settings.size)
        inputs["base"] = folder / "base"
        inputs["base"].mkdir()
        base.save(inputs["base"])
        parameters["base"] = {"algorithm": below, "parameters": given}
        if "teacher" in declared(below).needs:
            inputs["base_teacher"] = folder / "teacher"
            inputs["base_teacher"].mkdir()
            save_tensors(teachers(below, settings.size), folder / "teacher" / "model.safetensors")
    return inputs


def run_stages(
    name: str, settings: Settings, folder: Path, types: tuple[str, ...]
) -> dict[str, bytes]:
    """Train and predict through job files; return the bytes of the model, maps and scores."""
    files = write_inputs(folder, types)
    job: dict[str, Any] = {
        "key": {"algorithm": name, "dataset": "toy", "category": "thing", "seed": "0"},
        "parameters": {
            "algorithm": name,
            "parameters": settings.parameters,
            "layers": list(LAYERS),
            "root": str(folder / "data"),
            "image_size": settings.size,
            "crop": 1.0,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "seed": 0,
            "epochs": 1,
            "batch_size": 4,
            "train_seconds": None,
        },
        "fingerprint": "a fingerprint",
        "parts": {},
        "code": "",
        "versions": {},
        "data": {},
        "upstream": {},
        "forced": False,
        "device": "cpu",
        "store": None,
    }
    says = declared(name)
    if says.inputs == "images":
        del files["features"]
        if says.builds_on_backbone:
            layers = ["stride2", "stride4", "stride8"]
            job["parameters"] |= {"backbone": NETWORK, "layers": layers}
    more = write_needs(name, settings, folder, job["parameters"])
    count = {"features": MEMBERS.get(name, 1)}
    outputs = {"model": folder / "model", "training": folder / "training.json"}
    write_json(
        folder / "train.job.json",
        job
        | {
            "stage": "train",
            "inputs": {
                key: [str(path)] * count.get(key, 1) for key, path in (files | more).items()
            },
            "outputs": {key: str(path) for key, path in outputs.items()},
        },
    )
    write_json(
        folder / "predict.job.json",
        job
        | {
            "stage": "predict",
            "inputs": {
                key: [str(path)] * count.get(key, 1)
                for key, path in (files | more | outputs).items()
            },
            "outputs": {"maps": str(folder / "maps.h5")},
        },
    )
    options = Options(threads=1, device="cpu", progress=False)
    train_stage.body(read_job(folder / "train.job.json", "train"), options)
    predict_stage.body(read_job(folder / "predict.job.json", "predict"), options)
    info = read_info(folder / "maps.h5")
    assert len(info.ids) == len(types)
    path = folder / "maps.h5"
    return {
        "model": (folder / "model" / "model.safetensors").read_bytes(),
        **{f"maps/{name}": read_maps(path, name).tobytes() for name in info.map_methods},
        **{f"scores/{name}": read_scores(path, name).tobytes() for name in info.score_methods},
    }


def test_labels_make_no_difference(name: str, settings: Settings, tmp_path: Path) -> None:
    true = run_stages(name, settings, tmp_path / "true", TRUE_TYPES)
    false = run_stages(name, settings, tmp_path / "false", FALSE_TYPES)
    assert true.keys() == false.keys()
    assert not [output for output, values in true.items() if values != false[output]]
