"""PFM and PEFM: the authors' widths, mapping, losses and map against their formulas."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import Context, create
from algorithms.blocks.positions import position_encoding
from algorithms.pfm import PFM, Mapping, fuse
from stages.batches import BatchLoader
from stages.devices import seed_everything

SHAPES = ((12, 16, 16), (20, 8, 8), (16, 16, 16), (28, 8, 8))  # two levels of two networks
SMALL = {"latents": (10, 14), "learning_rates": (3e-3, 1e-3)}
RESNETS = [((64, 64, 64), (256, 64, 64), 200), ((128, 32, 32), (512, 32, 32), 400)]
RESNETS += [((256, 16, 16), (1024, 16, 16), 900)]


@pytest.fixture(scope="module")
def batch() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    templates = [
        functional.interpolate(torch.randn(1, c, 3, 3, generator=generator), grid, mode="bicubic")
        for c, *grid in SHAPES
    ]  # smooth, and noise
    return [t + 0.1 * torch.randn(6, *t.shape[1:], generator=generator) for t in templates]


def build(members: int = 2, shapes: Any = SHAPES, **parameters: Any) -> PFM:
    seed_everything(0, 0)
    context = Context((64, 64), shapes, 6, 0, torch.device("cpu"), members)
    algorithm = create("pfm", SMALL | parameters, context)
    assert isinstance(algorithm, PFM)
    return algorithm


def widths(layers: nn.Module) -> list[int]:
    """Channels between the convolutions, the input's first."""
    convolutions = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
    for before, after in pairwise(convolutions):
        assert before.out_channels == after.in_channels
    return [convolutions[0].in_channels, *(layer.out_channels for layer in convolutions)]


def test_widths_on_resnets() -> None:
    """The fact sheet's table, both directions."""
    table = [
        [[64, 232, 400, 200, 400, 328, 256], [256, 328, 400, 200, 400, 232, 64]],
        [[128, 464, 800, 400, 800, 656, 512], [512, 656, 800, 400, 800, 464, 128]],
        [[256, 1028, 1800, 900, 1800, 1412, 1024], [1024, 1412, 1800, 900, 1800, 1028, 256]],
    ]
    total = 0
    for (first, second, latent), rows in zip(RESNETS, table, strict=True):
        with torch.device("meta"):
            mapping = Mapping((first, second), latent, "none")
        for source, row in enumerate(rows):
            path = (mapping.encoders[source], mapping.bottleneck, mapping.decoders[1 - source])
            assert widths(nn.Sequential(*path)) == row
        counts = [n * (m + 1) for row in rows for m, n in pairwise(row)]
        norms = 2 * sum(sum(row[i] for i in (1, 2, 4, 5)) for row in rows)
        shared = rows[0][3] * (rows[0][2] + 1)  # counted in both directions
        expected = sum(counts) + norms - shared
        assert sum(part.numel() for part in mapping.parameters()) == expected
        total += expected
    assert total / 1e6 == pytest.approx(21.55, abs=0.005)


def test_concatenation_widens_the_first_layers_only() -> None:
    with torch.device("meta"):
        mapping = Mapping(((64, 64, 64), (256, 64, 64)), 200, "concatenate")
    assert [widths(part) for part in mapping.encoders] == [[128, 232, 400], [512, 328, 400]]
    assert [widths(part) for part in mapping.decoders] == [
        [200, 400, 232, 64],
        [200, 400, 328, 256],
    ]


def reference(layers: nn.Module, x: np.ndarray) -> np.ndarray:
    """A chain of 1 x 1 convolutions, in evaluation mode, position by position, in NumPy."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach().numpy()[:, :, 0, 0]
            x = np.einsum("oi,nihw->nohw", weight, x) + layer.bias.detach().numpy()[:, None, None]
        elif isinstance(layer, nn.BatchNorm2d):
            mean, variance = layer.running_mean.numpy(), layer.running_var.numpy()
            x = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("position", ["none", "add", "concatenate"])
def test_mapping(batch: list[Tensor], position: str) -> None:
    """f' comes from g and the other way round; the code is added to what is mapped from."""
    mapping = build(position=position).mappings[0].eval()
    for layer in mapping.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    pair = batch[0], batch[2]
    found = mapping(*pair)
    for target, source in ((0, 1), (1, 0)):
        x = pair[source].numpy()
        code = np.broadcast_to(position_encoding(x.shape[1], (16, 16)).numpy(), x.shape)
        x = {"none": x, "add": x + code, "concatenate": np.concatenate([x, code], axis=1)}[position]
        latent = reference(mapping.bottleneck, reference(mapping.encoders[source], x))
        expected = reference(mapping.decoders[target], latent)
        np.testing.assert_allclose(found[target].detach(), expected, rtol=1e-4, atol=1e-5)


def unit(layer: Tensor) -> np.ndarray:
    return layer.numpy() / np.linalg.norm(layer.numpy(), axis=1, keepdims=True)


