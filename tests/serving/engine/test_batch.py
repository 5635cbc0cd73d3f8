"""Tests of which rows join the running batch, and which are in the next pass."""

import pytest

from farm.serving.engine.batch import Batch
from farm.serving.engine.row import Row, Waiting
from farm.serving.engine.sizing.batch_size_search import BatchSizeCurve
from farm.serving.engine.sizing.capacity import Capacity
from farm.serving.request import GenerationRequest, Ticket

SMALL, LARGE = (64, 64), (128, 128)


class Facts:
    """What a capacity asks of a base."""

    resolution_px = 64

    class device:  # noqa: N801
        type = "cpu"

    @staticmethod
    def needs_unprompted(guidance: float) -> bool:
        return guidance > 1


@pytest.fixture
def capacity():
    return Capacity(Facts, BatchSizeCurve(4, {4: 1.0}), memory_reserve=0.0)


def row(turn, *, guided=False, size=SMALL):
    request = GenerationRequest(id=str(turn), prompt="", guidance=5.0 if guided else 1.0)
    waiting = Waiting(Ticket(request), size, 1.0, 0.0, turn=turn)
    plain = object() if guided else None
    return Row(waiting, None, None, plain, (), (), [])


def test_rows_join_in_the_order_of_their_turns_while_they_fit(capacity):
    batch, rows = Batch(max_sizes=4), [row(turn) for turn in range(6)]
    for each in reversed(rows):
        batch.add_ready(each)
    assert batch.join(capacity) == rows[:4]
    assert (len(batch), batch.num_ready) == (4, 2)
    batch.leave(rows[1])
    assert batch.join(capacity) == [rows[4]]


def test_a_guided_picture_is_not_overtaken_for_ever_by_unguided_ones(capacity):
    batch, running = Batch(max_sizes=4), [row(turn) for turn in range(4)]
    for each in running:
        batch.add_ready(each)
    batch.join(capacity)
    pair = row(4, guided=True)
    batch.add_ready(pair)
    for turn in range(5, 9):  # as one leaves, another that needs one place only is there
        batch.add_ready(row(turn))
    batch.leave(running[0])
    assert batch.join(capacity) == []
    batch.leave(running[1])
    assert batch.join(capacity) == [pair]


def test_a_size_that_is_full_keeps_no_other_size_out(capacity):
    batch = Batch(max_sizes=2)
    for turn in range(5):
        batch.add_ready(row(turn))
    other = row(9, size=LARGE)
    batch.add_ready(other)
    assert other in batch.join(capacity)
    assert {batch.choose(capacity)[0].waiting.size for _ in range(2)} == {SMALL, LARGE}


def test_all_sizes_together_are_bounded(capacity):
    batch = Batch(max_sizes=1)
    for turn in range(4):
        batch.add_ready(row(turn))
    batch.add_ready(row(9, size=LARGE))
    assert len(batch.join(capacity)) == 4
    assert batch.num_ready == 1
