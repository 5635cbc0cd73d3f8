"""The run's timeline: the ledger's events as spans of lane time.

Owns the conversion of events to spans and the run's duration.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from farm.quality.report.view import LaneSpan
from farm.storage import Store
from farm.training.dispatch.ledger import Event, Job, advance, read_events

__all__ = ["Timeline", "make_timeline", "read_timeline"]

PAUSE_S = 300.0
"""Gap after which a run counts as paused: a run resumed the next day did not take all night."""
ENDS = frozenset({"committed", "failed", "quarantined", "rejected", "released", "lost"})


@dataclass(frozen=True)
class Timeline:
    """A run's time."""

    jobs: Mapping[str, Job]
    spans: Sequence[LaneSpan]
    seconds: float
    """Active time, without pauses between starts."""

    @property
    def lanes(self) -> list[str]:
        """Lanes that held jobs."""
        return sorted({span.lane for span in self.spans})


def read_timeline(store: Store, run_id: str, subjects: Mapping[str, str]) -> Timeline:
    """Built from the ledger; ``subjects`` names the subject of each job key."""
    return make_timeline(read_events(store, run_id), subjects)


def make_timeline(events: Iterable[Event], subjects: Mapping[str, str]) -> Timeline:
    """Spans from each lease to its end, with pauses removed. The events are iterated once and not
    kept: a large run has millions."""
    times = array("d")
    jobs: dict[str, Job] = {}
    open_since: dict[str, tuple[str, float]] = {}
    spans: list[tuple[str, float, float, str, bool]] = []
    for event in events:
        times.append(event.at)
        jobs[event.job] = advance(jobs.get(event.job), event)
        if event.kind == "leased":
            open_since.setdefault(event.job, (_place(event.lane), event.at))
        elif event.kind in ENDS and event.job in open_since:
            spans.append(
                (*open_since.pop(event.job), event.at, event.job, event.kind == "committed")
            )
    clock = _Clock(times)
    return Timeline(
        jobs,
        [
            LaneSpan(lane, clock.at(start), clock.at(end), job, subjects.get(job, job), well)
            for lane, start, end, job, well in spans
        ],
        clock.total,
    )


def _place(lane: str) -> str:
    """The place in ``place#incarnation``: a replacement of a dead lane counts as the same lane."""
    return lane.partition("#")[0] or "lane"


class _Clock:
    """Seconds since the run's start, with pauses removed."""

    def __init__(self, times: array[float]) -> None:
        self._times = np.unique(np.frombuffer(times))
        gaps = np.diff(self._times)
        passed = np.cumsum(np.where(gaps <= PAUSE_S, gaps, 0.0))
        self._passed = np.concatenate([np.zeros(min(1, len(self._times))), passed])
        self.total = float(self._passed[-1]) if len(self._passed) else 0.0

    def at(self, time: float) -> float:
        """Convert an event's time."""
        return float(self._passed[np.searchsorted(self._times, time)])
