"""Intervals have their stated coverage, and too few values give no score."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.quality.intervals import (
    MIN_PICTURES,
    ScoreEstimate,
    estimate,
    estimate_of,
    paired_difference,
)


@given(st.lists(st.floats(-1, 1), min_size=MIN_PICTURES, max_size=40))
def test_the_mean_is_in_its_interval(values: list[float]) -> None:
    found = estimate(values)
    assert found is not None
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    assert min(values) <= found.low + 1e-9
    assert found.high <= max(values) + 1e-9


@pytest.mark.parametrize("num", range(MIN_PICTURES))
def test_fewer_than_the_stated_number_make_no_score(num: int) -> None:
    assert estimate([0.5] * num) is None
    assert estimate_of(lambda rows: 0.5, num) is None


def test_a_score_that_is_not_finite_is_a_fault() -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate([0.1, 0.2, math.nan, 0.3])


def test_equal_inputs_give_equal_intervals() -> None:
    values = list(np.random.default_rng(1).normal(size=12))
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, seed=3) != estimate(values, seed=4)


@pytest.mark.parametrize(("num", "least"), [(5, 0.88), (8, 0.9), (30, 0.92)])
def test_intervals_cover_the_truth_as_often_as_claimed(num: int, least: float) -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        found = estimate(rng.normal(2.0, 1.0, num), seed=trial)
        assert found is not None
        covered += found.low <= 2.0 <= found.high
    assert covered / 300 >= least


def test_a_pairing_removes_what_differs_between_subjects() -> None:
    rng = np.random.default_rng(2)
    subjects = rng.normal(0, 10, 12)
    after = subjects + 0.5 + rng.normal(0, 0.1, 12)
    found = paired_difference(list(after), list(subjects))
    assert found is not None
    assert found.low > 0.3
    assert found.high < 0.7
    assert found.unit == "subjects"
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1.0], [1.0, 2.0])


def test_overlap_is_symmetric_and_correct() -> None:
    first = ScoreEstimate(0.2, 0.1, 0.3, 9)
    touching = ScoreEstimate(0.4, 0.3, 0.5, 9)
    apart = ScoreEstimate(0.4, 0.31, 0.5, 9)
    assert first.overlaps(touching)
    assert touching.overlaps(first)
    assert not first.overlaps(apart)
    assert not apart.overlaps(first)
