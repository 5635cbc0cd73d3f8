"""The dispatcher: which lane trains which job next, and what becomes of jobs that fail.

Owns leases, retries, quarantine and the ledger's writing. Plain Python that runs anywhere: in the
driver for a run in one process, in a Ray actor beside the driver for a run on a cluster. It keeps
nothing that the store cannot give back, so it can be restarted at any instant.

A lane speaks to it with one call, ``exchange``: what it holds, what became of what it held, how
many more it wants. The answer settles everything else, so a lost answer does no harm: jobs that
were leased but that the lane does not know of go back to the queue with its next word.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from farm.errors import StoreError, StoreUnusable
from farm.store_trouble import TroubleNote, worst_of
from farm.training.dispatch.lanes import LaneEntry, NoticeLog, group_of, waiting_in_full_lanes
from farm.training.dispatch.ledger import Job, Ledger, Status, counts
from farm.training.dispatch.messages import (
    Assignment,
    DispatchSettings,
    JobResult,
    LaneOrders,
    LaneReport,
    Lease,
    Notice,
    Snapshot,
)
from farm.training.dispatch.queues import Group, JobQueues
from farm.training.plan.shape import run_shapes

__all__ = ["Dispatcher"]

CANCELLED_REMEDY = "`farm retry` queues it again"
LETHAL_REMEDY = (
    "see Ray's logs for why they died, most often for memory; make it smaller (`resolution_px`, "
    "`rank`), then `farm retry`"
)

Clock = Callable[[], float]


class Dispatcher:
    """Gives jobs to lanes and writes down what becomes of them. Not thread-safe: one caller at a
    time, as a Ray actor or a lock guarantees."""

    def __init__(
        self,
        assignments: Sequence[Assignment],
        ledger: Ledger,
        *,
        resolution_px: int,
        ready_priors: Iterable[str] = (),
        committed: Iterable[str] = (),
        settings: DispatchSettings | None = None,
        clock: Clock = time.time,
    ) -> None:
        """Take over a run: replayed ledger, what the store has, and all its jobs.

        Args:
            assignments: all jobs of the run, one per key, in the manifest's order.
            ledger: replayed; leases in it are of a driver that is gone, and void.
            resolution_px: the base's own.
            ready_priors: keys of the prior sets that are whole in the store.
            committed: keys of the jobs whose adapters are in the store.
        """
        self._settings = settings or DispatchSettings()
        self._ledger, self._clock = ledger, clock
        self._assignments = {item.spec.key: item for item in assignments}
        self._order = {key: number for number, key in enumerate(self._assignments)}
        self._shapes = run_shapes(
            {key: item.spec.subject.recipe for key, item in self._assignments.items()},
            resolution_px,
        )
        self._ready_priors = set(ready_priors)
        self._queues = JobQueues(self._is_queued)
        self._lanes: dict[str, LaneEntry] = {}
        self.trouble = TroubleNote()
        """What writing the ledger comes to."""
        self._slot_limits: dict[str, int] = {}
        self._leases_of: dict[str, set[str]] = {}
        self._leased_before = {key for key, job in ledger.jobs.items() if job.changed}
        self._first_lane_at: float | None = None
        self._most_lanes = 0
        self._stop = False
        self._news = NoticeLog()
        self._take_over(set(committed))
        ledger.flush()

    def _take_over(self, committed: set[str]) -> None:
        for key in self._assignments:
            job = self._ledger.append("queued", key)
            if key in committed:
                if job.status is not Status.COMMITTED:
                    self._ledger.append("reused", key)
                continue
            if job.status is Status.COMMITTED:
                reason = "its adapter is no longer in the store"
                job = self._ledger.append("vanished", key, reason=reason)
            elif job.is_held:
                reason = "the driver of this run was restarted"
                job = self._ledger.append("released", key, lane=job.lane, reason=reason)
            elif job.status is Status.FAILED or job.status is Status.REJECTED:
                job = self._ledger.append("retry", key)
            if job.status is Status.QUEUED:
                self._enqueue(key)

    # -- the lanes' side ----------------------------------------------------------------------

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Settle everything with one lane. Safe to be repeated."""
        now = self._clock()
        lane = self._meet(report, now)
        name = lane.name(report.lane)
        for result in report.results:
            self._settle(result, name)
        self._reconcile(report, lane, name, now)
        drop = tuple(key for key in report.held if not self._is_held_by(key, name))
        if report.leaving:
            self._release_all(report.lane, "released", "its lane returned")
            return LaneOrders(drop=drop, leave=True)
        if self._stop:
            return LaneOrders(drop=drop, stop=True)
        group, leases = self._grant(report, lane, name, now)
        if report.held or leases:
            lane.busy = now
        leave = self.is_done or (
            not leases
            and not report.held
            and not self._queues.num_waiting()
            and not self._queues.num_ready()
            and now - lane.busy > self._settings.idle_s
        )
        shape, alone = group if group is not None else (None, False)
        limit = self._slot_limits.get(report.lane)
        return LaneOrders(leases, shape, alone, drop, leave=leave, slots=limit)

    def _meet(self, report: LaneReport, now: float) -> LaneEntry:
        """The lane that reports; a new process in an old one's place ends the old one."""
        lane = self._lanes.get(report.lane)
        if lane is None or lane.incarnation != report.incarnation:
            if lane is not None:
                self._bury(report.lane, "its lane died and was replaced")
            lane = LaneEntry(report.incarnation, report.slots, now, busy=now)
            self._lanes[report.lane] = lane
            self._most_lanes = max(self._most_lanes, len(self._lanes))
        if report.slots and report.slots < lane.slots:
            self._slot_limits[report.lane] = report.slots
            self._tell(f"lane {report.lane} ran out of memory: {report.slots} slots from now on")
        if report.slots:
            lane.slots = report.slots
        lane.seen = now
        lane.group = group_of(report)
        lane.held = dict(report.held)
        lane.rows_per_s, lane.rss_bytes = report.rows_per_s, report.rss_bytes
        lane.pid, lane.trouble = report.pid, report.trouble
        return lane

    def _settle(self, result: JobResult, name: str) -> None:
        key = result.key
        before = self._ledger.jobs.get(key)
        if before is None or before.status is Status.COMMITTED:
            return
        if result.kind in ("committed", "reused"):
            self._ledger.append(
                result.kind, key, lane=name, step=result.step, seconds=result.seconds
            )
            self._tell(f"{self._label(key)}: {result.kind}")
            return
        if not self._is_held_by(key, name):
            return
        if result.kind == "released":
            self._ledger.append("released", key, lane=name, step=result.step, **result.why)
            self._enqueue(key)
        elif result.kind == "failed":
            self._fail(key, name, result)
        else:
            self._ledger.append(result.kind, key, lane=name, **result.why)
            self._tell(f"{self._label(key)}: {result.kind}: {result.told}", is_bad=True)

    def _fail(self, key: str, name: str, result: JobResult) -> None:
        job = self._ledger.append("failed", key, lane=name, **result.why)
        if job.failures < self._settings.max_failures:
            self._ledger.append("retry", key)
            self._enqueue(key)
            self._tell(
                f"{self._label(key)}: failed, will be tried again: {result.reason}", is_bad=True
            )
            return
        self._ledger.append("quarantined", key, **result.why)
        what = f"quarantined after {job.failures} failures"
        self._tell(f"{self._label(key)}: {what}: {result.told}", is_bad=True)

    def _reconcile(self, report: LaneReport, lane: LaneEntry, name: str, now: float) -> None:
        """Note progress; take back what was leased in an answer that the lane never got."""
        is_due = now - lane.journaled >= self._settings.journal_s
        expires = now + self._settings.lease_s
        for key, step in report.held.items():
            job = self._ledger.jobs.get(key)
            if step >= 0 and job is not None and (is_due or job.status is Status.LEASED):
                self._ledger.append("progress", key, lane=name, step=step, expires=expires)
        if is_due:
            lane.journaled = now
        for key in self._leases_of.pop(name, ()):
            if key not in report.held:
                self._hand_back(key, name, "its lease got lost")
        self._leases_of[name] = set(report.held)

    def _grant(
        self, report: LaneReport, lane: LaneEntry, name: str, now: float
    ) -> tuple[Group | None, tuple[Lease, ...]]:
        if report.want <= 0:
            return None, ()
        if not report.held and not self._queues.num_ready():
            for other, waiting in waiting_in_full_lanes(self._lanes, name):
                self._hand_back(waiting, other, "another lane has a free slot")
        group = group_of(report)
        if group is None or (not report.held and not self._queues.has(group)):
            group = self._queues.best(self._lanes_by_group())
        if group is None or (group.alone and report.held):
            return group, ()
        most = 1 if group.alone else self._fair_share(group, lane, now) - len(report.held)
        expires = now + self._settings.lease_s
        leases: list[Lease] = []
        while len(leases) < min(report.want, most):
            key = self._queues.pop(group)
            if key is None:
                break
            self._ledger.append("leased", key, lane=name, expires=expires)
            leases.append(Lease(self._assignments[key], key in self._leased_before))
            self._leased_before.add(key)
            self._leases_of.setdefault(name, set()).add(key)
        return group, tuple(leases)

    def _fair_share(self, group: Group, lane: LaneEntry, now: float) -> int:
        """Jobs of a group that one lane may hold, so that its prefetching starves no other lane."""
        if self._first_lane_at is None:
            self._first_lane_at = now
        awaited = 0
        if now - self._first_lane_at < self._settings.expect_s:
            awaited = max(0, self._settings.expected_lanes - self._most_lanes)
        sharing = [
            other
            for other in self._lanes.values()
            if other is lane or other.group == group or not other.held
        ]
        held = sum(len(other.held) for other in sharing)
        return math.ceil((self._queues.size(group) + held) / (len(sharing) + awaited))

    def _lanes_by_group(self) -> dict[Group, int]:
        busy = [lane.group for lane in self._lanes.values() if lane.group and lane.held]
        return Counter(busy)

    # -- the driver's side --------------------------------------------------------------------

    def prior_is_ready(self, prior_key: str) -> None:
        """A prior set is whole in the store: the jobs that waited for it may start."""
        self._ready_priors.add(prior_key)
        for key in self._queues.waiting_for(prior_key):
            self._enqueue(key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str = "") -> None:
        """A prior set cannot be had: its jobs cannot be trained in this run."""
        for key in self._queues.waiting_for(prior_key):
            self._ledger.append("quarantined", key, reason=reason, remedy=remedy)
            self._tell(f"{self._label(key)}: quarantined: {reason}", is_bad=True)

    def cancel(self, keys: Iterable[str] | None = None, reason: str = "cancelled") -> int:
        """Cancel jobs (None: all that are not done); say how many. Lanes drop them at once."""
        chosen = list(self._assignments) if keys is None else list(keys)
        cancelled = 0
        for key in chosen:
            job = self._ledger.jobs.get(key)
            if job is not None and not job.is_final:
                self._ledger.append("cancelled", key, reason=reason, remedy=CANCELLED_REMEDY)
                cancelled += 1
        return cancelled

    def retry(self, keys: Iterable[str] | None = None) -> int:
        """Queue quarantined, rejected and cancelled jobs anew (None: all of them)."""
        chosen = list(self._assignments) if keys is None else list(keys)
        queued = 0
        for key in chosen:
            job = self._ledger.jobs.get(key)
            if job is not None and job.is_final and job.status is not Status.COMMITTED:
                self._ledger.append("retry", key)
                self._enqueue(key)
                queued += 1
        return queued

    def stop(self) -> None:
        """Tell every lane to save, release and return."""
        self._stop = True

    def tick(self) -> None:
        """Bury silent lanes and write the ledger. Call about once a second.

        Raises:
            StoreError, StoreUnusable: if the ledger cannot be written; nothing is lost, call
                again.
        """
        for place, lane in list(self._lanes.items()):
            if self._clock() - lane.seen > self._settings.lease_s:
                self._bury(place, f"its lane was silent for {self._settings.lease_s:.0f} s")
        try:
            self._ledger.flush()
        except (StoreError, StoreUnusable) as error:
            self.trouble.failed(error)
            raise
        self.trouble.succeeded()

    def lane_died(self, place: str) -> None:
        """A lane is known to be dead; its jobs go to others at once."""
        if place in self._lanes:
            self._bury(place, "its lane died")

    @property
    def is_done(self) -> bool:
        """Whether every job has come to an end."""
        return all(self._ledger.jobs[key].is_final for key in self._assignments)

    def jobs(self) -> list[Job]:
        """Every job of the run, in the manifest's order."""
        return [self._ledger.jobs[key] for key in self._assignments]

    def news(self, since: int = 0) -> list[Notice]:
        """Lines for the user with at least this number."""
        return self._news.since(since)

    def snapshot(self) -> Snapshot:
        """The run as the live view shows it."""
        now = self._clock()
        jobs = self.jobs()
        return Snapshot(
            counts=counts(jobs),
            num_jobs=len(jobs),
            done_share=self._done_share(jobs),
            lanes=tuple(lane.view(place, now) for place, lane in sorted(self._lanes.items())),
            waiting_for_priors=self._queues.num_waiting(),
            is_done=all(job.is_final for job in jobs),
            is_starved=bool(self._queues.num_ready()) and not self._lanes,
            trouble=worst_of(
                [self.trouble.current(), *(lane.trouble for lane in self._lanes.values())]
            ),
        )

    # -- inside -------------------------------------------------------------------------------

    def _enqueue(self, key: str) -> None:
        spec = self._assignments[key].spec
        prior_key = spec.prior_key
        if prior_key is not None and prior_key not in self._ready_priors:
            self._queues.hold(prior_key, key)
            return
        alone = self._ledger.jobs[key].losses >= self._settings.lone_after_losses
        group = Group(self._shapes[key], alone)
        self._queues.push(group, key, priority=spec.subject.priority, order=self._order[key])

    def _is_queued(self, key: str) -> bool:
        return self._ledger.jobs[key].status is Status.QUEUED

    def _bury(self, place: str, reason: str) -> None:
        self._tell(f"lane {place}: {reason}", is_bad=True)
        for key in self._release_all(place, "lost", reason):
            job = self._ledger.jobs[key]
            if job.losses >= self._settings.max_losses:
                why = f"{job.losses} lanes died while they trained it"
                self._ledger.append("quarantined", key, reason=why, remedy=LETHAL_REMEDY)
                self._tell(f"{self._label(key)}: quarantined: {why}", is_bad=True)

    def _release_all(self, place: str, kind: Literal["lost", "released"], reason: str) -> list[str]:
        """Free every job of a lane and forget the lane; return the freed keys."""
        lane = self._lanes.pop(place)
        name = lane.name(place)
        self._leases_of.pop(name, None)
        held = [job for job in self._ledger.jobs.values() if job.is_held and job.lane == name]
        any_begun = any(job.status is Status.TRAINING for job in held)
        keys = [job.key for job in held]
        for job in held:
            # what had not begun did not kill the lane, if anything had
            is_innocent = any_begun and job.status is Status.LEASED
            event = "released" if is_innocent else kind
            self._ledger.append(event, job.key, lane=name, reason=reason)
        for key in keys:
            if key in self._assignments:
                self._enqueue(key)
        return keys

    def _hand_back(self, key: str, name: str, reason: str) -> None:
        if self._is_held_by(key, name):
            self._ledger.append("released", key, lane=name, reason=reason)
            self._enqueue(key)

    def _is_held_by(self, key: str, name: str) -> bool:
        job = self._ledger.jobs.get(key)
        return job is not None and job.is_held and job.lane == name

    def _done_share(self, jobs: Sequence[Job]) -> float:
        live = {key: step for lane in self._lanes.values() for key, step in lane.held.items()}
        total = done = 0
        for job in jobs:
            steps = self._assignments[job.key].spec.subject.recipe.steps
            total += steps
            done += steps if job.is_final else min(steps, max(job.step, live.get(job.key, 0)))
        return done / total if total else 1.0

    def _label(self, key: str) -> str:
        assignment = self._assignments.get(key)
        return assignment.spec.subject.id if assignment is not None else key

    def _tell(self, text: str, *, is_bad: bool = False) -> None:
        self._news.tell(self._clock(), text, is_bad=is_bad)
