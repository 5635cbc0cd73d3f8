"""The state machine of a job: its statuses, the ledger's events, and what each event changes.

Pure functions on immutable values. Deciding what happens is the dispatcher's task; storing the
events is the ledger's.

    queued ──leased──▶ leased ──progress──▶ training ──committed──▶ committed
       ▲                  │                    │  └──failed──▶ failed ──retry──▶ queued
       └─── released ─────┴────────────────────┘                 └──quarantined──▶ quarantined
    queued ──reused──▶ committed      any but committed ──cancelled──▶ cancelled
    queued ──rejected──▶ rejected (the user's fault: retried only on request)

Named tuples rather than dataclasses: a ledger of a million jobs holds millions of events, and a
named tuple is created and copied four times faster.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple, Self, TypedDict

__all__ = [
    "FINAL",
    "HELD",
    "WITHOUT_ADAPTER",
    "Event",
    "EventDetails",
    "EventKind",
    "Job",
    "Status",
    "Why",
    "advance",
    "counts",
    "replay",
]


class Why(TypedDict):
    """Why something happened, and what to do about it."""

    reason: str
    remedy: str


class Status(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    LEASED = "leased"
    TRAINING = "training"
    FAILED = "failed"
    """The last attempt failed; another one follows."""
    COMMITTED = "committed"
    QUARANTINED = "quarantined"
    """Failed the allowed number of times; kept with its reason."""
    REJECTED = "rejected"
    """The user's own fault, such as a photo that cannot be read."""
    CANCELLED = "cancelled"


FINAL = frozenset({Status.COMMITTED, Status.QUARANTINED, Status.REJECTED, Status.CANCELLED})
"""Statuses that a run does not change."""
HELD = frozenset({Status.LEASED, Status.TRAINING})
WITHOUT_ADAPTER = frozenset({Status.FAILED, Status.QUARANTINED, Status.REJECTED, Status.CANCELLED})
"""Statuses of jobs that ended without an adapter, or whose last attempt failed."""

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


class EventDetails(TypedDict, total=False):
    """The fields of an event that depend on its kind."""

    lane: str
    step: int
    reason: str
    expires: float
    seconds: float
    remedy: str


class Event(NamedTuple):
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
    """Of a commit: the job's share of its lane's time."""
    remedy: str = ""
    """What to do about the reason."""

    def encode(self) -> str:
        """One line of JSON, without fields that have their default value."""
        pairs = zip(self._fields, self, strict=True)
        return _to_json({name: value for name, value in pairs if value or name == "job"})

    @classmethod
    def decode(cls, line: str) -> Self:
        """Read one line; fields that this version does not know are ignored.

        Raises:
            ValueError, TypeError: if the line is not an event.
        """
        return cls.of(json.loads(line))

    @classmethod
    def of(cls, body: object) -> Self:
        """The event that a decoded JSON object describes.

        Raises:
            ValueError, TypeError: if it describes none.
        """
        if not isinstance(body, dict):
            raise TypeError("not a JSON object")
        if not body.keys() <= _EVENT_FIELDS:
            body = {name: value for name, value in body.items() if name in _EVENT_FIELDS}
        reason = body.get("reason")
        if isinstance(reason, str) and "remedy" not in body and _OLD_REMEDY in reason:
            body["reason"], _, body["remedy"] = reason.partition(_OLD_REMEDY)
        event = cls(**body)
        if event.kind not in _CHANGES:
            raise ValueError(f"unknown kind of event {event.kind!r}")
        return event


_OLD_REMEDY = "\n  remedy: "
"""Separates reason and remedy in ledgers of version 0.1, which stored both in one text."""
_EVENT_FIELDS = frozenset(Event._fields)
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Job(NamedTuple):
    """A job's place in the state machine."""

    key: str
    status: Status = Status.QUEUED
    lane: str = ""
    """The lane that holds it, or that held it last."""
    step: int = 0
    """Steps known to be trained."""
    failures: int = 0
    """Attempts that failed through the job's own fault."""
    losses: int = 0
    """Deaths of its lanes since the job last made progress; not its own failures."""
    lost_step: int = -1
    """Steps trained when its lane last died."""
    reason: str = ""
    """Of the last failure, rejection or cancellation."""
    remedy: str = ""
    """What to do about it."""
    lease_expires: float = 0.0
    seconds: float = 0.0
    reused: bool = False
    """Committed before this run, or by another run at the same time."""
    changed: float = 0.0
    """Time of the last event."""

    @property
    def is_final(self) -> bool:
        """Whether the run has finished with it."""
        return self.status in FINAL

    @property
    def is_held(self) -> bool:
        """Whether a lane holds it."""
        return self.status in HELD


