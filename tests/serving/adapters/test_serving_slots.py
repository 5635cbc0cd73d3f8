"""Tests of the slot table: slots in use are never reassigned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farm.serving.adapters.slots import SlotTable


def reserve(table, *keys):
    """Reserve, and pretend that fresh weights were copied."""
    reservations = table.reserve(keys)
    for reservation in reservations or []:
        if reservation.is_fresh:
            reservation.ready.set_result(None)
    return reservations


def test_slot_zero_is_never_handed_out():
    table = SlotTable(4)
    slots = [reservation.slot for reservation in reserve(table, "a", "b", "c")]
    assert sorted(slots) == [1, 2, 3]


def test_a_second_request_for_an_adapter_shares_its_slot():
    table = SlotTable(3)
    (first,) = reserve(table, "a")
    (second,) = reserve(table, "a")
    assert first.is_fresh
    assert not second.is_fresh
    assert first.slot == second.slot


def test_an_adapter_stays_after_its_last_use_until_the_slot_is_needed():
    table = SlotTable(2)
    table.release(reserve(table, "a"))
    assert "a" in table
    assert not reserve(table, "a")[0].is_fresh
    assert reserve(table, "b") is None


def test_the_least_recently_used_leaves_first():
    table = SlotTable(3)
    for key in ("a", "b", "a", "c"):
        table.release(reserve(table, key))
    assert "b" not in table
    assert "a" in table


def test_a_reservation_of_several_is_all_or_nothing():
    table = SlotTable(4)
    held = reserve(table, "a", "b")
    assert reserve(table, "c", "d") is None
    assert table.num_in_use == 2
    table.release(held)
    assert reserve(table, "c", "d", "e") is not None


def test_reserving_never_evicts_what_it_asks_for_itself():
    table = SlotTable(3)
    table.release(reserve(table, "a"))
    table.release(reserve(table, "b"))
    reservations = reserve(table, "c", "a")  # "a" is the oldest, but it is wanted
    assert [reservation.is_fresh for reservation in reservations] == [True, False]


def test_more_adapters_than_slots_are_refused_at_once():
    with pytest.raises(ValueError, match="slots"):
        SlotTable(2).reserve(["a", "b"])
    with pytest.raises(ValueError, match="twice"):
        SlotTable(4).reserve(["a", "a"])


def test_a_dropped_adapter_leaves_when_its_last_user_has():
    table = SlotTable(3)
    held = reserve(table, "a")
    assert table.drop("a") is None
    assert "a" not in table
    assert table.reserve(["a"]) is None
    assert table.release(held) == [held[0].slot]
    assert reserve(table, "a")[0].is_fresh


def test_dropping_an_idle_adapter_frees_its_slot_at_once():
    table = SlotTable(3)
    (held,) = reserve(table, "a")
    table.release([held])
    assert table.drop("a") == held.slot
    assert table.drop("never seen") is None


def test_a_copy_that_failed_leaves_no_adapter_behind():
    table = SlotTable(3)
    (held,) = table.reserve(["a"])
    held.ready.set_exception(RuntimeError("broken"))
    assert table.release([held]) == [held.slot]
    assert "a" not in table


def test_adapters_leave_until_their_bytes_are_within_the_budget():
    table = SlotTable(9, max_bytes=10)
    for key in ("a", "b", "c"):
        table.release(table.reserve([key], {key: 3}) or [])
    assert table.num_bytes == 0  # nothing was copied, so nothing stayed
    for key in ("a", "b", "c"):
        (held,) = table.reserve([key], {key: 3})
        held.ready.set_result(None)
        table.release([held])
    assert table.num_bytes == 9
    assert table.take_evicted() == []
    (large,) = table.reserve(["large"], {"large": 7})
    assert set(table.keys) == {"c", "large"}
    assert len(table.take_evicted()) == 2
    assert table.take_evicted() == []
    assert table.reserve(["d", "e"], {"d": 2, "e": 2}) is None  # while the large one is in use
    assert set(table.keys) == {"c", "large"}
    with pytest.raises(ValueError, match="bytes"):
        table.reserve(["d", "e"], {"d": 6, "e": 6})


class Slots(RuleBasedStateMachine):
    """Random requests that come and go."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable(5)
        self.held = []

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3, unique=True))
    def ask(self, keys):
        in_use = {r.key for reservations in self.held for r in reservations}
        reservations = reserve(self.table, *keys)
        if reservations is None:
            assert len(in_use | set(keys)) > self.table.capacity
        else:
            self.held.append(reservations)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.table.release(self.held.pop(index))

    @invariant()
    def adapters_in_use_have_slots_of_their_own(self):
        slots = {r.key: r.slot for reservations in self.held for r in reservations}
        assert len(set(slots.values())) == len(slots)
        assert all(1 <= slot <= 4 for slot in slots.values())
        for reservations in self.held:  # a slot never changes under its users
            assert all(slots[r.key] == r.slot for r in reservations)
        assert self.table.num_in_use == len(slots)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_one_at_a_time_every_adapter_finds_a_slot(keys):
    table = SlotTable(3)
    for key in keys:
        table.release(reserve(table, key))
        assert key in table
