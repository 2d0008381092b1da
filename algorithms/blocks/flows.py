"""Affine coupling blocks of normalising flows: FrEIA's, with permutations that cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn
from torch.nn import functional


def random_rotation(channels: int, rng: Any = np.random) -> np.ndarray:
    """Draw from SO(C) by the uniform (Haar) law, (C, C) float32: the Q of a Gaussian matrix.

    With the signs of R's diagonal moved into Q the law is uniform on O(C) (Mezzadri, Notices of the
    AMS 2007); one column then settles the determinant's sign. SciPy multiplies C reflections
    instead, which takes minutes for 2048 channels.
    """
    q, r = np.linalg.qr(rng.standard_normal((channels, channels)))
    q *= np.sign(np.diagonal(r))
    if np.linalg.slogdet(q)[0] < 0:
        q[:, 0] *= -1
    return q.astype(np.float32)


class _Reorder(torch.autograd.Function):
    # Autograd's own gradient of index_select adds into zeros, on CUDA (where kernels have to be
    # deterministic) by way of a sort. A permutation's gradient is but its inverse.
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(gradients[0], inverse, order), None, None


class CouplingBlock(AllInOneBlock):
    """FrEIA's ``AllInOneBlock``, mathematics unchanged, for data (N, C) or (N, C, H, W).

    x2 <- x2 * exp(clamp * tanh(0.1 s)) + 0.1 t with (s, t) = subnet(x1, condition), then a global
    affine map per channel and a fixed permutation, or, with ``permute_soft``, a fixed rotation.
    H and W need not be those declared in ``dims_in``.

    A permutation is kept as an index: FrEIA multiplies by a (C, C) matrix, which for 1024 channels
    takes 8 MB a block and a tenth of a training step. NumPy's global generator draws it.
    """

    def __init__(
        self,
        dims_in: Sequence[tuple[int, ...]],
        dims_c: Sequence[tuple[int, ...]] = (),
        *,
        subnet_constructor: Callable[[int, int], nn.Module],
        affine_clamping: float = 2.0,
        permute_soft: bool = False,
    ) -> None:
        super().__init__(
            dims_in,
            dims_c,
            subnet_constructor=subnet_constructor,
            affine_clamping=affine_clamping,
            permute_soft=False,  # FrEIA's rotation is slow to draw
        )
        # FrEIA's matrix M maps channel order[i] to i.
        order = self.w_perm.reshape(self.in_channels, -1).argmax(dim=1)
        del self.w_perm, self.w_perm_inv
        if permute_soft:
            self.register_buffer("rotation", torch.from_numpy(random_rotation(self.in_channels)))
        else:
            self.register_buffer("order", order)
            self.register_buffer("inverse", order.argsort())
        self.permute_soft = permute_soft

    def _permute(self, x: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        scale = self.global_scale_activation(self.global_scale)
        log_jacobian = scale.log().sum()
        if not rev:
            return self._reorder(torch.addcmul(self.global_offset, x, scale), rev), log_jacobian
        return (self._reorder(x, rev) - self.global_offset) / scale, log_jacobian

    def _reorder(self, x: Tensor, rev: bool) -> Tensor:
        if not self.permute_soft:
            there, back = (self.inverse, self.order) if rev else (self.order, self.inverse)
            return _Reorder.apply(x, there, back)
        rotation = self.rotation.T if rev else self.rotation
        if x.dim() == 2:
            return functional.linear(x, rotation)
        return functional.conv2d(x, rotation[:, :, None, None])
