"""Reverse distillation: the authors' shapes, loss and map."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from algorithms.reverse_distillation import (
    Decoder,
    OneClassEmbedding,
    disagreement,
    flat_cosine_loss,
)

SMALL = {"bottleneck_blocks": 1, "decoder_blocks": (1, 1, 1)}
WIDE_RESNET = (256, 512, 1024)


def convolutions(module: nn.Module) -> list[tuple[int, int, int, int]]:
    """(channels in, channels out, kernel, stride; negative if transposed), in order."""
    result = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is None
            sign = -1 if isinstance(layer, nn.ConvTranspose2d) else 1
            kernel, stride = layer.kernel_size[0], sign * layer.stride[0]
            result.append((layer.in_channels, layer.out_channels, kernel, stride))
    return result


def test_embedding_of_wide_resnet() -> None:
    with torch.device("meta"):
        embedding = OneClassEmbedding(WIDE_RESNET, blocks=3)
        features = [torch.empty(2, c, s, s) for c, s in zip(WIDE_RESNET, (64, 32, 16), strict=True)]
        assert embedding(features).shape == (2, 2048, 8, 8)
    assert convolutions(embedding.fine) == [(256, 512, 3, 2), (512, 1024, 3, 2)]
    assert convolutions(embedding.middle) == [(512, 1024, 3, 2)]
    first, *others = (convolutions(block) for block in embedding.squeeze)
    assert first == [(3072, 1024, 1, 1), (1024, 1024, 3, 2), (1024, 2048, 1, 1), (3072, 2048, 1, 2)]
    assert others == [[(2048, 1024, 1, 1), (1024, 1024, 3, 1), (1024, 2048, 1, 1)]] * 2


def test_decoder_of_wide_resnet() -> None:
    with torch.device("meta"):
        decoder = Decoder(WIDE_RESNET, blocks=(3, 4, 6))
        shapes = [tuple(layer.shape[1:]) for layer in decoder(torch.empty(2, 2048, 8, 8))]
    assert shapes == [(256, 64, 64), (512, 32, 32), (1024, 16, 16)]
    for stage, blocks, wide, middle, out in (
        (decoder.coarse, 3, 2048, 512, 1024),
        (decoder.middle, 4, 1024, 256, 512),
        (decoder.fine, 6, 512, 128, 256),
    ):
        first, *others = (convolutions(block) for block in stage)
        assert first == [
            (wide, middle, 1, 1),
            (middle, middle, 2, -2),
            (middle, out, 1, 1),
            (wide, out, 2, -2),
        ]
        assert others == [[(out, middle, 1, 1), (middle, middle, 3, 1), (middle, out, 1, 1)]] * (
            blocks - 1
        )


def test_every_convolution_is_normalised(feature_toy: Any, build: Any) -> None:
    network = build("reverse_distillation", {}, feature_toy.train).network
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [out for _, out, _, _ in convolutions(network)]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    embedding, decoder = OneClassEmbedding((32, 64, 128), 1), Decoder((32, 64, 128), (1, 1, 1))
    for layer in [*embedding.modules(), *decoder.modules()]:
        if isinstance(layer, nn.Conv2d):  # Kaiming's, by what goes out
            expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2))
        elif isinstance(layer, nn.ConvTranspose2d):  # PyTorch's own, as in the authors' code
            expected = 1 / math.sqrt(3 * layer.out_channels * layer.kernel_size[0] ** 2)
        else:
            continue
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.1)


def random_layers(rng: np.random.Generator, count: int = 3) -> list[Tensor]:
    shapes = ((5, 8, 8), (7, 4, 4), (9, 2, 2))
    return [torch.from_numpy(rng.normal(size=(count, *shape))) for shape in shapes]


def test_loss_has_one_cosine_per_image(rng: np.random.Generator) -> None:
    teacher, student = random_layers(rng), random_layers(rng)
    expected = 0.0
    for left, right in zip(teacher, student, strict=True):
        cosines = []
        for one, other in zip(left.numpy(), right.numpy(), strict=True):
            a, b = one.ravel(), other.ravel()
            cosines.append(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        expected += 1 - np.mean(cosines)
    assert float(flat_cosine_loss(teacher, student)) == pytest.approx(expected)
    assert float(flat_cosine_loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_disagreement_has_one_cosine_per_position(rng: np.random.Generator) -> None:
    teacher, student = random_layers(rng), random_layers(rng)
    expected = np.zeros((3, 32, 32))
    for left, right in zip(teacher, student, strict=True):
        a, b = left.numpy(), right.numpy()
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        distance = torch.from_numpy(1 - (a * b).sum(axis=1) / norms)[:, None]
        # The corners of the coarse grid are put on the corners of the map, as the authors do.
        large = functional.interpolate(distance, (32, 32), mode="bilinear", align_corners=True)
        expected += large[:, 0].numpy()
    np.testing.assert_allclose(disagreement(teacher, student, (32, 32)), expected)


def test_map_and_score(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("reverse_distillation", SMALL, feature_toy.train).algorithm
    prediction = predict(algorithm, feature_toy.test)
    teacher = [torch.from_numpy(array) for array in feature_toy.test.arrays]
    with torch.inference_mode():
        rough = disagreement(teacher, algorithm.network.eval()(teacher), (64, 64))
    expected = np.stack([gaussian_filter(image, 4.0) for image in rough.double().numpy()])
    np.testing.assert_allclose(prediction.maps["cosine"], expected, atol=1e-5)
    np.testing.assert_allclose(prediction.scores["cosine"], expected.max(axis=(1, 2)), atol=1e-5)


def test_batch_statistics_play_no_part_in_prediction(
    feature_toy: Any, fit: Any, predict: Any
) -> None:
    algorithm = fit("reverse_distillation", SMALL, feature_toy.train).algorithm
    algorithm.network.train()  # as training left it
    alone = predict(algorithm, feature_toy.test, batch=1)
    assert not algorithm.network.training
    together = predict(algorithm, feature_toy.test, batch=8)
    torch.testing.assert_close(together.maps["cosine"], alone.maps["cosine"], rtol=1e-4, atol=1e-5)


def test_training_moves_running_statistics_and_leaves_the_teacher(
    feature_toy: Any, fit: Any
) -> None:
    before = [array.copy() for array in feature_toy.train.arrays]
    algorithm = fit("reverse_distillation", SMALL, feature_toy.train).algorithm
    for array, kept in zip(feature_toy.train.arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)
    norm = next(layer for layer in algorithm.network.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_mean.abs().max() > 0


def test_student_trains_after_an_evaluation(feature_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("reverse_distillation", SMALL, feature_toy.train).algorithm
    predict(algorithm, feature_toy.clean)
    batch = [torch.from_numpy(array) for array in feature_toy.train.arrays]
    algorithm.train_one_epoch([batch])
    assert algorithm.network.training


def test_training_lowers_the_loss(feature_toy: Any, fit: Any) -> None:
    losses = fit("reverse_distillation", SMALL, feature_toy.train, epochs=8).progress.losses
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]


def test_three_layers_are_wanted(image_toy: Any, build: Any) -> None:
    with pytest.raises(ValueError, match="three layers"):
        build("reverse_distillation", {}, image_toy.train)
