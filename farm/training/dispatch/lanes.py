"""What the dispatcher knows of each lane, and what it tells the user: its two small memories.

Owns no decision; ``dispatch`` makes them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from farm.store_trouble import StoreTrouble
from farm.training.dispatch.messages import LaneReport, LaneView, Notice
from farm.training.dispatch.queues import Group

__all__ = ["LaneEntry", "NoticeLog", "group_of", "waiting_in_full_lanes"]


@dataclass(slots=True)
class LaneEntry:
    """A lane as its last word described it."""

    incarnation: str
    slots: int
    seen: float
    group: Group | None = None
    held: dict[str, int] = field(default_factory=dict)
    """Step by job; -1 while a job is being prepared."""
    rows_per_s: float = 0.0
    rss_bytes: int = 0
    pid: int = 0
    trouble: StoreTrouble | None = None
    """With the store."""
    busy: float = 0.0
    """Last time it held something or was given something."""
    journaled: float = 0.0

    @property
    def num_training(self) -> int:
        """Jobs that sit in its slots."""
        return sum(step >= 0 for step in self.held.values())

    def name(self, place: str) -> str:
        """The lane in the ledger: its place and its process there."""
        return f"{place}#{self.incarnation}"

    def view(self, place: str, now: float) -> LaneView:
        """The lane as the live view shows it."""
        return LaneView(
            lane=place,
            held=self.num_training,
            slots=self.slots,
            rows_per_s=self.rows_per_s,
            rss_bytes=self.rss_bytes,
            silent_s=now - self.seen,
            pid=self.pid,
        )


class NoticeLog:
    """The last lines for the user, numbered without a gap."""

    def __init__(self, capacity: int = 2000) -> None:
        self._lines: deque[Notice] = deque(maxlen=capacity)
        self._numbers = itertools.count()

    def tell(self, now: float, text: str, *, is_bad: bool = False) -> None:
        """Add a line."""
        self._lines.append(Notice(next(self._numbers), now, text, is_bad))

    def since(self, number: int) -> list[Notice]:
        """Lines with at least this number."""
        return [line for line in self._lines if line.number >= number]


def group_of(report: LaneReport) -> Group | None:
    """What a lane trains at present."""
    return None if report.shape is None else Group(report.shape, report.alone)


def waiting_in_full_lanes(lanes: Mapping[str, LaneEntry], idle: str) -> list[tuple[str, str]]:
    """(lane, job) of every job that waits for a slot of a full lane; ``idle`` could train it."""
    return [
        (name, key)
        for place, lane in lanes.items()
        if lane.num_training >= lane.slots and (name := lane.name(place)) != idle
        for key, step in lane.held.items()
        if step < 0
    ]
