"""Discrete latent model: images as two grids of codes, and back (VQ-VAE-2 with two levels).

van den Oord et al., "Neural Discrete Representation Learning", NeurIPS 2017 (arXiv 1711.00937);
Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019 (arXiv
1906.00446); sizes and wiring as DSR has them. A feature f is quantised to its nearest code,

    q(f) = c_k,   k = argmin_j |f - c_j|^2,

and gradients pass as if q were the identity. ``lo`` is the level at 1/8 of the image's side, ``hi``
the one at 1/4, which is told q_lo, upsampled. In training, a code follows the mean of the features
that chose it, by moving sums and counts of decay d:

    n_k <- d n_k + (1 - d) #k,   s_k <- d s_k + (1 - d) sum_{f in k} f,   c_k = s_k / n_k.

A code that hardly any feature chooses starts anew as a feature of the batch, drawn at random; at
the first step that is every code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def straight_through(features: Tensor, quantised: Tensor) -> Tensor:
    """The value of ``quantised`` with the gradient of ``features``."""
    return features + (quantised - features).detach()


class Residual(nn.Module):
    """r + conv1(ReLU(conv3(r))), r = ReLU(x), on (N, C, H, W): the skip carries the ReLU, too."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.widen = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        return x + self.widen(functional.relu(self.narrow(x)))


def residual_stack(channels: int, hidden: int, layers: int) -> nn.Sequential:
    """Residual layers, then a ReLU."""
    return nn.Sequential(*(Residual(channels, hidden) for _ in range(layers)), nn.ReLU())


def halve(before: int, after: int) -> nn.Conv2d:
    """Convolution to half the side."""
    return nn.Conv2d(before, after, 4, stride=2, padding=1)


def double(before: int, after: int) -> nn.ConvTranspose2d:
    """Transposed convolution to twice the side."""
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)


