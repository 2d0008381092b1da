"""PNI: the nearest normal patch among those that may be at this position, in this neighbourhood.

Bae, Lee and Kim, "PNI: Industrial Anomaly Detection using Position and Neighborhood Information",
ICCV 2023 (arXiv 2211.12634).

Features are PatchCore's patch embeddings (5 x 5), summarised by a greedy coreset c_1 ... c_M, the
embedding coreset; its first members are the distribution coreset. PatchCore asks how far a patch x
is from the nearest member. PNI first asks which members are possible there: given the position, a
histogram of the members seen around it in training; given the neighbourhood, a network that
tells the distribution member nearest to x from the 9 x 9 window around x, without x. Under
either condition k,

    score_k(x) = -ln max { g(|x - c_m|) : p(c_m | k) > 1 / 2M },    g(d) = r exp(-r d),  r = 0.99,

which is, up to a constant, r times the distance to the nearest *possible* member (the farthest one
if none is). The mean of both scores is upsampled and smoothed; its maximum is the image score. The
network minimises the cross-entropy -ln softmax(logits)[nearest member]; its weights of the epoch
with the lowest validation loss, over a tenth of the training positions, are kept.

Verified
--------
Windows, histograms, targets and maps against NumPy loops over their definitions; the published
network's size, 205.6 M parameters for windows of 80 x 1024 values, 168 M of them in its first
layer. A patch that is normal elsewhere is found by its position, one that is normal in other
images by its neighbourhood.

Note
----
Unlike the authors' code: the window leaves out its centre, as the paper says (the code's index is
off by one: it leaves out the right-hand neighbour and shows the network what it is to predict;
``drop_right_neighbour`` does the same). Which members are possible follows the definition (the code
mixes up members and ranks in the neighbourhood's branch). The distribution coreset is never larger
than the embedding coreset that it is a part of; in most categories it would be at 256 px. Coresets
are searched in a dense random projection, with as many dimensions as the authors' sparse one.

The code has three image scores; this one is that of its final evaluation, the maximum of the map,
less the min-max normalisation over all test images, which changes no ranking. The refinement
network is left out, since the data that it was trained on are not published; so is the ensemble.

The threshold and the temperature of 2 are generous: a network trained for a few epochs rules out
hardly any nearest member. On 40 images of 256 px (the demo) its share is next to nothing.
"""

from __future__ import annotations

import copy
import math
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
    set_rate,
)
from algorithms.blocks.coreset import greedy_coreset, random_projection
from algorithms.blocks.maps import gaussian_smooth, upsample
from algorithms.blocks.neighbours import nearest_members
from algorithms.blocks.patches import embed, embedding_kernels
from algorithms.blocks.windows import Windows, nearest_possible, position_histogram, window_places


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the authors' single model (WideResNet-101-2, 480 px)."""

    patch_size: int = 5
    pretrain_dimension: int | None = 1024  # bins per layer; null: one per channel
    target_dimension: int | None = 1024  # of the embedding; null: all bins
    coreset_ratio: float = 0.01  # of the patches: the embedding coreset
    distribution_size: int = 2048  # the network's classes
    projection_epsilon: float = 0.9  # distortion of the coresets' search, which sets its dimensions
    border: int = 2  # outer cells, whose patches reach outside: they are neither classes nor scored
    position_window: int = 9  # odd; the histograms'
    window: int = 9  # odd; the network's
    drop_right_neighbour: bool = False  # from the window, instead of its centre (see the Note)
    width: int = 2048
    depth: int = 10  # linear layers
    dropout: float = 0.5
    window_batch: int = 2048  # windows per step
    validation_share: float = 0.1  # of the positions
    learning_rate: float = 1e-3
    decay: float = 0.1  # of the learning rate, once in
    decay_epochs: int = 5
    temperature: float = 2.0  # of the softmax in prediction
    possible: float = 0.5  # is a member whose probability, times the coreset's size, exceeds this
    rate: float = 0.99  # r of the likelihood
    sigma: float = 8.0  # of the Gaussian smoothing, in pixels of the map


