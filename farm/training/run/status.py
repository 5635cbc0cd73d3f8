"""The status of a run, read from the store alone, and requests to runs without a driver.

Owns the reading of ledgers by processes other than their writer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from farm.adapters.registry import Registry
from farm.gc_pause import gc_paused
from farm.locks import StoreLock, holder
from farm.storage import Store
from farm.training.dispatch.compaction import read_state
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import FINAL, Job, Ledger, Status, counts
from farm.training.run.driver import DRIVER_TTL_S
from farm.training.run.failures import WITHOUT_ADAPTER, failures_among
from farm.training.run.files import read_settings, take_requests
from farm.training.run.job_files import read_keys, read_run_jobs, read_subjects

__all__ = ["run_status", "settle_requests"]

RATE_WINDOW_S = 600.0


def run_status(store: Store, run_id: str, *, now: float | None = None) -> dict[str, Any]:
    """Counts, rate, remaining time and failures of a run, as plain values.

    Raises:
        UserError: if there is no such run.
    """
    now = time.time() if now is None else now
    with gc_paused():
        keys = read_keys(store, run_id)
        ledger = read_state(store, run_id)
        jobs = _in_order(ledger.jobs, keys)
        tally = counts(jobs)
        failures = _failures(store, run_id, jobs)
    owner = holder(store, f"runs/{run_id}/drivers", now)
    left = len(jobs) - sum(tally[status] for status in FINAL)
    per_s = _commits_per_s(jobs, ledger.first_lease, now)
    return {
        "run": run_id,
        "store": store.url,
        "jobs": len(jobs),
        "left": left,
        "counts": tally,
        "driver": f"process {owner.pid}" if owner is not None else None,
        "started": read_settings(store, run_id).get("started"),
        "jobs_per_hour": per_s * 3600,
        "eta_s": left / per_s if per_s and owner is not None else None,
        "failures": failures,
    }


def _in_order(known: Mapping[str, Job], keys: Sequence[str]) -> list[Job]:
    """The run's jobs in the manifest's order; the ledger mostly has them in that order already."""
    if list(known) == keys:
        return list(known.values())
    return [known.get(key) or Job(key) for key in keys]


def _failures(store: Store, run_id: str, jobs: Sequence[Job]) -> list[dict[str, str]]:
    failed = [job for job in jobs if job.status in WITHOUT_ADAPTER]
    if not failed:
        return []
    subjects = read_subjects(store, run_id)
    return [failure._asdict() for failure in failures_among(subjects, failed)]


def _commits_per_s(jobs: Sequence[Job], first_lease: float, now: float) -> float:
    """Over the last ten minutes of work, or since the first lease if that is later."""
    last = max((job.changed for job in jobs), default=now)
    recent = sum(
        not job.reused and job.status is Status.COMMITTED
        for job in jobs
        if last - job.changed <= RATE_WINDOW_S
    )
    if not recent or not first_lease:
        return 0.0
    begin = max(last - RATE_WINDOW_S, first_lease)
    return recent / max(last - begin, 1.0)


def settle_requests(store: Store, run_id: str) -> int | None:
    """Carry out the requests to a run that has no driver.

    Returns:
        How many jobs they concerned; None where a live driver will carry them out.
    """
    claim = StoreLock.take(store, f"runs/{run_id}/drivers", ttl_s=DRIVER_TTL_S)
    if claim is None:
        return None
    try:
        jobs = read_run_jobs(store, run_id)
        ledger = Ledger(store, run_id, epoch=claim.number)
        requests = take_requests(store, run_id)
        dispatcher = Dispatcher(
            jobs,
            ledger,
            resolution_px=read_settings(store, run_id)["base"]["resolution_px"],
            committed=Registry(store).committed_among(jobs),
        )
        concerned = sum(
            dispatcher.cancel(keys) if what == "cancel" else dispatcher.retry(keys)
            for what, keys in requests
        )
        dispatcher.tick()
    finally:
        claim.release()
    return concerned
