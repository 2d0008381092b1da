"""EfficientAD: a student that imitates a small teacher, and an autoencoder that it imitates, too.

Batzner, Heckler and König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024 (arXiv 2303.14535).

The teacher T is a patch description network (``blocks/pdn.py``) that has learned a large
backbone's features from all kinds of images (``teachers/pdn.py``); its channels are normalised by
their mean and standard deviation over the training images. A student of the same shape has twice
the outputs: S learns to give the teacher's numbers, S' those of an autoencoder A, whose narrow
bottleneck only lets arrangements pass that it knows from training. With images I, the same with
other brightness, contrast or saturation I', and P, an image of anything else,

    loss = mean of D = (T(I) - S(I))^2 over its largest thousandth      (hard)
         + mean S(P)^2                                                  (penalty)
         + mean (T(I') - A(I'))^2 + mean (A(I') - S'(I'))^2             (autoencoder).

At test (T - S)^2 shows what is new locally, and (A - S')^2 arrangements that are. Their means over
channels are two maps M, brought to one scale by two quantiles a, b of all pixels of held-out normal
images, 0.1 (M - a) / (b - a) for 90 and 99.5 %, and averaged. The maximum is the image score.

Verified
--------
* Losses, the change of colours, quantiles and maps against NumPy and torchvision; parameter counts.
* A training step equals one that passes every image through the whole student, to rounding; short
  convolutions (``FrozenPdn``) equal plain ones.

Note
----
* The authors published no code. Where the paper leaves something open, it is done as in
  nelson1425/EfficientAD: the autoencoder's dropout, weight decay, both sides of (A - S')^2 learn.
* Maps have 4 empty cells on every side before they are resized, since the network is not padded
  and its first descriptor looks 16 px into the image: nelson1425's code. PUAD's has none
  (``border: 0``). Quantiles are those of maps resized without it, as in the paper.
* Penalty images are seen whole, at the size of the others; nelson1425 takes the centre of an image
  of twice the size.
* An epoch is ``steps_per_epoch`` steps, as many passes over the images as it takes. Training images
  are kept in memory.
* Where teacher and data were normalised differently, pixels are normalised anew for the networks.
* VisionAD changes colours of normalised images, which sets half of their pixels to zero, and takes
  quantiles of training images; neither is done here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
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
    take_step,
)
from algorithms.blocks.maps import upsample
from algorithms.blocks.pdn import (
    Autoencoder,
    FrozenPdn,
    Pdn,
    channel_statistics,
    luma,
    random_grayscale,
)

KEPT_OUTSIDE = 512  # so many other images at most are kept in memory
GPU_BATCH = 8  # images that a GPU predicts at a time; a CPU takes one


@dataclass(frozen=True)
class Hyperparameters:
    """The paper's values."""

    steps: int = 70_000  # of a whole training, for the learning rate
    steps_per_epoch: int = 1000
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    decay_at: float = 0.95  # share of the steps after which the rate is a tenth
    hard_quantile: float = 0.999  # 0: the mean of all differences
    penalty: bool = True
    penalty_grayscale: float = 0.3  # share of penalty images without colour
    jitter: float = 0.2  # of brightness, contrast or saturation
    autoencoder_width: float = 1.0  # factor of its channels
    map_normalisation: bool = True  # false: the mean of the two maps as they are
    low_quantile: float = 0.9
    high_quantile: float = 0.995
    border: int = 4  # empty cells around a map
    reduction: int = 1  # the networks see images this many times smaller


def hard_mean(differences: Tensor, quantile: float) -> Tensor:
    """Mean of the values that reach a quantile (interpolated linearly) of all of them."""
    values = differences.flatten()
    if quantile == 0:
        return values.mean()
    place = quantile * (len(values) - 1)
    low = min(math.floor(place), len(values) - 2)
    largest = values.topk(len(values) - low).values  # a full sort takes ten times as long
    threshold = torch.lerp(largest[-1], largest[-2], place - low).detach()
    return largest[largest >= threshold].mean()


def change_colours(pixels: Tensor, kinds: Tensor, factors: Tensor) -> Tensor:
    """Change images (N, 3, H, W) in [0, 1].

    Parameters
    ----------
    kinds
        (N,): 0 changes the brightness, 1 the contrast, 2 the saturation.
    factors
        (N,): 1 changes nothing.
    """
    grey = luma(pixels)
    means = grey.mean(dim=(1, 2, 3), keepdim=True).expand_as(grey)
    away_from = torch.stack([torch.zeros_like(grey), means, grey])
    origin = away_from[kinds, torch.arange(len(pixels), device=pixels.device)]
    return torch.lerp(origin, pixels, factors[:, None, None, None]).clamp(0, 1)


