"""When to stop, and which step to keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.quality.intervals import Estimate
from farm.quality.stopping import ScoredStep, best_step, decide, keep_best
from farm.recipe import EarlyStop

RULE = EarlyStop(every_steps=25, patience=3, min_steps=100, min_delta=0.01)


def curve(*losses: float) -> list[tuple[int, float]]:
    return [(25 * (index + 1), loss) for index, loss in enumerate(losses)]


def test_a_falling_loss_goes_on() -> None:
    assert not decide(curve(1.0, 0.9, 0.8, 0.7, 0.6), RULE).stops


def test_a_flat_loss_stops_after_patience_and_names_the_best_step() -> None:
    decision = decide(curve(1.0, 0.5, 0.4, 0.399, 0.4, 0.401), RULE)
    assert decision.stops
    assert decision.best_step == 75
    assert "no better" in decision.reason
    assert not decide(curve(1.0, 0.5, 0.4, 0.399, 0.4), RULE).stops


def test_nothing_stops_before_the_least_steps() -> None:
    assert not decide(curve(1.0, 1.0, 1.0), RULE.model_copy(update={"patience": 1})).stops


def test_a_loss_that_is_not_finite_stops_at_once() -> None:
    decision = decide(curve(1.0, math.nan), RULE)
    assert decision.stops
    assert decision.best_step == 25


def test_a_loss_that_runs_away_is_called_diverged() -> None:
    decision = decide(curve(1.0, 0.9, 1.2, 1.4, 1.6), RULE)
    assert decision.stops
    assert "diverged" in decision.reason


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.floats(0, 0.2))
def test_no_step_is_better_than_the_best_by_more_than_the_margin(
    losses: list[float], margin: float
) -> None:
    found = best_step(curve(*losses), margin)
    assert found is not None
    kept = dict(curve(*losses))[found]
    assert min(losses) >= kept * (1 - margin) - 1e-12


def scored(step: int, low: float, mean: float, high: float) -> ScoredStep:
    return ScoredStep(step, Estimate(mean, low, high, 8))


def test_a_later_step_must_earn_its_place() -> None:
    early = scored(200, 0.7, 0.78, 0.84)
    late = scored(800, 0.72, 0.8, 0.85)
    assert keep_best([early, late]) is early


def test_a_step_that_is_better_beyond_doubt_is_kept() -> None:
    early = scored(200, 0.5, 0.55, 0.6)
    late = scored(800, 0.72, 0.8, 0.85)
    assert keep_best([early, late]) is late
    with pytest.raises(ValueError, match="no step"):
        keep_best([])
