"""DRAEM: redraw the image without its anomaly, then compare the two.

Zavrtanik, Kristan and Skocaj, "DRAEM - A Discriminatively Trained Reconstruction Embedding for
Surface Anomaly Detection", ICCV 2021 (arXiv 2108.07610).

Half of the training images get an anomaly: a texture, changed by three random operations, shows
through inside of a mask M that is cut from Perlin noise (``blocks/synthetic.py``),

    seen = (1 - M) clean + M ((1 - beta) texture + beta clean),    beta ~ U(0, 0.8).

An autoencoder learns to redraw the clean image, and a U-Net, from the redrawn and the seen image
together, to find the mask. Both are trained at once, from random weights,

    loss = MSE(redrawn, clean) + 1 - mean SSIM(redrawn, clean) + focal(mask).

The map is the U-Net's probability of an anomaly; an image scores the largest mean of its map over
21 x 21 pixels.

Verified
--------
* SSIM against scikit-image, the focal loss and the score against NumPy loops.
* The parameters of both networks (97.4 million) against a count of the authors' layers.
* Half of the images have an anomaly, and the images differ from the clean ones inside of the mask
  only; the loss reaches the autoencoder through the U-Net, too.

Note
----
* The paper's weights of the three losses are not in the authors' code: all are one.
* Without a folder of texture photographs (the authors' DTD), textures are generated; numbers of the
  paper are for photographs.
* An epoch takes every image once; the authors draw as many, with replacement.
* SSIM's constants are those of pixels in [0, 1]. The authors' code changes them for batches in
  which a redrawn pixel is below -0.5 (early in training).
* The authors' images are BGR, and resized without anti-aliasing; here they are what the data set's
  configuration says, in [0, 1].
* ``reduction`` and ``steps_per_epoch`` are ours, for processors: the networks see images so many
  times smaller, and categories of all sizes get the same training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.nn import functional

from algorithms.base import (
    Batch,
    Context,
    GradientAlgorithm,
    Loader,
    Prediction,
    register,
    set_rate,
)
from algorithms.blocks.maps import upsample
from algorithms.blocks.perlin import perlin_mask, random_rotation, uniform
from algorithms.blocks.segmentation import (
    UNet,
    convolutions,
    enlarged,
    focal_loss,
    pooled_maximum,
)
from algorithms.blocks.synthetic import augment, blend
from algorithms.blocks.textures import texture_source

NORM = nn.BatchNorm2d


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    reconstruction_width: int = 128  # channels of the autoencoder's first level
    discrimination_width: int = 64  # channels of the U-Net's first level
    reduction: int = 1  # the networks see images this many times smaller
    learning_rate: float = 1e-4
    milestones: tuple[int, ...] = (560, 630)  # epochs after which the rate falls: 80 %, 90 %
    rate_factor: float = 0.2
    anomalous: float = 0.5  # share of training images that get an anomaly
    rotated: float = 0.3  # share of training images that are rotated, by up to 90 degrees
    steps_per_epoch: int | None = None  # null: every image once
    transparency: float = 0.8  # largest weight of the image inside of the mask (beta)
    operations: int = 3  # that change the texture
    exponents: tuple[int, int] = (0, 5)  # the Perlin noise has 2^a x 2^b cells
    threshold: float = 0.5  # above which the noise is the mask
    gamma: float = 2.0  # of the focal loss
    pool: int = 21  # side, in pixels, of what is averaged for the image score


class Autoencoder(nn.Sequential):
    """Redraws images (N, 3, H, W) through a map of 8 ``width`` channels at stride 16."""

    def __init__(self, width: int) -> None:
        w = width
        encoder = [
            convolutions([3, w, w], NORM), nn.MaxPool2d(2),
            convolutions([w, 2 * w, 2 * w], NORM), nn.MaxPool2d(2),
            convolutions([2 * w, 4 * w, 4 * w], NORM), nn.MaxPool2d(2),
            convolutions([4 * w, 8 * w, 8 * w], NORM), nn.MaxPool2d(2),
            convolutions([8 * w, 8 * w, 8 * w], NORM),
        ]  # fmt: skip
        decoder = [
            enlarged([8 * w, 8 * w], NORM), convolutions([8 * w, 8 * w, 4 * w], NORM),
            enlarged([4 * w, 4 * w], NORM), convolutions([4 * w, 4 * w, 2 * w], NORM),
            enlarged([2 * w, 2 * w], NORM), convolutions([2 * w, 2 * w, w], NORM),
            enlarged([w, w], NORM), convolutions([w, w, w], NORM),
        ]  # fmt: skip
        super().__init__(*encoder, *decoder, nn.Conv2d(w, 3, 3, padding=1))


def unet(width: int) -> UNet:
    """What finds anomalies, as logits (N, 2, H, W), in two images (N, 6, H, W)."""
    w = width
    return UNet(6, [w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w], [w, w, 2 * w, 4 * w, 8 * w], NORM)


class Networks(nn.Module):
    """Both, with the authors' initial weights."""

    def __init__(self, reconstruction_width: int, discrimination_width: int) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(reconstruction_width)
        self.unet = unet(discrimination_width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images redrawn (N, 3, H, W), and logits (N, 2, H, W) of normal and anomalous."""
        redrawn = self.autoencoder(images)  # not detached: the U-Net's loss trains both
        return redrawn, self.unet(torch.cat([redrawn, images], dim=1))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of images (N, C, H, W) in [0, 1], at each pixel and channel.

    Means, variances and the covariance are of an 11 x 11 Gaussian window, sigma 1.5; what is
    beyond the border counts as zero.
    """
    kernel = torch.exp(-torch.arange(-5, 6, device=one.device).square() / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).to(one)
    images, channels = one.shape[:2]

    def local(x: Tensor) -> Tensor:
        x = functional.conv2d(x.flatten(0, 1)[:, None], kernel[None, None, :, None], padding=(5, 0))
        x = functional.conv2d(x, kernel[None, None, None], padding=(0, 5))
        return x.reshape(images, channels, *x.shape[2:])

    mean1, mean2 = local(one), local(other)
    variances = local(one.square() + other.square()) - mean1.square() - mean2.square()
    covariance = local(one * other) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return likeness / ((mean1.square() + mean2.square() + c1) * (variances + c2))


class Steps:
    """A loader of ``count`` batches: it begins again as often as needed, or ends early."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, count

    def __iter__(self) -> Iterator[Batch]:
        return islice(chain.from_iterable(repeat(self.loader)), self.count)

    def __len__(self) -> int:
        return self.count


@register("draem")
class Draem(GradientAlgorithm):
    """An autoencoder and a U-Net; see the module's text."""

    inputs = "images"
    needs = ("textures",)
    prediction_parameters = ("pool",)
    primary = ("unet", "pooled")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if any(side % (32 * parameters.reduction) for side in context.image_size):
            raise ValueError(
                f"DRAEM wants sides divisible by {32 * parameters.reduction}, "
                f"not {context.image_size}"
            )
        self.network = Networks(parameters.reconstruction_width, parameters.discrimination_width)
        self.network.to(context.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=parameters.learning_rate)

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        passed = sum(self.epoch >= milestone for milestone in self.parameters.milestones)
        rate = self.parameters.learning_rate * self.parameters.rate_factor**passed
        set_rate(self.optimizer, rate)
        return super().train_one_epoch(
            Steps(loader, self.parameters.steps_per_epoch or len(loader))
        )

    def loss(self, batch: Batch) -> Tensor:
        examples = [self.synthesise(image) for image in self._pixels(batch)]
        clean, seen, masks = (torch.stack(parts) for parts in zip(*examples, strict=True))
        redrawn, logits = self.network(seen)
        difference = functional.mse_loss(redrawn, clean) + 1 - ssim(redrawn, clean).mean()
        return difference + focal_loss(logits, masks, self.parameters.gamma)

    def _pixels(self, batch: Batch) -> Tensor:
        """Images in [0, 1], reduced."""
        pixels = self.context.pixels(batch[0])
        return functional.avg_pool2d(pixels, self.parameters.reduction)

    def synthesise(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make an example of an image (3, H, W): clean, seen (3, H, W) and the mask (H, W)."""
        parameters, size = self.parameters, (image.shape[1], image.shape[2])
        if uniform(0, 1) < parameters.rotated:
            image = random_rotation(image, 90)
        if uniform(0, 1) >= parameters.anomalous:
            return image, image, torch.zeros(size, dtype=torch.bool, device=image.device)
        mask = perlin_mask(size, parameters.exponents, parameters.threshold).to(image.device)
        texture = augment(texture_source(self.context.textures, size), parameters.operations)
        opacity = 1 - uniform(0, parameters.transparency)
        return image, blend(image, texture, mask, opacity), mask

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        _, logits = self.network(self._pixels(batch))
        maps = upsample(logits.softmax(dim=1)[:, 1], self.context.image_size)
        return Prediction({"unet": maps}, {"pooled": pooled_maximum(maps, self.parameters.pool)})
