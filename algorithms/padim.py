"""PaDiM: a Gaussian of patch features at every position.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", ICPR workshops 2021 (arXiv 2011.08785).

Feature maps of several layers are stacked at the finest grid (coarser ones repeat their nearest
value), and a fixed random subset of the channels is kept. At each position p the N training images
give a mean m and a covariance S = X'X / (N - 1) + eps I, X being the centred features (N, d).
A test feature f is scored by its Mahalanobis distance

    dist(f)^2 = (f - m)' S^-1 (f - m).

The distances, upsampled and smoothed, are the anomaly map; its maximum is the image score.

Two forms give the same number. With more images than features, S is factorised (*primal*). With
fewer, S has rank N - 1 apart from eps I, and by Woodbury's identity (*dual*)

    dist(f)^2 = ( |f - m|^2 - | L^-1 X (f - m) |^2 ) / eps,   L L' = X X' + (N - 1) eps I,

needs only N x N systems: 209 images and 550 features take 0.5 GB instead of 5. Inner products are
sums over channels, so each layer's are computed on its own coarse grid and then repeated: nothing
is ever upsampled. The difference cancels, hence float64.

Verified
--------
Distances and maps against NumPy's covariance and inverse at every position; the dual form against
the primal one; WideResNet-50-2 with 550 features at 256 px stays under 3 GB (``benchmarks/``).

Note
----
The stored model is the training features themselves (selected channels, native grids), which is
smaller than the covariances; they are factorised before prediction and counted as training time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.base import Algorithm, Batch, Context, Loader, Prediction, register
from algorithms.blocks.maps import gaussian_smooth, upsample


@dataclass(frozen=True)
class Hyperparameters:
    """Values of the paper for WideResNet-50-2."""

    max_features: int = 550  # channels kept at random; all, where the layers have fewer
    regularisation: float = 0.01  # eps
    sigma: float = 4.0  # of the Gaussian smoothing, in pixels of the map
    block_bytes: int = 100_000_000  # positions are worked on in blocks of about this size


def nearest_index(fine: tuple[int, int], coarse: tuple[int, int]) -> Tensor:
    """Flat index (H*W,) of the coarse cell that nearest-neighbour upsampling puts at each cell."""
    rows = torch.arange(fine[0]) * coarse[0] // fine[0]
    columns = torch.arange(fine[1]) * coarse[1] // fine[1]
    return (rows[:, None] * coarse[1] + columns[None, :]).flatten()


def position_blocks(positions: int, bytes_each: int, block_bytes: int) -> Iterator[slice]:
    """Cut ``positions`` into slices whose matrices take about ``block_bytes``."""
    step = max(1, block_bytes // bytes_each)
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


def dual_products(
    bank: list[Tensor], other: list[Tensor], indices: list[Tensor], block: slice
) -> Tensor:
    """Inner products at each position of a block, summed over layers.

    Parameters
    ----------
    bank, other
        Per layer (N, C, P_layer) and (B, C, P_layer), centred.
    indices
        Per layer (P,), the layer's cell at each position of the finest grid.

    Returns
    -------
    Tensor
        (block, N, B), float64.
    """
    total: Tensor | float = 0.0
    for left, right, index in zip(bank, other, indices, strict=True):
        cells, repeat = torch.unique(index[block], return_inverse=True)
        a = left[:, :, cells].permute(2, 0, 1).double()  # (cells, N, C)
        b = right[:, :, cells].permute(2, 1, 0).double()  # (cells, C, B)
        total = total + (a @ b)[repeat]
    assert isinstance(total, Tensor)
    return total


def dual_factor(bank: list[Tensor], indices: list[Tensor], block: slice, eps: float) -> Tensor:
    """Cholesky factor L (block, N, N) of X X' + (N - 1) eps I."""
    gram = dual_products(bank, bank, indices, block)
    images = gram.shape[-1]
    gram.diagonal(dim1=1, dim2=2).add_((images - 1) * eps)
    return torch.linalg.cholesky(gram)


def dual_distance(factor: Tensor, cross: Tensor, squares: Tensor, eps: float) -> Tensor:
    """Squared Mahalanobis distance (block, B) from X(f - m) (block, N, B) and |f - m|^2."""
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    return (squares - half.square().sum(dim=1)) / eps


def primal_whitening(features: Tensor, eps: float) -> Tensor:
    """Whitening (block, d, d), float32, with |W (f - m)|^2 the squared distance.

    Parameters
    ----------
    features
        Centred training features (block, N, d), float64.
    """
    covariance = features.mT @ features / (features.shape[1] - 1)
    covariance.diagonal(dim1=1, dim2=2).add_(eps)
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).float()


