"""The status of a run, read from the store alone; and requests to runs without a driver.

Owns the reading of ledgers by processes other than their writer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from farm.adapters.registry import Registry
from farm.locks import StoreLock, holder
from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Event, Job, Ledger, counts, read_events, replay
from farm.training.run.driver import DRIVER_TTL_S
from farm.training.run.failures import failures_of
from farm.training.run.files import read_assignments, read_settings, take_requests

__all__ = ["run_status", "settle_requests"]

RATE_WINDOW_S = 600.0


def run_status(store: Store, run_id: str, *, now: float | None = None) -> dict[str, Any]:
    """Counts, rate, remaining time and failures of a run, as plain values.

    Raises:
        UserError: if there is no such run.
    """
    now = time.time() if now is None else now
    assignments = read_assignments(store, run_id)
    events = list(read_events(store, run_id))
    replayed = replay(events)
    jobs = [replayed.get(item.spec.key, Job(item.spec.key)) for item in assignments]
    owner = holder(store, f"runs/{run_id}/drivers", now)
    left = sum(not job.is_final for job in jobs)
    per_s = _commits_per_s(events, now)
    return {
        "run": run_id,
        "store": store.url,
        "jobs": len(jobs),
        "left": left,
        "counts": counts(jobs),
        "driver": f"process {owner.pid}" if owner is not None else None,
        "started": read_settings(store, run_id).get("started"),
        "jobs_per_hour": per_s * 3600,
        "eta_s": left / per_s if per_s and owner is not None else None,
        "failures": [failure._asdict() for failure in failures_of(assignments, jobs)],
    }


def _commits_per_s(events: Sequence[Event], now: float) -> float:
    """Over the last ten minutes of work, or since the first lease if that is later."""
    last = max((event.at for event in events), default=now)
    times = [event.at for event in events if event.kind == "committed"]
    recent = [at for at in times if last - at <= RATE_WINDOW_S]
    leased = [event.at for event in events if event.kind == "leased"]
    if not recent or not leased:
        return 0.0
    begin = max(last - RATE_WINDOW_S, min(leased))
    return len(recent) / max(last - begin, 1.0)


def settle_requests(store: Store, run_id: str) -> int | None:
    """Carry out the requests to a run that has no driver.

    Returns:
        The number of jobs concerned; None where a running driver will do it.
    """
    claim = StoreLock.take(store, f"runs/{run_id}/drivers", ttl_s=DRIVER_TTL_S)
    if claim is None:
        return None
    try:
        assignments = read_assignments(store, run_id)
        ledger = Ledger(store, run_id, epoch=claim.number)
        requests = take_requests(store, run_id)
        dispatcher = Dispatcher(
            assignments,
            ledger,
            resolution_px=read_settings(store, run_id)["base"]["resolution_px"],
            committed=Registry(store).committed_among(item.spec.key for item in assignments),
        )
        concerned = sum(
            dispatcher.cancel(keys) if what == "cancel" else dispatcher.retry(keys)
            for what, keys in requests
        )
        dispatcher.tick()
    finally:
        claim.release()
    return concerned
