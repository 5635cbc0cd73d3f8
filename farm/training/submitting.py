"""``farm run`` as a Ray Job: sent to a cluster, it outlives the terminal that sent it.

Owns the job's name and its entrypoint. The job's driver is an ordinary ``farm run`` on the head.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from farm.errors import StoreError, UserError
from farm.intake.scoring import ScoringSettings
from farm.keys import key_of

__all__ = ["entrypoint_of", "scoring_arguments", "submit_run"]


def entrypoint_of(arguments: Sequence[str]) -> str:
    """The command that runs on the head."""
    return shlex.join(["farm", "run", *arguments, "--address", "auto", "--yes", "--json"])


def scoring_arguments(scoring: ScoringSettings) -> list[str]:
    """Settings as arguments of ``farm run``: the job does not see this terminal's environment."""
    named = {
        "--scorer": scoring.scorer,
        "--dino": scoring.dino,
        "--scoring-share": scoring.share,
    }
    given = [(name, str(value)) for name, value in named.items() if value is not None]
    return [part for pair in given for part in pair]


def submit_run(
    address: str,
    arguments: Sequence[str],
    *,
    working_dir: str | None = None,
    follow: Callable[[str], None] | None = None,
) -> tuple[str, str]:
    """Send a run, or find the one that is under way already.

    Args:
        address: of the cluster's dashboard, such as ``http://head:8265``.
        arguments: of ``farm run``.
        follow: is given the job's log as it grows; the call then lasts as long as the job.

    Returns:
        The job's id and its entrypoint.

    Raises:
        UserError: if the cluster cannot be reached or refuses.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    entrypoint = entrypoint_of(arguments)
    name = f"farm-{key_of('submission', entrypoint=entrypoint)[:12]}"
    try:
        client = JobSubmissionClient(address)
        job_id = _free_or_running(client, name, JobStatus)
        if job_id is not None:
            runtime_env = {"working_dir": working_dir} if working_dir else {}
            client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
        else:
            job_id = _running(client, name, JobStatus)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"no run could be sent to {address}: {error}",
            "name the dashboard's address; clusters with tokens need RAY_AUTH_MODE=token",
        ) from error
    if follow is not None:
        asyncio.run(_follow(client, job_id, follow))
    return job_id, entrypoint


def _attempts(client: Any, name: str) -> dict[str, Any]:
    """Status by submission id of all jobs that were ever sent under this name."""
    jobs = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    return {job_id: status for job_id, status in jobs.items() if job_id.startswith(name)}


def _running(client: Any, name: str, statuses: Any) -> str:
    alive = (statuses.PENDING, statuses.RUNNING)
    found = [job for job, status in _attempts(client, name).items() if status in alive]
    if not found:
        raise StoreError(f"job {name} ended in this very moment", "send it again")
    return found[0]


def _free_or_running(client: Any, name: str, statuses: Any) -> str | None:
    """A fresh id for the next attempt; None while one runs."""
    attempts = _attempts(client, name)
    if any(status in (statuses.PENDING, statuses.RUNNING) for status in attempts.values()):
        return None
    return f"{name}-{len(attempts) + 1}"


async def _follow(client: Any, job_id: str, told: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        told(text)
