"""Submits ``farm run`` as a Ray Job, which outlives the terminal that submitted it.

Owns the job's name, its entrypoint, and the wait until the run has begun: a submission either
returns a run that has begun or raises an error with the reason. The job's driver is an ordinary
``farm run`` on the head.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from farm.errors import StoreError, UserError
from farm.intake.scoring import ScoringSettings
from farm.keys import key_of
from farm.training.cluster.auth import TOKEN_REMEDY, has_token, require_token

__all__ = [
    "Submission",
    "connect",
    "entrypoint_of",
    "scoring_arguments",
    "split_options",
    "submit_run",
]

OWN_OPTIONS = ("--store", "--base", "--address", "--in-process", "--json", "--yes", "-y", "--plain")
STOP_WAIT_S = 60
"""How long ``ray job stop`` lets a driver save its jobs; Ray's default is 3."""
START_S = 180.0
"""How long to wait for the run to begin: the driver reads the photos first."""
AGENT_S = 60.0
"""How long after its start a head may take to accept jobs."""
LOOK_S = 0.5
BEGUN = re.compile(r"^\s*run ([0-9a-f]{12})\b", re.MULTILINE)
"""The first line of the plan, which the driver shows once it has read everything."""


@dataclass(frozen=True)
class Submission:
    """A run on a cluster."""

    job: str
    entrypoint: str
    run: str | None
    """None while the driver still reads its manifest, or if all jobs are committed."""
    was_running: bool
    status: str


def split_options(options: Sequence[str]) -> list[str]:
    """Split the values of ``--with`` as a shell does.

    Raises:
        UserError: for an unclosed quote, or an option that ``farm submit`` sets itself.
    """
    words: list[str] = []
    for text in options:
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise UserError(
                f"--with {text!r}: {error}", "close the quotes, such as --with \"--set 'a=b c'\""
            ) from error
    for word in words:
        name = word.partition("=")[0]
        if name in OWN_OPTIONS:
            raise UserError(f"--with {name} is not possible", f"`farm submit` sets {name} itself")
    return words


def entrypoint_of(arguments: Sequence[str], *, retries: int = 0) -> str:
    """The command that runs on the head."""
    run = ["run", *arguments, "--address", "auto", "--yes", "--json"]
    if retries:
        return shlex.join(["farm", "supervise", "--retries", str(retries), "--", *run])
    return shlex.join(["farm", *run])


def scoring_arguments(scoring: ScoringSettings) -> list[str]:
    """Settings as arguments of ``farm run``: the job does not inherit this environment."""
    named = {
        "--scorer": scoring.scorer,
        "--dino": scoring.dino,
        "--scoring-share": scoring.share,
    }
    given = [(name, str(value)) for name, value in named.items() if value is not None]
    return [part for pair in given for part in pair]


def connect(address: str) -> Any:
    """Connect to the cluster's job API, and check the token.

    Args:
        address: of the cluster's dashboard, such as ``http://head:8265``.

    Raises:
        UserError: if nothing answers there, or the token is missing or wrong.
    """
    _authenticate(address)
    with _refusals(address):
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(address)
        client.list_jobs()
    return client


def submit_run(
    client: Any,
    arguments: Sequence[str],
    *,
    retries: int = 0,
    working_dir: str | None = None,
    follow: Callable[[str], None] | None = None,
    start_s: float = START_S,
) -> Submission:
    """Submit a run, or find the same run already running, and wait until it has begun.

    Args:
        client: as ``connect`` gives it.
        arguments: of ``farm run``.
        retries: how many consecutive times a driver that died is restarted.
        follow: receives the job's log as it grows; the call then lasts as long as the job.

    Raises:
        UserError: if the cluster refuses, or the run ends before it begins.
    """
    entrypoint = entrypoint_of(arguments, retries=retries)
    name = f"farm-{key_of('submission', entrypoint=entrypoint_of(arguments))[:12]}"
    with _refusals(client.get_address()):
        job_id, is_new = _send(client, entrypoint, name, working_dir)
        submission = _wait_for_start(client, job_id, entrypoint, is_new, start_s)
    if follow is not None:
        asyncio.run(_follow(client, job_id, follow))
    return submission


