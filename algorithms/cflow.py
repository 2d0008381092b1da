"""CFLOW-AD: how likely is each feature vector, given its place in the image.

Gudovskiy, Ishizaka and Kozuka, "CFLOW-AD: Real-Time Unsupervised Anomaly Detection with
Localization via Conditional Normalizing Flows", WACV 2022 (arXiv 2107.12571).

Per layer, a normalising flow of affine coupling blocks (``blocks/flows.py``) maps single feature
vectors x of C channels ("fibres") to z ~ N(0, 1). Its subnets, two linear layers, see the place of
x, too, as a sinusoidal encoding (``blocks/positions.py``). With the log-likelihood per channel

    l = ( log N(z; 0, 1) + log|det J| ) / C,

training minimises the mean of -log sigmoid(l), which cares little for fibres that are likely
already, over small batches of fibres drawn at random from a batch of images. At test, a layer's
likelihood is put in relation to the largest that it gives to a training fibre,

    map = sum_layers upsample( 1 - exp(l - max_train l) ),

and the maximum of the map is the image score.

Verified
--------
Parameters of the three flows on WideResNet-50-2: 81.6 M, as in the authors' code. Loss, learning
rate and map against NumPy versions written from the formulas; each fibre's log|det J| against
autograd's Jacobian; blocks against FrEIA's own.

Note
----
The authors divide by the largest likelihood of the whole test set, where a map depends on the other
test images. The training set's differs by one factor per layer, which only weights the layers.

An epoch is one pass over the training images, the authors' sub-epoch; ``meta_epochs`` times
``sub_epochs`` should be the configuration's ``epochs`` (later, the learning rate is at its floor).

Fibres that do not fill a batch are shared out among the others; the authors drop them, and images
that fill no batch. They turn training images by up to 5 degrees, choose a resolution per category
and report the best epoch; here features come from the cache, and the last epoch counts.

anomalib: ``permute_soft: false``, ``fibre_batch: 64``, a constant rate, maxima over test batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from FrEIA.framework import SequenceINN
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
from algorithms.blocks.flows import CouplingBlock
from algorithms.blocks.maps import upsample
from algorithms.blocks.positions import position_encoding


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' code."""

    blocks: int = 8  # coupling blocks per layer
    condition_channels: int = 128  # of the position encoding
    hidden_ratio: int = 2  # width of a subnet's hidden layer over its input's
    clamp: float = 1.9
    permute_soft: bool = True  # rotate the channels between blocks; false: permute them
    fibre_batch: int = 256  # feature vectors per step of the optimiser
    learning_rate: float = 2e-4
    meta_epochs: int = 25  # the cosine's length
    sub_epochs: int = 8  # passes over the training images per meta epoch
    warmup_epochs: int = 2  # meta epochs of linear warm-up
    warmup_start: float = 0.1  # of the learning rate, at the first step
    final_rate: float = 0.001  # of the learning rate, where the cosine ends


def learning_rate(meta_epoch: float, parameters: Hyperparameters) -> float:
    """Learning rate at a time in meta epochs: 2.5 is half through the third.

    It rises from step to step while warming up, then falls from meta epoch to meta epoch.
    """
    peak = parameters.learning_rate
    floor = peak * parameters.final_rate

    def cosine(whole: int) -> float:
        done = min(1.0, whole / parameters.meta_epochs)
        return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2

    if meta_epoch >= parameters.warmup_epochs:
        return cosine(int(meta_epoch))
    start, end = peak * parameters.warmup_start, cosine(parameters.warmup_epochs)
    return start + (end - start) * meta_epoch / parameters.warmup_epochs


def build_flow(channels: int, parameters: Hyperparameters) -> SequenceINN:
    """Chain of coupling blocks over fibres (P, C), each block conditioned on (P, condition)."""

    def subnet(channels_in: int, channels_out: int) -> nn.Module:
        hidden = parameters.hidden_ratio * channels_in
        return nn.Sequential(
            nn.Linear(channels_in, hidden), nn.ReLU(), nn.Linear(hidden, channels_out)
        )

    flow = SequenceINN(channels)
    for _ in range(parameters.blocks):
        flow.append(
            CouplingBlock,
            cond=0,
            cond_shape=(parameters.condition_channels,),
            subnet_constructor=subnet,
            affine_clamping=parameters.clamp,
            permute_soft=parameters.permute_soft,
        )
    return flow


