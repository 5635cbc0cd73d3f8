"""The run's timeline: the ledger's events as spans of lane time.

Owns the conversion of events to spans and the run's duration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from farm.quality.report.view import LaneSpan
from farm.storage import Store
from farm.training.dispatch.ledger import Event, Job, read_events, replay

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
    return make_timeline(list(read_events(store, run_id)), subjects)


def make_timeline(events: Sequence[Event], subjects: Mapping[str, str]) -> Timeline:
    """Spans from each lease to its end, with pauses removed."""
    clock = _Clock(event.at for event in events)
    open_since: dict[str, tuple[str, float]] = {}
    spans = []
    for event in events:
        if event.kind == "leased":
            open_since.setdefault(event.job, (_place(event.lane), clock.at(event.at)))
        elif event.kind in ENDS and event.job in open_since:
            lane, start = open_since.pop(event.job)
            well = event.kind == "committed"
            subject = subjects.get(event.job, event.job)
            spans.append(LaneSpan(lane, start, clock.at(event.at), event.job, subject, well))
    return Timeline(replay(events), spans, clock.total)


def _place(lane: str) -> str:
    """The place in ``place#incarnation``: a replacement of a dead lane counts as the same lane."""
    return lane.partition("#")[0] or "lane"


class _Clock:
    """Seconds since the run's start, with pauses removed."""

    def __init__(self, times: Iterable[float]) -> None:
        self._offsets: list[tuple[float, float]] = []
        self.total = 0.0
        before: float | None = None
        for time in sorted(times):
            gap = 0.0 if before is None else time - before
            self.total += gap if gap <= PAUSE_S else 0.0
            self._offsets.append((time, self.total))
            before = time
        self._at = dict(self._offsets)

    def at(self, time: float) -> float:
        """Convert an event's time."""
        return self._at[time]
