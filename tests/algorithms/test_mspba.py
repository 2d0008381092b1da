"""MSPBA: places of patches, the loss's terms, maps, and one network for all scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from algorithms.blocks.crops import cover, cut, draw_corners, grid
from algorithms.mspba import (
    DirectionClassifier,
    Hyperparameters,
    encoder,
    svdd_loss,
)

SMALL = {
    "patch_sizes": (8, 16, 32),
    "steps": (4, 8, 8),
    "kernels": ((2, 3), (2, 3), (2, 3)),
    "widths": ((8, 8), (8, 8), (8, 8)),
    "draws_per_image": 2,
    "samples": 8,
}


@pytest.mark.parametrize(("scale", "side", "channels"), [(0, 8, 128), (1, 8, 256), (2, 4, 512)])
def test_authors_encoders_leave_one_vector(scale: int, side: int, channels: int) -> None:
    values = Hyperparameters()
    assert values.patch_sizes[scale] in (2 * side, 4 * side, 16 * side)
    network = encoder(channels, values.kernels[scale], values.widths[scale])
    result = network(torch.randn(3, channels, side, side))
    assert result.shape == (3, 64)
    assert (result.abs() < 1).all()


def test_kernels_that_do_not_fit_are_refused(image_toy: Any, build: Any) -> None:
    with pytest.raises(ValueError, match=r"patch of 8 px, which is 4 wide .* down to 1 x 1"):
        build("mspba", SMALL | {"kernels": ((2, 2), (2, 3), (2, 3))}, image_toy.train)


@pytest.mark.parametrize(
    ("length", "size", "step", "expected"),
    [(64, 16, 16, [0, 16, 32, 48]), (70, 16, 16, [0, 16, 32, 48, 54]), (16, 16, 4, [0])],
)
def test_grid_reaches_the_border(length: int, size: int, step: int, expected: list[int]) -> None:
    assert grid(length, size, step).tolist() == expected


def test_authors_grids() -> None:
    values = Hyperparameters()
    counts = [
        len(grid(256, size, step))
        for size, step in zip(values.patch_sizes, values.steps, strict=True)
    ]
    assert counts == [61, 57, 13]


def test_a_pixel_has_the_mean_of_the_patches_that_cover_it(rng: np.random.Generator) -> None:
    rows, columns, size = grid(20, 8, 3), grid(17, 8, 3), 8
    scores = rng.normal(size=(len(rows), len(columns)))
    total, count = np.zeros((20, 17)), np.zeros((20, 17))
    for i, top in enumerate(rows.tolist()):
        for j, left in enumerate(columns.tolist()):
            total[top : top + size, left : left + size] += scores[i, j]
            count[top : top + size, left : left + size] += 1
    result = cover(20, size, rows).double() @ torch.from_numpy(scores)
    result = result @ cover(17, size, columns).double().T
    np.testing.assert_allclose(result.numpy(), total / count, rtol=1e-6)


def test_cut(rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, 2, 9, 11))
    rows, corners = [2, 0, 2], [(0, 0), (4, 6), (1, 3)]
    result = cut(torch.from_numpy(images), torch.tensor(rows), torch.tensor(corners), 5)
    for patch, row, (top, left) in zip(result.numpy(), rows, corners, strict=True):
        np.testing.assert_array_equal(patch, images[row, :, top : top + 5, left : left + 5])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_places_of_patches(size: int) -> None:
    torch.manual_seed(0)
    sides = (2000, 1500)  # so large that hardly a patch is moved by the border
    drawn = draw_corners(500, size, sides)
    first = drawn["first"].numpy()
    assert (first >= 0).all() and (first <= np.array(sides) - size).all()
    free = ((first > 2 * size) & (first < np.array(sides) - 3 * size)).all(axis=1)
    assert free.sum() > 200
    angle = np.deg2rad(30 * drawn["direction"].numpy())
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    moved = (drawn["neighbour"].numpy() - first)[free]
    low, high = 0.75 * size * np.abs(unit[free]), (size - 1) * np.abs(unit[free])
    assert (np.abs(moved) >= low - 0.5 - 1e-6).all() and (np.abs(moved) <= high + 0.5 + 1e-6).all()
    straight = np.abs(unit[free]) > 1e-6
    assert (np.sign(moved)[straight] == np.sign(unit[free])[straight]).all()
    # The far patch lies 3/4 of a patch beyond, away from the first; along a zero axis, forwards.
    beyond = (drawn["far"].numpy() - first)[free] - moved
    assert (beyond == np.where(moved < 0, -3 * size // 4, 3 * size // 4)).all()
    near = (drawn["near"].numpy() - first)[free]
    assert (np.abs(near) <= size // 16).all()
    assert (near != 0).any(axis=1).all()


def test_patches_stay_inside_small_images() -> None:
    drawn = draw_corners(300, 16, (40, 20))
    for name in ("first", "neighbour", "near", "far"):
        assert (drawn[name] >= 0).all()
        assert (drawn[name] <= torch.tensor([24, 4])).all()


def test_svdd_loss(rng: np.random.Generator) -> None:
    one, two, three = rng.normal(size=(3, 6, 4))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = np.mean([
        np.linalg.norm(a - b) - cosine(a, b) + cosine(a, c)
        for a, b, c in zip(one, two, three, strict=True)
    ])  # fmt: skip
    result = svdd_loss(*(torch.from_numpy(values) for values in (one, two, three)))
    assert float(result) == pytest.approx(expected)


def test_classifiers_last_weights_stay() -> None:
    torch.manual_seed(0)
    classifier = DirectionClassifier(8)
    columns = classifier.last.weight.norm(dim=0)
    torch.testing.assert_close(columns, torch.ones(512))
    trained = {name for name, one in classifier.named_parameters() if one.requires_grad}
    assert "last.bias" in trained and "last.weight" not in trained


def test_scales_share_one_network(image_toy: Any, build: Any) -> None:
    algorithm = build("mspba", SMALL, image_toy.train)
    deep = dict(algorithm.network["backbone"].named_parameters())
    for one in algorithm.cuts:
        for name, parameter in one.named_parameters():
            assert parameter is deep[name]
    counted = [id(one) for group in algorithm.optimizer.param_groups for one in group["params"]]
    assert len(counted) == len(set(counted))


def test_training_moves_the_network_and_its_statistics_stay(image_toy: Any, build: Any) -> None:
    torch.manual_seed(0)
    algorithm = build("mspba", SMALL | {"learning_rate": 1e-3}, image_toy.train)
    before = {key: value.clone() for key, value in algorithm.network.state_dict().items()}
    algorithm.train_one_epoch([[torch.from_numpy(image_toy.train.arrays[0])]])
    after = algorithm.network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "backbone.conv1.0.weight" in changed or any("backbone" in key for key in changed)
    assert any("encoders" in key for key in changed)
    assert not [key for key in changed if "running" in key]


def test_images_are_taken_minus_their_mean(image_toy: Any, build: Any) -> None:
    algorithm = build("mspba", SMALL, image_toy.train)
    images = torch.from_numpy(image_toy.train.arrays[0])
    algorithm.train_one_epoch([[images[:5]], [images[5:]]])
    expected = image_toy.train.arrays[0].mean(axis=0)
    np.testing.assert_allclose(algorithm.mean_image.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_centres_are_found_and_count(image_toy: Any, build: Any) -> None:
    quick = SMALL | {"cluster_start": 1, "cluster_every": 2, "clusters": 5}
    algorithm = build("mspba", quick, image_toy.train)
    loader = [[torch.from_numpy(image_toy.train.arrays[0])]]
    torch.manual_seed(0)
    algorithm.train_one_epoch(loader)
    assert [len(one) for one in algorithm.centres] == [0, 0, 0]
    algorithm.train_one_epoch(loader)
    found = [one.clone() for one in algorithm.centres]
    assert [tuple(one.shape) for one in found] == [(5, 8)] * 3
    torch.manual_seed(1)
    with_them = algorithm.loss(loader[0])
    algorithm.centres = [torch.empty(0) for _ in found]
    torch.manual_seed(1)
    assert with_them > algorithm.loss(loader[0])


def test_map_is_the_sum_of_scales(image_toy: Any, fit: Any, predict: Any) -> None:
    algorithm = fit("mspba", SMALL, image_toy.train).algorithm
    image = torch.from_numpy(image_toy.defective.arrays[0][:1])
    expected = np.zeros((64, 64))
    with torch.no_grad():
        for scale, size in enumerate(SMALL["patch_sizes"]):
            places = grid(64, size, SMALL["steps"][scale]).tolist()
            bank, total, count = (
                algorithm.banks[scale].numpy(),
                np.zeros((64, 64)),
                np.zeros((64, 64)),
            )
            assert len(bank) == len(image_toy.train) * len(places) ** 2
            for top in places:
                for left in places:
                    patch = algorithm._prepared(image)[:, :, top : top + size, left : left + size]
                    vector = algorithm._embed(scale, patch).numpy()
                    where = slice(top, top + size), slice(left, left + size)
                    total[where] += np.linalg.norm(bank - vector, axis=1).min()
                    count[where] += 1
            expected += total / count
    prediction = predict(algorithm, image_toy.defective)
    result = prediction.maps["sum"][0].numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    assert prediction.scores["maximum"][0] == prediction.maps["sum"][0].max()


def test_coreset_makes_the_bank_smaller(image_toy: Any, fit: Any) -> None:
    algorithm = fit("mspba", SMALL | {"bank_ratio": 0.25}, image_toy.train).algorithm
    assert len(algorithm.banks[2]) == len(image_toy.train) * 25 // 4
