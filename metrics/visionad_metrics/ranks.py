"""Tests of algorithms over categories by ranks: Friedman, Nemenyi, Wilcoxon with Holm's correction.

A category is a block and its value one measurement: tests know nothing of how sure it is, and with
few categories they can reject little. What is undefined is nan, and :func:`friedman` says why.
Values that agree in their first 12 digits are tied.

References: Friedman (1937); Nemenyi (1963); Wilcoxon (1945); Holm (1979); Demsar (2006),
Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
DIGITS = 12


@dataclass(frozen=True)
class Friedman:
    """Whether any of k algorithms ranks otherwise than the rest; chi-square with k - 1 degrees.

    Attributes
    ----------
    statistic, p : corrected for ties; nan where undefined
    categories : n
    reason : why the test is undefined
    """

    statistic: float
    p: float
    categories: int
    reason: str | None = None


def _table(values: ArrayLike) -> Floats:
    table: Floats = np.asarray(np.round(np.asarray(values, np.float64), DIGITS), np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError("values must be finite, categories x algorithms")
    return table


def ranks(values: ArrayLike) -> Floats:
    """Rank algorithms within each category, (n, k): 1 is the highest value, ties are averaged.

    Raises
    ------
    ValueError
        If values (n, k) are not finite.
    """
    return np.asarray(stats.rankdata(-_table(values), axis=1))


def wins(values: ArrayLike) -> NDArray[np.int64]:
    """Count for each algorithm (k,) the categories in which none is better."""
    table = _table(values)
    return np.asarray((table == table.max(axis=1, keepdims=True)).sum(axis=0))


def friedman(values: ArrayLike) -> Friedman:
    """Test whether k algorithms rank alike over n categories; values (n, k).

    Raises
    ------
    ValueError
        If values are not finite.
    """
    table = _table(values)
    n, k = table.shape
    if k < 3:
        reason = f"{k} algorithm{'s' * (k != 1)}: the Friedman test compares three or more"
    elif n < 2:
        reason = "one category: nothing to rank over"
    elif (table == table[:, :1]).all():
        reason = "all algorithms are equal in every category"
    else:
        statistic, p = stats.friedmanchisquare(*table.T)
        return Friedman(float(statistic), float(p), n)
    return Friedman(math.nan, math.nan, n, reason)


def _spread(k: int, n: int) -> float:
    """Return the standard error of a mean rank times the root of 1/2, as Nemenyi's test has it."""
    return math.sqrt(k * (k + 1) / (12 * n))


def critical_difference(k: int, n: int, alpha: float) -> float:
    """Return by how much two of k mean ranks over n categories must differ; nan if k or n is 1."""
    if k < 2 or n < 2:
        return math.nan
    return float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) * _spread(k, n)


def nemenyi(values: ArrayLike) -> Floats:
    """Return p-values of all pairs, (k, k), corrected for all of them; nan with one category."""
    table = _table(values)
    n, k = table.shape
    if k < 2 or n < 2:
        return np.full((k, k), np.nan)
    mean = ranks(table).mean(axis=0)
    apart = np.round(np.abs(mean[:, None] - mean), DIGITS)
    distinct, place = np.unique(apart, return_inverse=True)
    p = stats.studentized_range.sf(distinct / _spread(k, n), k, np.inf)
    return np.asarray(np.clip(p, 0, 1)[place.reshape(k, k)])


def wilcoxon(values: ArrayLike) -> Floats:
    """Return two-sided signed-rank p-values of all pairs, (k, k), uncorrected.

    Categories in which both are equal are left out; nan where nothing is left, on the diagonal and
    with one category.
    """
    table = _table(values)
    n, k = table.shape
    p = np.full((k, k), np.nan)
    for first in range(k if n > 1 else 0):
        for second in range(first + 1, k):
            difference = np.round(table[:, first] - table[:, second], DIGITS)
            difference = difference[difference != 0]
            if difference.size:
                p[first, second] = p[second, first] = signed_rank(difference)
    return p


def signed_rank(differences: Floats) -> float:
    """Return the exact two-sided p-value of differences (m,), none of them 0; also with ties.

    Of the 2^m ways to give the ranks signs it is the share with a sum of positive ranks at least
    as far out. Ranks are doubled, so that averaged ones are whole; the ways are counted rank by
    rank.
    """
    doubled = np.round(2 * stats.rankdata(np.abs(differences))).astype(np.int64)
    share = np.zeros(doubled.sum() + 1)
    share[0] = 1
    for rank in doubled:
        share[rank:] += share[:-rank].copy()
        share /= 2
    positive = int(doubled[differences > 0].sum())
    return float(min(1, 2 * min(share[: positive + 1].sum(), share[positive:].sum())))


def smallest_wilcoxon(n: int) -> float:
    """Return the least p-value that n categories can give: 2 of 2^n orders of signs; nan for 1."""
    return math.nan if n < 2 else 2.0 ** (1 - n)


def holm(p: ArrayLike) -> Floats:
    """Correct p-values (m,) so that the chance of any false rejection is held; nan stays nan.

    An undefined one counts as a hypothesis that is not rejected.
    """
    given = np.asarray(p, np.float64)
    known = np.where(np.isnan(given), 1, given)
    order = np.argsort(known, kind="stable")
    stepped = np.maximum.accumulate(known[order] * np.arange(known.size, 0, -1))
    corrected = np.empty(known.size)
    corrected[order] = np.minimum(stepped, 1)
    return np.where(np.isnan(given), np.nan, corrected)


def groups(mean_ranks: ArrayLike, difference: float) -> list[list[int]]:
    """Return the largest sets of algorithms whose mean ranks (k,) differ by less; best first.

    Those of one member are left out. A set may overlap with the next: being not told apart is not
    being equal.
    """
    mean = np.round(np.asarray(mean_ranks, np.float64), DIGITS)
    order = np.argsort(mean, kind="stable")
    found: list[list[int]] = []
    last = 0
    for first in range(order.size):
        stop = int(np.searchsorted(mean[order], mean[order[first]] + difference, side="left"))
        if stop > max(last, first + 1):
            found.append(order[first:stop].tolist())
            last = stop
    return found
