"""The lane's table of jobs: what it reports, and what the dispatcher's orders change."""

from __future__ import annotations

from support.assignments import PLAIN, assignment

from farm.training.dispatch.messages import JobResult, LaneOrders, Lease
from farm.training.lane.job_table import JobTable
from farm.training.plan.shape import lane_shape

SHAPE = lane_shape(PLAIN, 64)


def lease(*names: str, **orders: object) -> LaneOrders:
    leases = tuple(Lease(assignment(name), may_resume=False) for name in names)
    return LaneOrders(leases, SHAPE, **orders)  # type: ignore[arg-type]


def table_with(*names: str, slots: int = 2, prefetch: int = 2) -> tuple[JobTable, list[str]]:
    table = JobTable("n.0", slots=slots, prefetch=prefetch)
    table.apply(table.report(), lease(*names))
    return table, [assignment(name).key for name in names]


def test_a_result_is_reported_until_the_dispatcher_has_answered_it() -> None:
    table, (key,) = table_with("a")
    table.end(JobResult(key, "committed", step=10))
    lost = table.report()
    assert [result.key for result in lost.results] == [key]
    again = table.report()
    assert again.results == lost.results
    assert again.held == {}
    table.apply(again, LaneOrders())
    assert not table.has_results


def test_a_dropped_job_ends_without_a_result() -> None:
    table, (first, second) = table_with("a", "b")
    table.apply(table.report(), LaneOrders(drop=(first,)))
    assert table.dropped() == {first}
    assert not table.is_wanted(first)
    job = table.take_unprepared()
    assert job is not None
    assert job.key == second
    assert table.take_unprepared() is None
    table.end(JobResult(first, "released"))
    assert not table.has_results
    assert set(table.report().held) == {second}


def test_a_lane_asks_for_its_slots_and_a_few_more() -> None:
    table, keys = table_with("a", "b", "c")
    assert table.report().want == 1
    table.mark(keys[0], "publishing", 10)
    assert table.report().want == 2
    assert table.report(leaving=True).want == 0


def test_a_lane_asks_for_nothing_while_the_store_does_not_keep_up() -> None:
    names = [f"s{number}" for number in range(5)]
    table, keys = table_with(*names, slots=1, prefetch=1)
    for key in keys:
        table.mark(key, "publishing", 10)
    assert table.report().want == 0
    table.end(JobResult(keys[0], "committed"))
    assert table.report().want == 2


def test_running_out_of_memory_is_a_failure_only_of_a_job_that_is_alone() -> None:
    table, (key,) = table_with("a", slots=4)
    assert table.too_large(key).kind == "released"
    table.apply(table.report(), LaneOrders(slots=2))
    assert table.num_slots == 2
    table.apply(table.report(), lease("b", alone=True))
    assert table.num_slots == 1
    result = table.too_large(key)
    assert result.kind == "failed"
    assert result.remedy


def test_a_stopping_lane_gives_back_every_job_with_its_step() -> None:
    table, (first, second) = table_with("a", "b")
    table.mark(first, "training", 7)
    table.apply(table.report(), LaneOrders(stop=True))
    assert table.is_stopping
    table.release_all("stopped")
    found = {result.key: (result.kind, result.step) for result in table.report().results}
    assert found == {first: ("released", 7), second: ("released", 0)}
    assert table.num_held == 0
