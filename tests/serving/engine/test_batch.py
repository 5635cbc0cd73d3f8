"""Tests of which rows join the running batch, and which are in the next pass."""

import pytest
from support.engine import SIZE, capacity_of, row_of

from farm.serving.engine.batch import Batch

LARGE = (128, 128)


@pytest.fixture
def capacity():
    return capacity_of(4)


def test_rows_join_in_the_order_of_their_turns_while_they_fit(capacity):
    batch, rows = Batch(max_sizes=4), [row_of(turn) for turn in range(6)]
    for each in reversed(rows):
        batch.add_ready(each)
    assert batch.join(capacity) == rows[:4]
    assert (len(batch), batch.num_ready) == (4, 2)
    batch.leave(rows[1])
    assert batch.join(capacity) == [rows[4]]


def test_a_guided_picture_is_not_overtaken_for_ever_by_unguided_ones(capacity):
    batch, running = Batch(max_sizes=4), [row_of(turn) for turn in range(4)]
    for each in running:
        batch.add_ready(each)
    batch.join(capacity)
    pair = row_of(4, guided=True)
    batch.add_ready(pair)
    for turn in range(5, 9):  # as one leaves, another that needs one place only is there
        batch.add_ready(row_of(turn))
    batch.leave(running[0])
    assert batch.join(capacity) == []
    batch.leave(running[1])
    assert batch.join(capacity) == [pair]


def test_a_size_that_is_full_keeps_no_other_size_out(capacity):
    batch = Batch(max_sizes=2)
    for turn in range(5):
        batch.add_ready(row_of(turn))
    other = row_of(9, size=LARGE)
    batch.add_ready(other)
    assert other in batch.join(capacity)
    assert {batch.choose(capacity)[0].waiting.size for _ in range(2)} == {SIZE, LARGE}


def test_all_sizes_together_are_bounded(capacity):
    batch = Batch(max_sizes=1)
    for turn in range(4):
        batch.add_ready(row_of(turn))
    batch.add_ready(row_of(9, size=LARGE))
    assert len(batch.join(capacity)) == 4
    assert batch.num_ready == 1
