"""Tests of the passes in which images of a caller below its share run beside others."""

from __future__ import annotations

from typing import Any

import pytest
from support.engine import SIZE, capacity_of, row_of

from farm.serving.engine.batch import Batch
from farm.serving.engine.row import Row
from farm.serving.engine.sharing.pass_budget import SLOWDOWN

LARGE = (SIZE[0] * 2, SIZE[1])
BELOW = {"new"}


def batch_of(*rows: Row) -> Batch:
    """A batch in which they all run: each caller's joined while it was alone or below its share."""
    batch = Batch(max_sizes=4)
    for caller in dict.fromkeys(row.request.tenant for row in rows):
        for row in rows:
            if row.request.tenant == caller:
                batch.add_ready(row)
        batch.join(capacity_of(8), {caller})
    assert batch.num_ready == 0
    return batch


def flood(count: int, **options: Any) -> list[Row]:
    return [row_of(turn, "flood", **options) for turn in range(count)]


def cost(rows: list[Row]) -> float:
    return sum(row.num_rows * row.waiting.size[0] / SIZE[0] for row in rows)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("others_size", [SIZE, LARGE])
def test_others_slow_an_image_of_a_caller_below_its_share_by_a_bounded_factor(
    guided: bool, others_size: tuple[int, int]
) -> None:
    new = row_of(99, "new", guided=guided)
    batch = batch_of(*flood(2, size=others_size, guided=True), new)
    own = total = 0.0
    ran = 0
    while own < 200:
        rows = batch.choose(capacity_of(8), BELOW)
        total += cost(rows)
        own += cost([row for row in rows if row is new])
        ran += sum(row is not new for row in rows)
        # at every moment, not only in the mean: an image may have few steps
        assert total <= SLOWDOWN * own + 1e-9
    assert ran  # the others' images continue
    assert total >= 0.9 * SLOWDOWN * own


def test_when_passes_are_full_of_a_newcomer_s_rows_the_others_get_full_passes_in_turn() -> None:
    rows = flood(8)
    batch = batch_of(*rows, *[row_of(10 + turn, "new") for turn in range(8)])
    passes = [batch.choose(capacity_of(8), BELOW) for _ in range(10)]
    assert all(len(chosen) == 8 for chosen in passes)
    callers = [{row.request.tenant for row in chosen} for chosen in passes]
    assert callers == [{"new"}, {"flood"}] * 5


def test_others_of_several_sizes_all_continue() -> None:
    new = row_of(99, "new")
    small, large = row_of(0, "flood"), row_of(1, "flood", size=LARGE, guided=True)
    batch = batch_of(small, large, new)
    passes = [batch.choose(capacity_of(8), BELOW) for _ in range(60)]
    assert sum(small in rows for rows in passes) >= 5
    assert sum(large in rows for rows in passes) >= 5
    assert sum(new in rows for rows in passes) >= 30


def test_a_pass_that_costs_little_more_with_others_is_full() -> None:
    """As on a GPU, where eight rows take little longer than one."""
    curve = {1: 0.010, 2: 0.010, 4: 0.011, 8: 0.013}
    batch = batch_of(*flood(7), row_of(99, "new"))
    assert len(batch.choose(capacity_of(8, curve), BELOW)) == 8


def test_passes_are_full_when_nobody_is_below_a_share() -> None:
    batch = batch_of(*flood(8), *[row_of(20 + turn, "other") for turn in range(8)])
    passes = [batch.choose(capacity_of(8)) for _ in range(4)]
    assert all(len(rows) == 8 for rows in passes)
    assert {row for rows in passes[:2] for row in rows} == set(batch)


def test_rows_of_a_caller_below_its_share_join_a_full_batch_and_no_others_do() -> None:
    capacity = capacity_of(8)
    batch = batch_of(*flood(8))
    late, news = row_of(50, "flood"), [row_of(60 + turn, "new") for turn in range(9)]
    for row in (late, *news):
        batch.add_ready(row)
    assert batch.join(capacity, BELOW) == news[:8]
    assert batch.num_ready == 2


def test_all_rows_together_are_bounded_whoever_is_below_a_share() -> None:
    capacity, batch = capacity_of(8), Batch(max_sizes=2)
    for number in range(6):
        for turn in range(8):
            batch.add_ready(row_of(turn, f"caller-{number}"))
        batch.join(capacity, {f"caller-{number}"})
    assert len(batch) == 3 * 8
