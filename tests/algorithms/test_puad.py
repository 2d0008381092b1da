"""PUAD: pooled features, the Gaussian's distance, standardised scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from algorithms.base import Context, create
from algorithms.blocks.pdn import Pdn
from algorithms.efficientad import EfficientAd
from algorithms.puad import Puad, whitening

SIDE, OUTPUTS = 64, 12


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(1, 3, SIDE, SIDE) + 0.2 * torch.randn(9, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def context(images: Tensor) -> Context:
    """With an EfficientAD of some weights and quantiles; training it adds nothing here."""
    torch.manual_seed(0)
    network = Pdn.scaled("small", OUTPUTS, 0.125)
    teacher = {f"pdn.{key}": value for key, value in network.state_dict().items()}
    teacher |= {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    size = (SIDE, SIDE)
    context = Context(size, ((3, *size),), 5, 0, torch.device("cpu"), teacher=teacher)
    base = create("efficientad", {"autoencoder_width": 0.25}, context)
    base.calibrate([[images[:3]]])  # type: ignore[arg-type]
    return replace(context, teacher=None, base=base)


def fitted(context: Context, images: Tensor, **parameters: Any) -> Puad:
    made = create("puad", parameters, context)
    assert isinstance(made, Puad)
    made.train_one_epoch([[images[:2]], [images[2:5]]])  # type: ignore[arg-type]
    made.calibrate([[images[5:6]], [images[6:]]])  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("count", [5, 40])  # fewer, and more, vectors than dimensions
def test_whitening(rng: np.random.Generator, count: int) -> None:
    vectors = rng.normal(size=(count, 12)) * np.geomspace(0.01, 10, 12)
    mean, matrix = whitening(vectors)
    precision = np.linalg.pinv(LedoitWolf().fit(vectors).covariance_)
    for vector in rng.normal(size=(3, 12)):
        centred = vector - vectors.mean(axis=0)
        expected = np.sqrt(centred @ precision @ centred)
        assert np.linalg.norm((vector - mean) @ matrix) == pytest.approx(expected)


def test_whitening_of_vectors_that_agree() -> None:
    mean, matrix = whitening(np.ones((4, 3)))
    assert mean.tolist() == [1, 1, 1]
    assert not matrix.any()


@pytest.mark.parametrize("extractor", ["student", "teacher"])
def test_scores_follow_the_formula(context: Context, images: Tensor, extractor: str) -> None:
    base = context.base
    assert isinstance(base, EfficientAd)
    algorithm = fitted(context, images, feature_extractor=extractor)
    with torch.no_grad():
        outputs = base.teacher(images) if extractor == "teacher" else base.student(images)
    vectors = outputs[:, :OUTPUTS].mean(dim=(2, 3)).double().numpy()
    precision = np.linalg.pinv(LedoitWolf().fit(vectors[:5]).covariance_)
    centred = vectors - vectors[:5].mean(axis=0)
    distances = np.sqrt(np.einsum("nd,de,ne->n", centred, precision, centred))
    prediction = base.predict([images])
    picturable = prediction.scores["combined"].double().numpy()

    def standard(scores: np.ndarray) -> np.ndarray:
        return (scores - scores[5:].mean()) / scores[5:].std()

    result = algorithm.predict([images])
    parts = standard(picturable), standard(distances)
    np.testing.assert_allclose(result.scores["picturable"], parts[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(result.scores["unpicturable"], parts[1], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(result.scores["puad"], sum(parts), rtol=1e-2, atol=1e-2)
    assert torch.equal(result.maps["combined"], prediction.maps["combined"])


def test_weights(context: Context, images: Tensor) -> None:
    algorithm = fitted(context, images, picturable_weight=0.5, unpicturable_weight=2.0)
    scores = algorithm.predict([images]).scores
    torch.testing.assert_close(
        scores["puad"], 0.5 * scores["picturable"] + 2 * scores["unpicturable"]
    )
    alone = fitted(context, images).predict([images]).scores["picturable"]
    torch.testing.assert_close(scores["picturable"], alone)


def test_one_held_out_image_leaves_scores_finite(context: Context, images: Tensor) -> None:
    algorithm = fitted(context, images)
    algorithm.calibrate([[images[8:]]])  # type: ignore[arg-type]
    scores = algorithm.predict([images]).scores["puad"]
    assert torch.isfinite(scores).all()
    assert scores[8] == pytest.approx(0, abs=1e-6)


def test_it_keeps_what_it_needs_beside_the_base(context: Context, images: Tensor) -> None:
    algorithm = fitted(context, images)
    other = create("puad", {}, context)
    other.load_state({key: value.clone() for key, value in algorithm.state().items()})
    left, right = (one.predict([images]).scores for one in (algorithm, other))
    for name, scores in left.items():
        assert torch.equal(scores, right[name])
    assert context.base is not None
    before = {key: value.clone() for key, value in context.base.state().items()}
    fitted(context, images)
    for key, value in context.base.state().items():
        assert torch.equal(value, before[key])


def test_an_image_of_another_kind_is_far_away(context: Context, images: Tensor) -> None:
    scores = fitted(context, images).predict([torch.cat([images[5:], images[:1].flip(3) + 1])])
    assert scores.scores["unpicturable"].argmax() == 4


def test_another_base_is_refused(context: Context) -> None:
    with pytest.raises(ValueError, match="trained EfficientAD"):
        create("puad", {}, replace(context, base=None))
