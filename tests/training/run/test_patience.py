"""How long a run waits for a failing store, and what it reports meanwhile."""

from __future__ import annotations

from farm.errors import StoreError, StoreUnusable
from farm.store_trouble import StoreTrouble, TroubleNote, worst_of
from farm.training.run.patience import UNUSABLE_S, StorePatience


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def trouble(lasted_s: float, *, is_permanent: bool = False) -> StoreTrouble:
    return StoreTrouble("s3://b/x: it broke", "fix it", lasted_s, is_permanent)


def test_a_silent_store_is_shown_with_the_time_that_is_left_and_then_ends_the_run() -> None:
    clock = Clock()
    patience = StorePatience(outage_s=200, clock=clock)
    assert patience.heed(trouble(1)) is None  # a brief failure
    line = patience.heed(trouble(20))
    assert line == "the store does not answer, retrying for 3m 00s: s3://b/x: it broke"
    assert patience.heed(trouble(21)) is None  # not every half second
    clock.now += 31
    assert "retrying for 2m 29s" in (patience.heed(trouble(51)) or "")
    assert patience.error is None
    assert "the run stops" in (patience.heed(trouble(201)) or "")
    assert isinstance(patience.error, StoreError)
    assert "the same command again" in patience.error.remedy


def test_a_store_that_answers_again_starts_the_count_afresh() -> None:
    patience = StorePatience(outage_s=200, clock=Clock())
    patience.heed(trouble(20))
    assert patience.heed(None) == "the store answers again"
    assert patience.heed(None) is None
    assert patience.heed(trouble(20)) is not None


def test_an_unusable_store_is_shown_at_once_and_ends_the_run_soon() -> None:
    patience = StorePatience(clock=Clock())
    line = patience.heed(trouble(0, is_permanent=True)) or ""
    assert "s3://b/x: it broke; fix it: the run stops in 20s" in line
    patience.heed(trouble(UNUSABLE_S, is_permanent=True))
    assert isinstance(patience.error, StoreUnusable)
    assert patience.error.exit_code == 7


def test_trouble_lasts_from_its_first_failure_to_the_next_success() -> None:
    clock = Clock()
    note = TroubleNote(clock)
    assert note.current() is None
    note.failed(StoreError("no answer", "wait"))
    clock.now += 7
    note.failed(StoreUnusable("full", "free space"))
    current = note.current()
    assert current == StoreTrouble("full", "free space", 7, True)
    assert note.failed_within(5)
    clock.now += 6
    assert not note.failed_within(5)
    note.succeeded()
    assert note.current() is None


def test_the_worst_trouble_is_a_permanent_one_then_the_longest() -> None:
    assert worst_of([None]) is None
    assert worst_of([trouble(9), None, trouble(10)]) == trouble(10)
    assert worst_of([trouble(9), trouble(1, is_permanent=True)]) == trouble(1, is_permanent=True)
