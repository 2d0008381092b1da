"""CutPaste: an embedding that tells images from cut-and-pasted ones, and how rare it is.

Li, Sohn, Yoon and Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and
Localization", CVPR 2021 (arXiv 2104.04015). No official code; details are those of the unofficial
implementation by Runinho.

A network learns to tell three classes apart: a normal image, the same with a patch of itself pasted
elsewhere, and the same with a thin, rotated one, a scar (``blocks/synthetic.py``). Its pooled last
map e, scaled to unit length, is then modelled by a Gaussian over the training images,

    score = sqrt((e - mean)' P (e - mean)),  P: Ledoit and Wolf's precision.

That of the whole image is the image score. For the map a second network of the same kind learns on
crops of 64 px. Each crop of a dense grid is scored by a Gaussian over crops of training images; a
pixel gets the mean over the crops that hold it, by Gaussian weights around their centres. Both
networks train in the same steps, and one optimiser moves both, which is the same as one for each.

Verified
--------
Embeddings, densities, scores and maps against NumPy and scikit-learn, the loss against the two
networks' own, the schedule against torch's. Published numbers were not reproduced.

Note
----
The publication starts from random weights (``pretrained: false``: those of the configured backbone
are drawn anew) and trains 256 epochs of 256 steps; the unofficial code's results are of 10,000
steps. With pretrained weights it trains the head alone for 20 steps. All images are held in memory;
an epoch is ``steps_per_epoch`` steps whose images are drawn with replacement. Images are jittered
but not moved, as in the unofficial code; the paper moves them, too. That code has no map. The paper
does not say what its Gaussian's width is, how many crops its density sees or what a scar in a crop
measures: here 10 px, 128 of each image at random places, and as in an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import ColorJitter

from algorithms.base import (
    Batch,
    Context,
    GradientAlgorithm,
    Loader,
    Prediction,
    register,
    set_rate,
    take_step,
)
from algorithms.blocks.synthetic import cut_paste, scar

CLASSES = 3  # as it is, with a patch, with a scar
CHUNK = 256  # crops that are embedded at a time


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the paper, where it gives them, and of the unofficial code."""

    pretrained: bool = False  # false: the backbone's weights are drawn anew
    frozen_steps: int = 20  # a pretrained backbone waits for its head
    head_widths: tuple[int, ...] = (512, 128)
    jitter: float = 0.1  # of brightness, contrast, saturation and hue of the whole image
    crop: int = 64  # side in pixels
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 3e-5
    steps: int = 65536  # of the cosine from the learning rate to 0
    steps_per_epoch: int = 256
    density_crops: int = 128  # of each training image
    stride: int = 4  # between crops that are scored
    sigma: float = 10.0  # of a crop's Gaussian weights, in pixels


def draw_anew(network: nn.Module) -> None:
    """Replace a network's weights by random ones, as a ResNet's are drawn."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm | nn.Linear):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Classifier(nn.Module):
    """A backbone, averaged over its last map, and a head."""

    def __init__(self, backbone: nn.Module, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU()]
            channels = width
        self.head = nn.Sequential(*layers, nn.Linear(channels, CLASSES))

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (N, C) of images (N, 3, H, W)."""
        return self.backbone(images)[-1].mean(dim=(2, 3))  # type: ignore[no-any-return]


def fit_gaussian(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) of embeddings (N, C), and W (C, C) with W W' their precision."""
    estimate = LedoitWolf().fit(embeddings.double().cpu().numpy())
    whitening = np.linalg.cholesky(estimate.precision_)
    mean = torch.from_numpy(estimate.location_)
    return mean.to(embeddings), torch.from_numpy(whitening).to(embeddings)


