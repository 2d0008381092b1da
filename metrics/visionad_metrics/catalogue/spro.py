"""Area under the saturated per-region overlap curve of MVTec LOCO AD."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visionad_metrics.checks import array_like, rate_limit
from visionad_metrics.ranked_results import overlap_result
from visionad_metrics.ranking import rank_pixels
from visionad_metrics.registry import register
from visionad_metrics.result import MetricResult
from visionad_metrics.samples import Samples, anomalous_pixels
from visionad_metrics.saturation import Saturation, make_channels


def spro(
    maps: ArrayLike,
    masks: Sequence[Sequence[Any]],
    config: Mapping[int, Saturation],
    limit: float = 0.05,
    scale: float = 1.0,
) -> MetricResult:
    """Mean share of a defect's saturation area that is found, up to a false positive rate.

    A defect is one mask of an image, in one piece or several, and each counts the same. What is
    found of it counts up to its saturation area; pixels of no defect of the image are false
    positives. Every distinct score is a threshold, and the area is divided by the limit.

    Parameters
    ----------
    maps : (N, H, W) finite real numbers; higher is more anomalous
    masks : for each image its defects, (H, W) integers each: 0, and one pixel value of ``config``;
        none for a good image
    config : saturation by pixel value, see :func:`visionad_metrics.saturation.read_defects_config`
    limit : highest false positive rate, in (0, 1]
    scale : area of these masks over that of the original ones, if resized

    Returns
    -------
    MetricResult
        Value in [0, 1] with the curve (fpr, spro); nan where normal pixels or defects are missing.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    References
    ----------
    Bergmann et al. (2022), Beyond Dents and Scratches, section 4. Its code tries some hundreds of
    thresholds; the curve through all of them differs by less than its stated distance, 0.01.
    """
    shape = array_like(maps, "maps", axes="N H W").shape
    if len(masks) != shape[0]:
        raise ValueError(f"masks must list the defects of {shape[0]} images, got {len(masks)}")
    channels = make_channels(masks, config, scale)
    united = np.zeros(shape, bool)
    for image, defects in enumerate(masks):
        for number, values in enumerate(defects):
            if np.shape(values) != shape[1:]:
                raise ValueError(
                    f"masks[{image}][{number}] must have the maps' shape {shape[1:]}, "
                    f"got {np.shape(values)}"
                )
            united[image] |= np.asarray(values) != 0
    return contract(Samples(maps, united, channels=channels), limit)


@register("spro", level="pixel")
def contract(samples: Samples, limit: float = 0.05) -> MetricResult:
    """Compute ``spro`` on samples; undefined where these have no channels."""
    rate_limit(limit, "limit")
    ranking = samples.once(rank_pixels)
    if ranking is None:
        return MetricResult.undefined("no anomalous pixel")
    if not ranking.normal:
        return MetricResult.undefined("no normal pixel")
    if samples.channels is None:
        return MetricResult.undefined("no saturation thresholds: the data set states none")
    position = np.empty(ranking.anomalous, np.int64)
    position[ranking.order] = np.arange(ranking.anomalous)
    gains = ranking.group_sums(_weights(samples, position))
    return overlap_result(ranking, gains, limit, "spro", {"defects": len(samples.channels)})


def _weights(samples: Samples, position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what each anomalous pixel adds to the mean overlap, given its rank (P,).

    Of a defect's pixels the best ranked ones, as many as saturate it, share 1 / defects; the
    others add nothing. Which of equally ranked ones these are does not matter: they come together.
    """
    places = anomalous_pixels(samples).astype(np.int64)  # once, not for each channel
    pixels = samples.shape[1] * samples.shape[2]
    weights = np.zeros(places.size)
    for channel in samples.channels:
        own = np.searchsorted(places, channel.image * pixels + channel.places)
        ranked = own[np.argsort(position[own])]
        counted = np.clip(channel.saturation - np.arange(ranked.size), 0, 1)
        weights[ranked] += counted / (channel.saturation * len(samples.channels))
    return weights
