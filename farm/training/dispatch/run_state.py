"""All jobs of a run as the dispatcher sees them: ledger, indexes and queues, changed together.

Owns what happens to a job: queued, retried, returned, quarantined, cancelled. The dispatcher
decides which lane gets which job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Literal, Unpack

from farm.model_imports.gc_pause import gc_paused, leave_to_counts
from farm.training.dispatch.compaction import RATE_WINDOW_S, Tally
from farm.training.dispatch.job_index import JobIndex
from farm.training.dispatch.job_state import EventDetails, EventKind, Job, Status
from farm.training.dispatch.lanes import NoticeLog
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import DispatchSettings, JobResult
from farm.training.dispatch.queues import Group, JobQueues
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.plan.shape import run_shapes

__all__ = ["RunState"]

CANCELLED_REMEDY = "`farm retry` queues it again"
LETHAL_REMEDY = (
    "see Ray's logs for why they died, most often for memory; make it smaller (`resolution_px`, "
    "`rank`), then `farm retry`"
)

TALLY_JOBS = 20_000
"""From this many on, `farm status` would take a tenth of a second to read the ledger itself."""
TALLY_S = 5.0
TALLY_FAILURES = 5_000
"""With more failures there is no tally: encoding them would delay the lanes' exchanges."""

Clock = Callable[[], float]