@pytest.fixture(scope="module")
def errors(batch: list[Tensor]) -> tuple[PFM, list[tuple[np.ndarray, np.ndarray]]]:
    """A trained PEFM and the squared differences of each level."""
    algorithm = build(position="add")
    for _ in range(3):
        algorithm.train_one_epoch([batch])
    algorithm.network.eval()
    results = []
    for level in range(2):
        first, second = unit(batch[level]), unit(batch[level + 2])
        with torch.no_grad():
            told = algorithm.mappings[level](torch.from_numpy(first), torch.from_numpy(second))
        results.append(((first - told[0].numpy()) ** 2, (second - told[1].numpy()) ** 2))
    return algorithm, results


def test_loss(batch: list[Tensor], errors: Any) -> None:
    algorithm, squares = errors
    expected = sum(one.mean() + other.mean() for one, other in squares)
    assert algorithm.loss(batch).item() == pytest.approx(expected, rel=1e-5)


def test_map_and_score(batch: list[Tensor], errors: Any) -> None:
    algorithm, squares = errors
    expected = np.zeros((6, 64, 64))
    for one, other in squares:
        grid = torch.from_numpy(one.sum(axis=1, keepdims=True) + other.sum(axis=1, keepdims=True))
        expected += functional.interpolate(grid / 2, (64, 64), mode="bilinear")[:, 0].numpy() / 2
    with torch.inference_mode():
        prediction = algorithm.predict(batch)
    np.testing.assert_allclose(prediction.maps["error"], expected, rtol=1e-4, atol=1e-6)
    maxima = prediction.maps["error"].numpy().max(axis=(1, 2))
    np.testing.assert_array_equal(prediction.scores["maximum"], maxima)


def test_length_of_features_does_not_matter(batch: list[Tensor], errors: Any) -> None:
    algorithm, _ = errors
    with torch.inference_mode():
        plain, scaled = (algorithm.predict([k * layer for layer in batch]) for k in (1.0, 20.0))
    torch.testing.assert_close(plain.maps["error"], scaled.maps["error"])


def test_fusion(rng: np.random.Generator) -> None:
    maps = rng.random((3, 2, 4, 4))
    np.testing.assert_allclose(fuse(torch.from_numpy(maps), False), sum(maps) / 3)
    np.testing.assert_allclose(fuse(torch.from_numpy(maps), True), maps[0] * maps[1] * maps[2])


def test_a_step_is_that_of_an_optimiser_per_level(batch: list[Tensor]) -> None:
    ours, other = build(), build()
    for _ in range(3):
        ours.train_one_epoch([batch])
    optimizers = [
        torch.optim.Adam(mapping.parameters(), lr=rate, weight_decay=1e-5)
        for mapping, rate in zip(other.mappings, SMALL["learning_rates"], strict=True)
    ]
    features = [functional.normalize(layer, p=2, dim=1) for layer in batch]
    for _ in range(3):
        for level, optimizer in enumerate(optimizers):
            first, second = features[level], features[level + 2]
            told = other.mappings[level](first, second)
            loss = ((first - told[0]) ** 2).mean() + ((second - told[1]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in ours.network.named_parameters():
        torch.testing.assert_close(value, other.network.get_parameter(name), msg=name)


def test_position_tells_equal_features_apart() -> None:
    """A mapping of 1 x 1 convolutions sees nothing else of the place."""
    flat = [torch.ones(2, *shape) for shape in SHAPES]
    plain, told = (build(position=position) for position in ("none", "add"))
    for algorithm, equal in ((plain, True), (told, False)):
        algorithm.network.eval()
        with torch.no_grad():
            spread = algorithm.mappings[0](flat[0], flat[2])[0].std(dim=(2, 3)).max()
        assert (spread < 1e-6) == equal


def test_codes_are_not_saved() -> None:
    assert build().state().keys() == build(position="add").state().keys()


def test_training_lowers_the_loss_and_finds_a_defect(batch: list[Tensor]) -> None:
    class Reader:
        """Images as stages read them."""

        shapes = SHAPES

        def __len__(self) -> int:
            return 6

        def read(self, rows: np.ndarray) -> list[np.ndarray]:
            return [layer.numpy()[rows] for layer in batch]

    algorithm = build(position="add")
    losses = []
    for _ in range(25):
        loader = BatchLoader(Reader(), np.arange(6), 2, torch.device("cpu"))
        losses.append(algorithm.train_one_epoch(loader)["loss"])
    assert losses[-1] < 0.4 * losses[0]
    defective = [layer.clone() for layer in batch]
    for layer in defective:
        cells = slice(layer.shape[2] // 4, layer.shape[2] // 2)
        layer[:, :, cells, cells] = layer[:, :, cells, cells].roll(1, dims=1)
    with torch.inference_mode():
        clean, found = algorithm.predict(batch), algorithm.predict(defective)
    assert (found.scores["maximum"] > clean.scores["maximum"]).all()
    inside = found.maps["error"][:, 18:30, 18:30].mean()
    assert inside > 3 * found.maps["error"][:, :, 40:].mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 1}, "pfm maps between two backbones, not 1"),
        ({"latents": (10,)}, r"latents \(10,\) for 2 layers"),
        ({"learning_rates": (1e-3,) * 3}, "learning_rates .* for 2 layers"),
        ({"shapes": (*SHAPES[:3], (28, 4, 4))}, "both networks need maps of one size"),
    ],
)  # fmt: skip
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
