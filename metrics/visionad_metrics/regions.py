"""Connected regions of all masks at once.

Anomalous pixels are few and lie in runs. Runs of neighbouring rows that touch, diagonally too,
are joined as a sparse graph, whose connected components are the regions: one pass over the
anomalous pixels, where labelling the masks would read every pixel of every image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from visionad_metrics.samples import Places, Samples, anomalous_pixels

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Horizontal runs of anomalous pixels, in raster order; (M,) int64 each.

    Attributes
    ----------
    image, row, left, right : where a run lies; ``right`` is its last column
    region : the region it belongs to, numbered by first pixels in raster order, image by image
    """

    image: Integers
    row: Integers
    left: Integers
    right: Integers
    region: Integers

    @property
    def lengths(self) -> Integers:
        """Pixels of each run, (M,)."""
        return self.right - self.left + 1


def find_runs(samples: Samples) -> Runs:
    """Find the runs of all masks and join them to 8-connected regions."""
    return runs_of(anomalous_pixels(samples), *samples.shape[1:])


def runs_of(places: Places, height: int, width: int) -> Runs:
    """Join pixels to runs and 8-connected regions, image by image.

    Parameters
    ----------
    places : (P,) integers, ascending places of the pixels in the flattened masks (N, H, W)
    height, width : H and W
    """
    if not places.size:
        return Runs(*(np.empty(0, np.int64) for _ in range(5)))
    begins = np.append(True, (np.diff(places) != 1) | (places[1:] % width == 0))
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=places.size)
    row, left = np.divmod(places[starts].astype(np.int64), width)
    image, row = np.divmod(row, height)
    right = left + lengths - 1
    return Runs(image, row, left, right, _join(image * (height + 1) + row, left, right, width))


def _join(row: Integers, left: Integers, right: Integers, width: int) -> Integers:
    """Number the components of runs that touch; ``row`` skips a number between images."""
    stride = width + 2  # room for the neighbours of the first and the last column
    first = np.searchsorted(row * stride + right, (row + 1) * stride + left - 1, side="left")
    last = np.searchsorted(row * stride + left, (row + 1) * stride + right + 1, side="right")
    touching = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(row.size), touching)
    offset = np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching, touching)
    lower = np.repeat(first, touching) + offset
    links = coo_array((np.ones(upper.size, np.int8), (upper, lower)), shape=(row.size, row.size))
    labels = connected_components(links, directed=False)[1]
    _, first_run, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(first_run.size, np.int64)
    number[np.argsort(first_run)] = np.arange(first_run.size)
    return np.asarray(number[inverse], np.int64)


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of all masks, numbered by first pixels in raster order, image by image.

    Attributes
    ----------
    size : (R,) int64, pixels of each region
    of_pixel : (P,) int64, the region of each anomalous pixel, in raster order
    """

    size: Integers
    of_pixel: Integers

    def equal_weights(self) -> NDArray[np.float64]:
        """Weights (P,) of the anomalous pixels: each region's sum to 1 / R however large it is."""
        return (1 / (self.size.size * self.size))[self.of_pixel]


def find_regions(samples: Samples) -> Regions:
    """Find the 8-connected regions of all masks (MVTec's definition)."""
    return regions_of(samples.once(find_runs))


def regions_of(runs: Runs) -> Regions:
    """Gather the pixels of runs by region."""
    sizes = np.bincount(runs.region, weights=runs.lengths).astype(np.int64)
    return Regions(sizes, np.repeat(runs.region, runs.lengths))
