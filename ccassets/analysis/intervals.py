"""Intervals: 95 % limits of shares, areas, means over classes and differences, by images or by whole groups.

One idea serves all metrics between 0 and 1. Its limits are the exact binomial ones (Clopper and Pearson) of as many
rows as the value is worth: the rows themselves for a share, the share's variance over the value's for anything else
(Korn and Graubard 1998, for surveys). They stay between 0 and 1 and never shrink to a point, so a perfect score on few
rows has a wide interval. `python -m benchmarks.coverage` measures how often they contain the true value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Groups = npt.NDArray[np.object_] | None
"""(n,) the patient or slide of every row; a row whose group is "" stands for itself. None: every row does."""

Statistic = Callable[[FloatArray], FloatArray]
"""From the weights that resamples give to the rows, (B, n), to the values of a metric, (B,); nan where it has none."""

LEVEL = 0.95
FEWEST_GROUPS = 6
"""With fewer groups than this the simulated intervals miss the truth too often, so there is none."""

RESAMPLES = 1000
_BLOCK = 1 << 20
_ROUNDING = 1e-18
"""A variance up to this is errors of rounding."""

_TAIL = (1 - LEVEL) / 2
_NORMAL = NormalDist().inv_cdf(1 - _TAIL)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; nan where nothing can be said, and then `reason` says why.

    Attributes:
        value: The metric on the rows themselves.
        low: The lower limit.
        high: The upper limit.
        method: How the limits were found.
        per: What they treat as independent. Where patients or slides are not known, images of one patient count as
            independent, and an interval per image is too narrow.
        units: How many images or groups there were.
        reason: Why there is no interval, a sentence.
    """

    value: float
    low: float
    high: float
    method: Literal["exact", "effective-rows", "adjusted-wald", "student-t"]
    per: Literal["image", "group"]
    units: int
    reason: str | None = None


def unmeasured(reason: str, groups: Groups = None) -> Estimate:
    """Make the estimate of what cannot be measured.

    Args:
        reason: Why, a sentence.
        groups: (n,) the patient or slide of every row.
    """
    per: Literal["image", "group"] = "image" if groups is None or not (groups != "").any() else "group"
    return Estimate(np.nan, np.nan, np.nan, "effective-rows", per, 0, reason)


@dataclass(frozen=True, eq=False)
class Units:
    """What rows depend on each other: `numbers` (n,) count the groups, or the rows themselves."""

    numbers: npt.NDArray[np.intp]
    count: int
    per: Literal["image", "group"]

    @classmethod
    def of(cls, groups: Groups, rows: int) -> Units:
        names = np.full(rows, "") if groups is None else groups.astype(str)
        alone = names == ""
        if alone.all():
            return cls(np.arange(rows), rows, "image")
        known, numbers = np.unique(np.where(alone, "", names), return_inverse=True)
        numbers[alone] = len(known) + np.arange(alone.sum())
        _, numbers = np.unique(numbers, return_inverse=True)
        return cls(numbers, int(numbers.max()) + 1, "group")

    def sums(self, values: npt.NDArray[Any]) -> FloatArray:
        """(units, K): the sums of (n, K) by unit."""
        if self.per == "image":
            return np.asarray(values, np.float64)
        order = np.argsort(self.numbers, kind="stable")
        starts = np.searchsorted(self.numbers[order], np.arange(self.count))
        return np.asarray(np.add.reduceat(values[order].astype(np.float64), starts, axis=0))

    def why_no_interval(self) -> str | None:
        """Why these units allow no interval."""
        if not self.count:
            return "There are no rows."
        if self.per == "group" and self.count < FEWEST_GROUPS:
            return f"{self.count} groups are too few for an interval: it needs at least {FEWEST_GROUPS}."
        return None


def _unchanged(values: FloatArray) -> FloatArray:
    return values


@dataclass(frozen=True, eq=False)
class Proportions:
    """K values between 0 and 1, one for each class; the metric is their mean.

    Attributes:
        values: (K,).
        influence: (n, K): by how much each row moves each value. The columns sum to 0, and the sum of the squares of
            independent rows is the variance.
        counted: The rows that a value is a share of, (n, K) bool; for an area two of them, the rows compared.
        answers: How many answers a row gives to one value.
        transform: What is averaged in the place of the values, a growing function of them.
        slope: Its derivative.
    """

    values: FloatArray
    influence: FloatArray
    counted: tuple[npt.NDArray[np.bool_], ...]
    answers: int = 1
    transform: Callable[[FloatArray], FloatArray] = _unchanged
    slope: Callable[[FloatArray], FloatArray] = np.ones_like

    @property
    def contributions(self) -> FloatArray:
        """The pseudo-values of the rows, (n,): their mean is the mean of the values, with its variance.

        A pseudo-value is the mean plus n times the row's influence on it.
        """
        return np.asarray(self.values.mean() + len(self.influence) * self.influence.mean(axis=1))

    @property
    def exact(self) -> bool:
        """Whether this is one share of rows, which no other row moves."""
        one = len(self.values) == 1 and len(self.counted) == self.answers == 1
        return one and not self.influence[~self.counted[0]].any()


