"""Messages between lanes, dispatcher and driver: frozen, picklable values.

Owns only the types of messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, NamedTuple

from farm.errors import explain
from farm.intake.job import JobSpec
from farm.store_trouble import StoreTrouble
from farm.training.dispatch.ledger import Why
from farm.training.plan.shape import LaneShape

__all__ = [
    "AdapterNames",
    "Assignment",
    "DispatchSettings",
    "JobResult",
    "LaneOrders",
    "LaneReport",
    "LaneView",
    "Lease",
    "Notice",
    "Snapshot",
]

AdapterNames = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job and the (namespace, name) pairs that will point to its adapter."""

    spec: JobSpec
    names: AdapterNames
    prompts: tuple[tuple[str, ...], ...] = ()
    """The sample prompts of each name, with the identifier in place: names of several namespaces
    may share a job, and each shows only the images of its own prompts. Empty in runs of older
    versions."""

    @property
    def key(self) -> str:
        """The job's key."""
        return self.spec.key

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """The prompts of the adapter's samples: the job's own, then those of other names."""
        subject = self.spec.subject
        own = [subject.prompt(text) for text in subject.sample_prompts]
        further = (text for prompts in self.prompts for text in prompts if text not in own)
        return (*own, *dict.fromkeys(further))

    @property
    def views(self) -> Iterator[tuple[tuple[str, str], tuple[str, ...] | None]]:
        """Each name with its sample prompts; None where they are not known."""
        return zip_longest(self.names, self.prompts[: len(self.names)])


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Limits and waiting times of the dispatcher."""

    max_failures: int = 3
    """Attempts that may fail through the job's own fault before it is quarantined."""
    lease_s: float = 60.0
    """Seconds of silence after which a lane counts as dead and its jobs are queued again."""
    lone_after_losses: int = 3
    """After this many lane deaths without progress a job is trained alone, so that a job that
    kills lanes does not interrupt other jobs."""
    max_losses: int = 6
    """Lane deaths without progress after which a job is quarantined; in the later ones it was
    alone in its lane."""
    idle_s: float = 15.0
    """Seconds without work after which a lane is ordered to return, which frees its node."""
    journal_s: float = 10.0
    """Seconds between two progress events of one lane in the ledger."""
    expected_lanes: int = 1
    """Lanes that the plan starts with; jobs are reserved for those that have not reported yet."""
    expect_s: float = 60.0
    """Seconds after the first lane's report for which jobs are reserved for the others."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a leased job ended, as its lane reports it."""

    key: str
    kind: Literal["committed", "reused", "released", "failed", "rejected", "quarantined"]
    """``quarantined`` is a failure that a retry cannot fix."""
    reason: str = ""
    step: int = 0
    seconds: float = 0.0
    remedy: str = ""
    """What to do about the reason."""

    @classmethod
    def of_error(
        cls,
        key: str,
        kind: Literal["released", "failed", "rejected"],
        error: Exception,
        what: str = "",
    ) -> JobResult:
        """The result for an error; ``what`` precedes its message."""
        message, remedy = explain(error)
        return cls(key, kind, f"{what}: {message}" if what else message, remedy=remedy)

    @property
    def why(self) -> Why:
        """Reason and remedy, as the ledger stores them."""
        return {"reason": self.reason, "remedy": self.remedy}

    @property
    def summary(self) -> str:
        """Reason and remedy in one line."""
        return f"{self.reason} ({self.remedy})" if self.remedy else self.reason


@dataclass(frozen=True, slots=True)
class LaneReport:
    """A lane's report: the jobs that it holds, and how its other jobs ended."""

    lane: str
    """Its place; a lane that replaces a dead one has the same place."""
    incarnation: str
    """Random per process."""
    slots: int
    """Its slots now; fewer than planned after it ran out of memory."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Keys that it holds, with the steps trained; -1 while a job is being prepared. Jobs that are
    being published are still held."""
    results: tuple[JobResult, ...] = ()
    want: int = 0
    """Jobs that it could take now."""
    shape: LaneShape | None = None
    """The shape of its trainer; None before the first one, when it can take any shape."""
    alone: bool = False
    """Whether it trains one job at a time."""
    leaving: bool = False
    """It returns after this report; jobs that it still holds are queued again."""
    rows_per_s: float = 0.0
    rss_bytes: int = 0
    pid: int = 0
    """Its process id, on its node."""
    trouble: StoreTrouble | None = None
    """Its failing writes to the store."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One job for one lane."""

    assignment: Assignment
    may_resume: bool
    """Whether a checkpoint of it may exist."""


@dataclass(frozen=True, slots=True)
class LaneOrders:
    """The answer to a report."""

    leases: tuple[Lease, ...] = ()
    shape: LaneShape | None = None
    """Shape of the leased jobs; a lane with no slot in use rebuilds its trainer for it."""
    alone: bool = False
    drop: tuple[str, ...] = ()
    """Held keys that it must drop without reporting them: cancelled, or held by another lane."""
    stop: bool = False
    """Save everything, release it and return: the user interrupted the run."""
    leave: bool = False
    """No work is left for it: return once it holds no job."""
    slots: int | None = None
    """Upper bound of slots, from an earlier process in this place that ran out of memory."""


class LaneView(NamedTuple):
    """A lane as the live view shows it. A named tuple: one is made with every report."""

    lane: str
    held: int
    slots: int
    rows_per_s: float
    rss_bytes: int
    seen: float
    """Time of its last report, by the clock of ``Snapshot.at``."""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the user."""

    number: int
    at: float
    text: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The run at one moment."""

    counts: Mapping[str, int]
    num_jobs: int
    done_share: float
    """The trained share of all jobs' steps, for the ETA."""
    lanes: tuple[LaneView, ...]
    waiting_for_priors: int
    is_done: bool
    trouble: StoreTrouble | None = None
    """The worst store trouble of the dispatcher or any lane."""
    at: float = 0.0
    """By the dispatcher's clock, in seconds."""
    dropped_share: float = 0.0
    """The part of ``done_share`` that was not trained: the rest of jobs that ended early."""
    work_share: float = 0.0
    """How much of the whole run is done, samples and scores included; added by the driver."""
    left_s: float | None = None
    """The remaining time, added by the driver; None if not known."""
