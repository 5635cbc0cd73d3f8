"""Tests of the fair queue: deadline first, within each tenant's share."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.serving.engine.sharing.fair_queue import FairQueue


def filled(items, quantum=10.0):
    """A queue of (tenant, cost, deadline) items, each carried as itself."""
    queue = FairQueue(quantum)
    for item in items:
        tenant, cost, deadline = item
        queue.push(item, tenant=tenant, cost=cost, deadline=deadline)
    return queue


def drained(queue):
    out = []
    while (item := queue.pop()) is not None:
        out.append(item)
    return out


ITEMS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.floats(0.5, 200),
        st.one_of(st.just(math.inf), st.floats(0, 100)),
    ),
    max_size=40,
)


@given(ITEMS)
def test_everything_pushed_comes_out_once(items):
    queue = filled(items)
    assert len(queue) == len(items)
    assert Counter(drained(queue)) == Counter(items)
    assert len(queue) == 0
    assert queue.cost == 0
    assert queue.pop() is None


@given(st.lists(st.floats(0.5, 30), min_size=30, max_size=60), st.data())
def test_tenants_that_always_wait_get_equal_shares(costs, data):
    tenants = "abc"
    items = [(tenant, cost, math.inf) for tenant in tenants for cost in costs]
    queue = filled(items, quantum=10.0)
    spent = Counter()
    for _ in range(data.draw(st.integers(1, len(costs)))):
        tenant, cost, _ = queue.pop()
        spent[tenant] += cost
    # deficit round robin: no tenant is ahead by more than a quantum and the largest item
    assert max(spent.values()) - min(spent[t] for t in tenants) <= 2 * (10.0 + max(costs))


def test_one_tenant_s_flood_delays_a_newcomer_by_one_item_at_most():
    queue = filled([("flood", 10.0, math.inf)] * 50)
    queue.pop()
    queue.push("new", tenant="newcomer", cost=10.0)
    assert "new" in [queue.pop(), queue.pop()]


def test_within_a_tenant_the_earliest_deadline_goes_first_and_none_goes_last():
    queue = filled([("a", 1.0, math.inf), ("a", 1.0, 9.0), ("a", 1.0, 3.0)])
    assert [deadline for _, _, deadline in drained(queue)] == [3.0, 9.0, math.inf]


def test_equal_deadlines_keep_the_order_of_arrival():
    queue = FairQueue(1.0)
    for number in range(10):
        queue.push(number, tenant="a", cost=1.0)
    assert drained(queue) == list(range(10))


def test_among_tenants_with_share_left_the_earliest_deadline_goes_first():
    queue = filled([("a", 5.0, 50.0), ("b", 5.0, 2.0), ("c", 5.0, 20.0)])
    assert [tenant for tenant, _, _ in drained(queue)] == ["b", "c", "a"]


def test_short_deadlines_buy_no_more_than_the_share():
    rushed = [("rushed", 10.0, float(i)) for i in range(20)]
    patient = [("patient", 10.0, math.inf) for _ in range(20)]
    first = [tenant for tenant, _, _ in drained(filled(rushed + patient))[:20]]
    assert 9 <= first.count("patient") <= 11


@given(ITEMS, st.sampled_from("abcd"))
def test_removing_a_tenant_leaves_the_others_as_they_were(items, gone):
    queue = filled(items)
    removed = queue.remove(lambda item: item[0] == gone)
    rest = [item for item in items if item[0] != gone]
    assert Counter(removed) == Counter(item for item in items if item[0] == gone)
    assert Counter(drained(queue)) == Counter(rest)


def test_items_of_some_tenants_may_go_before_all_others_or_alone():
    queue = filled([("a", 1.0, 5.0), ("a", 1.0, 6.0), ("b", 1.0, math.inf)])
    assert queue.pop({"b", "c"})[0] == "b"
    assert queue.pop({"b"}, only=True) is None
    assert queue.pop({"b"})[0] == "a"
    assert queue.pop(only=True) is None
    assert len(queue) == 1


def test_what_one_tenant_gets_first_changes_no_share_of_the_others():
    queue = filled([(tenant, 10.0, math.inf) for tenant in "ab" for _ in range(20)])
    for _ in range(30):
        queue.push(("new", 10.0, math.inf), tenant="new", cost=10.0)
        assert queue.pop({"new"})[0] == "new"
    first = [queue.pop()[0] for _ in range(20)]
    assert 9 <= first.count("a") <= 11


def test_it_says_what_a_tenant_has_waiting():
    queue = filled([("a", 5.0, math.inf), ("a", 7.0, math.inf), ("b", 1.0, math.inf)])
    assert (queue.length_of("a"), queue.cost_of("a")) == (2, 12.0)
    assert (queue.length_of("z"), queue.cost_of("z")) == (0, 0.0)
    assert (queue.num_tenants("a"), queue.num_tenants("z")) == (2, 3)


def test_a_quantum_of_nothing_is_refused():
    with pytest.raises(ValueError, match="quantum"):
        FairQueue(0)
