"""Failed jobs of a run with their reasons, and revoked adapters, for the summary, `farm status` and
the report.

Owns the one list of each. Reason and remedy of a failure are quoted from the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from farm.adapters.registry import is_revoked_among
from farm.training.dispatch.job_state import WITHOUT_ADAPTER, Job
from farm.training.dispatch.messages import Assignment
from farm.training.dispatch.run_jobs import RunJobs

__all__ = ["JobFailure", "failures_among", "failures_of", "is_any_revoked", "revoked_names"]


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


def is_any_revoked(revoked: Collection[str], keys: Collection[str]) -> bool:
    """Whether ``Registry.revoked_keys`` revoke one of these jobs, in any namespace."""
    return not _job_keys(revoked).isdisjoint(keys)


def revoked_names(revoked: Collection[str], jobs: RunJobs) -> dict[str, list[str]]:
    """``namespace/name`` of the revoked adapters of a run by job key, in the manifest's order.

    Args:
        revoked: as by ``Registry.revoked_keys``.
    """
    found = {}
    for key in sorted(
        (key for key in _job_keys(revoked) if key in jobs), key=jobs.number.__getitem__
    ):
        names = [
            f"{namespace}/{name}"
            for namespace, name in jobs.assignment(key).names
            if is_revoked_among(revoked, key, namespace)
        ]
        if names:
            found[key] = names
    return found


def _job_keys(revoked: Collection[str]) -> set[str]:
    return {entry.partition("@")[0] for entry in revoked}
