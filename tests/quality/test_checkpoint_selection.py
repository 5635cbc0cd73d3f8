"""Which saved step to keep."""

from __future__ import annotations

import pytest

from farm.quality.checkpoint_selection import ScoredStep, keep_best
from farm.quality.intervals import ScoreEstimate


def scored(step: int, low: float, mean: float, high: float) -> ScoredStep:
    return ScoredStep(step, ScoreEstimate(mean, low, high, 8))


def test_a_later_step_must_earn_its_place() -> None:
    early = scored(200, 0.7, 0.78, 0.84)
    late = scored(800, 0.72, 0.8, 0.85)
    assert keep_best([early, late]) is early


def test_a_step_that_is_better_beyond_doubt_is_kept() -> None:
    early = scored(200, 0.5, 0.55, 0.6)
    late = scored(800, 0.72, 0.8, 0.85)
    assert keep_best([early, late]) is late


def test_of_nothing_nothing_is_kept() -> None:
    with pytest.raises(ValueError, match="no step"):
        keep_best([])