def share(right: npt.NDArray[Any], counted: npt.NDArray[np.bool_] | None = None, answers: int = 1) -> Proportions:
    """Compute the share of right rows among those that count, by column.

    Args:
        right: (n, K), or (n,) for one: bool, or between 0 and 1 where a row gives several answers.
        counted: (n, K) bool; by default every row counts.
        answers: How many answers a row gives.
    """
    right = right.reshape(len(right), -1).astype(np.float64)
    counted = np.ones(right.shape, bool) if counted is None else counted
    rows = counted.sum(axis=0)
    values = (right * counted).sum(axis=0) / rows
    return Proportions(values, np.where(counted, right - values, 0) / rows, (counted,), answers)


def area(
    scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_], negative: npt.NDArray[np.bool_] | None = None
) -> Proportions:
    """Compute the areas under ROC curves: how often a positive row scores above a negative one, a tie counting half.

    The influence of a row is its placement among the rows of the other kind (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
        scores: (n, K).
        positive: (n, K), which rows are positive; one at least in every column.
        negative: (n, K), which rows they are compared with; by default all others.
    """
    negative = ~positive if negative is None else negative
    values = np.empty(scores.shape[1])
    influence = np.zeros(scores.shape)
    for column, own in enumerate(scores.T):
        first, second = own[positive[:, column]], own[negative[:, column]]
        placed = _placements(first, np.sort(second)), 1 - _placements(second, np.sort(first))
        values[column] = placed[0].mean()
        influence[positive[:, column], column] = _centred(placed[0])
        influence[negative[:, column], column] = _centred(placed[1])
    return Proportions(values, influence, (positive, negative))