@register("padim")
class Padim(Algorithm):
    """A Gaussian per position; see the module's text."""

    inputs = "features"
    prediction_parameters = ("sigma",)
    primary = ("mahalanobis", "mahalanobis")
    shuffle = False
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.grid = max((shape[1:] for shape in context.shapes), key=lambda grid: grid[0])
        self.indices = [
            nearest_index(self.grid, shape[1:]).to(context.device) for shape in context.shapes
        ]
        self.channels = self._draw_channels()
        self.bank: list[Tensor] = []  # per layer (N, C, P_layer), centred
        self.means: list[Tensor] = []  # per layer (C, P_layer)
        self.whitening: list[Tensor] = []  # primal form, per block
        self.factors: list[Tensor] = []  # dual form, per block, where memory allows

    def _draw_channels(self) -> list[Tensor]:
        # One subset per seed, the same for every category, as in the reference code.
        widths = [shape[0] for shape in self.context.shapes]
        generator = torch.Generator().manual_seed(self.context.seed)
        kept = torch.randperm(sum(widths), generator=generator)[: self.parameters.max_features]
        starts = [sum(widths[:layer]) for layer in range(len(widths))]
        return [
            torch.sort(kept[(kept >= start) & (kept < start + width)] - start).values.to(
                self.context.device
            )
            for start, width in zip(starts, widths, strict=True)
        ]

    def _select(self, batch: Batch) -> list[Tensor]:
        return [
            layer[:, channels].flatten(2)
            for layer, channels in zip(batch, self.channels, strict=True)
        ]

    def train_one_epoch(self, loader: Loader) -> dict[str, float]:
        batches = [self._select(batch) for batch in loader]
        layers = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        if len(layers[0]) < 2:
            raise ValueError("PaDiM needs at least two training images for a covariance")
        self.means = [layer.mean(dim=0) for layer in layers]
        self.bank = [layer.sub_(mean) for layer, mean in zip(layers, self.means, strict=True)]
        return {}

    def before_eval(self, loader: Loader) -> None:
        self._factorise()

    @property
    def _dual(self) -> bool:
        return len(self.bank[0]) <= sum(len(channels) for channels in self.channels)

    def _blocks(self) -> list[slice]:
        images, features = len(self.bank[0]), sum(len(channels) for channels in self.channels)
        side = images if self._dual else max(images, features)
        return list(position_blocks(len(self.indices[0]), 8 * side**2, self.parameters.block_bytes))

    def _factorise(self) -> None:
        eps, blocks = self.parameters.regularisation, self._blocks()
        self.whitening, self.factors = [], []
        if not self._dual:
            for block in blocks:
                self.whitening.append(primal_whitening(self._stacked(self.bank, block), eps))
        # Keeping the dual factors is worth it up to a few blocks; beyond, they are made again for
        # each batch (cheaper than the memory: 1.4 GB at 209 images and 64 x 64 positions).
        elif len(blocks) <= 5:
            self.factors = [dual_factor(self.bank, self.indices, block, eps) for block in blocks]

    def _stacked(self, layers: list[Tensor], block: slice) -> Tensor:
        stacked = [
            layer[:, :, index[block]] for layer, index in zip(layers, self.indices, strict=True)
        ]
        return torch.cat(stacked, dim=1).permute(2, 0, 1).double()  # (block, N, d)

    def _squared_distances(self, centred: list[Tensor]) -> Iterator[Tensor]:
        eps = self.parameters.regularisation
        for number, block in enumerate(self._blocks()):
            if not self._dual:
                features = self._stacked(centred, block).float().mT  # (block, d, B)
                yield (self.whitening[number] @ features).square().sum(dim=1)
                continue
            factor = (
                self.factors[number]
                if self.factors
                else dual_factor(self.bank, self.indices, block, eps)
            )
            cross = dual_products(self.bank, centred, self.indices, block)
            squares = torch.zeros_like(cross[:, 0])
            for layer, index in zip(centred, self.indices, strict=True):
                squares += layer.double().square().sum(dim=1).T[index[block]]
            yield dual_distance(factor, cross, squares, eps)

    def predict(self, batch: Batch) -> Prediction:
        centred = [
            layer - mean for layer, mean in zip(self._select(batch), self.means, strict=True)
        ]
        squared = torch.cat([part.float() for part in self._squared_distances(centred)])
        distances = squared.clamp(min=0).sqrt().T.unflatten(1, self.grid)
        maps = upsample(distances, self.context.image_size)
        maps = gaussian_smooth(maps, self.parameters.sigma)
        return Prediction({"mahalanobis": maps}, {"mahalanobis": maps.amax(dim=(1, 2))})

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for number, (bank, mean) in enumerate(zip(self.bank, self.means, strict=True)):
            state |= {
                f"bank.{number}": bank,
                f"mean.{number}": mean,
                f"channels.{number}": self.channels[number],
            }
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        layers = range(len(self.context.shapes))
        self.bank = [state[f"bank.{number}"] for number in layers]
        self.means = [state[f"mean.{number}"] for number in layers]
        self.channels = [state[f"channels.{number}"] for number in layers]
        self._factorise()
