"""The run's timeline: the ledger's events as spans of lane time.

Owns the conversion of events to spans, and the time of each start of the run.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from farm.quality.report.view import LaneSpan, SpanEnd
from farm.storage import Store
from farm.training.dispatch.ledger import Event, Job, advance
from farm.training.dispatch.segments import epoch_of, read_segments, segment_names

__all__ = ["Start", "Timeline", "device_seconds", "make_timeline", "read_timeline", "run_seconds"]

PAUSE_S = 300.0
"""Gap after which a start counts as paused: a machine that slept did not work all night."""
ENDS: Mapping[str, SpanEnd] = {
    "committed": "ok",
    "reused": "ok",
    "released": "stopped",
    "cancelled": "stopped",
    "failed": "bad",
    "quarantined": "bad",
    "rejected": "bad",
    "lost": "bad",
}
Recorded = Mapping[str, Mapping[str, float]]
"""By the number of the start."""
_ON_RAY = re.compile(r".+-\d+-\d+-(\d+\.\d+)")
"""Run, start, number of the lane run, then the place: its node and the lane on it."""


@dataclass(frozen=True)
class Start:
    """The time of one start of the run."""

    epoch: int
    seconds: float
    """From its first event to its last, without pauses."""
    num_lanes: int
    """Lanes that held jobs."""
    recorded: Mapping[str, float] = field(default_factory=dict)
    """What the driver recorded of it in ``run.json``; without ``seconds`` if it was killed."""

    @property
    def lived_s(self) -> float:
        """How long it lived, with loading before its first event and the end after its last. As
        between two events, more than ``PAUSE_S`` without any was no work: waiting for nodes."""
        own = float(self.recorded.get("seconds") or 0.0)
        return own if 0 <= own - self.seconds <= PAUSE_S else self.seconds

    @property
    def machine_s(self) -> float:
        """The time of its lanes together; of one machine if none held a job."""
        return self.lived_s * max(1, self.num_lanes)


@dataclass(frozen=True)
class Timeline:
    """A run's time."""

    jobs: Mapping[str, Job]
    spans: Sequence[LaneSpan]
    starts: Sequence[Start] = ()

    @property
    def seconds(self) -> float:
        """The time of all starts; the time between them belongs to none."""
        return sum(start.seconds for start in self.starts)

    @property
    def machine_s(self) -> float:
        """The time of all lanes, each in its own start."""
        return sum(start.machine_s for start in self.starts)


def read_timeline(
    store: Store, run_id: str, subjects: Mapping[str, str], recorded: Recorded | None = None
) -> Timeline:
    """Built from the ledger; ``subjects`` names the subject of each job key, and ``recorded`` is
    what drivers recorded of each start."""
    names = groupby(segment_names(store, run_id), epoch_of)
    starts = ((epoch, read_segments(store, run_id, list(own))) for epoch, own in names)
    return make_timeline(starts, subjects, recorded)


def make_timeline(
    starts: Iterable[tuple[int, Iterable[Event]]],
    subjects: Mapping[str, str],
    recorded: Recorded | None = None,
) -> Timeline:
    """Spans from each lease to its end, starts one after the other. The events of each start (its
    epoch is given) are iterated once and not kept: a large run has millions."""
    jobs: dict[str, Job] = {}
    found: list[Start] = []
    spans: list[LaneSpan] = []
    before_s = 0.0
    for epoch, events in starts:
        clock, ended = _spans(events, jobs)
        for lane, start, end, job, how in ended:
            start_s, end_s = before_s + clock.at(start), before_s + clock.at(end)
            spans.append(LaneSpan(lane, start_s, end_s, job, subjects.get(job, job), how))
        num_lanes = len({span[0] for span in ended})
        found.append(Start(epoch, clock.total, num_lanes, (recorded or {}).get(str(epoch), {})))
        before_s += clock.total
    return Timeline(jobs, spans, found)


def run_seconds(settings: Mapping[str, Any], timeline: Timeline) -> float:
    """All starts of the run. Those that were killed recorded nothing: the ledger has their time."""
    starts = timeline.starts
    total = sum(max(start.seconds, start.recorded.get("seconds", 0.0)) for start in starts)
    return max(float(settings.get("seconds") or 0.0), total)


def device_seconds(settings: Mapping[str, Any], timeline: Timeline) -> float:
    """The time that is paid for: with GPUs, that of the shares that the lanes held; on CPUs, that
    of the machines."""
    total = 0.0
    for start in timeline.starts:
        used = start.recorded or settings.get("plan") or {}
        shares = float(used.get("gpu_fraction") or 0.0) * start.num_lanes
        total += start.lived_s * (shares or float(used.get("num_nodes") or 1))
    return total


_Span = tuple[str, float, float, str, SpanEnd]
"""Lane, begin, end, job, and how it ended."""


def _spans(events: Iterable[Event], jobs: dict[str, Job]) -> tuple[_Clock, list[_Span]]:
    """The clock and the spans of one start; ``jobs`` is updated. What a killed start held ends with
    its last event: only a later start says that these jobs are free."""
    times = array("d")
    spans: list[_Span] = []
    open_since: dict[str, tuple[str, float]] = {}
    for event in events:
        times.append(event.at)
        jobs[event.job] = advance(jobs.get(event.job), event)
        if event.kind == "leased":
            open_since.setdefault(event.job, (_place(event.lane), event.at))
        elif event.kind in ENDS and event.job in open_since:
            how = ENDS[event.kind]
            spans.append((*open_since.pop(event.job), event.at, event.job, how))
    last = max(times, default=0.0)
    spans += [(*since, last, job, "stopped") for job, since in open_since.items()]
    return _Clock(times), spans


def _place(lane: str) -> str:
    """The place in ``place#incarnation``: a replacement of a dead lane counts as the same lane, and
    so does the lane of another start in the same place."""
    name = lane.partition("#")[0]
    on_ray = _ON_RAY.fullmatch(name)
    return f"lane {on_ray[1]}" if on_ray else name or "lane"


class _Clock:
    """Seconds since a start's first event, with pauses removed."""

    def __init__(self, times: array[float]) -> None:
        self._times = np.unique(np.frombuffer(times))
        gaps = np.diff(self._times)
        passed = np.cumsum(np.where(gaps <= PAUSE_S, gaps, 0.0))
        self._passed = np.concatenate([np.zeros(min(1, len(self._times))), passed])
        self.total = float(self._passed[-1]) if len(self._passed) else 0.0

    def at(self, time: float) -> float:
        """Convert an event's time."""
        return float(self._passed[np.searchsorted(self._times, time)])
