"""The teacher of S-T: the terms of its loss, windows, and that it learns from the backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from algorithms.base import Context, create_teacher
from algorithms.blocks.dense_patches import restore
from algorithms.teachers.patch_network import (
    Hyperparameters,
    compactness,
    cut_windows,
    draw_windows,
    move_windows,
    triplet_loss,
)
from tests.algorithms.conftest import toy_network

SMALL = {"receptive_field": 17, "width": 1 / 16, "dimensions": 6}
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)


def teacher(**values: Any) -> Any:
    context = Context((64, 64), ((3, 64, 64),), 8, 0, torch.device("cpu"), mean=MEAN, std=STD)
    torch.manual_seed(0)
    context = replace(context, backbone=lambda: toy_network(2))
    return create_teacher("patch_network", SMALL | values, context)


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(1)
    coarse = torch.randn(16, 3, 8, 8)
    return functional.interpolate(coarse, (64, 64), mode="bilinear")


def test_paper_weighs_the_terms_by_one_zero_and_one() -> None:
    values = Hyperparameters()
    assert values.distillation_weight == values.compactness_weight == 1
    assert values.metric_weight == 0


def test_compactness(rng: np.random.Generator) -> None:
    descriptors = rng.normal(size=(9, 5)) @ rng.normal(size=(5, 5)) + 3
    correlations = np.corrcoef(descriptors, rowvar=False)
    expected = sum(correlations[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    assert float(compactness(torch.from_numpy(descriptors))) == pytest.approx(expected)
    descriptors[:, 2] = 1.0  # a dimension that says nothing is correlated with none
    assert np.isfinite(float(compactness(torch.from_numpy(descriptors))))


def test_triplet_loss(rng: np.random.Generator) -> None:
    one, two, three = rng.normal(size=(3, 40, 2))
    expected = []
    for a, b, c in zip(one, two, three, strict=True):
        far = min(((a - c) ** 2).sum(), ((b - c) ** 2).sum())
        expected.append(max(0.0, 0.5 + ((a - b) ** 2).sum() - far))
    assert 0 < np.count_nonzero(expected) < 40
    result = triplet_loss(*(torch.from_numpy(values) for values in (one, two, three)), 0.5)
    assert float(result) == pytest.approx(np.mean(expected))


def test_windows() -> None:
    torch.manual_seed(0)
    sides = (256, 128)
    sizes, corners = draw_windows(5000, sides, 4.0, 16.0)
    assert sizes.amin(dim=0).tolist() == [16, 8]
    assert sizes.amax(dim=0).tolist() == [64, 32]
    # An image's side is uniform between 4 and 16 patches, so the median window is 1/10 of it.
    assert float(sizes[:, 0].float().median()) == pytest.approx(25.6, abs=1)
    moved = move_windows(sizes, corners, sides)
    for places in (corners, moved):
        assert (places >= 0).all()
        assert (places + sizes <= torch.tensor(sides)).all()
    assert ((moved - corners).abs() <= sizes / 4 + 0.5).all()
    assert (moved != corners).any()
    assert (corners + sizes == torch.tensor(sides)).any(dim=0).all()  # as far as the border


def test_windows_are_cut_out_and_resized(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.normal(size=(2, 3, 20, 24)))
    sizes, corners = torch.tensor([[5, 5], [10, 15]]), torch.tensor([[3, 7], [2, 1]])
    result = cut_windows(images, sizes, corners, 5)
    np.testing.assert_allclose(result[0], images[0, :, 3:8, 7:12])
    assert result.shape == (2, 3, 5, 5)
    # A plane stays a plane, away from the border, and nothing from outside the window comes in.
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    plane = torch.full((1, 3, 20, 24), 1e6)
    plane[0, :, 2:12, 1:16] = (rows + 2 * columns)[2:12, 1:16]
    resized = cut_windows(plane, sizes[1:], corners[1:], 5)[0, 0]
    centres = 2 + 2 * np.arange(5)[:, None] + 0.5 + 2 * (1 + 3 * np.arange(5) + 1)
    np.testing.assert_allclose(resized[1:-1, 1:-1], centres[1:-1, 1:-1], rtol=1e-5)
    assert resized.max() < 100
    both = cut_windows(images, sizes[[0, 0, 1, 1]], corners[[0, 0, 1, 1]], 5)
    np.testing.assert_array_equal(both, result[[0, 0, 1, 1]])


def test_loss_is_the_sum_of_its_terms(images: torch.Tensor) -> None:
    model = teacher(compactness_weight=0.5, distillation_weight=2.0, grey=0.0)
    torch.manual_seed(3)
    result = model.loss(images)
    torch.manual_seed(3)
    sizes, corners = draw_windows(16, (64, 64), 4.0, 16.0)
    patches = cut_windows(images, sizes, corners, 17)
    with torch.no_grad():
        wanted = toy_network(2)(patches)[0].numpy().mean(axis=(2, 3))
        descriptors = model.network["patches"](patches)
        weight, bias = (one.numpy() for one in model.network["decode"].parameters())
        decoded = descriptors.numpy() @ weight.T + bias
        expected = 2 * np.mean(((decoded - wanted) ** 2).sum(axis=1))
        expected += 0.5 * float(compactness(descriptors))
    assert result.item() == pytest.approx(expected, rel=1e-4)


def test_standardised_features(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = teacher(standardise=True), teacher()
    seen: list[np.ndarray] = []

    def note(patches: torch.Tensor) -> list[torch.Tensor]:
        said: list[torch.Tensor] = toy_network(2)(patches)
        seen.append(said[-1].numpy().mean(axis=(2, 3)))
        return said

    monkeypatch.setattr(model, "backbone", note)
    for one in (model, plain):
        one.prepare([[part] for part in images.split(6)])
    said = np.concatenate(seen)
    assert said.shape[0] == 16
    patches = torch.randn(3, 3, 17, 17)
    with torch.no_grad():
        raw = toy_network(2)(patches)[-1].numpy().mean(axis=(2, 3))
        np.testing.assert_allclose(plain._ask(patches), raw, rtol=1e-5, atol=1e-6)
        std = said.std(axis=0)
        assert (std == 0).any()  # such a channel keeps its unit
        expected = (raw - said.mean(axis=0)) / np.where(std > 0, std, 1)
        np.testing.assert_allclose(model._ask(patches), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.state()["feature_std"], model.network.feature_std)


def test_metric_term_counts_where_it_has_a_weight(images: torch.Tensor) -> None:
    torch.manual_seed(3)
    without = teacher().loss(images)
    torch.manual_seed(3)
    extra = teacher(metric_weight=2.0).loss(images) - without
    torch.manual_seed(3)
    assert extra.item() > 0
    assert extra.item() == pytest.approx(
        2 * (teacher(metric_weight=1.0).loss(images) - without).item(), rel=1e-3
    )


def test_negatives_are_of_other_images(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each image has a colour of its own, the three patches tell which image they are of."""
    seen: list[list[torch.Tensor]] = []

    def note(*triplet: Any) -> torch.Tensor:
        seen.append([one.detach() for one in triplet[:3]])
        return triplet[0].sum()

    monkeypatch.setattr("algorithms.teachers.patch_network.triplet_loss", note)
    plain = torch.arange(4.0)[:, None, None, None].expand(4, 3, 64, 64)
    model = teacher(metric_weight=1.0, patches_per_image=3, noise=0.0, grey=0.0)
    model.loss(plain)
    anchor, positive, negative = seen[0]
    assert anchor.shape == (12, 6)
    colours = model.network["patches"](plain[:, :, :17, :17]).detach()
    expected = np.arange(4).repeat(3)
    for found, wanted in ((anchor, expected), (positive, expected), (negative, (expected - 1) % 4)):
        nearest = torch.cdist(found, colours).argmin(dim=1)
        assert nearest.tolist() == wanted.tolist()


