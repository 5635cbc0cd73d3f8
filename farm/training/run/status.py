"""The status of a run, read from the store alone, and requests to runs without a driver.

Owns the reading of ledgers by processes other than their writer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from farm.adapters.registry import Registry
from farm.locks import StoreLock, held
from farm.model_imports.gc_pause import gc_paused
from farm.storage import Store
from farm.training.dispatch.compaction import (
    RATE_WINDOW_S,
    LedgerState,
    Tally,
    newest_file,
    read_state,
    read_tally,
)
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.job_state import WITHOUT_ADAPTER, Event
from farm.training.dispatch.ledger import FINAL, Job, Ledger, Status
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.dispatch.segments import read_segments, segment_names
from farm.training.dispatch.state_file import Chunk
from farm.training.pace import left_after
from farm.training.run.failures import failures_among, is_any_revoked, revoked_names
from farm.training.run.files import close_requests, open_requests, read_settings
from farm.training.run.job_files import count_jobs, read_keys, read_run_jobs, read_subjects

__all__ = ["run_status", "settle_requests"]

MOST_COUNTED = 2_000
"""Jobs of a run whose steps are counted; a larger one is shown by its adapters, whose reading takes
less time."""
GAINS = frozenset({"progress", "released", "committed"})
"""Events that say how many steps were trained."""


def run_status(store: Store, run_id: str, *, now: float | None = None) -> dict[str, Any]:
    """Counts, steps, rate, remaining time and failures of a run, as plain values.

    Steps are those of a run with work left and at most ``MOST_COUNTED`` jobs, else None. So is how
    many jobs wait for class images, but only where a driver runs.
    The remaining time is the driver's own, as its display shows it.
    The rate is that of the last start: adapters by the time since it began, in its last ten minutes
    if it is longer. A run that has work left and no driver has none.

    Raises:
        UserError: if there is no such run.
    """
    now = time.time() if now is None else now
    settings = read_settings(store, run_id)
    started = float(settings.get("started") or 0.0)
    num_jobs = count_jobs(store, run_id)
    owner, news = held(store, f"runs/{run_id}/drivers", now) or (None, {})
    tally = read_tally(store, run_id, may_lag=owner is not None)
    if tally is None:
        with gc_paused():
            tally = _Sums.read(store, run_id, num_jobs).tally(store, run_id, started)
    left = num_jobs - sum(tally.counts[status] for status in FINAL)
    is_idle = left > 0 and owner is None
    per_s = 0.0 if is_idle else tally.commits_per_s(started)
    eta_s = None
    if left and "left_s" in news:
        eta_s = left_after(news["left_s"], now - news.get("at", now))
    steps = None
    if left and num_jobs <= MOST_COUNTED:
        steps = _count_steps(store, run_id, started)
    return {
        "run": run_id,
        "store": store.url,
        "cluster": ((settings.get("request") or {}).get("hardware") or {}).get("cluster") or None,
        "jobs": num_jobs,
        "left": left,
        "counts": {str(status): tally.counts[status] for status in Status},
        "driver": f"process {owner.pid}" if owner is not None else None,
        "started": settings.get("started"),
        "jobs_per_hour": per_s * 3600,
        "eta_s": eta_s,
        "steps": {
            "done": steps.done,
            "total": steps.total,
            "per_s": 0.0 if is_idle else steps.per_s,
        }
        if steps
        else None,
        "revoked": _count_revoked(store, run_id),
        "waiting_for_class_images": steps.waiting_for_priors if steps and not is_idle else None,
        "failures": list(tally.failures),
    }


@dataclass(frozen=True, slots=True)
class _Steps:
    """The steps of a run's jobs."""

    done: int
    """Trained steps of the jobs that have, or may still get, an adapter."""
    total: int
    """All steps of these jobs."""
    per_s: float
    """In the last ten minutes of this start; 0 before its first progress."""
    waiting_for_priors: int
    """Queued jobs whose class images are not complete."""


