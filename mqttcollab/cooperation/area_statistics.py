"""Robust statistics of short windows, in plain Python so that a small device can run them: trend, outlier, drift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from statistics import NormalDist, fmean, median
from typing import NamedTuple

Point = tuple[float, float]

LEAST = 8  # readings below which nothing is said
_MOST_POINTS = 64  # a trend looks at every pair of them
_CAP = 1e6
_MAD_TO_SIGMA = 1.4826
_MEAN_AD_TO_SIGMA = 1.2533
_LEAST_DRIFT = 0.05


class Trend(NamedTuple):
    """A slope per hour with its 95% interval, and the probability of such a one where there is no trend."""

    slope: float
    low: float
    high: float
    p: float
    readings: int

    @property
    def direction(self) -> str:
        """`rising` or `falling` at a significance of 5%, else `steady`."""
        if self.p >= 0.05 or self.slope == 0:
            return "steady"
        return "rising" if self.slope > 0 else "falling"


class Drift(NamedTuple):
    """How far (cosine distance) a vector is from the centroid of those before it, and how far they were at most."""

    distance: float
    threshold: float
    readings: int

    @property
    def drifted(self) -> bool:
        """Whether it is farther than any before it was."""
        return self.distance > self.threshold


def trend(points: Sequence[Point]) -> Trend | None:
    """The trend of values over time; None for fewer than eight.

    The slope is the median over all pairs, with the interval of its ranks (Theil 1950; Sen 1968), its significance
    that of Mann (1945) and Kendall. Neighbours in time are alike, which makes trends of nothing: the variance of S
    grows by (1 + r) / (1 - r), r being the lag-1 autocorrelation of the residuals, taken as 0.8 at most
    (Yue and Wang 2004).

    Args:
        points: (seconds, value), oldest first; more than 64 are thinned to medians of equal stretches.
    """
    points = _thin(points)
    n = len(points)
    if n < LEAST:
        return None
    slopes, s = [], 0
    for i, (t, x) in enumerate(points):
        for u, y in points[i + 1 :]:
            s += (y > x) - (y < x)
            if u > t:
                slopes.append((y - x) / (u - t) * 3600)
    if not slopes:
        return None
    slopes.sort()
    slope = median(slopes)
    variance = _variance_of_s([value for _, value in points]) * _inflation(points, slope)
    spread = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    low = slopes[max(0, int((len(slopes) - spread) / 2) - 1)]
    high = slopes[min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))]
    z = max(0, abs(s) - 1) / math.sqrt(variance) if variance > 0 else 0.0
    return Trend(slope, low, high, 2 * (1 - NormalDist().cdf(z)), n)


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= _MOST_POINTS:
        return points
    edges = [len(points) * i // _MOST_POINTS for i in range(_MOST_POINTS + 1)]
    stretches = [points[a:b] for a, b in pairwise(edges)]
    return [(median(t for t, _ in part), median(x for _, x in part)) for part in stretches]


def _variance_of_s(values: Sequence[float]) -> float:
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    n = len(values)
    return (n * (n - 1) * (2 * n + 5) - sum(c * (c - 1) * (2 * c + 5) for c in counts.values())) / 18


def _inflation(points: Sequence[Point], slope: float) -> float:
    rest = [value - slope * (t - points[0][0]) / 3600 for t, value in points]
    mean = fmean(rest)
    total = math.fsum((x - mean) ** 2 for x in rest)
    if total == 0:
        return 1.0
    r = min(0.8, max(0.0, math.fsum((x - mean) * (y - mean) for x, y in pairwise(rest)) / total))
    return (1 + r) / (1 - r)


def scale_of(values: Sequence[float]) -> float:
    """The standard deviation as outliers leave it alone: from the median absolute deviation.

    Where that is 0 (half of the values are equal) from the mean absolute deviation (Iglewicz and Hoaglin 1993).
    """
    middle = median(values)
    deviations = [abs(value - middle) for value in values]
    return _MAD_TO_SIGMA * median(deviations) or _MEAN_AD_TO_SIGMA * fmean(deviations)


def robust_z(value: float, before: Sequence[float]) -> float | None:
    """How many robust standard deviations a value is off the median of those before it.

    The modified z-score (Iglewicz and Hoaglin 1993), who call it an outlier from 3.5 on. None for fewer than eight
    values before, or if they are all equal.
    """
    if len(before) < LEAST or (scale := scale_of(before)) == 0:
        return None
    return capped((value - median(before)) / scale)


def capped(z: float) -> float:
    """A score that JSON can hold and that is not larger than anybody cares for."""
    return max(-_CAP, min(_CAP, z))


def surprise(values: Sequence[float]) -> float | None:
    """How far the newest value jumped, signed: from the nearer of the two before it, so that a way back is no jump.

    In standard deviations, taken from the 90% quantile of the earlier jumps: the median absolute deviation calls one
    hour of NOx in ten an outlier, since quiet nights are more than half of them. None for fewer than ten values or
    if nothing ever jumped.
    """
    if len(values) < LEAST + 2:
        return None
    jumps = [min(c - a, c - b, key=abs) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    before = sorted(map(abs, jumps[:-1]))
    scale = before[int(0.9 * len(before))] / NormalDist().inv_cdf(0.95)
    return capped(jumps[-1] / scale) if scale > 0 else None


def far_off(values: Sequence[float]) -> float | None:
    """How unusual the newest value is, signed; from 1 on it is.

    The greater of two: it jumped by four standard deviations (`surprise`), or it is six off the median of those
    before it (`robust_z`), as after a jump that lasts. Both bounds are chosen for one or two false alarms in a hundred
    hours of air and weather (benchmarks/area.py).
    """
    scores = (surprise(values), robust_z(values[-1], values[:-1]) if values else None)
    bounded = [z / bound for z, bound in zip(scores, (4.0, 6.0), strict=True) if z is not None]
    return max(bounded, key=abs, default=None)


def distinct(points: Sequence[Point]) -> list[Point]:
    """The points without repetitions: a device that publishes the same reading again measured it once."""
    return [point for i, point in enumerate(points) if i == 0 or point[1] != points[i - 1][1]]


def stuck_for(values: Sequence[float]) -> int:
    """How many equal values the window ends in, if that is far longer than it ever was before; else 0.

    At least eight, and three times the longest earlier run: a rain gauge shows zero for days, and a value that is
    published every minute and measured every hour repeats itself.
    """
    runs: list[int] = []
    for i, value in enumerate(values):
        if i and value == values[i - 1]:
            runs[-1] += 1
        else:
            runs.append(1)
    # The first run began before the window did, so its length is not known.
    if len(runs) < LEAST or runs[-1] < max(LEAST, 3 * max(runs[:-1])):
        return 0
    return runs[-1]


def unit_vector(vector: Sequence[float]) -> list[float] | None:
    """The vector at length 1; None for one without a direction: zero, or not finite."""
    length = math.hypot(*vector)
    return [x / length for x in vector] if 1e-30 < length < math.inf else None


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """The scalar product; of unit vectors their cosine."""
    return float(sum(map(mul, a, b)))


def drift(newest: Sequence[float], before: Sequence[Sequence[float]]) -> Drift | None:
    """How far the newest embedding is from the centroid of those before it; None for fewer than eight.

    The threshold is the greatest distance that one of them has to the centroid of the others, so that by chance
    alone one newest in n + 1 is over it (conformal prediction: Vovk, Gammerman and Shafer 2005).

    Args:
        newest: a unit vector.
        before: unit vectors of the same model.
    """
    n = len(before)
    if n < LEAST:
        return None
    total = [math.fsum(column) for column in zip(*before, strict=True)]
    # dot(v, total - v) = dot(v, total) - 1, and |total - v|² = |total|² - 2 dot(v, total) + 1
    square = dot(total, total)
    distances = []
    for vector in before:
        along = dot(vector, total)
        distances.append(1 - (along - 1) / math.sqrt(max(1e-12, square - 2 * along + 1)))
    distance = 1 - dot(newest, total) / math.sqrt(max(1e-12, square))
    return Drift(distance, max(_LEAST_DRIFT, *distances), n)
