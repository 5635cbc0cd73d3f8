"""The lanes' time, from a ledger's events."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.quality.report.page import render
from farm.quality.report.timeline import (
    PAUSE_S,
    device_seconds,
    make_timeline,
    read_timeline,
    run_seconds,
)
from farm.quality.report.view import RunView, SubjectView
from farm.storage import Store
from farm.training.dispatch.ledger import Event, Ledger


def events(*rows: tuple[str, str, float, str]) -> list[Event]:
    return [Event(kind, job, at, lane) for kind, job, at, lane in rows]  # type: ignore[arg-type]


def one_start(*rows: tuple[str, str, float, str]) -> list[tuple[int, list[Event]]]:
    return [(1, events(*rows))]


def test_a_job_takes_its_lane_from_lease_to_commit() -> None:
    timeline = make_timeline(
        one_start(
            ("queued", "a", 100.0, ""),
            ("leased", "a", 102.0, "lane-0#abc"),
            ("progress", "a", 105.0, "lane-0#abc"),
            ("committed", "a", 110.0, "lane-0#abc"),
        ),
        {"a": "cat"},
    )
    (span,) = timeline.spans
    assert (span.lane, span.start_s, span.end_s, span.subject) == ("lane-0", 2.0, 10.0, "cat")
    assert span.how == "ok"
    assert timeline.seconds == 10.0
    assert [start.num_lanes for start in timeline.starts] == [1]


def test_a_retried_job_has_a_span_for_each_attempt() -> None:
    timeline = make_timeline(
        one_start(
            ("leased", "a", 0.0, "lane-0#1"),
            ("failed", "a", 4.0, "lane-0#1"),
            ("retry", "a", 4.0, ""),
            ("leased", "a", 5.0, "lane-1#2"),
            ("committed", "a", 9.0, "lane-1#2"),
        ),
        {},
    )
    assert [(span.lane, span.how) for span in timeline.spans] == [
        ("lane-0", "bad"),
        ("lane-1", "ok"),
    ]


def test_the_night_in_which_a_machine_slept_does_not_count() -> None:
    night = 8 * 3600.0
    timeline = make_timeline(
        one_start(
            ("leased", "a", 0.0, "l"),
            ("released", "a", 20.0, "l"),
            ("leased", "a", 20.0 + night, "l"),
            ("committed", "a", 30.0 + night, "l"),
        ),
        {},
    )
    assert timeline.seconds == pytest.approx(30.0)
    assert timeline.spans[1].start_s == pytest.approx(20.0)
    assert night > PAUSE_S


def test_a_run_without_events_is_empty() -> None:
    timeline = make_timeline([(1, [])], {})
    assert timeline.seconds == 0
    assert not timeline.spans


def test_a_lane_is_paid_for_its_own_start_and_the_time_between_starts_for_none() -> None:
    killed = events(
        ("queued", "a", 0.0, ""),
        ("leased", "a", 10.0, "run-1-1-0.0#x"),
        ("leased", "b", 10.0, "run-1-1-0.1#x"),
        ("leased", "c", 10.0, "run-1-1-0.1#x"),
        ("cancelled", "c", 12.0, ""),
        ("committed", "b", 20.0, "run-1-1-0.1#x"),
    )
    resumed = events(
        ("released", "a", 100.0, "run-1-1-0.0#x"),  # "the driver of this run has ended"
        ("leased", "a", 102.0, "run-2-1-0.0#y"),
        ("lost", "a", 103.0, "run-2-1-0.0#y"),
        ("leased", "a", 104.0, "run-2-2-0.0#z"),  # the same place, restarted
        ("committed", "a", 110.0, "run-2-2-0.0#z"),
    )
    timeline = make_timeline([(1, killed), (2, resumed)], {})
    assert [(start.seconds, start.num_lanes) for start in timeline.starts] == [(20, 2), (10, 1)]
    assert (timeline.seconds, timeline.machine_s) == (30, 50)
    shown = [(span.lane, span.start_s, span.end_s, span.how) for span in timeline.spans]
    assert sorted(shown) == [
        ("lane 0.0", 10, 20, "stopped"),
        ("lane 0.0", 22, 23, "bad"),
        ("lane 0.0", 24, 30, "ok"),
        ("lane 0.1", 10, 12, "stopped"),
        ("lane 0.1", 10, 20, "ok"),
    ]
    subject = SubjectView("a", "a", "default", "cat", "committed")
    run = RunView(
        "r", "b", "", 30.0, [subject] * 2, timeline.spans, work_s=30.0, machine_s=timeline.machine_s
    )
    assert run.seconds_a_subject == pytest.approx(25)
    assert run.utilisation == pytest.approx((10 + 1 + 6 + 10) / 50)
    assert render(run).count('<rect class="stopped"') == 2


def test_each_start_in_the_ledger_is_paid_for_what_it_used(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for epoch, (begin, end), last in (
        (1, (50.0, 60.0), "released"),
        (2, (100.0, 105.0), "committed"),
    ):
        ledger = Ledger(store, "r", epoch=epoch, clock=iter((begin, end)).__next__)
        ledger.append("leased", "a", lane="here.0#x")
        ledger.append(last, "a", lane="here.0#x")  # type: ignore[arg-type]
        ledger.flush()
    used = {"gpu_fraction": 0.5, "num_nodes": 1.0}
    starts = {"1": used, "2": used | {"seconds": 8.0}, "3": {"seconds": 1.0}}  # 1 was killed
    timeline = read_timeline(store, "r", {}, starts)
    assert [(start.epoch, start.seconds, start.lived_s) for start in timeline.starts] == [
        (1, 10, 10),
        (2, 5, 8),
    ]
    assert (timeline.seconds, timeline.machine_s) == (15, 18)
    assert run_seconds({"seconds": 9.0, "plan": None}, timeline) == 18
    assert device_seconds({"plan": None}, timeline) == 0.5 * 18
    unrecorded = read_timeline(store, "r", {})
    assert device_seconds({"plan": {"num_nodes": 2}}, unrecorded) == 2 * 15
    waited = read_timeline(store, "r", {}, {"2": used | {"seconds": 6 + PAUSE_S}})
    assert waited.machine_s == 15
    assert run_seconds({}, waited) == 10 + 6 + PAUSE_S
