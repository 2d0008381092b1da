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
Places = NDArray[np.signedinteger[Any]]  # int32 as long as that is enough: half the memory

BLOCK_PIXELS = 1 << 26  # sorted at a time: a quarter of a GiB of float32
READ_PIXELS = 1 << 23  # read at a time; if that is all, it is kept


class Samples:
    """The test images of one category: anomaly maps with masks, image scores with labels.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : (N, H, W) bool or 0/1; 1 is anomalous
    scores : (N,) finite real numbers; higher is more anomalous
    labels : (N,) bool or 0/1; 1 is defective
    channels : defects with saturation thresholds, for ``spro`` alone
    block_pixels : how many pixels to sort at a time, at least one image

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
        self.block_pixels = block_pixels
        self._finite = False
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
        if np.prod(maps.shape) <= min(self.block_pixels, READ_PIXELS):
            maps = real_array(maps[:], "maps", axes="N H W")
            masks = binary_array(masks[:], "masks", axes="N H W")
            self._finite = True
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
        for first, maps in self.map_blocks():
            masks = self._pixels[1][first : first + len(maps)]
            yield first, maps, binary_array(masks, "masks", axes="N H W")

    def map_blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Read what :meth:`blocks` reads, without the masks."""
        maps = self._pixels[0]
        images, height, width = self.shape
        step = max(1, min(self.block_pixels, READ_PIXELS) // max(1, height * width))
        for first in range(0, images, step):
            block = maps[first : first + step]
            if not self._finite:
                block = real_array(block, "maps", axes="N H W", first=first)
            yield first, np.asarray(block)
        self._finite = True  # and need not be looked at by the next metric


def index_type(size: int) -> type[np.signedinteger[Any]]:
    """Return the smaller type that can count up to ``size``."""
    return np.int32 if size < 2**31 else np.int64


def anomalous_pixels(samples: Samples) -> Places:
    """Return the places of all anomalous pixels in the flattened masks, ascending."""
    return samples.once(_anomalous)[0]


def anomalous_scores(samples: Samples) -> NDArray[Any]:
    """Return the scores of :func:`anomalous_pixels`."""
    return samples.once(_anomalous)[1]


def _anomalous(samples: Samples) -> tuple[Places, NDArray[Any]]:
    """Find places and scores of all anomalous pixels in one pass."""
    images, height, width = samples.shape
    dtype = index_type(images * height * width)
    places, scores = [np.empty(0, dtype)], [np.empty(0, samples.dtype)]
    for first, maps, masks in samples.blocks():
        found = np.flatnonzero(masks)
        scores.append(maps.reshape(-1)[found])
        found += first * height * width
        places.append(found.astype(dtype))
    return np.concatenate(places), np.concatenate(scores)