@register("efficientad")
class EfficientAd(GradientAlgorithm):
    """Teacher, student and autoencoder; see the module's text."""

    inputs = "images"
    needs = ("teacher", "outside", "validation")
    prediction_parameters = ("map_normalisation", "border")
    primary = ("combined", "combined")
    shuffle = False  # it draws its own order, step by step
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        if context.teacher is None:
            raise ValueError("EfficientAD needs a teacher of the kind pdn")
        weights = {
            key.removeprefix("pdn."): value
            for key, value in context.teacher.items()
            if key.startswith("pdn.")
        }
        self.teacher = Pdn.shaped_like(weights)
        self.teacher.load_state_dict(weights)
        self.teacher.requires_grad_(False)
        self.student = Pdn.shaped_like(weights, factor=2)
        self.outputs = self.teacher.layers[-1].out_channels
        height, width = (side // parameters.reduction for side in context.image_size)
        self.autoencoder = Autoencoder((height, width), self.outputs, parameters.autoencoder_width)
        networks = {name: getattr(self, name) for name in ("teacher", "student", "autoencoder")}
        self.network = nn.ModuleDict(networks)
        self.network.register_buffer("mean", context.teacher["mean"].clone())
        self.network.register_buffer("std", context.teacher["std"].clone())
        # Of the two maps: the quantiles that become 0 and 0.1.
        self.network.register_buffer("quantiles", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        self.network.to(context.device)
        trained = [*self.student.parameters(), *self.autoencoder.parameters()]
        self.optimizer = torch.optim.Adam(
            trained, lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
        self._images: Tensor | None = None
        self._others: Tensor | None = None
        self._batch_size = 1
        self._frozen: tuple[FrozenPdn, FrozenPdn] | None = None

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Images as the teacher was taught, in the layout in which a CPU convolves faster."""
        pixels = functional.avg_pool2d(pixels, self.parameters.reduction)
        images = (pixels - self.network.get_buffer("mean")) / self.network.get_buffer("std")
        return images.contiguous(memory_format=torch.channels_last)

    # --- training -------------------------------------------------------------------------------

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        values, self._frozen = self.parameters, None
        if self._images is None:
            batches = [batch[0] for batch in loader]
            self._images, self._batch_size = torch.cat(batches), len(batches[0])
        images, size = self._images, self._batch_size
        if not self.epoch:
            self._normalise_teacher(images)
        self.network.train()
        count = values.steps_per_epoch * size
        rounds = [torch.randperm(len(images)) for _ in range(-(-count // len(images)))]
        totals: dict[str, Tensor | float] = {}
        for step, rows in enumerate(torch.cat(rounds)[:count].split(size)):
            done = self.epoch * values.steps_per_epoch + step
            late = done >= int(values.decay_at * values.steps)
            set_rate(self.optimizer, values.learning_rate * (0.1 if late else 1.0))
            batch = [images[rows.to(images.device)]]
            if values.penalty:
                batch.append(self._draw_others(size))
            losses = self.losses(batch)
            take_step(self.optimizer, torch.stack(list(losses.values())).sum())
            totals = {key: totals.get(key, 0.0) + loss.detach() for key, loss in losses.items()}
        self.epoch += 1
        return {key: float(total) / values.steps_per_epoch for key, total in totals.items()}

    @torch.no_grad()
    def _normalise_teacher(self, images: Tensor) -> None:
        """Let the teacher's last layer give normalised outputs."""
        mean, std = channel_statistics(
            self.teacher(self._normalised(self.context.pixels(part)))
            for part in self.chunks(images)
        )
        last = self.teacher.layers[-1]
        assert last.bias is not None
        last.weight.copy_(last.weight / std[:, None, None, None])
        last.bias.copy_((last.bias - mean) / std)

    def _draw_others(self, count: int) -> Tensor:
        others = self.context.outside
        assert others is not None
        rows = torch.randint(len(others), (count,))
        if len(others) > KEPT_OUTSIDE:
            return others.read(rows.tolist())
        if self._others is None:
            self._others = others.read(range(len(others)))
        return self._others[rows.to(self._others.device)]

    def loss(self, batch: Batch) -> Tensor:
        return torch.stack(list(self.losses(batch).values())).sum()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss on images (N, 3, H, W) and, for the penalty, others."""
        pixels, count = self.context.pixels(batch[0]), len(batch[0])
        kinds = torch.randint(3, (count,)).to(pixels.device)
        factors = 1 + self.parameters.jitter * (2 * torch.rand(count) - 1).to(pixels.device)
        changed = self._normalised(change_colours(pixels, kinds, factors))
        images = [self._normalised(pixels), changed]
        with torch.no_grad():
            target, changed_target = self.teacher(torch.cat(images)).split(count)
        if len(batch) > 1:
            others = random_grayscale(
                self.context.pixels(batch[1]), self.parameters.penalty_grayscale
            )
            images.append(self._normalised(others))
        # One pass for all, without the outputs that no term asks for.
        hidden = self.student.describe(torch.cat(images)).split(count)
        local, arrangement = slice(self.outputs), slice(self.outputs, None)
        drawn = self.autoencoder(changed)
        imitated = self.student.project(hidden[1], arrangement)
        differences = (target - self.student.project(hidden[0], local)).square()
        terms = {
            "hard": hard_mean(differences, self.parameters.hard_quantile),
            "autoencoder": functional.mse_loss(drawn, changed_target),
            "imitation": functional.mse_loss(imitated, drawn),
        }
        if len(batch) > 1:
            terms["penalty"] = self.student.project(hidden[2], local).square().mean()
        return terms

    # --- prediction -----------------------------------------------------------------------------

    @torch.no_grad()
    def describe(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of teacher and autoencoder (N, D, h, w) and of the student (N, 2 D, h, w)."""
        self.network.eval()
        if self._frozen is None:
            tile = 4 if images.device.type == "cpu" else 0
            self._frozen = FrozenPdn(self.teacher, tile), FrozenPdn(self.student, tile)
        teacher, student = self._frozen
        images = self._normalised(self.context.pixels(images))
        return teacher(images), self.autoencoder(images), student(images)

    def maps(self, teacher: Tensor, autoencoder: Tensor, student: Tensor) -> Tensor:
        """The maps (2, N, h, w) of :meth:`describe`'s outputs."""
        local, arrangement = student.split(self.outputs, dim=1)
        return torch.stack(
            [
                (teacher - local).square().mean(dim=1),
                (autoencoder - arrangement).square().mean(dim=1),
            ]
        )

    def chunks(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images in parts that are predicted together."""
        return images.split(1 if images.device.type == "cpu" else GPU_BATCH)

    def calibrate(self, loader: Loader) -> None:
        parts = [
            torch.stack([upsample(maps, self.context.image_size) for maps in self.maps(*outputs)])
            for batch in loader
            for outputs in map(self.describe, self.chunks(batch[0]))
        ]
        levels = [self.parameters.low_quantile, self.parameters.high_quantile]
        pixels = torch.cat(parts, dim=1).flatten(1).cpu().numpy()
        found = np.quantile(pixels, levels, axis=1).T  # torch's has an upper limit
        self.network.get_buffer("quantiles").copy_(torch.from_numpy(found))

    def judge(self, outputs: tuple[Tensor, Tensor, Tensor]) -> Prediction:
        """Maps and scores from the outputs of :meth:`describe`."""
        maps = self.maps(*outputs)
        if self.parameters.map_normalisation:
            low, high = self.network.get_buffer("quantiles").T[:, :, None, None, None]
            span = torch.where(high > low, high - low, 1.0)
            maps = 0.1 * (maps - low) / span
        maps = torch.cat([maps, maps.mean(dim=0, keepdim=True)])
        maps = functional.pad(maps, [self.parameters.border] * 4)
        names = ("student_teacher", "autoencoder", "combined")
        resized = {
            name: upsample(one, self.context.image_size)
            for name, one in zip(names, maps, strict=True)
        }
        return Prediction(resized, {name: one.amax(dim=(1, 2)) for name, one in resized.items()})

    def predict(self, batch: Batch) -> Prediction:
        return join([self.judge(self.describe(part)) for part in self.chunks(batch[0])])

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self._frozen = None


def join(parts: list[Prediction]) -> Prediction:
    """Predictions of some images after another."""
    maps = {name: torch.cat([part.maps[name] for part in parts]) for name in parts[0].maps}
    scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
    return Prediction(maps, scores)
