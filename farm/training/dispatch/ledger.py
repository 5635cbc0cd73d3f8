"""The ledger: what happened to every job of a run, append-only, in the store.

Owns the job state machine (pure functions), the events, and their segments under
``runs/<run_id>/ledger/``. It decides nothing: who gets which job is ``dispatch``'s business.

    queued ──leased──▶ leased ──progress──▶ training ──committed──▶ committed
       ▲                  │                    │  └──failed──▶ failed ──retry──▶ queued
       └─── released ─────┴────────────────────┘                 └──quarantined──▶ quarantined
    queued ──reused──▶ committed      any but committed ──cancelled──▶ cancelled
    queued ──rejected──▶ rejected (the user's fault: never retried by itself)

Replaying the events gives the state. Events are hints about the store, never more: an adapter is
committed because its marker exists, so a lost last segment costs at the most a second look.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Literal, Self, TypedDict

from farm.errors import StoreError
from farm.storage import Store

__all__ = [
    "FINAL",
    "Event",
    "EventKind",
    "Job",
    "Ledger",
    "Status",
    "Why",
    "advance",
    "counts",
    "read_events",
    "replay",
]

Clock = Callable[[], float]


class Why(TypedDict):
    """Why something happened and what to do about it; they are stored together."""

    reason: str
    remedy: str


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    LEASED = "leased"
    TRAINING = "training"
    FAILED = "failed"
    """Its last attempt failed; another one is due."""
    COMMITTED = "committed"
    QUARANTINED = "quarantined"
    """Failed as often as it may; left with its reason."""
    REJECTED = "rejected"
    """The user's own fault, such as a photo that cannot be read."""
    CANCELLED = "cancelled"


FINAL = frozenset({Status.COMMITTED, Status.QUARANTINED, Status.REJECTED, Status.CANCELLED})
"""Statuses that a run leaves as they are."""
HELD = frozenset({Status.LEASED, Status.TRAINING})

