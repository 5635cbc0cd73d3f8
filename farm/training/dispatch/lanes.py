"""The dispatcher's records of lanes, and its lines for the user.

Owns both records; ``dispatcher`` makes the decisions. Sums over lanes, their views and their order
are updated with every report, so that neither an exchange nor a tick looks at all of a thousand
lanes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile

from farm.store_trouble import StoreTrouble
from farm.training.dispatch.messages import LaneReport, LaneView, Notice
from farm.training.dispatch.queues import Group

__all__ = ["LaneEntry", "LaneTable", "NoticeLog", "group_of"]


@dataclass(slots=True)
class LaneEntry:
    """A lane as its last report described it."""

    incarnation: str
    slots: int
    seen: float
    group: Group | None = None
    held: dict[str, int] = field(default_factory=dict)
    """Step by job; -1 while a job is being prepared."""
    num_training: int = 0
    """Number of jobs in its slots."""
    rows_per_s: float = 0.0
    rss_bytes: int = 0
    pid: int = 0
    busy: float = 0.0
    """When it last held or received a job."""
    journaled: float = 0.0

    def name(self, place: str) -> str:
        """The lane's name in the ledger: its place and its process."""
        return f"{place}#{self.incarnation}"

    def view(self, place: str) -> LaneView:
        """The lane as the live view shows it."""
        return LaneView(
            place,
            self.num_training,
            self.slots,
            self.rows_per_s,
            self.rss_bytes,
            self.seen,
            self.pid,
        )


class LaneTable:
    """The lanes by place, with the number of lanes and jobs of each group."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, LaneEntry] = OrderedDict()
        """The lane that has been silent longest comes first."""
        self._places: list[str] = []
        """Sorted."""
        self._views: dict[str, LaneView] = {}
        self._troubles: dict[str, StoreTrouble] = {}
        self._num_busy: dict[Group, int] = {}
        self._num_held: dict[Group, int] = {}
        self._num_idle = 0
        self._overfull: dict[str, None] = {}
        """Places of full lanes that hold more jobs than slots."""

    def __len__(self) -> int:
        return len(self._lanes)

    def __contains__(self, place: str) -> bool:
        return place in self._lanes

    def get(self, place: str) -> LaneEntry | None:
        """The lane at a place."""
        return self._lanes.get(place)

    def add(self, place: str, lane: LaneEntry) -> None:
        """Add a new lane without jobs, seen now."""
        self._lanes[place] = lane
        insort(self._places, place)
        self._views[place] = lane.view(place)
        self._num_idle += 1

    def pop(self, place: str) -> LaneEntry:
        """Forget a lane."""
        lane = self._lanes.pop(place)
        self._count(lane, -1)
        del self._places[bisect_left(self._places, place)], self._views[place]
        self._troubles.pop(place, None)
        self._overfull.pop(place, None)
        return lane

    def update(self, lane: LaneEntry, report: LaneReport, now: float) -> None:
        """Record what a lane reports about itself."""
        self._count(lane, -1)
        lane.slots = report.slots or lane.slots
        lane.seen = now
        lane.group = group_of(report)
        lane.held = dict(report.held)
        lane.num_training = sum(step >= 0 for step in lane.held.values())
        lane.rows_per_s, lane.rss_bytes = report.rows_per_s, report.rss_bytes
        lane.pid = report.pid
        self._count(lane, 1)
        self._lanes.move_to_end(report.lane)
        self._views[report.lane] = lane.view(report.lane)
        if report.trouble is not None:
            self._troubles[report.lane] = report.trouble
        elif self._troubles:
            self._troubles.pop(report.lane, None)
        if lane.slots <= lane.num_training < len(lane.held):
            self._overfull[report.lane] = None
        else:
            self._overfull.pop(report.lane, None)

    def _count(self, lane: LaneEntry, change: int) -> None:
        if not lane.held:
            self._num_idle += change
        elif lane.group is not None:
            group = lane.group
            self._num_busy[group] = self._num_busy.get(group, 0) + change
            self._num_held[group] = self._num_held.get(group, 0) + change * len(lane.held)
            if not self._num_busy[group]:
                del self._num_busy[group], self._num_held[group]

    def silent_since(self, time: float) -> list[str]:
        """Places of the lanes whose last report is older than ``time``."""
        found = takewhile(lambda item: item[1].seen < time, self._lanes.items())
        return [place for place, _ in found]

    def views(self) -> tuple[LaneView, ...]:
        """The lanes as their last reports describe them, sorted by place."""
        return tuple(map(self._views.__getitem__, self._places))

    @property
    def troubles(self) -> Iterable[StoreTrouble]:
        """The lanes' trouble with the store."""
        return self._troubles.values()

    @property
    def num_busy(self) -> Mapping[Group, int]:
        """Number of lanes that hold jobs, by group."""
        return self._num_busy

    def sharing(self, group: Group, lane: LaneEntry) -> tuple[int, int]:
        """How many lanes share a group's jobs with ``lane`` (itself and idle ones included), and
        how many jobs they hold."""
        num_lanes = self._num_busy.get(group, 0) + self._num_idle
        num_held = self._num_held.get(group, 0)
        if lane.held and lane.group != group:
            return num_lanes + 1, num_held + len(lane.held)
        return num_lanes, num_held

    def take_waiting(self, idle: str) -> list[tuple[str, str]]:
        """(lane, job) of every job that waits for a slot of a full lane and that the lane ``idle``
        could train instead. Each is returned once, until its lane reports it again."""
        found = [
            (name, key)
            for place in self._overfull
            if (name := (lane := self._lanes[place]).name(place)) != idle
            for key, step in lane.held.items()
            if step < 0
        ]
        self._overfull.clear()
        return found


class NoticeLog:
    """The last lines for the user, numbered without a gap."""

    def __init__(self, capacity: int = 2000) -> None:
        self._lines: deque[Notice] = deque(maxlen=capacity)
        self._next = 0

    def add(self, now: float, text: str, *, is_bad: bool = False) -> None:
        """Add a line."""
        self._lines.append(Notice(self._next, now, text, is_bad))
        self._next += 1

    def since(self, number: int) -> list[Notice]:
        """Lines with at least this number."""
        recent = list(islice(reversed(self._lines), max(0, self._next - number)))
        return recent[::-1]


def group_of(report: LaneReport) -> Group | None:
    """The group of the jobs that a lane trains."""
    return None if report.shape is None else Group(report.shape, report.alone)
