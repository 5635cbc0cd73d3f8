"""Which jobs of a run have no adapter, and why: for the summary, `farm status` and the report.

Owns the one list of failures. Reason and remedy are copied from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from farm.training.dispatch.ledger import Job, Status
from farm.training.dispatch.messages import Assignment

__all__ = ["WITHOUT_ADAPTER", "JobFailure", "failures_of"]

WITHOUT_ADAPTER = frozenset({Status.FAILED, Status.QUARANTINED, Status.REJECTED, Status.CANCELLED})
"""Statuses of jobs that were given up, or whose last attempt failed."""


class JobFailure(NamedTuple):
    """One subject without an adapter."""

    subject: str
    status: str
    reason: str
    remedy: str


def failures_of(assignments: Sequence[Assignment], jobs: Iterable[Job]) -> tuple[JobFailure, ...]:
    """The failures among a run's jobs, in the order of ``jobs``."""
    subjects = {item.spec.key: item.spec.subject.id for item in assignments}
    return tuple(
        JobFailure(subjects[job.key], str(job.status), job.reason, job.remedy)
        for job in jobs
        if job.key in subjects and job.status in WITHOUT_ADAPTER
    )
