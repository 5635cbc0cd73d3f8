"""Tests of who has used less than their share."""

import pytest

from farm.serving.engine.sharing.shares import HALF_LIFE_S, REBASE_AFTER, Shares


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shares(clock: Clock) -> Shares:
    return Shares(clock)


def test_a_newcomer_is_below_its_share_until_it_has_used_about_as_much(shares: Shares) -> None:
    shares.count([("flood", 100.0)])
    assert shares.update(["flood", "new"]) == {"new"}
    shares.count([("new", 50.0)])
    assert shares.update(["flood", "new"]) == {"new"}
    shares.count([("new", 20.0)])
    assert shares.update(["flood", "new"]) == frozenset()


def test_a_single_caller_and_callers_of_equal_use_are_never_below_their_share(
    shares: Shares,
) -> None:
    assert shares.update(["a", "b"]) == frozenset()
    shares.count([("a", 100.0), ("b", 90.0), ("c", 80.0)])
    assert shares.update(["b"]) == frozenset()
    assert shares.update(["a", "b", "c"]) == frozenset()


def test_only_callers_with_open_requests_are_compared(shares: Shares) -> None:
    shares.count([("gone", 1000.0), ("a", 10.0), ("b", 10.0)])
    assert shares.update(["a", "b"]) == frozenset()


def test_use_is_forgotten_with_time(shares: Shares, clock: Clock) -> None:
    shares.count([("a", 100.0)])
    clock.now_s += 2 * HALF_LIFE_S
    shares.count([("b", 100.0)])
    assert shares.used("a") == pytest.approx(25.0)
    assert shares.used("b") == pytest.approx(100.0)
    assert shares.update(["a", "b"]) == {"a"}


def test_use_is_kept_for_days_without_growing(shares: Shares, clock: Clock) -> None:
    for number in range(2000):
        clock.now_s += HALF_LIFE_S
        shares.count([("steady", 1.0), (f"once-{number}", 1.0)])
    assert shares.used("steady") == pytest.approx(2.0)
    assert len(shares._used) < 100
    assert max(shares._used.values()) <= 4 * REBASE_AFTER
