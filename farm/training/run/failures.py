"""Failed jobs of a run with their reasons, for the summary, `farm status` and the report.

Owns the one list of failures. Reason and remedy are quoted from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from farm.training.dispatch.job_state import WITHOUT_ADAPTER, Job
from farm.training.dispatch.messages import Assignment

__all__ = ["JobFailure", "failures_among", "failures_of"]


class JobFailure(NamedTuple):
    """One subject without an adapter."""

    subject: str
    status: str
    reason: str
    remedy: str


def failures_of(assignments: Sequence[Assignment], jobs: Iterable[Job]) -> tuple[JobFailure, ...]:
    """The failures among a run's jobs, in the order of ``jobs``."""
    return failures_among({item.spec.key: item.spec.subject.id for item in assignments}, jobs)


def failures_among(subjects: Mapping[str, str], jobs: Iterable[Job]) -> tuple[JobFailure, ...]:
    """The same, given only the subject's id of each job key."""
    return tuple(
        JobFailure(subjects[job.key], str(job.status), job.reason, job.remedy)
        for job in jobs
        if job.status in WITHOUT_ADAPTER and job.key in subjects
    )