def mahalanobis(embeddings: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Distances (N,) of embeddings (N, C), in float32 never the root of a negative number."""
    return ((embeddings - mean) @ whitening).norm(dim=1)


def cosine_rate(step: int, steps: int, highest: float) -> float:
    """Half a cosine from ``highest`` to 0, and 0 from then on."""
    return highest * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2


def grid(length: int, size: int, stride: int) -> list[int]:
    """First pixels of crops along one side; the last crop ends at the border."""
    places = list(range(0, length - size + 1, stride))
    return places if places[-1] == length - size else [*places, length - size]


def spread(length: int, size: int, starts: Sequence[int], sigma: float) -> Tensor:
    """Weights (length, crops) of one side's crops in its pixels, which sum to 1 in each.

    A Gaussian around a crop's centre, and 0 outside of the crop.
    """
    pixels, first = torch.arange(length)[:, None], torch.tensor(starts)
    offset = pixels - first - (size - 1) / 2
    weights = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() < size / 2)
    return weights / weights.sum(dim=1, keepdim=True)


@register("cutpaste")
class CutPaste(GradientAlgorithm):
    """Two classifiers and the densities of their embeddings; see the module's text."""

    inputs = "images"
    builds_on_backbone = True
    prediction_parameters = ("stride", "sigma")
    primary = ("crops", "image")
    shuffle = False  # it draws images itself
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if parameters.crop > min(context.image_size):
            raise ValueError(f"CutPaste: images {context.image_size} have no crops of this size")
        assert context.backbone is not None
        backbones = {name: context.backbone() for name in ("image", "crop")}
        with torch.no_grad():
            probe = backbones["image"](torch.zeros(1, *context.shapes[0], device=context.device))
        self.classifiers = {}
        for name, backbone in backbones.items():
            if not parameters.pretrained:
                draw_anew(backbone)
            channels = probe[-1].shape[1]
            self.classifiers[name] = Classifier(backbone, channels, parameters.head_widths)
        self.network = nn.ModuleDict(self.classifiers).to(context.device).requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=parameters.learning_rate,
            momentum=parameters.momentum,
            weight_decay=parameters.weight_decay,
        )
        self.jitter = ColorJitter(*[parameters.jitter] * 4)
        self.densities = {name: (torch.empty(0),) * 2 for name in backbones}

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        batches = [batch[0] for batch in loader]
        images, size = torch.cat(batches), len(batches[0])
        self.network.train()
        total, count = 0.0, self.parameters.steps_per_epoch
        for step in range(self.epoch * count, (self.epoch + 1) * count):
            rate = cosine_rate(step, self.parameters.steps, self.parameters.learning_rate)
            set_rate(self.optimizer, rate)
            waiting = self.parameters.pretrained and step < self.parameters.frozen_steps
            for classifier in self.classifiers.values():
                classifier.backbone.requires_grad_(not waiting)
            rows = torch.randint(len(images), (size,))
            total += take_step(self.optimizer, self.loss([images[rows.to(images.device)]])).item()
        self.epoch += 1
        return {"loss": total / count}

    def loss(self, batch: Batch) -> Tensor:
        pixels = self.context.pixels(batch[0])
        views = {"image": list(pixels), "crop": [self._random_crop(image) for image in pixels]}
        losses = []
        for name, images in views.items():
            made = torch.stack([one for image in images for one in self._three(image)])
            classifier = self.classifiers[name]
            logits = classifier.head(classifier.embed(self.context.normalised(made)))
            target = torch.arange(CLASSES, device=logits.device).repeat(len(images))
            losses.append(functional.cross_entropy(logits, target))
        return torch.stack(losses).sum()

    def _random_crop(self, image: Tensor) -> Tensor:
        limits = torch.tensor(image.shape[1:]) - self.parameters.crop + 1
        top, left = (torch.rand(2) * limits).long().tolist()
        return self._cut(image, [(top, left)])[0]

    def _three(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image (3, H, W), jittered, then with a patch, then with a scar."""
        image = self.jitter(image)
        return image, cut_paste(image)[0], scar(image)[0]

    def _cut(self, image: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        size = self.parameters.crop
        return torch.stack(
            [image[:, top : top + size, left : left + size] for top, left in corners]
        )

    def _embed(self, name: str, images: Tensor) -> Tensor:
        return functional.normalize(self.classifiers[name].embed(images), dim=1)

    def _embed_crops(self, image: Tensor, corners: Sequence[tuple[int, int]]) -> Tensor:
        parts = [corners[start : start + CHUNK] for start in range(0, len(corners), CHUNK)]
        return torch.cat([self._embed("crop", self._cut(image, part)) for part in parts])

    @torch.no_grad()
    def before_eval(self, loader: Loader) -> None:
        self.network.eval()
        generator = torch.Generator().manual_seed(self.context.seed)
        limits = torch.tensor(self.context.image_size) - self.parameters.crop + 1
        parts: dict[str, list[Tensor]] = {"image": [], "crop": []}
        for batch in loader:
            parts["image"].append(self._embed("image", batch[0]))
            for image in batch[0]:
                drawn = torch.rand(self.parameters.density_crops, 2, generator=generator) * limits
                corners = [(top, left) for top, left in drawn.long().tolist()]
                parts["crop"].append(self._embed_crops(image, corners))
        self.densities = {name: fit_gaussian(torch.cat(part)) for name, part in parts.items()}

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        size, parameters = self.parameters.crop, self.parameters
        sides = self.context.image_size
        rows, columns = (grid(side, size, parameters.stride) for side in sides)
        down, across = (
            spread(side, size, starts, parameters.sigma).to(batch[0])
            for side, starts in zip(sides, (rows, columns), strict=True)
        )
        corners = [(top, left) for top in rows for left in columns]
        maps = []
        for image in batch[0]:
            distances = mahalanobis(self._embed_crops(image, corners), *self.densities["crop"])
            maps.append(down @ distances.unflatten(0, (len(rows), len(columns))) @ across.T)
        score = mahalanobis(self._embed("image", batch[0]), *self.densities["image"])
        stacked = torch.stack(maps)
        return Prediction({"crops": stacked}, {"image": score, "crops": stacked.amax(dim=(1, 2))})

    def state(self) -> dict[str, Tensor]:
        densities = {
            f"{name}.{key}": value
            for name, density in self.densities.items()
            for key, value in zip(("mean", "whitening"), density, strict=True)
        }
        return super().state() | densities

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        rest = dict(state)
        self.densities = {
            name: (rest.pop(f"{name}.mean"), rest.pop(f"{name}.whitening"))
            for name in self.densities
        }
        super().load_state(rest)
