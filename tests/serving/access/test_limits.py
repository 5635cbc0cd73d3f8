"""Limits per request and per key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import RequestRefused, TooBusy
from farm.serving.access.limits import (
    MAX_DELAYED_REFUSALS,
    REFUSALS_AT_ONCE,
    Limits,
    RateLimiter,
    RefusalPace,
    WaitingRoom,
)


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_product_of_size_steps_and_count_is_bounded() -> None:
    limits = Limits(max_pixel_steps=64 * 64 * 10 * 2)
    limits.check_cost(64, 64, 10, 2)
    with pytest.raises(RequestRefused, match="pixel steps"):
        limits.check_cost(64, 64, 10, 3)


@pytest.mark.parametrize(
    ("cost", "param"),
    [
        ((64, 64, 10, 11), "n"),
        ((64, 64, 151, 1), "num_inference_steps"),
        ((64, 4096, 1, 1), "size"),
    ],
)
def test_a_refusal_names_the_field(cost: tuple[int, int, int, int], param: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        Limits().check_cost(*cost)
    assert caught.value.param == param


def test_a_key_over_its_rate_is_told_when_there_is_room_again() -> None:
    clock = Clock()
    rates = RateLimiter(clock)
    for _ in range(6):
        rates.take("a", 10, 60)
    with pytest.raises(TooBusy) as caught:
        rates.take("a", 10, 60)
    assert caught.value.retry_after_s == pytest.approx(10.0)
    rates.take("b", 10, 60)  # another key is not concerned
    clock.now_s += caught.value.retry_after_s
    rates.take("a", 10, 60)


def test_a_request_larger_than_the_bucket_is_possible_once_the_bucket_is_full() -> None:
    rates = RateLimiter(Clock())
    rates.take("a", 10, 2)
    with pytest.raises(TooBusy):
        rates.take("a", 1, 2)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), max_size=60),
    st.integers(1, 120),
)
def test_no_pattern_of_requests_exceeds_a_burst_and_the_rate(
    requests: list[tuple[float, int]], per_minute: int
) -> None:
    clock = Clock()
    rates = RateLimiter(clock)
    start_s, taken = clock.now_s, 0
    for wait_s, count in requests:
        clock.now_s += wait_s
        try:
            rates.take("a", count, per_minute)
        except TooBusy:
            continue
        taken += count
    allowed = max(per_minute, 10) + (clock.now_s - start_s) * per_minute / 60
    assert taken <= allowed + 1e-6


def test_waiting_pictures_are_bounded_per_key_and_leave_with_their_request() -> None:
    room = WaitingRoom(4)
    with room.enter("a", 3, 5.0):
        with pytest.raises(TooBusy) as caught, room.enter("a", 2, 5.0):
            pass
        assert caught.value.retry_after_s == 5.0
        with room.enter("b", 4, 5.0):
            assert room.total == 7
    assert room.total == 0
    with room.enter("a", 10, 5.0):  # one request alone is always possible
        assert room.total == 10


def test_a_request_that_fails_leaves_the_room_too() -> None:
    room = WaitingRoom(4)
    with pytest.raises(RuntimeError), room.enter("a", 3, 5.0):
        raise RuntimeError
    assert room.total == 0


def test_refusals_of_one_caller_are_spaced_and_those_of_another_are_not_delayed() -> None:
    clock = Clock()
    pace = RefusalPace(10.0, clock)
    delays = [pace.delay_s("a") for _ in range(REFUSALS_AT_ONCE + 3)]
    assert delays == pytest.approx([0.0] * REFUSALS_AT_ONCE + [0.1, 0.2, 0.3])
    assert pace.delay_s("b") == 0.0
    clock.now_s += 0.3 + REFUSALS_AT_ONCE * 0.1
    assert pace.delay_s("a") == 0.0


def test_few_refusals_of_one_caller_are_delayed_at_once() -> None:
    clock = Clock()
    pace = RefusalPace(10.0, clock)
    while not pace.is_over("a"):
        pace.delay_s("a")
    assert pace.delay_s("a") == pytest.approx(0.1 * (MAX_DELAYED_REFUSALS + 2))
    assert not pace.is_over("b")
    clock.now_s += 10.0
    assert not pace.is_over("a")