def classifier(inputs: int, classes: int, parameters: Hyperparameters) -> nn.Sequential:
    """Network of ``depth`` linear layers, the last one without norm, ReLU and dropout."""
    layers: list[nn.Module] = []
    for _ in range(parameters.depth - 1):
        width = parameters.width
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        layers += [nn.Dropout(parameters.dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def repeat_inner(maps: Tensor, border: int) -> Tensor:
    """Replace the outer cells of maps (N, h, w) by the nearest of the others."""
    rows, columns = (slice(border, side - border) for side in maps.shape[1:])
    inner = maps[:, None, rows, columns]
    return functional.pad(inner, (border,) * 4, mode="replicate")[:, 0]


@register("pni")
class PNI(GradientAlgorithm):
    """Coresets, histograms and the network; see the module's text."""

    inputs = "features"
    prediction_parameters = ("temperature", "possible", "rate", "sigma")
    primary = ("combined", "combined")
    shuffle = False  # features are embedded once; their windows are shuffled
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.grid = context.shapes[0][1:]
        self.everywhere = torch.arange(self.grid[0] * self.grid[1], device=context.device)
        rows, columns = (slice(parameters.border, side - parameters.border) for side in self.grid)
        self.inner = self.everywhere.view(self.grid)[rows, columns].flatten()
        self.kernels = embedding_kernels(
            [shape[0] for shape in context.shapes],
            parameters.patch_size,
            parameters.pretrain_dimension,
            parameters.target_dimension,
        )
        self.dimensions = 1 + max(int(kernel.rows.max()) for kernel in self.kernels)
        dropped = parameters.window**2 // 2 + parameters.drop_right_neighbour
        self.places = window_places(self.grid, parameters.window, dropped).to(context.device)
        size = self._coreset_size(context.n_train * len(self.inner))
        self.classes = min(parameters.distribution_size, size)
        values = self.places.shape[1] * self.dimensions
        self.network = classifier(values, self.classes, parameters).to(context.device)
        self.best = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=parameters.learning_rate)
        self.best_loss = math.inf
        self.features = self.targets = torch.empty(0)  # of all training images
        # Coresets and histograms without ("inner") and with ("full") the border, and for each
        # inner member the distribution member nearest to it ("parents").
        self.fitted: dict[str, Tensor] = {}

    def _coreset_size(self, patches: int) -> int:
        return max(1, int(patches * self.parameters.coreset_ratio))

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        if not len(self.features):
            self.features = self._embed_all(loader)
        if not self.epoch:
            self._fit()
        steps = self.epoch // self.parameters.decay_epochs
        set_rate(self.optimizer, self.parameters.learning_rate * self.parameters.decay**steps)
        # The same split in every epoch, another order.
        generator = torch.Generator().manual_seed(self.context.seed)
        drawn = torch.randperm(len(self.targets), generator=generator)
        held_out = max(1, int(len(drawn) * self.parameters.validation_share))
        order = drawn[held_out:][torch.randperm(len(drawn) - held_out)]
        losses = super().train_one_epoch(self._windows(order))
        losses["validation_loss"] = self._validate(self._windows(drawn[:held_out]))
        if losses["validation_loss"] < self.best_loss:
            self.best_loss = losses["validation_loss"]
            self.best.load_state_dict(self.network.state_dict())
        return losses

    def _embed_all(self, loader: Loader) -> Tensor:
        """All training patches, and a row of zeros: (N * P + 1, D)."""
        count, start = self.context.n_train * len(self.everywhere), 0
        features = torch.zeros(count + 1, self.dimensions, device=self.context.device)
        for batch in loader:
            rows = embed(batch, self.kernels).flatten(0, 1)
            features[start : start + len(rows)] = rows
            start += len(rows)
        return features

    def _fit(self) -> None:
        """Choose coresets, count histograms, name the network's targets."""
        generator = torch.Generator().manual_seed(self.context.seed)
        patches = self.features[:-1]
        inner = patches.unflatten(0, (-1, len(self.everywhere)))[:, self.inner].flatten(0, 1)
        bank, histogram = self._position_model(inner, self.inner, generator)
        full_bank, full_histogram = self._position_model(patches, self.everywhere, generator)
        self.targets = nearest_members(inner, bank[: self.classes], 1)[1][:, 0]
        self.fitted = {
            "inner_bank": bank,
            "inner_histogram": histogram,
            "full_bank": full_bank,
            "full_histogram": full_histogram,
            "parents": nearest_members(bank, bank[: self.classes], 1)[1][:, 0],
        }

    def _position_model(
        self, patches: Tensor, places: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Coreset and histogram of patches (N * Q, D) from the positions ``places`` (Q,)."""
        epsilon = self.parameters.projection_epsilon
        # Johnson and Lindenstrauss: enough to keep squared distances to a factor of 1 +- epsilon.
        dimensions = int(4 * math.log(len(patches)) / (epsilon**2 / 2 - epsilon**3 / 3))
        projected = random_projection(patches, dimensions, generator)
        size, window = self._coreset_size(len(patches)), self.parameters.position_window
        bank = patches[greedy_coreset(projected, size, 1, generator)]
        members = nearest_members(patches, bank, 1)[1].view(-1, len(places))
        return bank, position_histogram(members, places, self.grid, size, window)

    def _windows(self, order: Tensor) -> Windows:
        order, batch = order.to(self.context.device), self.parameters.window_batch
        return Windows(self.features, self.targets, self.places[self.inner], order, batch)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of windows and targets."""
        windows, targets = batch
        return functional.cross_entropy(self.network(windows), targets)

    @torch.no_grad()
    def _validate(self, samples: Windows) -> float:
        self.network.eval()
        total = sum(self.loss(batch).item() * len(batch[0]) for batch in samples)
        return total / len(samples.order)

    def predict(self, batch: Batch) -> Prediction:
        self.best.eval()
        # Image by image: rounding must not let what is possible depend on the batch.
        images = zip(*(layer.split(1) for layer in batch), strict=True)
        scores = [self._score(embed(list(layers), self.kernels)[0]) for layers in images]
        neighbourhood, position, full = torch.stack(scores, dim=1).unflatten(2, self.grid)
        grids = {
            "combined": repeat_inner((neighbourhood + position) / 2, self.parameters.border),
            "neighbourhood": repeat_inner(neighbourhood, self.parameters.border),
            "position": full,
        }
        maps = {
            name: gaussian_smooth(upsample(grid, self.context.image_size), self.parameters.sigma)
            for name, grid in grids.items()
        }
        return Prediction(maps, {name: pixels.amax(dim=(1, 2)) for name, pixels in maps.items()})

    def _score(self, patches: Tensor) -> Tensor:
        """Scores (3, P) of one image's patches (P, D): by their neighbourhood, by their position,
        and by their position with the coreset that has the border."""
        fitted, rate = self.fitted, self.parameters.rate
        given_neighbourhood = self._probabilities(patches)[:, fitted["parents"]]
        conditions = (
            (fitted["inner_bank"], torch.stack([given_neighbourhood, fitted["inner_histogram"]])),
            (fitted["full_bank"], fitted["full_histogram"][None]),
        )
        distances = [
            nearest_possible(patches, bank, given > self.parameters.possible / len(bank))
            for bank, given in conditions
        ]
        return rate * torch.cat(distances) - math.log(rate)  # -ln g

    def _probabilities(self, patches: Tensor) -> Tensor:
        """Probabilities (P, classes) of the distribution members, by the windows of one image."""
        features = functional.pad(patches, (0, 0, 0, 1))  # a row of zeros for what is outside
        parts = self.places.split(self.parameters.window_batch)
        logits = torch.cat([self.best(features[rows].flatten(1)) for rows in parts])
        return torch.softmax(logits / self.parameters.temperature, dim=1)

    def state(self) -> dict[str, Tensor]:
        return self.fitted | _named("network.", self.best.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.fitted = {key: state[key] for key in state if not key.startswith("network.")}
        self.best.load_state_dict(_below("network.", state))

    def training_state(self) -> dict[str, Tensor]:
        progress = {
            "best_loss": torch.tensor(self.best_loss, dtype=torch.float64),
            "targets": self.targets,
        }
        weights, moments = self.network.state_dict(), super().training_state()
        return progress | _named("network.", weights) | _named("moments.", moments)

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        self.best_loss = float(state["best_loss"])
        self.targets = state["targets"].to(self.context.device)
        self.network.load_state_dict(_below("network.", state))
        super().load_training_state(_below("moments.", state))


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)}
