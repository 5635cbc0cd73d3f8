"""The lanes' time, from a ledger's events."""

from __future__ import annotations

import pytest

from farm.quality.report.timeline import PAUSE_S, make_timeline
from farm.training.dispatch.ledger import Event


def events(*rows: tuple[str, str, float, str]) -> list[Event]:
    return [Event(kind, job, at, lane) for kind, job, at, lane in rows]  # type: ignore[arg-type]


def test_a_job_takes_its_lane_from_lease_to_commit() -> None:
    timeline = make_timeline(
        events(
            ("queued", "a", 100.0, ""),
            ("leased", "a", 102.0, "lane-0#abc"),
            ("progress", "a", 105.0, "lane-0#abc"),
            ("committed", "a", 110.0, "lane-0#abc"),
        ),
        {"a": "cat"},
    )
    (span,) = timeline.spans
    assert (span.lane, span.start_s, span.end_s, span.subject) == ("lane-0", 2.0, 10.0, "cat")
    assert span.ended_well
    assert timeline.seconds == 10.0
    assert timeline.lanes == ["lane-0"]


def test_a_retried_job_has_a_span_for_each_attempt() -> None:
    timeline = make_timeline(
        events(
            ("leased", "a", 0.0, "lane-0#1"),
            ("failed", "a", 4.0, "lane-0#1"),
            ("retry", "a", 4.0, ""),
            ("leased", "a", 5.0, "lane-1#2"),
            ("committed", "a", 9.0, "lane-1#2"),
        ),
        {},
    )
    assert [(span.lane, span.ended_well) for span in timeline.spans] == [
        ("lane-0", False),
        ("lane-1", True),
    ]


def test_the_night_between_two_starts_does_not_count() -> None:
    night = 8 * 3600.0
    timeline = make_timeline(
        events(
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
    timeline = make_timeline([], {})
    assert timeline.seconds == 0
    assert not timeline.spans