def mean_log_likelihood(latent: Tensor, log_determinant: Tensor) -> Tensor:
    """Log-likelihood per channel (P,) of fibres with z (P, C) and log|det J| (P,)."""
    constant = 0.5 * math.log(2 * math.pi)
    return log_determinant / latent.shape[1] - 0.5 * latent.square().mean(dim=1) - constant


def to_fibres(layer: Tensor) -> Tensor:
    """Feature vectors (N * H * W, C) of maps (N, C, H, W), image by image, row by row."""
    return layer.permute(0, 2, 3, 1).flatten(0, 2)


@register("cflow")
class CFlow(GradientAlgorithm):
    """One conditional flow per layer; see the module's text."""

    inputs = "features"
    primary = ("likelihood", "maximum")
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.flows = nn.ModuleList(build_flow(shape[0], parameters) for shape in context.shapes)
        self.network = self.flows.to(context.device)
        # Of the log-likelihoods of each layer's training fibres; unknown before the end.
        self.maxima = torch.full((len(context.shapes),), math.nan, device=context.device)
        # One code per fibre of an image, (H * W, condition_channels).
        self.positions = [
            to_fibres(position_encoding(parameters.condition_channels, (height, width))[None])
            .contiguous()
            .to(context.device)
            for _, height, width in context.shapes
        ]
        # Adam passes over parameters without a gradient, and a step sees one layer: in effect,
        # each layer has its own. The fused kernel saves a tenth of a step.
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=parameters.learning_rate, fused=True
        )

    def loss(self, batch: Batch, layer: int = 0) -> Tensor:
        """Mean of -log sigmoid(l) over a layer's fibres (P, C) at positions (P, condition)."""
        fibres, positions = batch
        likelihood = mean_log_likelihood(*self.flows[layer](fibres, [positions]))
        return -functional.logsigmoid(likelihood).mean()

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        total, images = torch.zeros((), device=self.context.device), 0
        for number, batch in enumerate(loader):
            meta_epoch = (self.epoch + number / len(loader)) / self.parameters.sub_epochs
            set_rate(self.optimizer, learning_rate(meta_epoch, self.parameters))
            for layer, features in enumerate(batch):
                for fibres, positions in self._fibre_batches(layer, features):
                    loss = take_step(self.optimizer, self.loss([fibres, positions], layer))
                    # Brought to the CPU but once: a step is short, and waiting for it costs.
                    total += loss * (len(fibres) / len(self.positions[layer]))
            images += len(batch[0])
        self.epoch += 1
        return {"loss": total.item() / (images * len(self.positions))}

    def _fibre_batches(self, layer: int, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All fibres of a batch of images with their positions, in random order, in small batches.

        Batches are nearly equal and no smaller than ``fibre_batch``, unless all are fewer.
        """
        fibres, positions = to_fibres(features), self.positions[layer]
        order = torch.randperm(len(fibres)).to(fibres.device)
        count = max(1, len(fibres) // self.parameters.fibre_batch)
        return zip(
            fibres[order].tensor_split(count),
            positions[order % len(positions)].tensor_split(count),
            strict=True,
        )

    def before_eval(self, loader: Loader) -> None:
        with torch.no_grad():
            maxima = [
                torch.stack([values.max() for values in self._log_likelihoods(batch)])
                for batch in loader
            ]
        self.maxima = torch.stack(maxima).amax(dim=0)

    def _log_likelihoods(self, batch: Batch) -> list[Tensor]:
        """Log-likelihood per channel (N, H, W) at each position of each layer."""
        results = []
        layers = zip(self.flows, batch, self.positions, strict=True)
        for flow, features, positions in layers:
            count, _, height, width = features.shape
            latent = flow(to_fibres(features), [positions.repeat(count, 1)])
            results.append(mean_log_likelihood(*latent).reshape(count, height, width))
        return results

    def predict(self, batch: Batch) -> Prediction:
        maps = torch.stack(
            [
                upsample(1 - torch.exp(values - largest), self.context.image_size, True)
                for values, largest in zip(self._log_likelihoods(batch), self.maxima, strict=True)
            ]
        ).sum(dim=0)
        return Prediction({"likelihood": maps}, {"maximum": maps.amax(dim=(1, 2))})

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"maxima": self.maxima}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        weights = dict(state)
        self.maxima = weights.pop("maxima")
        super().load_state(weights)