def test_chosen_patches_turn_grey(images: torch.Tensor) -> None:
    chosen = torch.arange(16)[:, None, None, None] % 3 == 0
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    before, after = (one * std + mean for one in (images, teacher()._greyed(images, chosen)))
    for number, is_grey in enumerate(chosen.flatten()):
        red, green, blue = before[number]
        expected = 0.299 * red + 0.587 * green + 0.114 * blue if is_grey else before[number]
        torch.testing.assert_close(after[number], expected.expand(3, 64, 64), atol=1e-5, rtol=1e-5)


def test_share_of_grey_patches(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def note(self: Any, patches: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        seen.append(chosen)
        return patches

    model = teacher(grey=0.25, metric_weight=1.0)
    monkeypatch.setattr(type(model), "_greyed", note)
    for _ in range(20):
        model.loss(images)
    assert float(torch.cat(seen).float().mean()) == pytest.approx(0.25, abs=0.08)
    assert torch.equal(seen[0], seen[1])  # both patches of a pair


def test_learns_what_the_backbone_says(images: torch.Tensor) -> None:
    model = teacher(learning_rate=2e-3, compactness_weight=0.1)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    losses = []
    for _ in range(80):
        loss = model.loss(images)
        model.optimizer.zero_grad()
        loss.backward()
        model.optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_state_tells_all_that_a_student_needs() -> None:
    model = teacher()
    state = model.state()
    assert int(state["receptive_field"]) == 17
    assert state["mean"].flatten().tolist() == pytest.approx(MEAN)
    assert state["std"].flatten().tolist() == pytest.approx(STD)
    patches = torch.randn(3, 3, 17, 17)
    expected = model.network["patches"](patches)
    assert torch.equal(restore(state, 17, "patches.")(patches), expected)
    torch.manual_seed(5)
    other = teacher()
    for parameter in other.network.parameters():
        parameter.data.zero_()
    other.load_state(state)
    assert torch.equal(other.network["patches"](patches), expected)
