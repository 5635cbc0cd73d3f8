"""Means with confidence intervals, by a seeded bootstrap over the unit that matters.

Owns resampling and the refusal to report a mean of too few. Knows nothing of pictures: it takes
values, or a statistic of chosen rows.

The interval is the expanded percentile interval (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015, §5): plain percentiles are too narrow for a handful of subjects, so their levels
are moved out to where Student's t puts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

__all__ = ["MIN_PICTURES", "Estimate", "Indices", "estimate", "estimate_of", "paired_difference"]

MIN_PICTURES = 4
"""Fewest pictures (or subjects) of which a score is told; below, it is missing, with the reason."""
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean (or other statistic) with its confidence interval."""

    mean: float
    low: float
    high: float
    num: int
    """How many units it was made from."""
    unit: str = "pictures"
    """What was resampled."""

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high

    def to_json(self) -> dict[str, float | int | str]:
        """Plain values, rounded to what the sample can carry."""
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
    unit: str = "pictures",
    min_num: int = MIN_PICTURES,
) -> Estimate | None:
    """The mean of ``values`` with its interval, or None if there are fewer than ``min_num``.

    Raises:
        ValueError: for values that are not finite; a score of NaN is a fault, not a number.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a score is not finite")
    if array.size < max(min_num, 1):
        return None
    resampled = array[_resamples(array.size, seed)].mean(axis=1)
    low, high = _interval(resampled, array.size)
    return Estimate(float(array.mean()), low, high, int(array.size), unit)


def estimate_of(
    statistic: Callable[[Indices], float],
    num: int,
    *,
    seed: int = 0,
    unit: str = "pictures",
    min_num: int = MIN_PICTURES,
    num_resamples: int = 400,
) -> Estimate | None:
    """A statistic of chosen rows with its interval, or None below ``min_num`` rows.

    Args:
        statistic: takes row indices (with repeats) and gives a number.
        num: how many rows there are.
    """
    if num < max(min_num, 1):
        return None
    rows = _resamples(num, seed, num_resamples)
    resampled = np.array([statistic(chosen) for chosen in rows])
    resampled = resampled[np.isfinite(resampled)]
    mean = statistic(np.arange(num))
    if not resampled.size:  # every resample drew one row alone
        return Estimate(mean, mean, mean, num, unit)
    low, high = _interval(resampled, num)
    return Estimate(mean, min(low, mean), max(high, mean), num, unit)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    unit: str = "subjects",
    min_num: int = MIN_PICTURES,
) -> Estimate | None:
    """``first − second`` unit by unit: what differs between units cancels out.

    Raises:
        ValueError: if the two are not of one length.
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
    """The lower percentile that stands in for (1 - CONFIDENCE)/2 with ``num`` units."""
    if num < 2:
        return 0.0
    quantile = stdtrit(num - 1, (1 + CONFIDENCE) / 2)  # Student's t
    return float(ndtr(-math.sqrt(num / (num - 1)) * quantile))
