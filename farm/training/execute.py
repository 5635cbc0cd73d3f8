"""A run from manifest to adapters.

Owns the sequence of steps and the summary. A run survives being killed at any moment: the same
manifest is the same run, which finds the committed jobs and resumes the others. Prints nothing;
progress goes to a ``ProgressView``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from farm.errors import Interrupted, StoreError, StoreUnusable, UserError
from farm.locks import StoreLock
from farm.training.dispatch.ledger import Job, Status, counts
from farm.training.lane.checkpoints import drop_left_checkpoints
from farm.training.lane.scratch import sweep_folders
from farm.training.run.driver import (
    Driver,
    dispatcher_of,
    lock_run,
    point_names,
    record_seconds,
    write_run_files,
)
from farm.training.run.failures import failures_among
from farm.training.run.lock_guard import LockGuard
from farm.training.run.prepare import prepare_run, resume_run
from farm.training.run.request import PreparedRun, ProgressView, RunRequest, RunSummary

__all__ = [
    "PreparedRun",
    "RunRequest",
    "RunSummary",
    "ProgressView",
    "execute_run",
    "prepare_run",
    "resume_run",
    "run_manifest",
    "summarise",
]

RELEASE_S = 5.0
"""How long releasing the lock may delay the end."""


def run_manifest(
    request: RunRequest, *, view: ProgressView | None = None, stop: threading.Event | None = None
) -> RunSummary:
    """Prepare and execute a run, without confirmation in between."""
    return execute_run(prepare_run(request), view=view, stop=stop)


def execute_run(
    prepared: PreparedRun,
    *,
    view: ProgressView | None = None,
    stop: threading.Event | None = None,
    arm: Callable[[], None] | None = None,
) -> RunSummary:
    """Train the jobs that are not committed yet.

    Args:
        stop: set it to stop cleanly: running jobs are saved and returned to the queue.
        arm: installs signal handlers that set ``stop``; called again once Ray runs, which
            replaces them with its own.

    Raises:
        Interrupted: after a clean stop.
        UserError: if another driver owns this run.
        LaneLost: if the lanes cannot be kept alive, or another driver took the run over.
    """
    began = time.monotonic()
    lock = lock_run(prepared)
    sweep_folders()
    guard = LockGuard(prepared.store, lock)
    driver = Driver(prepared, lock, view, stop or threading.Event(), arm)
    try:
        write_run_files(prepared, lock)
        point_names(prepared)
        jobs = _drive(driver)
        with suppress(StoreError, StoreUnusable):  # the next start of the run drops them
            done = {job.key for job in jobs if job.status is Status.COMMITTED}
            drop_left_checkpoints(prepared.store, done)
        seconds = time.monotonic() - began
        if prepared.plan is not None and driver.patience.error is None:
            with suppress(StoreError, UserError):  # the report then has the ledger's times alone
                record_seconds(prepared, lock, seconds)
    finally:
        guard.close(is_released=_release(lock))
    summary = summarise(prepared, jobs, seconds)
    summary = replace(summary, start=lock.number)
    left = [job for job in jobs if not job.is_final]
    if driver.patience.error is not None and left:
        raise driver.patience.error
    if driver.stop.is_set() and left:
        raise Interrupted(
            f"stopped: {summary.committed + summary.reused} of {summary.jobs} adapters are "
            f"committed and safe; {_left(left)} "
            f"(run {prepared.run_id} in {prepared.store.url})",
            "run the same command again to resume",
        )
    return summary


def _left(jobs: Sequence[Job]) -> str:
    begun, are_left = sum(job.step > 0 for job in jobs), f"{len(jobs)} jobs are left"
    if len(jobs) == 1:
        return "1 job is left" + (" and keeps its last checkpoint" if begun else "")
    if begun == len(jobs):
        return f"{are_left} and keep their last checkpoints"
    keep = "keeps its last checkpoint" if begun == 1 else "keep their last checkpoints"
    return f"{are_left}; {begun} of them {keep}" if begun else are_left


def _release(lock: StoreLock) -> bool:
    """Release the lock; returns whether it is released. If the store does not answer, the guard
    releases it later: a second Ctrl-C ends the run at once."""
    released = threading.Event()

    def release() -> None:
        with suppress(StoreError, StoreUnusable):
            lock.release()
            released.set()

    releasing = threading.Thread(target=release, name="release", daemon=True)
    releasing.start()
    releasing.join(RELEASE_S)
    return released.is_set()


def _drive(driver: Driver) -> list[Job]:
    prepared = driver.prepared
    on_ray = prepared.plan is not None and prepared.request.executor == "ray"
    if on_ray and not driver.stop.is_set():
        from farm.training.cluster.run import run_on_ray

        return run_on_ray(driver)
    dispatcher = dispatcher_of(driver)
    if prepared.plan is None or on_ray:  # nothing to train, or stopped before anything began
        driver.show(dispatcher.snapshot(), dispatcher.news())
        return dispatcher.jobs()
    from farm.training.run.in_process import run_in_process

    return run_in_process(driver, dispatcher)


def summarise(prepared: PreparedRun, jobs: Sequence[Job], seconds: float) -> RunSummary:
    """Count the jobs by how they ended."""
    tally = counts(jobs)
    done = {job.key for job in jobs if job.status is Status.COMMITTED}
    # a job that another process committed meanwhile was not trained by this run
    own = {job.key for job in jobs if job.key in done and not job.reused} - prepared.committed
    return RunSummary(
        run=prepared.run_id,
        jobs=len(jobs) + prepared.num_rejected,
        committed=len(own),
        reused=len(done) - len(own),
        revoked=prepared.num_revoked,
        failed=tally["quarantined"] + tally["rejected"] + prepared.num_rejected,
        quarantined=tally["quarantined"],
        cancelled=tally["cancelled"],
        seconds=seconds,
        failures=failures_among(prepared.jobs.subjects(), jobs),
    )
