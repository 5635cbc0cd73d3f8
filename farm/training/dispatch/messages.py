"""What lanes and dispatcher say to each other, and what the driver is shown: plain frozen values.

Owns the vocabulary only; ``dispatch`` decides and ``lane`` works. Everything here is picklable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

from farm.errors import explain
from farm.intake.job import JobSpec
from farm.store_trouble import StoreTrouble
from farm.training.dispatch.ledger import Why
from farm.training.plan.shape import LaneShape

__all__ = [
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
    """A job to be done, and the (namespace, name) pairs that shall point to its adapter."""

    spec: JobSpec
    names: AdapterNames
    prompts: tuple[tuple[str, ...], ...] = ()
    """The sample prompts of each name, identifier put in: names of several namespaces may share a
    job, and each is shown the pictures of its own prompts alone. Empty in runs of an older farm."""

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """What is generated with the adapter: the job's own prompts, then others'."""
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
    """How patient the dispatcher is."""

    max_failures: int = 3
    """Attempts that a job may fail by its own doing before it is quarantined."""
    lease_s: float = 60.0
    """Seconds of silence after which a lane counts as dead and its jobs are given to others."""
    lone_after_losses: int = 3
    """After so many lane deaths without progress a job is trained alone: if it kills
    lanes, it kills nobody else."""
    max_losses: int = 6
    """Lane deaths without progress, the later ones alone in the lane, after which a job is
    quarantined."""
    idle_s: float = 15.0
    """Seconds without work after which a lane is sent home, so that its node can go."""
    journal_s: float = 10.0
    """Seconds between two progress notes of one lane in the ledger."""
    expected_lanes: int = 1
    """Lanes that the plan starts with; until they have come, jobs are kept for them."""
    expect_s: float = 60.0
    """How long after the first lane the others are still waited for."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a leased job, as its lane tells it."""

    key: str
    kind: Literal["committed", "reused", "released", "failed", "rejected", "quarantined"]
    """``quarantined`` is a failure that no retry can change."""
    reason: str = ""
    step: int = 0
    seconds: float = 0.0
    remedy: str = ""
    """What to do about the reason; it travels with it to the ledger and the report."""

    @classmethod
    def of_error(
        cls,
        key: str,
        kind: Literal["released", "failed", "rejected"],
        error: Exception,
        what: str = "",
    ) -> JobResult:
        """What an error leads to. ``what`` comes before its message."""
        message, remedy = explain(error)
        return cls(key, kind, f"{what}: {message}" if what else message, remedy=remedy)

    @property
    def why(self) -> Why:
        """Reason and remedy, as the ledger takes them."""
        return {"reason": self.reason, "remedy": self.remedy}

    @property
    def told(self) -> str:
        """The same in one line."""
        return f"{self.reason} ({self.remedy})" if self.remedy else self.reason


@dataclass(frozen=True, slots=True)
class LaneReport:
    """What a lane says; the whole truth about what it holds."""

    lane: str
    """Its place: the same for the lane that replaces a dead one."""
    incarnation: str
    """Random per process."""
    slots: int
    """It has now; fewer than planned after it ran out of memory."""
    held: Mapping[str, int] = field(default_factory=dict)
    """Keys it holds, with steps trained; -1 while a job is being prepared. Those being published
    are held too."""
    results: tuple[JobResult, ...] = ()
    want: int = 0
    """Jobs it could take now."""
    shape: LaneShape | None = None
    """The shape it is built for; None while it has none and may take any."""
    alone: bool = False
    """Whether it is in the mode of one job at a time."""
    leaving: bool = False
    """It returns after this word; whatever it still holds goes back to the queue."""
    rows_per_s: float = 0.0
    rss_bytes: int = 0
    pid: int = 0
    """Its process, on whatever node."""
    trouble: StoreTrouble | None = None
    """Its writes to the store fail."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One job for one lane."""

    assignment: Assignment
    may_resume: bool
    """Whether a checkpoint of it may exist."""


@dataclass(frozen=True, slots=True)
class LaneOrders:
    """What a lane is told."""

    leases: tuple[Lease, ...] = ()
    shape: LaneShape | None = None
    """Of the leases; a lane without slots in use builds itself for it."""
    alone: bool = False
    drop: tuple[str, ...] = ()
    """Held keys that it must let go without a word: cancelled, or no longer its own."""
    stop: bool = False
    """Save everything, release it and return: the user interrupted the run."""
    leave: bool = False
    """Nothing is left for it: return once nothing is held."""
    slots: int | None = None
    """Upper bound of slots from an earlier life of this lane that ran out of memory."""


@dataclass(frozen=True, slots=True)
class LaneView:
    """A lane as the live view shows it."""

    lane: str
    held: int
    slots: int
    rows_per_s: float
    rss_bytes: int
    silent_s: float
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
    """Of the steps of all jobs, those trained; for the ETA."""
    lanes: tuple[LaneView, ...]
    waiting_for_priors: int
    is_done: bool
    is_starved: bool
    """Jobs are ready and no lane is alive to take them."""
    trouble: StoreTrouble | None = None
    """The worst that the dispatcher or a lane has with the store."""
