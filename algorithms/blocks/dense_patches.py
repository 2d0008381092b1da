"""Networks that describe small patches, and their evaluation around every pixel at once.

A patch network brings p x p pixels down to one vector, by convolutions without padding and 2 x 2
max pooling. The descriptors around all pixels need not be computed patch by patch: pooling with
stride 1, followed by kernels that are dilated by 2, gives those of all patches in one pass. On a
coarser grid of stride s, the first log2(s) poolings keep their stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

# Kernel and channels of each convolution, None for a max pooling; the last one's channels are the
# descriptor's. Of 17 px the paper prints a first kernel of 5, which does not end at 1 x 1.
ARCHITECTURES: dict[int, tuple[tuple[int, int] | None, ...]] = {
    17: ((6, 128), (5, 256), (5, 256), (4, 128)),
    33: ((5, 128), None, (5, 256), None, (2, 256), (4, 128)),
    65: ((5, 128), None, (5, 128), None, (5, 128), None, (4, 256), (1, 128)),
}
SLOPE = 5e-3  # of LeakyReLU, which follows all convolutions but the last


def channel_counts(receptive_field: int, width: float, dimensions: int) -> list[int]:
    """Channels of each convolution, at ``width`` times the paper's.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    if receptive_field not in ARCHITECTURES:
        known = ", ".join(map(str, ARCHITECTURES))
        raise ValueError(f"no patch network sees {receptive_field} px; known: {known}")
    layers = [layer for layer in ARCHITECTURES[receptive_field] if layer is not None]
    return [*(max(1, round(count * width)) for _, count in layers[:-1]), dimensions]


class PatchNetwork(nn.Module):
    """From patches (N, 3, p, p) to descriptors (N, D).

    Parameters
    ----------
    receptive_field
        p: 17, 33 or 65.
    channels
        Of each convolution (:func:`channel_counts`).
    """

    def __init__(self, receptive_field: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.receptive_field = receptive_field
        self.layers = ARCHITECTURES[receptive_field]
        kernels = [layer[0] for layer in self.layers if layer is not None]
        self.channels = list(channels)
        pairs = zip([3, *channels[:-1]], channels, kernels, strict=True)
        self.steps = [nn.Conv2d(*pair) for pair in pairs]
        self.convolutions = nn.ModuleList(self.steps)
        # Behind it there are 1 x 1 convolutions only: it may skip what the grid does not want.
        self.last_wide = max(n for n, kernel in enumerate(kernels) if kernel > 1)

    def forward(self, patches: Tensor) -> Tensor:
        return self._convolve(patches, 2 ** self.layers.count(None))[:, :, 0, 0]

    def slide(self, images: Tensor, stride: int = 1) -> Tensor:
        """Describe all patches of images (N, 3, H, W) whose corners are ``stride`` pixels apart.

        Returns
        -------
        Tensor
            (N, D, rows, columns), with (H - p) // stride + 1 rows, and columns likewise.
        """
        p = self.receptive_field
        if stride > p // 2:  # patches hardly overlap: there is less to compute one by one
            patches = images.unfold(2, p, stride).unfold(3, p, stride)
            described = self(patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))
            grid = (len(images), *patches.shape[2:4])
            return described.unflatten(0, grid).movedim(3, 1)  # type: ignore[no-any-return]
        # Where pooling leaves a remainder a network sees less than p pixels and finds more places.
        rows, columns = ((side - p) // stride + 1 for side in images.shape[2:])
        return self._convolve(images, stride)[:, :, :rows, :columns]

    def _convolve(self, x: Tensor, stride: int) -> Tensor:
        dilation, number = 1, 0
        for layer in self.layers:
            if layer is None:
                step = 2 if stride % 2 == 0 else 1
                x = functional.max_pool2d(x, 2, step, dilation=dilation)
                stride, dilation = stride // step, dilation * 2 // step
                continue
            part = self.steps[number]
            step = stride if number == self.last_wide else 1
            x = functional.conv2d(x, part.weight, part.bias, step, dilation=dilation)
            number += 1
            if number < len(self.steps):
                x = functional.leaky_relu(x, SLOPE, inplace=True)
        return x


def surround(images: Tensor, receptive_field: int) -> Tensor:
    """Pad images (N, C, H, W) with zeros, so that each pixel is the middle of a patch."""
    return functional.pad(images, [receptive_field // 2] * 4)


def restore(state: Mapping[str, Tensor], receptive_field: int, prefix: str = "") -> PatchNetwork:
    """Build the network that left a state dict, whose shapes tell its channels."""
    count = sum(layer is not None for layer in ARCHITECTURES[receptive_field])
    channels = [len(state[f"{prefix}convolutions.{number}.bias"]) for number in range(count)]
    network = PatchNetwork(receptive_field, channels)
    network.load_state_dict({key: state[prefix + key] for key in network.state_dict()})
    return network