def _count_revoked(store: Store, run_id: str) -> int:
    """How many of the run's jobs have a revoked adapter."""
    revoked = Registry(store).revoked_keys()
    if not revoked or not is_any_revoked(revoked, read_keys(store, run_id)):
        return 0
    return len(revoked_names(revoked, read_run_jobs(store, run_id)))


def _count_steps(store: Store, run_id: str, started: float) -> _Steps:
    """Count the steps of a run.

    Args:
        started: Unix time of the run's last start; the rate counts from its first lease.

    Raises:
        StoreError: if the ledger is damaged.
    """
    with gc_paused():
        run = read_run_jobs(store, run_id)
        columns = run.columns
        steps = [columns.recipes[number].steps for number in columns.recipe_of]
        state, per_s = _replay(store, run_id, started)
    done = total = 0
    queued = []
    for number, key in enumerate(run):
        job = state.jobs.get(key)
        status = job.status if job is not None else Status.QUEUED
        if status in FINAL and status is not Status.COMMITTED:
            continue
        trained = steps[number]
        if job is None or status is not Status.COMMITTED:
            trained = min(trained, job.step if job is not None else 0)
        done, total = done + trained, total + steps[number]
        if status is Status.QUEUED:
            queued.append(number)
    return _Steps(done, total, per_s, _waiting(store, run, queued))


def _replay(store: Store, run_id: str, started: float) -> tuple[LedgerState, float]:
    """The state after all events, and the steps per second of this start.

    Only trained steps count for the rate: a job that is cancelled or begins again changes what is
    left.
    """
    leased, gains = 0.0, []

    def note(event: Event, before: Job | None, after: Job) -> None:
        nonlocal leased
        if event.at < started:
            return
        if event.kind == "leased":
            leased = leased or event.at
        gained = after.step - (before.step if before is not None else 0)
        if event.kind in GAINS and gained > 0:
            gains.append((event.at, gained))

    state = read_state(store, run_id, note)
    if not gains:
        return state, 0.0
    last = gains[-1][0]
    begin = max(last - RATE_WINDOW_S, leased or started)
    recent = sum(gained for at, gained in gains if at > begin)
    return state, recent / max(last - begin, 1.0)


def _waiting(store: Store, run: RunJobs, queued: Collection[int]) -> int:
    """How many of the queued jobs wait for class images."""
    columns = run.columns
    of_jobs = [columns.prior_of[number] for number in queued if columns.prior_of[number] >= 0]
    if not of_jobs:
        return 0
    from farm.training.priors.storage import is_ready  # with pyarrow

    missing = {prior for prior in set(of_jobs) if not is_ready(store, columns.priors[prior])}
    return sum(prior in missing for prior in of_jobs)