class Codebook(nn.Module):
    """Codes (K, D), and in training their moving counts (K,) and sums (K, D)."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dimensions: int, decay: float, restart: float) -> None:
        super().__init__()
        self.decay, self.restart = decay, restart
        self.register_buffer("codes", torch.randn(size, dimensions))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dimensions))

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distances of vectors (P, D) to the codes, less each one's own square: (P, K)."""
        return torch.addmm(self.codes.square().sum(dim=1), vectors, self.codes.T, alpha=-2)

    def nearest(self, features: Tensor) -> Tensor:
        """Numbers (N, h, w) of the codes nearest to features (N, D, h, w)."""
        # Image by image: a fine grid's distances are 64 MB each.
        numbers = [self.distances(image.flatten(1).T).argmin(dim=1) for image in features]
        return torch.stack(numbers).unflatten(1, features.shape[2:])

    def look_up(self, numbers: Tensor) -> Tensor:
        """Codes (N, D, h, w) by their numbers (N, h, w)."""
        return self.codes[numbers].movedim(-1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Quantise features (N, D, h, w); the result has no gradient. Training moves the codes."""
        with torch.no_grad():
            if not self.training:
                return self.look_up(self.nearest(features))
            vectors = features.movedim(1, -1).flatten(0, 2)
            self._restart(vectors)
            numbers = self.nearest(features)
            quantised = self.look_up(numbers)
            self._follow(vectors, numbers.flatten())
            return quantised

    def _restart(self, vectors: Tensor) -> None:
        """Put codes of less than a share of the uniform count on vectors (P, D) of the batch."""
        unused = self.counts < self.restart * len(vectors) / len(self.counts)
        count = int(unused.sum())
        if count:
            rows = torch.randperm(len(vectors))[torch.arange(count) % len(vectors)]
            self.codes[unused] = self.sums[unused] = vectors[rows.to(vectors.device)]
            self.counts[unused] = 1

    def _follow(self, vectors: Tensor, numbers: Tensor) -> None:
        ones = torch.ones_like(numbers, dtype=self.counts.dtype)
        counts = torch.zeros_like(self.counts).index_add_(0, numbers, ones)
        sums = torch.zeros_like(self.sums).index_add_(0, numbers, vectors)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.codes.copy_(self.sums / self.counts[:, None])


class DiscreteModel(nn.Module):
    """Encoders, codebooks and the decoder of any image, on pixels (N, 3, H, W) in [0, 1]."""

    def __init__(
        self,
        hidden: int = 128,
        residual_hidden: int = 64,
        residual_layers: int = 2,
        dimensions: int = 128,
        codes: int = 4096,
        decay: float = 0.99,
        restart: float = 0.03,
    ) -> None:
        super().__init__()

        def stack() -> nn.Sequential:
            return residual_stack(hidden, residual_hidden, residual_layers)

        self.encoder_hi = nn.Sequential(
            halve(3, hidden // 2), nn.ReLU(), halve(hidden // 2, hidden), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1), stack(),
        )  # fmt: skip
        self.encoder_lo = nn.Sequential(
            halve(hidden, hidden), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1), stack()
        )
        self.to_lo = nn.Conv2d(hidden, dimensions, 1)
        self.to_hi = nn.Conv2d(hidden + dimensions, dimensions, 1)
        self.codebook_lo = Codebook(codes, dimensions, decay, restart)
        self.codebook_hi = Codebook(codes, dimensions, decay, restart)
        self.up = double(dimensions, dimensions)
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * dimensions, hidden, 3, padding=1), stack(),
            double(hidden, hidden // 2), nn.ReLU(), double(hidden // 2, 3),
        )  # fmt: skip

    @property
    def dimensions(self) -> int:
        """Of a code."""
        return self.up.in_channels

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images, before quantisation: (N, C, H/4, W/4) for ``hi``, (N, D, H/8, W/8)."""
        encoded = self.encoder_hi(images)
        return encoded, self.to_lo(self.encoder_lo(encoded))

    def hi_features(self, encoded: Tensor, quantised_lo: Tensor) -> Tensor:
        """Features (N, D, H/4, W/4) before quantisation, from encoded images and lo's codes."""
        return self.to_hi(torch.cat([encoded, self.up(quantised_lo)], dim=1))

    def join(self, quantised_lo: Tensor, quantised_hi: Tensor) -> Tensor:
        """What decoders read: (N, 2 D, H/4, W/4)."""
        return torch.cat([self.up(quantised_lo), quantised_hi], dim=1)

    def quantise(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised features of images, lo and hi."""
        encoded, features_lo = self.encode(images)
        quantised_lo = self.codebook_lo(features_lo)
        return quantised_lo, self.codebook_hi(self.hi_features(encoded, quantised_lo))

    def decode(self, quantised_lo: Tensor, quantised_hi: Tensor) -> Tensor:
        """Images (N, 3, H, W)."""
        return self.decoder(self.join(quantised_lo, quantised_hi))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructed images, and the commitment: mean |f - q(f)|^2 per value, of both levels."""
        encoded, features_lo = self.encode(images)
        codes_lo = self.codebook_lo(features_lo)
        quantised_lo = straight_through(features_lo, codes_lo)
        features_hi = self.hi_features(encoded, quantised_lo)
        codes_hi = self.codebook_hi(features_hi)
        commitment = functional.mse_loss(features_lo, codes_lo)
        commitment = commitment + functional.mse_loss(features_hi, codes_hi)
        return self.decode(quantised_lo, straight_through(features_hi, codes_hi)), commitment


def restored(state: Mapping[str, Tensor]) -> DiscreteModel:
    """Make the model whose state this is, frozen; its sizes are those of the tensors."""
    codes, dimensions = state["codebook_lo.codes"].shape
    layers = sum(key.startswith("decoder.1.") for key in state) // 2
    model = DiscreteModel(
        hidden=len(state["encoder_hi.4.weight"]),
        residual_hidden=len(state["decoder.1.0.narrow.weight"]),
        residual_layers=layers,
        dimensions=dimensions,
        codes=codes,
    )
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


# --- anomalies made of codes (DSR) ----------------------------------------------------------------


def other_codes(features: Tensor, codebook: Codebook, reach: float, skipped: float) -> Tensor:
    """Draw a code (P, D) for each feature (P, D), by its rank among the K ordered by distance.

    Ranks run from ``skipped`` K to ``reach`` K, both rounded down.
    """
    count = len(codebook.codes)
    last = max(1, min(int(reach * count) + 1, count - 1))
    ranks = torch.randint(int(skipped * count), last, (len(features), 1))
    order = codebook.distances(features).argsort(dim=1)
    return codebook.codes[order.gather(1, ranks.to(order.device))[:, 0]]


def spoil(
    features: Tensor,
    quantised: Tensor,
    codebook: Codebook,
    masks: Tensor,
    reaches: Tensor,
    skipped: float,
) -> Tensor:
    """Replace quantised features (N, D, h, w) inside of masks (N, h, w) by other codes."""
    result = quantised.clone()
    for image, feature, mask, reach in zip(result, features, masks, reaches.tolist(), strict=True):
        image[:, mask] = other_codes(feature[:, mask].T, codebook, reach, skipped).T
    return result


def pooled(masks: Tensor, like: Tensor) -> Tensor:
    """Masks (N, H, W) on a coarser grid (..., h, w): any pixel of a cell."""
    cell = (masks.shape[1] // like.shape[-2], masks.shape[2] // like.shape[-1])
    return functional.max_pool2d(masks[:, None].float(), cell)[:, 0] > 0


def blown_up(masks: Tensor, size: torch.Size) -> Tensor:
    """Masks (N, h, w) as cells of a finer grid (..., H, W)."""
    rows, columns = size[-2] // masks.shape[1], size[-1] // masks.shape[2]
    return masks.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)


@dataclass(frozen=True)
class Planted:
    """Quantised features with anomalies, the clean ones, and the anomalies' masks (N, H, W)."""

    lo: Tensor
    hi: Tensor
    clean_lo: Tensor
    clean_hi: Tensor
    masks: Tensor


@torch.no_grad()
def plant(
    model: DiscreteModel,
    images: Tensor,
    masks: Tensor,
    low: Tensor,
    high: Tensor,
    reaches: Tensor,
    skipped: float,
) -> Planted:
    """Plant anomalies in the features of images (N, 3, H, W), inside of masks (N, H, W).

    Parameters
    ----------
    model, images, masks
        See above.
    low, high
        (N,), bool: whether lo, and whether hi, is spoiled.
    reaches
        (2, N), for lo and hi, and ``skipped``: see :func:`other_codes`.
    """
    books = model.codebook_lo, model.codebook_hi
    encoded, features_lo = model.encode(images)
    clean_lo = books[0](features_lo)
    clean_hi = books[1](model.hi_features(encoded, clean_lo))
    grid_lo, grid_hi = pooled(masks, clean_lo), pooled(masks, clean_hi)
    spoil_lo, spoil_hi = grid_lo & low[:, None, None], grid_hi & high[:, None, None]
    lo = spoil(features_lo, clean_lo, books[0], spoil_lo, reaches[0], skipped)
    # Only where both are spoiled hi is made from the spoiled lo; else lo's anomaly is lo's alone.
    seen_lo = torch.where((low & high)[:, None, None, None], lo, clean_lo)
    features_hi = model.hi_features(encoded, seen_lo)
    hi = spoil(features_hi, books[1](features_hi), books[1], spoil_hi, reaches[1], skipped)
    size = masks.shape
    spoiled = torch.where(low[:, None, None], blown_up(grid_lo, size), blown_up(grid_hi, size))
    return Planted(lo, hi, clean_lo, clean_hi, spoiled)
