"""MemSeg: segment by what differs from the nearest of some remembered normal images.

Yang, Wu, Liu and Feng, "MemSeg: A semi-supervised method for image surface defect detection using
differences and commonalities", 2022 (arXiv 2205.00908). No official code; details are those of the
unofficial implementation by TooTouch.

The memory bank holds the backbone's middle maps of 30 normal images. An image is compared with the
item that is nearest over all layers together, and every layer becomes its features beside their
squared difference DI to that item's. A block of convolutions and coordinate attention squeezes each
(MSFF), coarser layers are added to finer ones, and each is weighted by where differences lie,

    m_L = mean_c DI_L,      m_k = mean_c DI_k * up(m_{k+1}),

before it enters, as a skip connection, a U-Net whose encoder is the backbone. The network learns to
segment synthetic defects (``blocks/synthetic.py``): within a Perlin mask, every second image gets a
texture, or its own tiles shuffled. With p the probability of a defect, M the mask,

    loss = 0.6 mean|p - M| + 0.4 focal(p, M),  gamma = 4.

p is the anomaly map, and the mean of its 100 largest values the image score.

Verified
--------
Coordinate attention, the nearest item, spatial masks, loss, score and the schedule against NumPy;
which parts are trained; ResNet-18's widths. Published numbers were not reproduced.

Note
----
The backbone's first layer and its last frame the memory's; these two are trained, those between
are not, and their batch norm keeps its statistics, which in the unofficial code drift. As there,
the bank is made by the untrained first layer and stays. An epoch has ``steps_per_epoch`` steps
(5000 in all), with as many passes over the data, or parts of one, as it takes.

Defects may be kept to the ``foreground``, which the publication chooses by category, on grey values
of 0 to 255: brighter than 50 for hazelnut, 40 metal_nut, 100 pill, 30 toothbrush; not brighter than
120 for capsule, 90 transistor, 250 bottle, 110 screw, 100 zipper; elsewhere the whole image. One
configuration serves all categories here, and no knowledge of any: the default is the whole image.
VisionAD takes Otsu's threshold for all. Tiles lie in a grid of 8 x 8 (the paper: 4 x 8). The mask
is drawn once, even where it comes out empty. Images are not cut out of larger ones (288 px): the
protocol sets their size. The focal loss is DRAEM's: theirs differs by the smoothing of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Literal

import torch
from torch import Tensor, nn

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
from algorithms.blocks import synthetic
from algorithms.blocks.difference_unet import DifferenceUnet
from algorithms.blocks.segmentation import focal_loss


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the unofficial code, which are the paper's where that gives them."""

    memory_items: int = 30  # at most; all training images, where there are fewer
    feature_scale: float = 1.0  # brings the backbone's maps to the size of a ResNet's
    tune_backbone: bool = True  # train its first and its last layer
    decoder_channels: int = 48  # of the two finest stages
    texture_probability: float = 0.5  # else the image's own tiles
    tiles: tuple[int, int] = (8, 8)  # rows and columns
    minimum_opacity: float = 0.15  # drawn uniformly up to 1
    foreground: float | Literal["none", "otsu"] = "none"  # or a grey value, 0 to 255
    foreground_bright: bool = True  # what is brighter than the threshold; false: what is not
    l1_weight: float = 0.6
    focal_weight: float = 0.4
    gamma: float = 4.0
    learning_rate: float = 3e-3
    lowest_rate: float = 1e-4  # at the first step and at the last
    weight_decay: float = 5e-4
    steps: int = 5000  # of the schedule
    warmup_steps: int = 500
    steps_per_epoch: int = 25
    worst_pixels: int = 100  # whose mean is the image score


@torch.no_grad()
def nearest_item(layers: Sequence[Tensor], bank: Sequence[Tensor]) -> Tensor:
    """The bank's item (N,) with the least sum over layers of mean squared differences.

    Parameters
    ----------
    layers, bank
        [(N, C, h, w)] and [(M, C, h, w)].
    """
    total = torch.zeros(len(layers[0]), len(bank[0]), device=layers[0].device)
    for layer, items in zip(layers, bank, strict=True):
        rows, members = layer.flatten(1), items.flatten(1)
        # |x|^2, the same for all items, is left out.
        total += (members.square().sum(dim=1) - 2 * rows @ members.T) / members.shape[1]
    return total.argmin(dim=1)


def learning_rate(step: int, parameters: Hyperparameters) -> float:
    """A line up to ``learning_rate`` during the warm-up, then half a cosine down."""
    low, high = parameters.lowest_rate, parameters.learning_rate
    if step < parameters.warmup_steps:
        return low + (high - low) * step / parameters.warmup_steps
    part = (step - parameters.warmup_steps) / (parameters.steps - parameters.warmup_steps)
    return low + (high - low) * (1 + math.cos(math.pi * min(part, 1.0))) / 2