def advance(job: Job | None, event: Event) -> Job:
    """The state after one event. Total: a late or repeated event changes nothing.

    A commit counts whichever lane reports it, because the store holds the adapter; only
    ``vanished``, which means that the store no longer holds it, undoes a commit. What a lane
    reports about a job that it no longer holds is ignored.
    """
    if job is None:
        job = Job(event.job)
    if job.status is Status.COMMITTED and event.kind != "vanished":
        return job
    changed = _CHANGES[event.kind](job, event)
    return job if changed is job else changed._replace(changed=event.at)


def _queued(job: Job, event: Event) -> Job:
    return job if job.changed else job._replace()


def _leased(job: Job, event: Event) -> Job:
    if job.is_final or (job.is_held and job.lane != event.lane):
        return job
    if job.is_held:
        return job._replace(lease_expires=event.expires)
    return job._replace(status=Status.LEASED, lane=event.lane, lease_expires=event.expires)


def _progress(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    expires = max(job.lease_expires, event.expires)
    step = max(job.step, event.step)
    return job._replace(status=Status.TRAINING, step=step, lease_expires=expires)


def _released(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    step = max(job.step, event.step)
    return job._replace(status=Status.QUEUED, step=step, lease_expires=0.0, **_why(event))


def _lost(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    has_progressed = job.losses > 0 and job.step > job.lost_step
    return job._replace(
        status=Status.QUEUED,
        lease_expires=0.0,
        losses=1 if has_progressed else job.losses + 1,
        lost_step=job.step,
        **_why(event),
    )


def _committed(job: Job, event: Event) -> Job:
    return job._replace(
        status=Status.COMMITTED,
        reason="",
        remedy="",
        lease_expires=0.0,
        step=event.step,
        seconds=event.seconds,
    )


def _reused(job: Job, event: Event) -> Job:
    return job._replace(
        status=Status.COMMITTED, reason="", remedy="", lease_expires=0.0, reused=True
    )


def _vanished(job: Job, event: Event) -> Job:
    if job.status is not Status.COMMITTED:
        return job
    return job._replace(status=Status.QUEUED, reused=False, step=0, **_why(event))


def _failed(job: Job, event: Event) -> Job:
    if not _is_holder(job, event):
        return job
    return job._replace(status=Status.FAILED, failures=job.failures + 1, **_why(event))


def _retry(job: Job, event: Event) -> Job:
    if job.is_held or job.status is Status.QUEUED:
        return job
    if job.status is Status.FAILED:
        return job._replace(status=Status.QUEUED)
    fresh = job._replace(status=Status.QUEUED, failures=0, losses=0, lost_step=-1, step=0)
    return fresh._replace(reason="", remedy="")


def _ended(job: Job, event: Event) -> Job:
    if job.is_final:
        return job
    ended = job._replace(status=Status(event.kind))
    return ended._replace(**_why(event)) if event.reason else ended


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
    return job.status in HELD and job.lane == event.lane


def replay(events: Iterable[Event], jobs: dict[str, Job] | None = None) -> dict[str, Job]:
    """The state of all jobs after the events, in the order of their first mention.

    Args:
        jobs: the state before the events; updated in place.
    """
    jobs = {} if jobs is None else jobs
    for event in events:
        jobs[event.job] = advance(jobs.get(event.job), event)
    return jobs


def counts(jobs: Iterable[Job]) -> dict[str, int]:
    """The number of jobs in each status; every status is named. ``reused`` counts as
    ``committed``."""
    tally = Counter(job.status for job in jobs)
    return {str(status): tally[status] for status in Status}
