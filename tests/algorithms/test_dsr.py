"""DSR: sizes of its networks, what each stage trains, its losses and scores."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor, nn
from torch.nn import functional

import algorithms.dsr
from algorithms.base import Context, create
from algorithms.blocks.discrete import DiscreteModel, plant
from algorithms.blocks.segmentation import UNet, convolutions
from algorithms.dsr import Dsr, Hyperparameters, object_decoder, restriction_network, u_net

SMALL = {
    "restriction_width": 8,
    "decoder_width": 16,
    "detection_width": 4,
    "feature_epochs": 2,
    "draws_per_epoch": 6,
}


def build(size: int = 64, mean: float = 0.0, std: float = 1.0, **parameters: Any) -> Dsr:
    torch.manual_seed(0)
    model = DiscreteModel(8, 4, 1, dimensions=6, codes=30)
    for book in (model.codebook_lo, model.codebook_hi):
        book.codes.mul_(0.1)
    context = Context(
        (size, size),
        ((3, size, size),),
        5,
        0,
        torch.device("cpu"),
        mean=(mean,) * 3,
        std=(std,) * 3,
        teacher=model.state_dict(),
    )
    algorithm = create("dsr", SMALL | parameters, context)
    assert isinstance(algorithm, Dsr)
    return algorithm


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(5, 3, 64, 64)


def count(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def conv(before: int, after: int, kernel: int = 3, bias: bool = True) -> int:
    return before * after * kernel**2 + bias * after


def blocks(*widths: int) -> int:
    return sum(conv(before, after) for before, after in pairwise(widths))


def test_sizes_of_the_authors_networks() -> None:
    values = Hyperparameters()
    with torch.device("meta"):
        restriction = restriction_network(128, values.restriction_width)
        decoder = object_decoder(128, values.decoder_width)
        detection, upsampling = u_net(6, values.detection_width), u_net(8, values.detection_width)
        assert restriction(torch.zeros(1, 128, 32, 32)).shape == (1, 128, 32, 32)
        assert decoder(torch.zeros(1, 256, 64, 64)).shape == (1, 3, 256, 256)
        assert detection(torch.zeros(1, 6, 256, 256)).shape == (1, 2, 256, 256)
    assert count(restriction) == (
        blocks(128, 128, 128, 256, 256, 512, 512, 256, 256, 256, 128, 128, 128, 128)
    )
    stack = 2 * (conv(128, 64, 3, False) + conv(64, 128, 1, False))
    assert count(decoder) == (
        blocks(256, 256, 512, 512, 1024)
        + conv(1024, 64, 1)
        + 2 * conv(64, 64, 4)
        + conv(64, 128)
        + stack
        + conv(128, 64, 4)
        + conv(64, 3, 4)
    )
    rest = blocks(64, 64, 128, 128, 256, 256, 256, 256, 256)  # encoder, first up
    rest += blocks(512, 256, 256, 128) + blocks(256, 128, 128, 64) + blocks(128, 64, 64, 2)
    assert count(detection) == conv(6, 64) + rest
    assert count(upsampling) == conv(8, 64) + rest


def test_convolutions_are_normed_per_image() -> None:
    block = convolutions([3, 4])
    x = torch.randn(2, 3, 8, 8)
    hidden = functional.conv2d(x, block[0].weight, block[0].bias, padding=1)
    mean = hidden.mean(dim=(2, 3), keepdim=True)
    variance = hidden.var(dim=(2, 3), keepdim=True, correction=0)
    expected = ((hidden - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert [*block.state_dict()] == ["0.weight", "0.bias"]  # no statistics, no affine part


def test_u_net_joins_each_level_with_its_skip() -> None:
    """By hand, for two levels."""
    torch.manual_seed(0)
    network = UNet(3, (4, 6), (5,))
    x = torch.randn(1, 3, 8, 8)
    fine = network.encoder[0](x)
    coarse = network.encoder[1](functional.max_pool2d(fine, 2))
    up = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=True)
    joined = torch.cat([network.up[0][1:](up), fine], dim=1)
    torch.testing.assert_close(network(x), network.last(network.decoder[0](joined)))


def test_weights_are_drawn_as_the_authors() -> None:
    algorithm = build(restriction_width=16, decoder_width=32, detection_width=16)
    parts = [*algorithm.decoder.modules(), *algorithm.detection.modules()]
    layers = [part for part in parts if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([layer.weight.flatten() for layer in layers])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.02)
    others = torch.cat([one.flatten() for one in build().upsampling.parameters()])
    assert float(others.detach().std()) > 0.03  # PyTorch's own


def test_sides_must_be_divisible() -> None:
    with pytest.raises(ValueError, match="no multiples .* of 32"):
        build(size=48)
    with pytest.raises(ValueError, match="no multiples .* of 64"):  # instance norm of one pixel
        build(size=64, reduction=2)


def changed(algorithm: Dsr, images: Tensor) -> set[str]:
    """Parts of the network that one epoch changes."""
    before = {key: value.clone() for key, value in algorithm.network.state_dict().items()}
    algorithm.train_one_epoch([[images[:2]], [images[2:4]], [images[4:]]])
    after = algorithm.network.state_dict()
    return {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}


def test_stages_train_their_networks(images: Tensor) -> None:
    algorithm = build()
    first = {"restrict_lo", "restrict_hi", "decoder", "detection"}
    assert [changed(algorithm, images) for _ in range(3)] == [first, first, {"upsampling"}]


def test_gradients_reach_what_they_shall(images: Tensor) -> None:
    """The image term trains both restrictions through the quantiser, the focal loss neither."""
    algorithm = build()
    _, _, drawn = algorithm._redraw(*algorithm.discrete.quantise(images))
    drawn.square().mean().backward()
    for part in (algorithm.restrict_lo, algorithm.restrict_hi, algorithm.decoder):
        assert all(one.grad is not None and one.grad.any() for one in [part[-1].weight])
    algorithm = build(image_weight=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "mse_loss", lambda *_: torch.zeros(()))
        algorithm.loss([images]).backward()
    assert algorithm.detection.last.weight.grad.any()
    for part in (algorithm.restrict_lo, algorithm.restrict_hi, algorithm.decoder):
        assert all(one.grad is None or not one.grad.any() for one in part.parameters())


def focal(probability: np.ndarray, masks: np.ndarray) -> float:
    """Up to the clamping of targets, 1e-5."""
    p = np.where(masks, probability, 1 - probability)
    return float(np.mean(-((1 - p) ** 2) * np.log(p)))


def softmax(logits: Tensor) -> np.ndarray:
    return np.asarray(logits.detach().softmax(dim=1)[:, 1])


def test_loss_of_codes(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build(feature_rotations=0.0, mean=0.4, std=0.2)
    kept: list[Any] = []

    def keeping(*args: Any) -> Any:
        kept.append((args, plant(*args)))
        return kept[-1][1]

    monkeypatch.setattr(algorithms.dsr, "plant", keeping)
    torch.manual_seed(4)
    result = algorithm.loss([(images - 0.4) / 0.2])
    (_, pixels, masks, low, high, reaches, skipped), made = kept[0]
    np.testing.assert_allclose(pixels, images, atol=1e-6)
    assert (low | high).all() and skipped == 0.05
    assert (reaches >= 0.2).all() and (reaches <= 1).all()
    assert masks.flatten(1).any(dim=1).any()
    book_lo, book_hi = algorithm.discrete.codebook_lo, algorithm.discrete.codebook_hi
    with torch.no_grad():
        features_lo, features_hi = algorithm.restrict_lo(made.lo), algorithm.restrict_hi(made.hi)
        join = [algorithm.discrete.up(book_lo(features_lo)), book_hi(features_hi)]
        drawn = algorithm.decoder(torch.cat(join, dim=1))
        join = [algorithm.discrete.up(made.lo), made.hi]
        general = algorithm.discrete.decoder(torch.cat(join, dim=1))
        logits = algorithm.detection(torch.cat([drawn, general], dim=1))
    clean_lo, clean_hi = algorithm.discrete.quantise(images)
    result = result.detach()
    expected = float(
        ((features_lo - clean_lo) ** 2).mean() + ((features_hi - clean_hi) ** 2).mean()
    )
    expected += 10 * float(((drawn - images) ** 2).mean())
    expected += focal(softmax(logits), made.masks.numpy())
    assert float(result) == pytest.approx(expected, rel=1e-4)


def test_draws_of_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the masks are empty, and levels are spoiled 1/4 lo, 1/4 hi, 1/2 both."""
    algorithm = build()
    torch.manual_seed(0)
    masks = algorithm._masks(torch.zeros(200, 3, 32, 32))
    full = masks.flatten(1).any(dim=1).float().mean()
    assert 0.25 < full < 0.6  # a Perlin mask, too, may be empty
    turned = algorithm._turned(torch.ones(200, 3, 32, 32), 0.4)
    assert 0.3 < (turned == 0).flatten(1).any(dim=1).float().mean() < 0.5  # zeros come in
    kept: list[Tensor] = []

    class Stop(Exception):  # noqa: N818
        pass

    def stopping(*args: Any) -> None:
        kept.append(torch.stack(args[3:5]))
        raise Stop

    monkeypatch.setattr(algorithms.dsr, "plant", stopping)
    monkeypatch.setattr(algorithm, "_masks", lambda x: x[:, 0] > 0)
    with pytest.raises(Stop):
        algorithm._feature_loss(torch.zeros(2000, 3, 32, 32))
    low, high = kept[0].float()
    shares = [float(one.mean()) for one in (low * high, low * (1 - high), (1 - low) * high)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.04)


