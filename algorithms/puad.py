"""PUAD: how unusual an image's mean features are, added to EfficientAD's score.

Sugawara and Imamura, "PUAD: Frustratingly Simple Method for Robust Anomaly Detection", ICIP 2024
(arXiv 2402.15143).

A missing or superfluous part is no anomaly that a map could show. Of a trained EfficientAD
(``efficientad.py``), whose networks stay as they are, the student's outputs that imitate the
teacher, or the teacher's own, are averaged over all positions to one vector v per image. A Gaussian
is fitted to the training images' vectors, with Ledoit and Wolf's shrunk covariance C, and

    m = sqrt( (v - mean)' C^-1 (v - mean) )

is the unpicturable score. EfficientAD's score e is the picturable one. Both are standardised on
held-out normal images and added,

    score = (e - mean_e) / std_e + (m - mean_m) / std_m.

The map is EfficientAD's.

Verified
--------
Vectors, distances, standardisation and the sum against NumPy and scikit-learn.

Note
----
The authors' EfficientAD has no empty cells around its maps (``border: 0``), a teacher of its own
(``teachers/pdn.py``), and holds out 15 % of the images. As in their code, the Gaussian is fitted to
images that the student has learned from, and its distance is that of the pseudo-inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from algorithms.base import Algorithm, Batch, Context, Loader, Prediction, register
from algorithms.efficientad import EfficientAd, join


@dataclass(frozen=True)
class Hyperparameters:
    """The authors' values."""

    feature_extractor: Literal["student", "teacher"] = "student"
    picturable_weight: float = 1.0
    unpicturable_weight: float = 1.0


def whitening(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) of vectors (N, D), and W (D, D) such that |(v - mean) W| is v's distance."""
    fitted = LedoitWolf().fit(vectors)
    variances, axes = np.linalg.eigh(fitted.covariance_)
    used = variances > 1e-15 * variances.max()  # as the pseudo-inverse has it
    scales = np.zeros_like(variances)
    scales[used] = variances[used] ** -0.5
    return fitted.location_, axes * scales


@register("puad")
class Puad(Algorithm):
    """A Gaussian of pooled features beside EfficientAD; see the module's text."""

    inputs = "images"
    needs = ("base", "validation")
    prediction_parameters = ("picturable_weight", "unpicturable_weight")
    primary = ("combined", "puad")
    shuffle = False
    parameters: Hyperparameters
    base: EfficientAd

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if not isinstance(context.base, EfficientAd):
            raise ValueError(f"PUAD builds upon a trained EfficientAD, not {context.base}")
        self.base = context.base
        dimensions = self.base.outputs
        self.tensors = {
            "mean": torch.zeros(dimensions, device=context.device),
            "whitening": torch.eye(dimensions, device=context.device),
            # Mean and standard deviation of the picturable and of the unpicturable score.
            "scales": torch.tensor([[0.0, 1.0], [0.0, 1.0]], device=context.device),
        }

    def _pool(self, outputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean features (N, D) of EfficientAD's outputs."""
        teacher, _, student = outputs
        chosen = teacher if self.parameters.feature_extractor == "teacher" else student
        return chosen[:, : self.base.outputs].mean(dim=(2, 3))

    def _scores(self, images: Tensor) -> tuple[Prediction, Tensor]:
        """EfficientAD's prediction of images, and their distances (N,)."""
        predictions, distances = [], []
        for part in self.base.chunks(images):
            outputs = self.base.describe(part)
            predictions.append(self.base.judge(outputs))
            centred = self._pool(outputs) - self.tensors["mean"]
            distances.append((centred @ self.tensors["whitening"]).norm(dim=1))
        return join(predictions), torch.cat(distances)

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        vectors = [
            self._pool(self.base.describe(part))
            for batch in loader
            for part in self.base.chunks(batch[0])
        ]
        mean, matrix = whitening(torch.cat(vectors).double().cpu().numpy())
        device = self.context.device
        self.tensors["mean"] = torch.tensor(mean, dtype=torch.float32, device=device)
        self.tensors["whitening"] = torch.tensor(matrix, dtype=torch.float32, device=device)
        return {}

    def calibrate(self, loader: Loader) -> None:
        results = [self._scores(batch[0]) for batch in loader]
        rows = [(prediction.scores["combined"], distances) for prediction, distances in results]
        scores = torch.stack([torch.cat(parts) for parts in zip(*rows, strict=True)])
        std = scores.std(dim=1, correction=0)
        # A single held-out image has none.
        std = torch.where(std > 0, std, 1.0)
        self.tensors["scales"] = torch.stack([scores.mean(dim=1), std], dim=1)

    def predict(self, batch: Batch) -> Prediction:
        base, distances = self._scores(batch[0])
        scores = torch.stack([base.scores["combined"], distances], dim=1)
        mean, std = self.tensors["scales"].T
        picturable, unpicturable = ((scores - mean) / std).T
        total = (
            self.parameters.picturable_weight * picturable
            + self.parameters.unpicturable_weight * unpicturable
        )
        named = {"puad": total, "picturable": picturable, "unpicturable": unpicturable}
        return Prediction({"combined": base.maps["combined"]}, named)

    def state(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.tensors = dict(state)
