"""Bootstrap over the test images of one category: every metric from weights, not from copies.

A resample draws as many good and as many defective images as there are, with replacement, each
kind by itself: how many of either a test set has was decided by its makers, and is no outcome that
another sample of images would change. (A resample without a good image has no AUROC, besides.)
What is drawn depends on a seed, the category's name and its image ids alone, so that all
algorithms and training seeds meet the same images in the same resample: differences are paired.

An image that is drawn twice counts twice. So a resampled value is a function of weights (N,), how
often each image was drawn, and one sort serves all resamples. Nothing is binned: each value is the
metric of the drawn images, copies included, but for the last bits of floating point; with weights
of one it is the library's own value. The catalogue's metrics that no function here knows have none.

References: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 6, 8 and 13.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from visionad_metrics.bootstrap_areas import UndefinedError, resampled_area
from visionad_metrics.bootstrap_localisation import resampled_pl
from visionad_metrics.checks import rate_limit
from visionad_metrics.regions import find_regions
from visionad_metrics.samples import Samples, anomalous_pixels

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Resampled:
    """A metric's value and what it is on B resamples of the images.

    Attributes
    ----------
    value : on the images as they are; nan where it is undefined
    replicates : (B,) float64, one for each resample; empty where there are none
    influence : (N,) float64, by how much each image lifts the value: the jackknife's, which says
        how skewed the value is; 0 where the value is undefined without the image
    reason : why there are none
    """

    value: float
    replicates: Floats
    influence: Floats
    reason: str | None = None

    @classmethod
    def none(cls, value: float, reason: str) -> "Resampled":
        """Return a value without replicates."""
        return cls(value, np.empty(0), np.empty(0), reason)


def draw(
    ids: Sequence[str], labels: ArrayLike, resamples: int, seed: int, name: str
) -> NDArray[np.int64]:
    """Draw images with replacement, good and defective ones each by themselves.

    Parameters
    ----------
    ids : N different ids, in any order: the order changes nothing
    labels : (N,) bool; True is defective
    resamples : B, at least 1
    seed : a whole number
    name : of the category: two categories whose ids agree must not share their draws

    Returns
    -------
    (B, N) int64, how often each image is drawn

    Raises
    ------
    ValueError
        If ids repeat, or there is not one label for each.
    """
    defective = np.asarray(labels, bool)
    if defective.shape != (len(ids),) or len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids)} ids with labels {defective.shape}: one label for each id")
    order = np.array(sorted(range(len(ids)), key=lambda place: ids[place]), np.int64)
    kinds = [order[defective[order] == kind] for kind in (False, True)]
    rng = _generator(seed, name, [[ids[place] for place in kind] for kind in kinds])
    weights = np.zeros((resamples, len(ids)), np.int64)
    for kind in kinds:
        if kind.size:
            shares = np.full(kind.size, 1 / kind.size)
            weights[:, kind] = rng.multinomial(kind.size, shares, size=resamples)
    return weights


def resample(
    samples: Samples, metric: str, parameters: Mapping[str, Any], weights: ArrayLike
) -> Resampled:
    """Compute a metric on the images and on resamples of them.

    Parameters
    ----------
    samples : maps and masks, or scores and labels, as the metric asks
    metric, parameters : a name of the catalogue and the metric's own parameters
    weights : (B, N), how often each image is drawn

    Returns
    -------
    Resampled
        Without replicates, and with a reason, where the metric is undefined or not known here.

    Raises
    ------
    TypeError, ValueError
        If a parameter or an array is not as described.
    """
    if metric not in KNOWN:
        return Resampled.none(math.nan, f"no bootstrap is known for {metric}")
    drawn = np.asarray(weights, np.float64)
    count = drawn.shape[1]
    every = np.concatenate([np.ones((1, count)), 1 - np.eye(count), drawn])
    try:
        values = KNOWN[metric](samples, every, **parameters)
    except UndefinedError as error:
        return Resampled.none(math.nan, str(error))
    value, without, replicates = float(values[0]), values[1 : count + 1], values[count + 1 :]
    lost = int(np.isnan(replicates).sum())
    if lost:  # masks may be empty at this size, or fill their images
        reason = f"undefined on {lost} of {len(drawn)} resamples: few images have a defect to see"
        return Resampled.none(value, reason)
    return Resampled(value, replicates, np.nan_to_num(value - without))


def _generator(*names: Any) -> np.random.Generator:
    """Make a generator from what identifies a draw."""
    return np.random.default_rng(list(hashlib.sha256(json.dumps(names).encode()).digest()))


def over_seeds(replicates: ArrayLike, seed: int, name: str) -> Floats:
    """Average over training seeds, which are drawn with replacement in every resample.

    What is drawn of S seeds is S - 1, and the only one if S is 1: a mean over S draws of S values
    varies by the factor (S - 1) / S too little, one over S - 1 draws by just as much as it should
    (Rao and Wu 1988, section 2).

    Parameters
    ----------
    replicates : (S, B) of each seed; the resamples are the same for all
    seed, name : what the draws depend on; name says whose seeds these are

    Returns
    -------
    (B,) float64
    """
    values = np.asarray(replicates, np.float64)
    count, resamples = values.shape
    drawn = _generator(seed, "seeds", name).integers(count, size=(resamples, max(1, count - 1)))
    return np.asarray(values[drawn.T, np.arange(resamples)].mean(axis=0))


def interval(
    value: float, replicates: ArrayLike, influence: ArrayLike, confidence: float
) -> tuple[float, float]:
    """Return both ends of the bias-corrected and accelerated (BCa) interval.

    Its ends are quantiles of the replicates. Which ones, depends on how many of these lie below the
    value (a maximum over thresholds is lifted by resampling) and on how skewed the value is (one
    near 1 can fall further than rise).

    Parameters
    ----------
    value : finite
    replicates : (B,)
    influence : (M,) of all images, those of several categories one after the other; of a
        difference the differences, of a mean of C their Cth part
    confidence : in (0, 1)

    Returns
    -------
    low, high : rounded to 12 digits, which cleans them of the last bits of floating point

    References
    ----------
    Efron (1987), Better bootstrap confidence intervals, JASA 82.
    """
    drawn, lifts = (np.round(np.asarray(one, np.float64), 12) for one in (replicates, influence))
    if np.ptp(drawn) == 0:
        return float(drawn[0]), float(drawn[0])
    value = round(value, 12)
    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / drawn.size, 1 - 0.5 / drawn.size))
    spread = np.sum(lifts**2)
    acceleration = np.sum(lifts**3) / (6 * spread**1.5) if spread else 0.0
    from_bias = bias + stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    ends = stats.norm.cdf(bias + from_bias / (1 - acceleration * from_bias))
    low, high = np.round(np.quantile(drawn, ends), 12)
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class _Counts:
    """Images drawn at or above each of K different scores, the highest first; (B, K) each."""

    hits: Floats  # defective ones
    false: Floats  # good ones

    @classmethod
    def of(cls, samples: Samples, weights: Floats) -> "_Counts":
        scores, defective = samples.image
        for kind, word in ((defective, "defective"), (~defective, "good")):
            if not kind.any():
                raise UndefinedError(f"no {word} image")
        order = np.argsort(-scores.astype(np.float64), kind="stable")
        last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        drawn = weights[:, order]
        hits, false = (np.cumsum(drawn * kind[order], axis=1) for kind in (defective, ~defective))
        return cls(hits[:, last], false[:, last])

    @property
    def gains(self) -> Floats:
        """Defective images drawn at each score."""
        return np.diff(self.hits, axis=1, prepend=0)


def _image_auroc(samples: Samples, weights: Floats) -> Floats:
    counts = _Counts.of(samples, weights)
    above = np.concatenate([np.zeros((len(weights), 1)), counts.false[:, :-1]], axis=1)
    lost = (counts.gains * (above + counts.false)).sum(axis=1)
    pairs = counts.hits[:, -1] * counts.false[:, -1]
    return np.asarray((2 * pairs - lost) / (2 * pairs))


def _image_ap(samples: Samples, weights: Floats) -> Floats:
    counts = _Counts.of(samples, weights)
    precision = counts.hits / np.maximum(counts.hits + counts.false, 1)
    return np.asarray((counts.gains * precision).sum(axis=1) / counts.hits[:, -1])


def _image_f1max(samples: Samples, weights: Floats) -> Floats:
    counts = _Counts.of(samples, weights)
    f1 = 2 * counts.hits / (counts.hits + counts.false + counts.hits[:, -1:])
    return np.asarray(f1.max(axis=1))


def _pixel_auroc(samples: Samples, weights: Floats) -> Floats:
    return resampled_area(samples, np.ones(anomalous_pixels(samples).size), 1.0, weights)


def _aupro(samples: Samples, weights: Floats, limit: float = 0.3) -> Floats:
    rate_limit(limit, "limit")
    regions = samples.once(find_regions)
    return resampled_area(samples, (1 / regions.size)[regions.of_pixel], limit, weights)


KNOWN: dict[str, Callable[..., Floats]] = {
    "image_auroc": _image_auroc,
    "image_ap": _image_ap,
    "image_f1max": _image_f1max,
    "pixel_auroc": _pixel_auroc,
    "aupro": _aupro,
    "pl": resampled_pl,
}