@dataclass
class _Sums:
    """Sums over all jobs of a ledger, most of them from the columns of a state file.

    Only the jobs that later events concern become objects: a million would take seconds.
    """

    counts: Counter[Status] = field(default_factory=Counter)
    commits: list[Sequence[float]] = field(default_factory=list)
    """When jobs were committed by this run, in the last ten minutes of a part of the ledger."""
    last: float = 0.0
    """Time of the last event."""
    first_lease: float = 0.0
    failed: list[Job] = field(default_factory=list)

    @classmethod
    def read(cls, store: Store, run_id: str, num_jobs: int) -> _Sums:
        """Read a run's ledger; jobs that it does not contain yet are queued."""
        names = segment_names(store, run_id)
        file = newest_file(store, run_id, names)
        covered = file.num_segments if file is not None else 0
        events = list(read_segments(store, run_id, names[covered:]))
        sums = cls(first_lease=file.first_lease if file is not None else 0.0)
        state = LedgerState(first_lease=sums.first_lease)
        touched = {event.job for event in events}
        for chunk in file.chunks if file is not None else ():
            sums._add_chunk(chunk, touched, state.jobs)
        for event in events:
            state.apply(event)
        sums.first_lease = state.first_lease
        sums._add_jobs(list(state.jobs.values()))
        sums.counts[Status.QUEUED] += max(0, num_jobs - sums.counts.total())
        return sums

    def _add_chunk(self, chunk: Chunk, touched: set[str], jobs: dict[str, Job]) -> None:
        """Count a chunk, except the jobs in ``touched``, which are added to ``jobs``."""
        keys = chunk.keys()
        statuses = chunk.column("status", len(keys))
        changed = chunk.column("changed", len(keys))
        self.counts.update(statuses)
        ours = touched.intersection(keys)
        rows = [row for row, key in enumerate(keys) if key in ours] if ours else []
        for row in rows:  # these are counted as the later events leave them
            self.counts[statuses[row]] -= 1
            changed[row] = 0.0
        if not WITHOUT_ADAPTER.isdisjoint(statuses):
            rows += [row for row, status in enumerate(statuses) if status in WITHOUT_ADAPTER]
        for job in chunk.some(keys, rows) if rows else ():
            if job.key in ours:
                jobs[job.key] = job
            else:
                self.failed.append(job)
        self._add_commits(changed, statuses, chunk.column("reused", len(keys)))

    def _add_jobs(self, jobs: Sequence[Job]) -> None:
        self.counts.update(job.status for job in jobs)
        self.failed += [job for job in jobs if job.status in WITHOUT_ADAPTER]
        changed = [job.changed for job in jobs]
        self._add_commits(changed, [job.status for job in jobs], [job.reused for job in jobs])

    def _add_commits(
        self, changed: Sequence[float], statuses: Iterable[Status], reused: Iterable[bool]
    ) -> None:
        last = max(changed, default=0.0)
        self.last = max(self.last, last)
        if last < self.last - RATE_WINDOW_S:
            return
        self.commits.append(
            [
                at
                for at, status, was_reused in zip(changed, statuses, reused, strict=True)
                if status is Status.COMMITTED and not was_reused and self.last - at <= RATE_WINDOW_S
            ]
        )

    def tally(self, store: Store, run_id: str, started: float) -> Tally:
        """The sums, as the driver that started at this time writes them."""
        oldest = max(self.last - RATE_WINDOW_S, started)
        return Tally(
            counts={str(status): self.counts[status] for status in Status},
            num_recent=sum(at >= oldest for part in self.commits for at in part),
            last=self.last,
            first_lease=self.first_lease,
            failures=_failures(store, run_id, self.failed),
        )


def _failures(store: Store, run_id: str, failed: Sequence[Job]) -> list[dict[str, str]]:
    """The failures in the manifest's order."""
    if not failed:
        return []
    subjects = read_subjects(store, run_id)
    by_key = {job.key: job for job in failed}
    ordered = [by_key[key] for key in subjects if key in by_key]
    return [failure._asdict() for failure in failures_among(subjects, ordered)]


def settle_requests(store: Store, run_id: str) -> int | None:
    """Carry out the requests to a run that has no driver.

    Returns:
        How many jobs they concerned; None where a live driver will carry them out.
    """
    from farm.training.run.driver import DRIVER_TTL_S  # with torch, which reading does not need

    lock = StoreLock.take(store, f"runs/{run_id}/drivers", ttl_s=DRIVER_TTL_S)
    if lock is None:
        return None
    try:
        jobs = read_run_jobs(store, run_id)
        ledger = Ledger(store, run_id, epoch=lock.number)
        requests = open_requests(store, run_id)
        dispatcher = Dispatcher(
            jobs,
            ledger,
            resolution_px=read_settings(store, run_id)["base"]["resolution_px"],
            committed=Registry(store).committed_among(jobs),
        )
        concerned = sum(
            dispatcher.cancel(keys) if what == "cancel" else dispatcher.retry(keys)
            for _, what, keys in requests
        )
        dispatcher.tick()
        close_requests(store, requests)
    finally:
        lock.release()
    return concerned
