"""Means with confidence intervals, from a seeded bootstrap over images or subjects.

Owns resampling and the minimum sample size. It is independent of images: it takes values, or a
statistic of selected rows.

The interval is the expanded percentile interval (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015, §5): plain percentiles are too narrow for small samples, so their levels are
widened according to Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MIN_PICTURES",
    "ScoreEstimate",
    "Indices",
    "estimate",
    "estimate_of",
    "paired_difference",
]

MIN_PICTURES = 4
"""Minimum number of images (or subjects) for a score; with fewer, the score is missing."""
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ScoreEstimate:
    """A mean (or other statistic) with its confidence interval."""

    mean: float
    low: float
    high: float
    num: int
    """Number of units in the sample."""
    unit: str = "images"
    """The resampled unit."""

    def overlaps(self, other: ScoreEstimate) -> bool:
        """Whether the two intervals overlap."""
        return self.low <= other.high and other.low <= self.high

    def to_json(self) -> dict[str, float | int | str]:
        """Plain values, rounded to the precision of the sample."""
        return {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(
    values: Sequence[float] | NDArray[np.float64],
    *,
    seed: int = 0,
    unit: str = "images",
    min_num: int = MIN_PICTURES,
) -> ScoreEstimate | None:
    """The mean of ``values`` with its interval, or None if there are fewer than ``min_num``.

    Raises:
        ValueError: for values that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a score is not finite")
    if array.size < max(min_num, 1):
        return None
    resampled = array[_resamples(array.size, seed)].mean(axis=1)
    low, high = _interval(resampled, array.size)
    return ScoreEstimate(float(array.mean()), low, high, int(array.size), unit)


def estimate_of(
    statistic: Callable[[Indices], float],
    num: int,
    *,
    seed: int = 0,
    unit: str = "images",
    min_num: int = MIN_PICTURES,
    num_resamples: int = 400,
) -> ScoreEstimate | None:
    """A statistic of selected rows with its interval, or None below ``min_num`` rows.

    Args:
        statistic: takes row indices (with repeats) and returns a number.
        num: the number of rows.
    """
    if num < max(min_num, 1):
        return None
    rows = _resamples(num, seed, num_resamples)
    resampled = np.array([statistic(chosen) for chosen in rows])
    resampled = resampled[np.isfinite(resampled)]
    mean = statistic(np.arange(num))
    if not resampled.size:  # every resample consists of one repeated row
        return ScoreEstimate(mean, mean, mean, num, unit)
    low, high = _interval(resampled, num)
    return ScoreEstimate(mean, min(low, mean), max(high, mean), num, unit)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    unit: str = "subjects",
    min_num: int = MIN_PICTURES,
) -> ScoreEstimate | None:
    """The paired difference ``first − second``; variation between units cancels out.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values against {len(second)}: pairs are needed")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return estimate(differences, seed=seed, unit=unit, min_num=min_num)


def _resamples(num: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Indices:
    """Row indices of each resample, [num_resamples, num]."""
    return np.random.default_rng([seed, num]).integers(0, num, size=(num_resamples, num))


def _interval(resampled: NDArray[np.float64], num: int) -> tuple[float, float]:
    level = _expanded_level(num)
    low, high = np.quantile(resampled, [level, 1 - level])
    return float(low), float(high)


def _expanded_level(num: int) -> float:
    """The lower percentile that replaces (1 - CONFIDENCE)/2 for ``num`` units."""
    from scipy.special import ndtr, stdtrit  # plans import this module, and need no scipy

    if num < 2:
        return 0.0
    quantile = stdtrit(num - 1, (1 + CONFIDENCE) / 2)  # Student's t
    return float(ndtr(-math.sqrt(num / (num - 1)) * quantile))
