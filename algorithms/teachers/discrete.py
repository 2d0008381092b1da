"""Discrete latent model: images as two grids of codes, learned from images of all kinds.

The first stage of DSR: Zavrtanik, Kristan and Skocaj, "DSR - A Dual Subspace Re-projection Network
for Surface Anomaly Detection", ECCV 2022 (arXiv 2208.01521).

Encoders, two codebooks and a decoder (``blocks/discrete.py``), a VQ-VAE with two levels, learn to
redraw images x from codes q(f) of their features f:

    loss = |x - decoded|^2 / variance + beta sum_{lo, hi} |f - q(f)|^2,   beta = 0.25,

each square the mean over all values. The codes are not trained by gradients: each follows the
moving mean of the features nearest to it.

Verified
--------
The loss, the codes' updates and restarts against NumPy; that training lowers the loss; that
weights by the authors' names come to the layers whose shapes they have, and give for an RGB image
what they give in BGR order. The published weights themselves were not at hand.

Note
----
The authors published weights, learned from ImageNet, but not the script that made them. What we
chose: the VQ-VAE paper's loss, its image term over the variance of natural images' pixels, without
which it is so small that features shrink until codes cost nothing; Adam at 3e-4; no augmentation.
Sizes, beta and the decay are the authors'. Codebooks start from features, and unused codes start
anew (their code does neither, and smooths the counts instead): in few steps most of 4096 random
codes would never be chosen. Images are RGB, the authors' BGR: their weights are turned around when
they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from algorithms.base import Context, Loader, Teacher, register_teacher
from algorithms.blocks.discrete import DiscreteModel

# Weights by the authors' names and by ours; what ends in a dot is a layer or a stack of them.
PARTS: Sequence[tuple[str, str]] = (
    ("_encoder_b._conv_1.", "encoder_hi.0."),
    ("_encoder_b._conv_2.", "encoder_hi.2."),
    ("_encoder_b._conv_3.", "encoder_hi.4."),
    ("_encoder_b._residual_stack._layers.", "encoder_hi.5."),
    ("_encoder_t._conv_1.", "encoder_lo.0."),
    ("_encoder_t._conv_2.", "encoder_lo.2."),
    ("_encoder_t._residual_stack._layers.", "encoder_lo.3."),
    ("_pre_vq_conv_top.", "to_lo."),
    ("_pre_vq_conv_bot.", "to_hi."),
    ("_vq_vae_top._embedding.weight", "codebook_lo.codes"),
    ("_vq_vae_bot._embedding.weight", "codebook_hi.codes"),
    ("upsample_t.", "up."),
    ("_decoder_b._conv_1.", "decoder.0."),
    ("_decoder_b._residual_stack._layers.", "decoder.1."),
    ("_decoder_b._conv_trans_1.", "decoder.2."),
    ("_decoder_b._conv_trans_2.", "decoder.4."),
)


@dataclass(frozen=True)
class Hyperparameters:
    """The authors' sizes; the last three are ours."""

    hidden: int = 128  # channels of encoders and decoder
    residual_hidden: int = 64
    residual_layers: int = 2
    dimensions: int = 128  # of a code
    codes: int = 4096  # of each level
    commitment: float = 0.25  # beta
    decay: float = 0.99  # of the codes' counts and sums
    restart: float = 0.03  # codes chosen less often than this share of the mean start anew
    variance: float = 0.06  # of pixels in [0, 1], of natural images
    learning_rate: float = 3e-4


def translated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the authors' weights, which are for BGR images, to a state for RGB.

    Their moving counts and sums, which only training reads, are left out.

    Raises
    ------
    ValueError
        If a name is none of theirs, or one of theirs is missing.
    """
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if "._ema_" in key:
            continue
        for theirs, ours in PARTS:
            if key.startswith(theirs):
                name = ours + key.removeprefix(theirs)
                name = name.replace("._block.1.", ".narrow.").replace("._block.3.", ".widen.")
                state[name] = value
                break
        else:
            raise ValueError(f"no weight of DSR's discrete model: {key}")
    for _, ours in PARTS:
        if not any(name.startswith(ours) for name in state):
            raise ValueError(f"weights of DSR's discrete model lack {ours.rstrip('.')}")
    # Reversing the colours that the first layer reads and the last one writes is exact.
    state["encoder_hi.0.weight"] = state["encoder_hi.0.weight"].flip(1)
    state["decoder.4.weight"] = state["decoder.4.weight"].flip(1)
    state["decoder.4.bias"] = state["decoder.4.bias"].flip(0)
    for level in ("lo", "hi"):
        codes = state[f"codebook_{level}.codes"]
        state[f"codebook_{level}.counts"] = codes.new_ones(len(codes))
        state[f"codebook_{level}.sums"] = codes.clone()
    return state


@register_teacher("discrete")
class DiscreteTeacher(Teacher):
    """Encoders, codebooks and decoder; its state is that of ``blocks/discrete.py``'s model."""

    network: DiscreteModel
    parameters: Hyperparameters

    def __init__(self, parameters: Hyperparameters, context: Context) -> None:
        super().__init__(parameters, context)
        self.network = DiscreteModel(
            parameters.hidden,
            parameters.residual_hidden,
            parameters.residual_layers,
            parameters.dimensions,
            parameters.codes,
            parameters.decay,
            parameters.restart,
        ).to(context.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=parameters.learning_rate)
        self.mean = torch.tensor(context.mean, device=context.device)[:, None, None]
        self.std = torch.tensor(context.std, device=context.device)[:, None, None]

    @torch.no_grad()
    def prepare(self, loader: Loader) -> None:
        """Put the codes on features of a first batch, by a pass that trains nothing else."""
        self.network.train()
        self.loss(next(iter(loader))[0])

    def loss(self, images: Tensor) -> Tensor:
        pixels = images * self.std + self.mean
        decoded, commitment = self.network(pixels)
        error = functional.mse_loss(decoded, pixels) / self.parameters.variance
        return error + self.parameters.commitment * commitment

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return translated(weights)