@register("memseg")
class MemSeg(GradientAlgorithm):
    """A U-Net that sees differences to remembered images; see the module's text."""

    inputs = "images"
    builds_on_backbone = True
    needs = ("textures",)
    prediction_parameters = ("worst_pixels",)
    primary = ("probability", "worst")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        assert context.backbone is not None
        self.backbone = context.backbone()
        with torch.no_grad():
            probe = self.backbone(torch.zeros(1, *context.shapes[0], device=context.device))
        if len(probe) < 3:
            raise ValueError(f"MemSeg: a stem, layers to remember and a last one, not {len(probe)}")
        # The names of what lies between the first layer and the last one, which stays as it is.
        parts = [dict(context.backbone(n).named_modules()) for n in (0, len(probe) - 2)]
        self.remembered = [name for name in parts[1] if name not in parts[0]]
        self.backbone.requires_grad_(parameters.tune_backbone)
        for name in self.remembered:
            self.backbone.get_submodule(name).requires_grad_(False)
        channels = [layer.shape[1] for layer in probe]
        self.segmenter = DifferenceUnet(channels, parameters.decoder_channels)
        modules = {"backbone": self.backbone, "segmenter": self.segmenter}
        self.network = nn.ModuleDict(modules).to(context.device)
        trained = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained, lr=parameters.lowest_rate, weight_decay=parameters.weight_decay
        )
        self.bank = [torch.empty(0) for _ in probe[1:-1]]

    def _features(self, images: Tensor) -> list[Tensor]:
        return [layer * self.parameters.feature_scale for layer in self.backbone(images)]

    def _logits(self, images: Tensor) -> Tensor:
        layers = self._features(images)
        items = nearest_item(layers[1:-1], self.bank)
        pairs = zip(layers[1:-1], self.bank, strict=True)
        differences = [(layer - bank[items]).square() for layer, bank in pairs]
        return self.segmenter(layers, differences, self.context.image_size)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, loader: Loader) -> None:
        """Fill the bank with the first images of an epoch, whose order is random."""
        self.network.eval()
        count = min(self.parameters.memory_items, self.context.n_train)
        # One at a time, so that no batch is larger than training's.
        images = islice(chain.from_iterable(batch[0].split(1) for batch in loader), count)
        items = [self._features(image)[1:-1] for image in images]
        self.bank = [torch.cat(layer) for layer in zip(*items, strict=True)]

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        if not self.epoch:
            self._remember(loader)
        self.network.train()
        self.backbone.train(self.parameters.tune_backbone)
        for name in self.remembered:
            self.backbone.get_submodule(name).eval()
        total, count = 0.0, self.parameters.steps_per_epoch
        for number, batch in enumerate(islice(chain.from_iterable(repeat(loader)), count)):
            rate = learning_rate(self.epoch * count + number, self.parameters)
            set_rate(self.optimizer, rate)
            total += take_step(self.optimizer, self.loss(batch)).item()
        self.epoch += 1
        return {"loss": total / count}

    def loss(self, batch: Batch) -> Tensor:
        images, masks = self._with_defects(batch[0].cpu())
        logits, target = self._logits(images.to(batch[0])), masks.to(batch[0].device)
        distance = (logits.softmax(dim=1)[:, 1] - target.float()).abs().mean()
        focal = focal_loss(logits, target, self.parameters.gamma)
        return self.parameters.l1_weight * distance + self.parameters.focal_weight * focal

    def _with_defects(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give every second image a synthetic defect; images, and masks (N, H, W)."""
        images = images.clone()
        masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
        for number in range(int(torch.randint(2, ())), len(images), 2):
            pixels, mask = self._defect(self.context.pixels(images[number]))
            images[number], masks[number] = self.context.normalised(pixels), mask
        return images, masks

    def _defect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """An image (3, H, W) in [0, 1] with a defect, and where that lies (H, W)."""
        size = (image.shape[1], image.shape[2])
        mask = synthetic.perlin_mask(size) & self._foreground(image)
        if torch.rand(()) < self.parameters.texture_probability:
            source = synthetic.texture_source(self.context.textures, size).cpu()
        else:
            source = synthetic.augment(image.clamp(0, 1))  # rounding, undoing the normalisation
            source = synthetic.shuffle_tiles(source, self.parameters.tiles)
        lowest = self.parameters.minimum_opacity
        opacity = lowest + (1 - lowest) * float(torch.rand(()))
        return synthetic.blend(image, source, mask, opacity), mask

    def _foreground(self, image: Tensor) -> Tensor:
        threshold = self.parameters.foreground
        if threshold == "none":
            return torch.ones(image.shape[1:], dtype=torch.bool)
        grey = None if threshold == "otsu" else float(threshold) / 255
        return synthetic.foreground(image, grey, self.parameters.foreground_bright)

    def predict(self, batch: Batch) -> Prediction:
        self.network.eval()
        maps = self._logits(batch[0]).softmax(dim=1)[:, 1]
        worst = maps.flatten(1).topk(min(self.parameters.worst_pixels, maps[0].numel())).values
        return Prediction({"probability": maps}, {"worst": worst.mean(dim=1)})

    def state(self) -> dict[str, Tensor]:
        banks = {f"bank.{layer}": bank for layer, bank in enumerate(self.bank)}
        return super().state() | banks

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        rest = dict(state)
        self.bank = [rest.pop(f"bank.{layer}") for layer in range(len(self.bank))]
        super().load_state(rest)