def test_loss_of_the_last_stage(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build(image_rotations=0.0)
    algorithm.epoch = 2
    kept: list[Tensor] = []
    detect = algorithm._detect
    monkeypatch.setattr(algorithm, "_detect", lambda x: kept.append(x) or detect(x))
    monkeypatch.setattr(algorithm, "_masks", lambda x: torch.zeros(5, 64, 64).bool() | square)
    square = torch.zeros(64, 64, dtype=torch.bool)
    square[8:20, 30:50] = True
    result = algorithm.loss([images])
    spoiled = kept[0]
    assert torch.equal((spoiled != images).any(dim=1), square.expand(5, -1, -1))
    for image, original in zip(spoiled, images, strict=True):
        # image = beta original + (1 - beta) colour: by least squares, for each channel
        inside, before = image[:, square].numpy(), original[:, square].numpy()
        slopes = [np.polyfit(b, a, 1) for a, b in zip(inside, before, strict=True)]
        beta = slopes[0][0]
        assert -1e-3 < beta < 0.8 + 1e-3
        for slope, offset in slopes:
            assert slope == pytest.approx(beta, abs=1e-3)
            assert -1e-3 <= offset <= 1 - beta + 1e-3
    with torch.no_grad():
        probability = softmax(algorithm.upsampling(detect(spoiled)))
    expected = focal(probability, square.expand(5, -1, -1).numpy())
    assert float(result) == pytest.approx(expected, rel=1e-4)


def test_learning_rate_falls_at_four_fifths(images: Tensor) -> None:
    algorithm = build(feature_epochs=10, draws_per_epoch=1, learning_rate=1e-3)
    rates = []
    for epoch in range(12):
        algorithm.epoch = epoch
        algorithm.train_one_epoch([[images]])
        rates.append([group["lr"] for group in algorithm.optimizer.param_groups])
    assert [one for one, _ in rates[:10]] == pytest.approx([1e-3] * 8 + [1e-4] * 2)
    assert {one for _, one in rates} == {1e-3}


def test_an_epoch_draws_with_the_loaders_batch_size(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, sizes = build(draws_per_epoch=7), []
    loss = algorithm.loss
    monkeypatch.setattr(algorithm, "loss", lambda batch: sizes.append(len(batch[0])) or loss(batch))
    algorithm.train_one_epoch([[images[:3]], [images[3:]]])
    assert sizes == [3, 3, 1]


def test_map_and_score(images: Tensor) -> None:
    algorithm = build(mean=0.5, std=0.5)
    normalised = (images - 0.5) / 0.5
    with torch.no_grad():
        lo, hi = algorithm.discrete.quantise(images[:1])
        general = algorithm.discrete.decode(lo, hi)
        both = torch.cat([algorithm._redraw(lo, hi)[2], general], dim=1)
        detection = algorithm.detection(both).softmax(dim=1)
        refined = softmax(algorithm.upsampling(torch.cat([both, detection], dim=1)))
    score = uniform_filter(detection[0, 1].numpy(), 21, mode="constant").max()
    with torch.inference_mode():
        early = algorithm.predict([normalised])
        algorithm.refined = True
        late = algorithm.predict([normalised])
    # Before the last stage the map is the detection's.
    np.testing.assert_allclose(early.maps["segmentation"][0], detection[0, 1], atol=1e-4)
    np.testing.assert_allclose(late.maps["segmentation"][:1], refined, atol=1e-4)
    for prediction in (early, late):
        assert float(prediction.scores["detection"][0]) == pytest.approx(float(score), rel=1e-4)


def test_reduction(images: Tensor) -> None:
    algorithm, same = build(size=128, reduction=2), build()
    same.load_state(algorithm.state())
    fine = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.inference_mode():
        one, other = algorithm.predict([fine]), same.predict([images])
    expected = functional.interpolate(
        other.maps["segmentation"][:, None], (128, 128), mode="bilinear"
    )
    torch.testing.assert_close(one.maps["segmentation"], expected[:, 0])
    assert (one.scores["detection"] > 0).all()


def test_state_knows_whether_the_last_stage_has_begun(images: Tensor) -> None:
    algorithm = build(draws_per_epoch=2)
    seen = []
    for _ in range(3):
        algorithm.train_one_epoch([[images]])
        fresh = build()
        fresh.load_state(algorithm.state())
        seen.append(fresh.refined)
    assert seen == [False, False, True]