def precision_area(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> Proportions:
    """Compute average precisions: the mean, over positive rows, of the precision at the score of each.

    Its effective number of rows is at most that of the positive ones (Boyd, Eng and Page 2013). The influence of a row
    is the derivative by its weight: what it adds as a positive row, and what it changes of the shares at the positive
    rows below.

    Args:
        scores: (n, K).
        positive: (n, K), which rows are positive; one at least in every column.
    """
    values = np.empty(scores.shape[1])
    influence = np.zeros(scores.shape)
    for column, (own, members) in enumerate(zip(scores.T, positive.T, strict=True)):
        ranked = np.sort(own)
        above = len(own) - np.searchsorted(ranked, own, "left")
        precision = (members.sum() - np.searchsorted(np.sort(own[members]), own, "left")) / above
        values[column] = precision[members].mean()
        order = np.argsort(own[members])
        below = np.searchsorted(own[members][order], own, "right")
        hits, shares = (
            np.concatenate([[0.0], np.cumsum((part / above)[members][order])])[below]
            for part in (np.ones(len(own)), precision)
        )
        influence[:, column] = (members * (precision - values[column] + hits) - shares) / members.sum()
    return Proportions(values, influence, (positive,))


def _placements(values: npt.NDArray[Any], others: npt.NDArray[Any]) -> FloatArray:
    """The share of the sorted others that each value lies above, a tie counting half."""
    places = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    return np.asarray(places / 2 / len(others))


def _centred(placements: FloatArray) -> FloatArray:
    rows = len(placements)
    return np.asarray((placements - placements.mean()) / np.sqrt(rows * max(rows - 1, 1)))


def mean_proportion(parts: Proportions, groups: Groups = None, weights: FloatArray | None = None) -> Estimate:
    """Compute the mean of the parts with its limits.

    The distances of the parts' limits from their values are added as the values' errors are, squared and with their
    correlation (the method of variance estimates recovery, Zou and Donner 2008). Limits of the mean itself, from its
    own effective rows, stand where they are wider.

    Args:
        parts: What the metric is the mean of.
        groups: (n,) the patient or slide of every row.
        weights: (K,) of the mean, summing to 1; by default all alike.
    """
    units = Units.of(groups, len(parts.influence))
    method: Literal["exact", "effective-rows"] = "exact" if parts.exact and units.per == "image" else "effective-rows"
    shares = np.full(len(parts.values), 1 / len(parts.values)) if weights is None else weights
    centre = parts.transform(parts.values)
    value = float(shares @ centre)
    if reason := units.why_no_interval():
        return Estimate(value, np.nan, np.nan, method, units.per, units.count, reason)
    totals = units.sums(parts.influence)
    rows, most, fewest = _sizes(parts, units)
    low, high = _limits(parts.values, _effective(parts.values, (totals**2).sum(axis=0), rows, most, fewest, units))
    steps = np.stack([shares * (centre - parts.transform(low)), shares * (parts.transform(high) - centre)])
    down, up = np.sqrt(np.maximum(((steps @ _correlation(totals)) * steps).sum(axis=1), 0))
    joint = shares * parts.slope(parts.values)
    with np.errstate(divide="ignore"):
        together, apart = (1 / (shares**2 / size).sum(keepdims=True) for size in (rows, most))
    whole = _effective(
        np.array([value]), ((totals @ joint) ** 2).sum(keepdims=True), together, apart, np.array([units.count]), units
    )
    (least,), (greatest,) = _limits(np.array([value]), whole)
    return Estimate(
        value,
        float(max(0.0, min(value - down, least))),
        float(min(1.0, max(value + up, greatest))),
        method,
        units.per,
        units.count,
    )


def each_proportion(parts: Proportions, groups: Groups = None) -> list[Estimate]:
    """Compute the limits of each part by itself."""
    estimates = []
    for column in range(len(parts.values)):
        counted = tuple(kind[:, [column]] for kind in parts.counted)
        inside = np.logical_or.reduce(counted)[:, 0]
        one = Proportions(
            parts.values[[column]],
            parts.influence[inside][:, [column]],
            tuple(kind[inside] for kind in counted),
            parts.answers,
        )
        estimates.append(mean_proportion(one, None if groups is None else groups[inside]))
    return estimates


def _sizes(parts: Proportions, units: Units) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By part: its most effective rows, its effective units if nothing varies, and the fewest units behind it."""
    rows = [kind.sum(axis=0).astype(np.float64) for kind in parts.counted]
    held = [(units.sums(kind) > 0).sum(axis=0).astype(np.float64) for kind in parts.counted]
    tied = _tied(parts)
    return (
        np.where(tied, np.inf, parts.answers * _size(rows)),
        np.where(tied, np.inf, _size(held)),
        np.minimum.reduce(held),
    )


def _size(counts: list[FloatArray]) -> FloatArray:
    """The number of rows of a share; of an area, the effective number near 1 (Hanley and McNeil 1982)."""
    if len(counts) == 1:
        return counts[0]
    first, second = counts
    return np.asarray(4 * first * second / (first + second + 2))


def _tied(parts: Proportions) -> npt.NDArray[np.bool_]:
    """Which parts do not depend on any row: areas under scores that are all equal."""
    return np.asarray(~parts.influence.any(axis=0) & (parts.values > 0) & (parts.values < 1))


def _effective(
    values: FloatArray,
    variance: FloatArray,
    rows: FloatArray,
    most: FloatArray,
    fewest: npt.NDArray[Any],
    units: Units,
) -> FloatArray:
    """The effective number of rows of each value.

    By groups the variance rests on few of them: it is corrected for their number, one more group of one row is added,
    and the t distribution replaces the normal one.
    """
    from scipy.special import stdtrit

    if units.per == "group":
        variance = variance * fewest / np.maximum(fewest - 1, 1)
    known = variance > _ROUNDING
    size = np.where(known, np.minimum(values * (1 - values) / np.where(known, variance, 1), rows), most)
    if units.per == "image":
        return size
    with np.errstate(divide="ignore"):
        size = (fewest + 1) / (fewest / size + 1 / most)
    shrink = (_NORMAL / stdtrit(np.maximum(fewest - 1, 1), 1 - _TAIL)) ** 2
    return np.where(fewest > 1, size * shrink, 0.0)


def _limits(values: FloatArray, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Clopper and Pearson's limits of shares of so many rows, which need not be a whole number."""
    from scipy.special import betaincinv

    endless = np.isinf(size)
    finite = np.where(endless, 1.0, size)
    right, wrong = values * finite, (1 - values) * finite
    none = 1e-9
    low = np.where(right <= none, 0.0, betaincinv(np.maximum(right, none), wrong + 1, _TAIL))
    high = np.where(wrong <= none, 1.0, betaincinv(right + 1, np.maximum(wrong, none), 1 - _TAIL))
    return np.where(endless, values, low), np.where(endless, values, high)


def _correlation(totals: FloatArray) -> FloatArray:
    """(K, K): of the parts' errors, from the sums of influence by unit; 0 with a part that does not vary."""
    covariance = totals.T @ totals
    variance = np.diag(covariance)
    spread = np.where(variance > _ROUNDING, np.sqrt(variance), np.inf)
    correlation: FloatArray = covariance / spread[:, None] / spread
    np.fill_diagonal(correlation, 1.0)
    return correlation


def mean_difference(values: npt.NDArray[Any], groups: Groups = None) -> Estimate:
    """Compute the mean of differences between -1 and 1 with its limits.

    Two more rows are added, half a row at each end and one at 0, so that equal predictions on few rows do not look
    certain (the adjusted Wald interval of paired shares, Agresti and Min 2005), and limits are those of the t
    distribution. By groups, the rows are those of a group of average size.

    Args:
        values: (n,) the differences.
        groups: (n,) the patient or slide of every row.
    """
    units = Units.of(groups, len(values))
    value = float(np.mean(values)) if len(values) else np.nan
    if reason := units.why_no_interval():
        return Estimate(value, np.nan, np.nan, "adjusted-wald", units.per, units.count, reason)
    from scipy.special import stdtrit

    sums, rows = units.sums(np.stack([values, np.ones(len(values))], axis=1)).T
    usual = rows.mean()
    sums = np.concatenate([sums, [usual, -usual, 0.0]])
    rows = np.concatenate([rows, [usual] * 3])
    weight = np.concatenate([np.ones(units.count), [0.5, 0.5, 1.0]])
    total = weight @ rows
    centre = (weight @ sums) / total
    count = units.count + 2
    variance = count / (count - 1) * (weight @ (sums - centre * rows) ** 2) / total**2
    half = float(stdtrit(max(units.count - 1, 1), 1 - _TAIL) * np.sqrt(variance))
    return Estimate(
        value,
        float(max(-1.0, min(value, centre - half))),
        float(min(1.0, max(value, centre + half))),
        "adjusted-wald",
        units.per,
        units.count,
    )


def mean_value(values: npt.NDArray[Any], groups: Groups = None, variance: float = 0.0) -> Estimate:
    """Compute the mean of numbers without bounds with the limits of the t distribution.

    Args:
        values: (n,) the numbers.
        groups: (n,) the patient or slide of every row.
        variance: Variance of the mean from other sources than the choice of rows.
    """
    units = Units.of(groups, len(values))
    value = float(np.mean(values)) if len(values) else np.nan
    reason = units.why_no_interval() or ("There is one row." if units.count == 1 else None)
    if reason:
        return Estimate(value, np.nan, np.nan, "student-t", units.per, units.count, reason)
    from scipy.special import stdtrit

    sums, rows = units.sums(np.stack([values, np.ones(len(values))], axis=1)).T
    own = units.count / (units.count - 1) * ((sums - value * rows) ** 2).sum() / len(values) ** 2
    half = float(stdtrit(units.count - 1, 1 - _TAIL) * np.sqrt(own + variance))
    return Estimate(value, value - half, value + half, "student-t", units.per, units.count)


def bootstrap(
    statistic: Statistic,
    rows: int,
    groups: Groups = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    size: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Compute a metric that is not a mean of shares or areas, with limits from the variance of a Poisson bootstrap.

    Each resample weighs every row, or all rows of a group alike, with a number drawn from a Poisson distribution of
    mean 1: the bootstrap that the authors use, without copying rows. The variance gives the effective number of
    rows, and this number the limits, as for a share.

    Args:
        statistic: The metric, as a function of weights.
        rows: Number of rows.
        groups: (rows,) the group of every row.
        bounds: The least and the greatest value that the metric can have.
        size: The most effective rows that the metric can have; all rows by default. For a metric of positive rows
            alone, give their number.
        resamples: Number of resamples.
        seed: Seed of the weights.

    Returns:
        The value with its interval.
    """
    units = Units.of(groups, rows)
    value = float(statistic(np.ones((1, rows)))[0])
    if reason := units.why_no_interval() or (None if np.isfinite(value) else "There is nothing to measure."):
        return Estimate(value, np.nan, np.nan, "effective-rows", units.per, units.count, reason)
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // rows)
    blocks = [
        statistic(rng.poisson(1, (min(step, resamples - first), units.count))[:, units.numbers].astype(np.float64))
        for first in range(0, resamples, step)
    ]
    values = np.concatenate(blocks)
    least, range_ = bounds[0], bounds[1] - bounds[0]
    share = np.array([(value - least) / range_])
    variance = np.array([np.var(values[np.isfinite(values)]) / range_**2])
    most = np.array([float(rows if size is None else size)])
    worth = _effective(share, variance, most, np.minimum(most, units.count), np.array([units.count]), units)
    (low,), (high,) = _limits(share, worth)
    return Estimate(
        value, float(least + range_ * low), float(least + range_ * high), "effective-rows", units.per, units.count
    )
