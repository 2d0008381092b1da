"""DSR: anomalies made of codes, two redrawings of an image, and a network that compares them.

Zavrtanik, Kristan and Skocaj, "DSR - A Dual Subspace Re-projection Network for Surface Anomaly
Detection", ECCV 2022 (arXiv 2208.01521).

A discrete latent model, learned once from images of all kinds, turns an image into two grids of
codes, lo and hi, and its general decoder draws any image from them (``blocks/discrete.py``). For a
category two restriction networks map codes to normal ones, F = R(q), and an object decoder draws a
normal image from F's nearest codes q(F). Where the two images differ, there is a defect. Anomalies
to learn from are made of codes: inside of a Perlin mask each is replaced by one drawn from those
that are neither among the nearest 5 % nor beyond a random rank. Then, q being the clean codes,

    loss = |F_lo - q_lo|^2 + |F_hi - q_hi|^2 + 10 |object image - image|^2 + focal(detection, mask),

squares as means, the detection a U-Net of the object image and the general one. In a last stage
another U-Net of both images and the detection learns, by the focal loss alone, to segment flat
colours laid over images in Perlin masks: these masks are not bound to the grids of codes. Its
probability is the map. The image score is the maximum of the *detection's* probability, averaged
over 21 x 21 pixels.

Verified
--------
* Codes that replace others, by their rank, and masks against NumPy; which level is spoiled when,
  and that hi is then made from the spoiled lo; the loss against its formula.
* Parameter counts of all networks against their widths, written out.
* What each stage trains: gradients pass the quantiser and stop before the detection.

Note
----
* An epoch is ``draws_per_epoch`` random draws, as the authors'. The first ``feature_epochs`` are
  for codes, those after them for the last stage. Where a budget ends training before that, the map
  is the detection's: the untrained network would draw noise.
* ``reduction`` is ours, for short budgets; its discrete model must know images of that size.
* The map is whole; the authors measure its central 224 of 256 pixels.
* Images are RGB, the authors' BGR. Their rate's steps in the last stage lie beyond its end.
* anomalib trains 70 % of its epochs on codes, without the rate's step, blends noise instead of
  colours and has a focal loss that ignores normal pixels; none of it is here.
* The discrete model is of our own training (``teachers/discrete.py``) where the authors' weights
  are not at hand: numbers are then not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    take_step,
)
from algorithms.blocks.discrete import (
    double,
    plant,
    residual_stack,
    restored,
    straight_through,
)
from algorithms.blocks.maps import upsample
from algorithms.blocks.perlin import uniform
from algorithms.blocks.segmentation import (
    UNet,
    convolutions,
    enlarged,
    focal_loss,
    pooled_maximum,
)
from algorithms.blocks.synthetic import blend, perlin_mask, random_rotation


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    restriction_width: int = 128
    decoder_width: int = 256  # of the object decoder
    detection_width: int = 64  # of both U-Nets
    learning_rate: float = 2e-4
    feature_epochs: int = 100  # for codes; those after them are for the last stage
    draws_per_epoch: int = 8000  # images, with replacement
    image_weight: float = 10.0
    lowest_reach: float = 0.2  # codes up to a rank of U(this, 1) of all may replace one ...
    skipped: float = 0.05  # ... but not the nearest
    feature_rotations: float = 0.4  # share of images turned by up to 90 degrees, for codes
    image_rotations: float = 0.3  # and in the last stage
    reduction: int = 1  # images, masks and maps inside are so many times smaller
    window: int = 21  # of the moving average of the image score


def restriction_network(dimensions: int, width: int) -> nn.Sequential:
    """R: from quantised features (N, D, h, w) to normal ones, without skip connections."""
    return nn.Sequential(
        convolutions([dimensions, width, width]),
        nn.MaxPool2d(2),
        convolutions([width, 2 * width, 2 * width]),
        nn.MaxPool2d(2),
        convolutions([2 * width, 4 * width, 4 * width]),
        enlarged([4 * width, 2 * width, 2 * width, 2 * width]),
        enlarged([2 * width, width, width, width]),
        nn.Conv2d(width, dimensions, 3, padding=1),
    )


def object_decoder(dimensions: int, width: int) -> nn.Sequential:
    """From lo and hi, joined, (N, 2 D, H/4, W/4) to a normal image (N, 3, H, W)."""
    half, quarter = width // 2, width // 4
    return nn.Sequential(
        convolutions([2 * dimensions, width, 2 * width]),
        nn.MaxPool2d(2),
        convolutions([2 * width, 2 * width, 4 * width]),
        nn.MaxPool2d(2),
        nn.Conv2d(4 * width, quarter, 1),
        double(quarter, quarter),
        nn.ReLU(),
        double(quarter, quarter),
        nn.ReLU(),
        nn.Conv2d(quarter, half, 3, padding=1),
        residual_stack(half, quarter, 2),
        double(half, quarter),
        nn.ReLU(),
        double(quarter, 3),
    )


def u_net(channels: int, width: int) -> UNet:
    """U-Net of four levels."""
    widths = (width, 2 * width, 4 * width, 4 * width)
    return UNet(channels, widths, widths[:-1])


def draw_small_weights(module: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 0.02^2)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


@register("dsr")
class Dsr(GradientAlgorithm):
    """Two restriction networks, an object decoder and two U-Nets; see the module's text."""

    inputs = "images"
    needs = ("teacher",)
    prediction_parameters = ("window",)
    primary = ("segmentation", "detection")
    shuffle = False  # it draws images itself
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        step = 32 * parameters.reduction
        if any(side % step or side == step for side in context.shapes[0][1:]):
            raise ValueError(
                f"DSR: sides of {context.shapes[0][1:]} px are no multiples (from 2) of {step}"
            )
        assert context.teacher is not None
        self.discrete = restored(context.teacher)
        dimensions = self.discrete.dimensions
        self.restrict_lo = restriction_network(dimensions, parameters.restriction_width)
        self.restrict_hi = restriction_network(dimensions, parameters.restriction_width)
        self.decoder = object_decoder(dimensions, parameters.decoder_width)
        self.decoder.apply(draw_small_weights)
        self.detection = u_net(6, parameters.detection_width)
        self.detection.apply(draw_small_weights)
        self.upsampling = u_net(8, parameters.detection_width)
        first = {
            "restrict_lo": self.restrict_lo,
            "restrict_hi": self.restrict_hi,
            "decoder": self.decoder,
            "detection": self.detection,
        }
        parts = {"discrete": self.discrete, **first, "upsampling": self.upsampling}
        # Always in eval mode: the codes must stay, and instance norm is the same in both modes.
        self.network = nn.ModuleDict(parts).to(context.device).eval()
        # One Adam for both stages: it passes over what has no gradient.
        groups = [[p for part in first.values() for p in part.parameters()]]
        groups.append(list(self.upsampling.parameters()))
        self.optimizer = torch.optim.Adam(
            [{"params": group} for group in groups], lr=parameters.learning_rate
        )
        self.refined = False  # whether the last stage has begun

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        batches = [batch[0] for batch in loader]
        images = torch.cat(batches)
        self.optimizer.param_groups[0]["lr"] = self._feature_rate()
        drawn = torch.randint(len(images), (self.parameters.draws_per_epoch,))
        total = 0.0
        for rows in drawn.split(len(batches[0])):
            loss = self.loss([images[rows.to(images.device)]])
            total += take_step(self.optimizer, loss).item() * len(rows)
        self.refined = self.epoch >= self.parameters.feature_epochs
        self.epoch += 1
        return {"loss": total / len(drawn)}

    def _feature_rate(self) -> float:
        late = self.epoch >= int(0.8 * self.parameters.feature_epochs)
        return self.parameters.learning_rate * (0.1 if late else 1.0)

    def loss(self, batch: Batch) -> Tensor:
        pixels = self._pixels(batch[0])
        if self.epoch < self.parameters.feature_epochs:
            return self._feature_loss(self._turned(pixels, self.parameters.feature_rotations))
        return self._upsampling_loss(self._turned(pixels, self.parameters.image_rotations))

    def _pixels(self, images: Tensor) -> Tensor:
        """Images as networks see them: in [0, 1], and smaller."""
        return functional.avg_pool2d(self.context.pixels(images), self.parameters.reduction)

    def _turned(self, images: Tensor, share: float) -> Tensor:
        chosen = (torch.rand(len(images)) < share).tolist()
        turned = [
            random_rotation(image, 90.0) if turn else image
            for image, turn in zip(images, chosen, strict=True)
        ]
        return torch.stack(turned)

    def _masks(self, images: Tensor) -> Tensor:
        """Perlin masks (N, H, W); about half of them are empty."""
        size = (images.shape[2], images.shape[3])
        masks = torch.stack([perlin_mask(size) for _ in images])
        return (masks & (torch.rand(len(images), 1, 1) < 0.5)).to(images.device)

    def _redraw(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F of both levels, and the object image."""
        features_lo, features_hi = self.restrict_lo(lo), self.restrict_hi(hi)
        normal_lo = straight_through(features_lo, self.discrete.codebook_lo(features_lo))
        normal_hi = straight_through(features_hi, self.discrete.codebook_hi(features_hi))
        return features_lo, features_hi, self.decoder(self.discrete.join(normal_lo, normal_hi))

    def _feature_loss(self, images: Tensor) -> Tensor:
        values, count, device = self.parameters, len(images), images.device
        masks = self._masks(images)
        both, first = torch.rand(2, count) < 0.5
        low, high = (both | first).to(device), (both | ~first).to(device)
        reaches = values.lowest_reach + (1 - values.lowest_reach) * torch.rand(2, count)
        made = plant(self.discrete, images, masks, low, high, reaches, values.skipped)
        features_lo, features_hi, drawn = self._redraw(made.lo, made.hi)
        with torch.no_grad():
            general = self.discrete.decode(made.lo, made.hi)
        logits = self.detection(torch.cat([drawn.detach(), general], dim=1))
        loss = functional.mse_loss(features_lo, made.clean_lo)
        loss = loss + functional.mse_loss(features_hi, made.clean_hi)
        loss = loss + values.image_weight * functional.mse_loss(drawn, images)
        return loss + focal_loss(logits, made.masks)

    @torch.no_grad()
    def _detect(self, images: Tensor) -> Tensor:
        """Object image, general image and the detection's probabilities: (N, 8, H, W)."""
        lo, hi = self.discrete.quantise(images)
        both = torch.cat([self._redraw(lo, hi)[2], self.discrete.decode(lo, hi)], dim=1)
        return torch.cat([both, self.detection(both).softmax(dim=1)], dim=1)

    def _upsampling_loss(self, images: Tensor) -> Tensor:
        masks = self._masks(images)
        spoiled = [
            blend(image, torch.rand(3, 1, 1).to(image), mask, 1 - uniform(0, 0.8))
            for image, mask in zip(images, masks, strict=True)
        ]
        return focal_loss(self.upsampling(self._detect(torch.stack(spoiled))), masks)

    def predict(self, batch: Batch) -> Prediction:
        # One by one: a rounding that depends on the batch could choose another code.
        parts = [self._predict_one(image[None]) for image in self._pixels(batch[0])]
        maps, scores = (torch.cat(values) for values in zip(*parts, strict=True))
        return Prediction({"segmentation": maps}, {"detection": scores})

    def _predict_one(self, image: Tensor) -> tuple[Tensor, Tensor]:
        size, detected = self.context.image_size, self._detect(image)
        maps = detected[:, 7]
        scores = pooled_maximum(upsample(maps, size), self.parameters.window)
        if self.refined:
            maps = self.upsampling(detected).softmax(dim=1)[:, 1]
        return upsample(maps, size), scores

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"refined": torch.tensor(self.refined)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        rest = dict(state)
        self.refined = bool(rest.pop("refined"))
        super().load_state(rest)