def _authenticate(address: str) -> None:
    """Check whether the cluster requires a token, and whether this machine has one."""
    try:
        with urllib.request.urlopen(
            f"{address.rstrip('/')}/api/authentication_mode", timeout=10
        ) as answer:
            mode = json.loads(answer.read()).get("authentication_mode")
    except urllib.error.HTTPError:
        return  # an older Ray; its client reports authentication errors
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"there is no Ray dashboard at {address}: {reason}",
            "name its address, such as http://head:8265; `ray dashboard cluster.yaml` forwards it",
        ) from error
    if mode != "token":
        return
    if not has_token():
        raise UserError(
            f"the cluster at {address} asks for a token, and this machine has none", TOKEN_REMEDY
        )
    require_token()


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Convert errors of Ray's client to a ``UserError``."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(f"the cluster at {address} refuses this token", TOKEN_REMEDY) from error
    except (ConnectionError, RuntimeError) as error:
        if "status code 401" in str(error) or "status code 403" in str(error):
            raise UserError(f"the cluster at {address} refuses this token", TOKEN_REMEDY) from error
        raise UserError(
            f"no run could be sent to {address}: {error}",
            "check that its dashboard answers, and that its Ray version is the one installed here",
        ) from error


def _send(client: Any, entrypoint: str, name: str, working_dir: str | None) -> tuple[str, bool]:
    """The job's id, and whether this call submitted it."""
    from ray.job_submission import JobStatus

    job_id = _free_or_running(client, name, JobStatus)
    if job_id is None:
        return _running(client, name, JobStatus), False
    runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}
    if working_dir:
        runtime_env["working_dir"] = working_dir
    until = time.monotonic() + AGENT_S
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
            return job_id, True
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(LOOK_S)


def _wait_for_start(
    client: Any, job_id: str, entrypoint: str, is_new: bool, patience_s: float
) -> Submission:
    """Wait until the driver has shown its plan or has ended.

    Raises:
        UserError: if it failed; with the driver's message.
    """
    until = time.monotonic() + patience_s
    settled: float | None = None
    while True:
        status = str(client.get_job_status(job_id).value)
        log = client.get_job_logs(job_id) or ""
        begun = BEGUN.search(log)
        run = begun.group(1) if begun else None
        if status in ("FAILED", "STOPPED") and is_new:
            raise UserError(
                f"the run was sent and ended at once: {_words_of(log)}", _remedy_of(log)
            )
        if begun and settled is None:
            settled = time.monotonic() + 2.0  # another driver of the same run is refused here
        now = time.monotonic()
        is_over = status not in ("PENDING", "RUNNING")
        if is_over or now > until or (settled is not None and now > settled):
            return Submission(job_id, entrypoint, run, not is_new, status)
        time.sleep(LOOK_S)


def _words_of(log: str) -> str:
    """The error message in a failed driver's log, else its last line."""
    found = re.search(r"^error: (.*?)(?=^remedy: |\Z)", log, re.MULTILINE | re.DOTALL)
    if found:
        return " ".join(found.group(1).split())
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _remedy_of(log: str) -> str:
    found = re.search(r"^remedy: (.*)\Z", log, re.MULTILINE | re.DOTALL)
    return " ".join(found.group(1).split()) if found else "see the job's log on the dashboard"


def _attempts(client: Any, name: str) -> dict[str, Any]:
    """Status by submission id of all jobs that were ever submitted under this name."""
    jobs = {job.submission_id: job.status for job in client.list_jobs() if job.submission_id}
    return {job_id: status for job_id, status in jobs.items() if job_id.startswith(name)}


def _running(client: Any, name: str, statuses: Any) -> str:
    alive = (statuses.PENDING, statuses.RUNNING)
    found = [job for job, status in _attempts(client, name).items() if status in alive]
    if not found:
        raise StoreError(f"job {name} ended just now", "send it again")
    return found[0]


def _free_or_running(client: Any, name: str, statuses: Any) -> str | None:
    """The id of the next attempt; None while an attempt is running."""
    attempts = _attempts(client, name)
    if any(status in (statuses.PENDING, statuses.RUNNING) for status in attempts.values()):
        return None
    return f"{name}-{len(attempts) + 1}"


async def _follow(client: Any, job_id: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        show(text)
