"""Which evaluated step is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farm.training.slots.evaluation import KEEP_TOLERANCE, is_best

losses = st.lists(st.floats(0.01, 10), min_size=1, max_size=20)


def kept_step(values: list[float]) -> int:
    """The last step that was the best when it was evaluated."""
    curve = list(enumerate(values))
    return max(step for step, _ in curve if is_best(curve[: step + 1]))


@given(losses)
def test_the_kept_step_is_the_latest_of_the_equally_good_ones(values: list[float]) -> None:
    kept = kept_step(values)
    bound = min(values) * (1 + KEEP_TOLERANCE)
    assert values[kept] <= bound
    assert all(loss > bound for loss in values[kept + 1 :])


def test_a_clear_rise_is_not_kept_and_a_flat_end_is() -> None:
    assert kept_step([1.0, 0.5, 0.6, 0.7]) == 1
    assert kept_step([1.0, 0.5, 0.503, 0.504]) == 3