class RunState:
    """The state of one run's jobs."""

    def __init__(
        self,
        run: RunJobs,
        ledger: Ledger,
        *,
        resolution_px: int,
        ready_priors: Iterable[str],
        settings: DispatchSettings,
        clock: Clock,
    ) -> None:
        self.run, self._ledger, self._settings, self._clock = run, ledger, settings, clock
        recipes = {str(number): recipe for number, recipe in enumerate(run.columns.recipes)}
        self._shapes = list(run_shapes(recipes, resolution_px).values())
        self._ready_priors = set(ready_priors)
        self.queues = JobQueues()
        self.notices = NoticeLog()
        self.was_started = bool(ledger.jobs)
        """Whether this run had an earlier driver; if so, any job may have a checkpoint."""
        with gc_paused():
            ledger.queue(run)
            self.index = JobIndex(run, ledger.jobs)
            jobs = ledger.jobs.values()
            self._last = max((job.changed for job in jobs), default=0.0)
            """Time of the last event."""
            self._commits: deque[float] = deque()
            """When this start committed its last jobs; some are older than the rate's window."""
        self._last_tally = 0.0

    def take_over(self, committed: Collection[str]) -> None:
        """Release the earlier driver's leases, trust the store, and fill the queues.

        Args:
            committed: keys of the jobs whose adapters are in the store.
        """
        with gc_paused():
            for key in self.run:
                if self._restore(self.job(key), key in committed).status is Status.QUEUED:
                    self.enqueue(key)
            leave_to_counts(len(self.run))

    def _restore(self, job: Job, is_committed: bool) -> Job:
        key, status = job.key, job.status
        if is_committed:
            return job if status is Status.COMMITTED else self.record("reused", key)
        if status is Status.COMMITTED:
            return self.record("vanished", key, reason="its adapter is no longer in the store")
        if job.is_held:
            reason = "the driver of this run has ended"
            return self.record("released", key, lane=job.lane, reason=reason)
        if status is Status.FAILED or status is Status.REJECTED:
            return self.record("retry", key)
        return job

    # -- one job ------------------------------------------------------------------------------

    def job(self, key: str) -> Job:
        """A job's state."""
        return self._ledger.jobs[key]

    def record(self, kind: EventKind, key: str, **details: Unpack[EventDetails]) -> Job:
        """Record an event in the ledger and in the indexes; returns the job after it."""
        before = self._ledger.jobs[key]
        after = self._ledger.append(kind, key, **details)
        if after is not before:
            self.index.move(before, after)
            if after.status is not Status.QUEUED:
                self.queues.discard(key)
            if kind == "committed":
                self._commits.append(after.changed)
            self._last = max(self._last, after.changed)
        return after

    def enqueue(self, key: str) -> None:
        """Queue a job, or hold it until its prior set is complete."""
        prior_key = self.run.prior_key(key)
        if prior_key is not None and prior_key not in self._ready_priors:
            self.queues.hold(prior_key, key)
            return
        columns, number = self.run.columns, self.run.number[key]
        alone = self.job(key).losses >= self._settings.lone_after_losses
        group = Group(self._shapes[columns.recipe_of[number]], alone)
        self.queues.push(group, key, priority=columns.priorities[number], order=number)

    def is_held_by(self, key: str, lane: str) -> bool:
        """Whether the ledger says that a lane holds a job of this run."""
        job = self._ledger.jobs.get(key)
        return job is not None and job.lane == lane and job.is_held and key in self.run

    def settle(self, result: JobResult, lane: str) -> None:
        """Record what a lane reports about a job that it held."""
        key = result.key
        if key not in self.run or self.job(key).status is Status.COMMITTED:
            return
        if result.kind in ("committed", "reused"):
            self.record(result.kind, key, lane=lane, step=result.step, seconds=result.seconds)
            self._notify(key, result.kind)
            return
        if not self.is_held_by(key, lane):
            return
        if result.kind == "released":
            self.record("released", key, lane=lane, step=result.step, **result.why)
            self.enqueue(key)
        elif result.kind == "failed":
            self._fail(key, lane, result)
        else:
            self.record(result.kind, key, lane=lane, **result.why)
            self._notify(key, f"{result.kind}: {result.summary}", is_bad=True)

    def _fail(self, key: str, lane: str, result: JobResult) -> None:
        job = self.record("failed", key, lane=lane, **result.why)
        if job.failures < self._settings.max_failures:
            self.record("retry", key)
            self.enqueue(key)
            self._notify(key, f"failed, will be tried again: {result.reason}", is_bad=True)
            return
        self.record("quarantined", key, **result.why)
        what = f"quarantined after {job.failures} failures"
        self._notify(key, f"{what}: {result.summary}", is_bad=True)

    def hand_back(self, key: str, lane: str, reason: str) -> None:
        """Take a job from this lane and queue it, unless another lane holds it."""
        if self.is_held_by(key, lane):
            self.record("released", key, lane=lane, reason=reason)
            self.enqueue(key)

    # -- all jobs of a lane -------------------------------------------------------------------

    def free(self, lane: str, kind: Literal["lost", "released"], reason: str) -> list[str]:
        """Queue every job that a lane holds; returns their keys."""
        keys = self.index.held_by(lane)
        any_begun = any(self.job(key).status is Status.TRAINING for key in keys)
        for key in keys:
            # if others had begun, a job that had not begun cannot have killed the lane
            is_innocent = any_begun and self.job(key).status is Status.LEASED
            self.record("released" if is_innocent else kind, key, lane=lane, reason=reason)
            self.enqueue(key)
        return keys

    def lane_lost(self, lane: str, reason: str) -> None:
        """Queue the jobs of a lane that died; quarantine jobs that repeatedly kill lanes."""
        for key in self.free(lane, "lost", reason):
            losses = self.job(key).losses
            if losses >= self._settings.max_losses:
                why = f"{losses} lanes died while they trained it"
                self.record("quarantined", key, reason=why, remedy=LETHAL_REMEDY)
                self._notify(key, f"quarantined: {why}", is_bad=True)

    # -- requests and priors ------------------------------------------------------------------

    def prior_is_ready(self, prior_key: str) -> None:
        """Queue the jobs that waited for a prior set."""
        self._ready_priors.add(prior_key)
        for key in self.queues.waiting_for(prior_key):
            self.enqueue(key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str) -> None:
        """Quarantine the jobs that wait for a prior set."""
        for key in self.queues.waiting_for(prior_key):
            self.record("quarantined", key, reason=reason, remedy=remedy)
            self._notify(key, f"quarantined: {reason}", is_bad=True)

    def cancel(self, keys: Iterable[str] | None, reason: str) -> int:
        """Cancel jobs that have not ended (None: all); returns how many."""
        cancelled = 0
        for key in self.run if keys is None else keys:
            if key in self.run and not self.job(key).is_final:
                self.record("cancelled", key, reason=reason, remedy=CANCELLED_REMEDY)
                cancelled += 1
        return cancelled

    def retry(self, keys: Iterable[str] | None) -> int:
        """Queue jobs that ended without an adapter (None: all); returns how many."""
        queued = 0
        for key in self.run if keys is None else keys:
            job = self.job(key) if key in self.run else None
            if job is not None and job.is_final and job.status is not Status.COMMITTED:
                self.record("retry", key)
                self.enqueue(key)
                queued += 1
        return queued

    # -- notices ------------------------------------------------------------------------------

    def notify(self, text: str, *, is_bad: bool = False) -> None:
        """Add a line for the user."""
        self.notices.add(self._clock(), text, is_bad=is_bad)

    def _notify(self, key: str, text: str, *, is_bad: bool = False) -> None:
        self.notify(f"{self.run.subject(key)}: {text}", is_bad=is_bad)

    # -- writing ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the ledger, and for a large run sometimes its tally.

        Raises:
            StoreError: if the store does not accept it; nothing is lost.
        """
        self._ledger.flush()
        if len(self.run) < TALLY_JOBS or not self._ledger.is_tally_outdated:
            return
        age_s = self._clock() - self._last_tally
        if not 0 <= age_s < TALLY_S or not self.index.num_open:
            self._last_tally = self._clock()
            self._ledger.write_tally(self.tally())

    def tally(self) -> Tally | None:
        """What `farm status` shows; None if there are too many failures for a small file."""
        failed = self.index.failed(TALLY_FAILURES)
        if failed is None:
            return None
        while self._commits and self._commits[0] < self._last - RATE_WINDOW_S:
            self._commits.popleft()
        return Tally(
            counts=self.index.counts,
            num_recent=len(self._commits),
            last=self._last,
            first_lease=self._ledger.first_lease,
            failures=[self._failure(self.job(key)) for key in failed],
        )

    def _failure(self, job: Job) -> dict[str, str]:
        return {
            "subject": self.run.subject(job.key),
            "status": str(job.status),
            "reason": job.reason,
            "remedy": job.remedy,
        }
