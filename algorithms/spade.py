"""SPADE: the distance of each position to the most similar normal images.

Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020 (arXiv
2005.02357). The authors' code is not public; byungjae89's is the reference and reaches their
results.

Nothing is trained: the features of all training images are the gallery. An image's pooled vector
v, the mean of its coarsest layer (of ResNets: what their classifier sees), finds the K most similar
training images N_K and gives the image score. Within those K images each position x of the finer
layers, the pyramid, looks for its counterpart, at any position y:

    score = mean_{n in N_K} |v - v_n|,
    map   = mean_layers upsample( min_{n in N_K, y} |f(x) - f_n(y)| ),  smoothed.

Verified
--------
Score and map, averaged and concatenated, against brute force in NumPy and SciPy's filter.

Note
----
K is the paper's 50, not the reference's 5. As in the reference, layers are searched one by one and
distances are not squared; in the paper, a position is one vector of all layers
(``concatenate_layers``: resized bilinearly to the finest grid), which takes several times as long.
Both use the one nearest counterpart. The reference leaves out the last up to 99 vectors of each
gallery; all are searched here. The image score sees the image as a whole and overlooks small
defects: the map's ``maximum``, in neither, is given beside it. The gallery is kept in half
precision, as features are cached by default. A backbone without a coarser layer than its pyramid,
or whose classifier sees other features than its last layer's (EfficientNet), is scored all the
same by the mean of the layer named last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from algorithms.base import Algorithm, Batch, Context, Loader, Prediction, register
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.neighbours import nearest_distance


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the paper for MVTec AD."""

    neighbours: int = 50  # K training images; the reference: 5
    concatenate_layers: bool = False  # true: one search for all layers (paper)
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map


def pooled(layer: Tensor) -> Tensor:
    """One vector per image, (N, C), of a layer (N, C, h, w)."""
    return layer.mean(dim=(2, 3))


def concatenate(layers: list[Tensor]) -> Tensor:
    """Stack an image's layers (C_layer, h, w) as (sum of C_layer, H, W) on the first one's grid."""
    size = layers[0].shape[1:]
    resized = [
        functional.interpolate(layer[None], size, mode="bilinear", align_corners=False)[0]
        for layer in layers[1:]
    ]
    return torch.cat([layers[0], *resized])


def counterpart_distance(features: Tensor, normal: Tensor) -> Tensor:
    """Squared distance (h, w) of each position of (C, h, w) to the nearest of a normal image's."""
    squared = nearest_distance(features.flatten(1).T, normal.flatten(1).T)
    return squared.reshape(features.shape[1:])


@register("spade")
class Spade(Algorithm):
    """A gallery of normal images; see the module's text."""

    inputs = "features"
    prediction_parameters = ("neighbours", "concatenate_layers", "sigma")
    primary = ("pyramid", "pooled")
    shuffle = False
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if len(context.shapes) < 2 or context.members > 1:
            raise ValueError(
                "SPADE wants a backbone's pyramid, one layer or more, and the layer to pool, last"
            )
        self.vectors = torch.empty(0)  # (n_train, C) of the last layer
        self.gallery: list[Tensor] = []  # (n_train, C, h, w) for each layer of the pyramid

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        count, shapes, device = self.context.n_train, self.context.shapes, self.context.device
        self.vectors = torch.empty(count, shapes[-1][0], device=device)
        self.gallery = [
            torch.empty(count, *shape, dtype=torch.float16, device=device) for shape in shapes[:-1]
        ]
        start = 0
        for *pyramid, last in loader:
            rows = slice(start, start + len(last))
            self.vectors[rows] = pooled(last)
            for images, layer in zip(self.gallery, pyramid, strict=True):
                images[rows] = layer
            start += len(last)
        return {}

    def predict(self, batch: Batch) -> Prediction:
        results = [self._score([layer[image] for layer in batch]) for image in range(len(batch[0]))]
        maps = gaussian_smooth(
            torch.stack([result[0] for result in results]), self.parameters.sigma
        )
        scores = {
            "pooled": torch.stack([result[1] for result in results]),
            "maximum": maps.amax(dim=(1, 2)),
        }
        return Prediction({"pyramid": maps}, scores)

    def _score(self, layers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map (H, W) before smoothing, and score, of one image's layers (C, h, w)."""
        distances = (self.vectors - pooled(layers[-1][None])).norm(dim=1)
        count = min(self.parameters.neighbours, len(distances))
        nearest, images = distances.topk(count, largest=False)
        tested = self._levels(layers[:-1])
        # One normal image at a time: the gallery of 50 would take gigabytes in full precision.
        squared = [
            [
                counterpart_distance(features, normal)
                for features, normal in zip(tested, self._normal_levels(image), strict=True)
            ]
            for image in images.tolist()
        ]
        smallest = [torch.stack(level).amin(dim=0) for level in zip(*squared, strict=True)]
        maps = [upsample(level.sqrt()[None], self.context.image_size) for level in smallest]
        return torch.cat(maps).mean(dim=0), nearest.mean()

    def _levels(self, layers: list[Tensor]) -> list[Tensor]:
        """What is searched separately: the layers (C, h, w), or all of them as one."""
        return [concatenate(layers)] if self.parameters.concatenate_layers else layers

    def _normal_levels(self, image: int) -> list[Tensor]:
        return self._levels([images[image].float() for images in self.gallery])

    def state(self) -> dict[str, Tensor]:
        layers = {f"layer{number}": images for number, images in enumerate(self.gallery)}
        return {"vectors": self.vectors, **layers}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.vectors = state["vectors"]
        self.gallery = [state[f"layer{number}"] for number in range(len(state) - 1)]
