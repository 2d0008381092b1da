"""PPDM: codes, both bottlenecks, the loss and its way through the encoder, maps warped back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional

from algorithms.blocks.deformation import deformation_loss, warp
from algorithms.ppdm import Codebook, Hyperparameters, QuantisedEmbedding
from algorithms.reverse_distillation import OneClassEmbedding, disagreement, flat_cosine_loss
from tests.algorithms.conftest import toy_network

SMALL = {"width": 4, "bottleneck_blocks": 1, "decoder_blocks": (1, 1, 1), "codes": 20}
SP = SMALL | {"mode": "sp", "reduced_channels": 8}
MODES = pytest.mark.parametrize("parameters", [SMALL, SP], ids=["px", "sp"])


def test_scales_of_the_fields() -> None:
    """Eight and three pixels of 256, whose halves are 128."""
    values = Hyperparameters()
    assert values.coarse_scale == 8 / 128 and values.fine_scale == 3 / 128


class TestCodebook:
    """The nearest code in value, its gradient passed to the features."""

    def test_codes_and_loss(self, rng: np.random.Generator) -> None:
        book = Codebook(7, 5, 0.25)
        codes = rng.normal(size=(7, 5))
        book.codes.data = torch.from_numpy(codes)
        features = rng.normal(size=(2, 5, 3, 4))
        found, loss = book(torch.from_numpy(features))
        expected = np.zeros_like(features)
        for n, row, column in np.ndindex(2, 3, 4):
            distance = np.linalg.norm(codes - features[n, :, row, column], axis=1)
            expected[n, :, row, column] = codes[distance.argmin()]
        np.testing.assert_allclose(found.detach(), expected, atol=1e-12)
        # Embedding and a quarter of commitment are the same number.
        assert loss.item() == pytest.approx(1.25 * ((expected - features) ** 2).mean())

    def test_gradients(self, rng: np.random.Generator) -> None:
        book = Codebook(7, 5, 0.25).double()
        features = torch.from_numpy(rng.normal(size=(2, 5, 3, 4))).requires_grad_()
        upstream = torch.from_numpy(rng.normal(size=(2, 5, 3, 4)))
        found, loss = book(features)
        (found * upstream).sum().backward(retain_graph=True)
        torch.testing.assert_close(features.grad, upstream)  # straight through
        assert book.codes.grad is None
        features.grad = None
        loss.backward()
        chosen = found.detach()
        expected = 2 * 0.25 * (features.detach() - chosen) / features.numel()
        torch.testing.assert_close(features.grad, expected)
        total = 2 * (chosen - features.detach()).sum(dim=(0, 2, 3)) / features.numel()
        torch.testing.assert_close(book.codes.grad.sum(dim=0), total)

    def test_initial_codes(self) -> None:
        torch.manual_seed(0)
        codes = Codebook(200, 1024, 0.25).codes.detach()
        assert codes.shape == (200, 1024)
        assert 0.00499 < float(codes.abs().max()) <= 0.005
        assert float(codes.std()) == pytest.approx(0.005 / math.sqrt(3), rel=0.01)


def test_authors_bottleneck_with_codes() -> None:
    with torch.device("meta"):
        embedding = QuantisedEmbedding((256, 512, 1024), 3, 64, Codebook(200, 1024, 0.25))
    sizes = [
        [(one.in_channels, one.out_channels, one.stride[0]) for one in part.modules()
         if isinstance(one, nn.Conv2d) and one.kernel_size == (3, 3) and one.bias is None]
        for part in embedding.reduce
    ]  # fmt: skip
    assert sizes == [
        [(256, 64, 1), (64, 64, 2), (64, 64, 2)],
        [(512, 64, 1), (64, 64, 2)],
        [(1024, 64, 1)],
    ]
    first = next(one for one in embedding.squeeze.modules() if isinstance(one, nn.Conv2d))
    assert first.in_channels == 1216
    features = [
        torch.zeros(1, c, s, s) for c, s in zip((6, 8, 10), (16, 8, 4), strict=True)
    ]  # fmt: skip
    found, _ = QuantisedEmbedding((6, 8, 10), 1, 4, Codebook(5, 10, 0.25))(features)
    assert found.shape == (1, 20, 2, 2)


def test_pixel_mode_has_the_bottleneck_of_reverse_distillation(image_toy: Any, build: Any) -> None:
    assert isinstance(build("ppdm", SMALL, image_toy.train).embedding, OneClassEmbedding)
    assert isinstance(build("ppdm", SP, image_toy.train).embedding, QuantisedEmbedding)


@MODES
def test_loss(image_toy: Any, build: Any, parameters: dict[str, Any]) -> None:
    algorithm = build("ppdm", parameters | {"gamma": 0.7}, image_toy.train)
    algorithm.network.eval()  # so that both computations see the same statistics
    images = torch.from_numpy(image_toy.train.arrays[0][:4])
    found = algorithm.loss([images]).item()
    with torch.no_grad():
        fields = algorithm.deformation(images)
        straight = warp(warp(images, fields.coarse), fields.fine)
        features = toy_network()(straight)
        embedding, codes = algorithm.embedding(features), 0.0
        if algorithm.parameters.mode == "sp":
            embedding, codes = embedding
            assert codes > 0.01
        expected = flat_cosine_loss(features, algorithm.decoder(embedding))
        expected = expected + deformation_loss(images, straight, fields, 0.7) + codes
    assert found == pytest.approx(float(expected))


@MODES
def test_gradients_go_through_the_frozen_encoder(
    image_toy: Any, build: Any, parameters: dict[str, Any]
) -> None:
    algorithm = build("ppdm", parameters, image_toy.train)
    images = torch.from_numpy(image_toy.train.arrays[0][:4])
    fields = algorithm.deformation(images)
    features, redrawn, _ = algorithm._redraw(warp(images, fields.fine))
    # The features that the student learns from are not detached: they alone have a gradient, too.
    target = [layer.detach() for layer in redrawn]
    flat_cosine_loss(features, target).backward()
    first = algorithm.deformation.local[0].conv.weight
    assert first.grad is not None and first.grad.abs().max() > 0
    assert not any(one.requires_grad for one in algorithm.encoder.parameters())


@MODES
def test_everything_but_the_encoder_learns(
    image_toy: Any, fit: Any, build: Any, parameters: dict[str, Any]
) -> None:
    algorithm = fit("ppdm", parameters, image_toy.train.take(5)).algorithm
    before = {key: value.clone() for key, value in algorithm.state().items()}
    algorithm.train_one_epoch([[torch.from_numpy(image_toy.train.arrays[0])]])
    same = {key for key, value in algorithm.state().items() if torch.equal(value, before[key])}
    assert not same
    for one, other in zip(
        algorithm.encoder.state_dict().values(), toy_network().state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    assert algorithm.network.training and not algorithm.encoder.training


def test_rate_falls_along_a_cosine(image_toy: Any, build: Any) -> None:
    algorithm = build("ppdm", SMALL | {"cosine_epochs": 4}, image_toy.train)
    loader, rates = [[torch.from_numpy(image_toy.train.arrays[0][:2])]], []
    for _ in range(6):
        algorithm.train_one_epoch(loader)
        rates.append(algorithm.optimizer.param_groups[0]["lr"])
    half = math.sqrt(0.5)
    expected = np.array([2, 1 + half, 1, 1 - half, 0, 0]) / 2 * 0.005
    np.testing.assert_allclose(rates, expected, atol=1e-12)


@MODES
def test_maps_and_scores(
    image_toy: Any, fit: Any, predict: Any, parameters: dict[str, Any]
) -> None:
    algorithm = fit("ppdm", parameters, image_toy.train.take(5), epochs=2).algorithm
    prediction = predict(algorithm, image_toy.test)
    assert not algorithm.network.training
    images = torch.from_numpy(image_toy.test.arrays[0])
    with torch.no_grad():
        coarse, fine, coarse_back, fine_back = algorithm.deformation(images)
        features = toy_network()(warp(warp(images, coarse), fine))
        embedding = algorithm.embedding(features)
        embedding = embedding[0] if algorithm.parameters.mode == "sp" else embedding
        rough = disagreement(features, algorithm.decoder(embedding), (64, 64))[:, None]
        assert (warp(rough, fine_back) - rough).abs().max() > 1e-3
        rough = warp(warp(rough, fine_back), coarse_back)[:, 0]
        far = functional.grid_sample(  # the fine field's lengths, back through the coarse one
            fine_back.norm(dim=1, keepdim=True),
            (coarse_back + warp_identity(64)).movedim(1, -1).clamp(-1, 1),
            align_corners=True,
        )[:, 0]
        far = far + coarse_back.norm(dim=1)
    for name, values in (("cosine", rough), ("offset", far)):
        expected = np.stack([gaussian_filter(image, 4.0) for image in values.double().numpy()])
        np.testing.assert_allclose(prediction.maps[name], expected, atol=1e-5)
        np.testing.assert_allclose(prediction.scores[name], expected.max(axis=(1, 2)), atol=1e-5)


def warp_identity(side: int) -> torch.Tensor:
    """Places of pixels (2, side, side): x, y."""
    line = torch.linspace(-1, 1, side)
    return torch.stack([line.expand(side, side), line[:, None].expand(side, side)])


@MODES
def test_training_lowers_the_loss(image_toy: Any, fit: Any, parameters: dict[str, Any]) -> None:
    losses = fit("ppdm", parameters, image_toy.train.take(4), epochs=8).progress.losses
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]


def test_scale_of_features(image_toy: Any, build: Any) -> None:
    images = torch.from_numpy(image_toy.train.arrays[0][:2])
    plain = build("ppdm", SMALL, image_toy.train)._redraw(images)[0]
    small = build("ppdm", SMALL | {"feature_scale": 0.25}, image_toy.train)._redraw(images)[0]
    for one, other in zip(plain, small, strict=True):
        torch.testing.assert_close(other, one / 4)