EventKind = Literal[
    "queued",
    "reused",
    "vanished",
    "leased",
    "progress",
    "released",
    "lost",
    "committed",
    "failed",
    "retry",
    "quarantined",
    "rejected",
    "cancelled",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the ledger."""

    kind: EventKind
    job: str
    at: float
    """Unix time in seconds, by the writer's clock."""
    lane: str = ""
    step: int = 0
    reason: str = ""
    expires: float = 0.0
    """Of a lease: the Unix time after which it is void."""
    seconds: float = 0.0
    """Of a commit: the lane's time that the job took."""
    remedy: str = ""
    """What to do about the reason."""

    def encode(self) -> str:
        """One line of JSON without what is at its default."""
        body = {key: value for key, value in asdict(self).items() if value or key == "job"}
        return json.dumps(body, separators=(",", ":"))

    @classmethod
    def decode(cls, line: str) -> Self:
        """Read one line; fields that this version does not know are passed over."""
        body = {key: value for key, value in json.loads(line).items() if key in _EVENT_FIELDS}
        if "remedy" not in body and _OLD_REMEDY in body.get("reason", ""):
            body["reason"], _, body["remedy"] = body["reason"].partition(_OLD_REMEDY)
        return cls(**body)


_OLD_REMEDY = "\n  remedy: "
"""Between reason and remedy where version 0.1 wrote both as one text."""
_EVENT_FIELDS = frozenset(field.name for field in fields(Event))


@dataclass(frozen=True, slots=True)
class Job:
    """A job's place in the state machine."""

    key: str
    status: Status = Status.QUEUED
    lane: str = ""
    """The lane that holds it, or that held it last."""
    step: int = 0
    """Steps known to be trained."""
    failures: int = 0
    """Attempts that failed by the job's own doing."""
    losses: int = 0
    """Times that its lane died under it since it last got any further; no failures of its own."""
    lost_step: int = -1
    """Steps trained when its lane last died."""
    reason: str = ""
    """Of the last failure, rejection or cancellation."""
    remedy: str = ""
    """What to do about it."""
    lease_expires: float = 0.0
    seconds: float = 0.0
    reused: bool = False
    """Committed before this run, or by another one beside it."""
    changed: float = 0.0
    """Time of the last event."""

    @property
    def is_final(self) -> bool:
        """Whether the run is done with it."""
        return self.status in FINAL

    @property
    def is_held(self) -> bool:
        """Whether a lane holds it."""
        return self.status in HELD


def advance(job: Job | None, event: Event) -> Job:
    """The state after one event. Total: an event that comes late or twice changes nothing.

    A commit is true whoever tells it, for the store has it; only a look into the store that finds
    nothing (``vanished``) undoes it. What a lane says about a job that it no longer holds is passed
    over: it is a lane of the past.
    """
    if job is None:
        job = Job(event.job)
    if job.status is Status.COMMITTED and event.kind != "vanished":
        return job
    changed = _CHANGES[event.kind](job, event)
    return job if changed is job else replace(changed, changed=event.at)


def _queued(job: Job, event: Event) -> Job:
    return job if job.changed else replace(job)


def _leased(job: Job, event: Event) -> Job:
    if job.is_final or (job.is_held and job.lane != event.lane):
        return job
    if job.is_held:
        return replace(job, lease_expires=event.expires)
    return replace(job, status=Status.LEASED, lane=event.lane, lease_expires=event.expires)


def _progress(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    expires = max(job.lease_expires, event.expires)
    step = max(job.step, event.step)
    return replace(job, status=Status.TRAINING, step=step, lease_expires=expires)


def _released(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    step = max(job.step, event.step)
    return replace(job, status=Status.QUEUED, step=step, lease_expires=0.0, **_why(event))


def _lost(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    got_further = job.losses > 0 and job.step > job.lost_step
    return replace(
        job,
        status=Status.QUEUED,
        lease_expires=0.0,
        losses=1 if got_further else job.losses + 1,
        lost_step=job.step,
        **_why(event),
    )


def _committed(job: Job, event: Event) -> Job:
    done = replace(job, status=Status.COMMITTED, reason="", remedy="", lease_expires=0.0)
    return replace(done, step=event.step, seconds=event.seconds)


def _reused(job: Job, event: Event) -> Job:
    done = replace(job, status=Status.COMMITTED, reason="", remedy="", lease_expires=0.0)
    return replace(done, reused=True)


def _vanished(job: Job, event: Event) -> Job:
    if job.status is not Status.COMMITTED:
        return job
    return replace(job, status=Status.QUEUED, reused=False, step=0, **_why(event))


def _failed(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    failures = job.failures + 1
    return replace(job, status=Status.FAILED, failures=failures, **_why(event))


def _retry(job: Job, event: Event) -> Job:
    if job.is_held or job.status is Status.QUEUED:
        return job
    if job.status is Status.FAILED:
        return replace(job, status=Status.QUEUED)
    fresh = replace(job, status=Status.QUEUED, failures=0, losses=0, lost_step=-1, step=0)
    return replace(fresh, reason="", remedy="")


def _ended(job: Job, event: Event) -> Job:
    if job.is_final:
        return job
    ended = replace(job, status=Status(event.kind))
    return replace(ended, **_why(event)) if event.reason else ended


def _why(event: Event) -> Why:
    return {"reason": event.reason, "remedy": event.remedy}


_CHANGES: Mapping[str, Callable[[Job, Event], Job]] = {
    "queued": _queued,
    "leased": _leased,
    "progress": _progress,
    "released": _released,
    "lost": _lost,
    "committed": _committed,
    "reused": _reused,
    "vanished": _vanished,
    "failed": _failed,
    "retry": _retry,
    "quarantined": _ended,
    "rejected": _ended,
    "cancelled": _ended,
}


def _is_holder(job: Job, event: Event) -> bool:
    return job.is_held and job.lane == event.lane


def replay(events: Iterable[Event]) -> dict[str, Job]:
    """The state of all jobs after the events, in the order of their first mention."""
    jobs: dict[str, Job] = {}
    for event in events:
        jobs[event.job] = advance(jobs.get(event.job), event)
    return jobs


def counts(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs stand where; every status is named. ``reused`` is part of ``committed``."""
    tally = Counter(job.status for job in jobs)
    return {str(status): tally[status] for status in Status}


# -- segments in the store ------------------------------------------------------------------------

SEGMENT_BYTES = 64 * 1024
"""A segment is rewritten whole, a superset each time, until it is this long; then the next begins.
Object stores cannot append, and thousands of one-line objects would be slow to read back."""


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/ledger"


class Ledger:
    """The one writer of a run's ledger, with the state that its events lead to.

    Segments are named ``<epoch>-<number>.jsonl``: writers of different epochs (drivers that
    followed one another) never touch each other's.
    """

    def __init__(self, store: Store, run_id: str, *, epoch: int, clock: Clock = time.time) -> None:
        """Replay what earlier epochs wrote.

        Args:
            epoch: this writer's claim number, higher than that of every earlier writer.
        """
        self._store, self._run_id, self._epoch, self._clock = store, run_id, epoch, clock
        self.jobs: dict[str, Job] = replay(read_events(store, run_id))
        self._segment = self._first_free_segment()
        self._lines: list[str] = []
        self._bytes = 0
        self._is_dirty = False

    def _first_free_segment(self) -> int:
        """Past this epoch's own segments: a writer that was restarted goes on after them."""
        prefix = f"{self._epoch:06d}-"
        own = [name for name in self._store.list(_folder(self._run_id)) if name.startswith(prefix)]
        numbers = [int(name.removeprefix(prefix).removesuffix(".jsonl")) for name in own]
        return max(numbers, default=-1) + 1

    def append(
        self,
        kind: EventKind,
        job: str,
        *,
        lane: str = "",
        step: int = 0,
        reason: str = "",
        expires: float = 0.0,
        seconds: float = 0.0,
        remedy: str = "",
    ) -> Job:
        """Take one event in; it is in the store after the next ``flush``."""
        event = Event(kind, job, self._clock(), lane, step, reason, expires, seconds, remedy)
        before = self.jobs.get(job)
        after = advance(before, event)
        if after is before:
            return after
        self.jobs[job] = after
        line = event.encode()
        self._lines.append(line)
        self._bytes += len(line) + 1
        self._is_dirty = True
        return after

    def flush(self) -> None:
        """Write what was appended since the last time; nothing is written if nothing was.

        Raises:
            StoreError: if the store does not take it; the events stay for the next try.
        """
        if not self._is_dirty:
            return
        path = f"{_folder(self._run_id)}/{self._epoch:06d}-{self._segment:06d}.jsonl"
        self._store.write(path, ("\n".join(self._lines) + "\n").encode())
        self._is_dirty = False
        if self._bytes >= SEGMENT_BYTES:
            self._segment += 1
            self._lines, self._bytes = [], 0


def read_events(store: Store, run_id: str) -> Iterator[Event]:
    """All events of a run in the order in which they were written.

    Raises:
        StoreError: if a segment is not what a ledger writes.
    """
    folder = _folder(run_id)
    for name in store.list(folder):
        if not name.endswith(".jsonl"):
            continue
        for number, line in enumerate(store.read(f"{folder}/{name}").decode().splitlines(), 1):
            try:
                yield Event.decode(line)
            except (ValueError, TypeError) as error:
                raise StoreError(
                    f"{folder}/{name}:{number} is not a ledger line: {error}"
                ) from error
