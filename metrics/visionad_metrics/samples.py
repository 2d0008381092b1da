"""What metrics are computed from, checked as it is read, and shared by all metrics that ask.

Maps and masks may be arrays or lie on disk (``h5py.Dataset``, ``numpy.memmap``): they are read in
blocks of whole images, so that maps larger than memory are measured as exactly as small ones.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.checks import array_like, binary_array, real_array, same_shape

T = TypeVar("T")

BLOCK_PIXELS = 1 << 26  # read and sorted at a time: a quarter of a GiB of float32


class Samples:
    """The test images of one category: anomaly maps with masks, image scores with labels.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous
    scores : (N,) finite real numbers; higher is more anomalous
    labels : (N,) bool or 0/1; 1 is defective
    channels : defects with saturation thresholds, for ``spro`` alone
    block_pixels : how many pixels to hold at a time, at least one image

    Any of them may be None as long as no metric asks for it. Checks are made on reading: then a
    TypeError or ValueError names the argument that is not as described.
    """

    def __init__(
        self,
        maps: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        channels: Any = None,
        block_pixels: int = BLOCK_PIXELS,
    ) -> None:
        self.channels = channels
        self._given = {"maps": maps, "masks": masks, "scores": scores, "labels": labels}
        self._block_pixels = block_pixels
        self._known: dict[Callable[[Samples], Any], Any] = {}

    def once(self, derive: Callable[["Samples"], T]) -> T:
        """Return ``derive(self)``, computed by the first metric that asks for it."""
        if derive not in self._known:
            self._known[derive] = derive(self)
        result: T = self._known[derive]
        return result

    @cached_property
    def image(self) -> tuple[NDArray[Any], NDArray[np.bool]]:
        """Scores and labels, (N,) each, checked."""
        scores = real_array(self._given["scores"], "scores", axes="N")
        defective = binary_array(self._given["labels"], "labels", axes="N")
        same_shape(scores=scores, labels=defective)
        return scores, defective

    @cached_property
    def _pixels(self) -> tuple[Any, Any]:
        maps = array_like(self._given["maps"], "maps", axes="N H W")
        masks = array_like(self._given["masks"], "masks", axes="N H W")
        if maps.dtype.kind == "b":
            real_array(maps[:1], "maps", axes="N H W")  # says what is wrong
        same_shape(maps=maps, masks=masks)
        return maps, masks

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (N, H, W) of the maps and of the masks."""
        n, h, w = self._pixels[0].shape
        return n, h, w

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the maps."""
        dtype: np.dtype[Any] = self._pixels[0].dtype
        return dtype

    def blocks(self) -> Iterator[tuple[int, NDArray[Any], NDArray[np.bool]]]:
        """Read images in order: the number of the first, maps and masks (n, H, W), checked."""
        maps, masks = self._pixels
        images, height, width = self.shape
        step = max(1, self._block_pixels // max(1, height * width))
        for start in range(0, images, step):
            rows = slice(start, start + step)
            yield (
                start,
                real_array(maps[rows], "maps", axes="N H W", first=start),
                binary_array(masks[rows], "masks", axes="N H W"),
            )


def anomalous_pixels(samples: Samples) -> NDArray[np.int64]:
    """Return the places of all anomalous pixels in the flattened masks, ascending."""
    _, height, width = samples.shape
    places = [
        np.flatnonzero(masks) + first * height * width for first, _, masks in samples.blocks()
    ]
    return np.concatenate(places) if places else np.empty(0, np.int64)
