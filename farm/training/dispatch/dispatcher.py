"""The dispatcher: which lane trains which job next.

Owns the lanes, their leases and the distribution of jobs among them; ``run_state`` decides what
happens to a failed job. Plain Python: it runs in the driver for a run in one process, and in a Ray
actor beside the driver for a run on a cluster. All its state can be restored from the store, so it
can be restarted at any time.

A lane makes one call, ``exchange``: it reports the jobs it holds, how its other jobs ended and how
many more it wants. The response contains all its orders. A lost response does no harm: jobs that
were leased but are unknown to the lane return to the queue with its next report. The cost of an
exchange does not depend on the number of jobs or lanes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from farm.errors import StoreError, StoreUnusable
from farm.store_trouble import TroubleNote, worst_of
from farm.training.dispatch.lanes import LaneEntry, LaneTable, group_of
from farm.training.dispatch.ledger import Job, Ledger, Status
from farm.training.dispatch.messages import (
    Assignment,
    DispatchSettings,
    LaneOrders,
    LaneReport,
    Lease,
    Notice,
    Snapshot,
)
from farm.training.dispatch.queues import Group
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.dispatch.run_state import RunState

__all__ = ["Dispatcher"]

Clock = Callable[[], float]


class Dispatcher:
    """Leases jobs to lanes and records their outcomes. Not thread-safe: a Ray actor or a lock must
    guarantee one caller at a time."""

    def __init__(
        self,
        assignments: Sequence[Assignment] | RunJobs,
        ledger: Ledger,
        *,
        resolution_px: int,
        ready_priors: Iterable[str] = (),
        committed: Iterable[str] = (),
        settings: DispatchSettings | None = None,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        """Take over a run.

        Args:
            assignments: all jobs of the run, one per key, in the manifest's order.
            ledger: replayed; its leases belong to an earlier driver and are void.
            resolution_px: the base's own.
            ready_priors: keys of the prior sets that are complete in the store.
            committed: keys of the jobs whose adapters are in the store.
            clock: measures how long lanes are silent; one that does not jump.
            wall_clock: for the times that users and the ledger see.
        """
        self._wall_clock = wall_clock
        self._settings, self._clock = settings or DispatchSettings(), clock
        self._run = assignments if isinstance(assignments, RunJobs) else RunJobs.of(assignments)
        self._state = RunState(
            self._run,
            ledger,
            resolution_px=resolution_px,
            ready_priors=ready_priors,
            settings=self._settings,
            clock=wall_clock,
        )
        self._queues = self._state.queues
        self._lanes = LaneTable()
        self.trouble = TroubleNote()
        """Trouble with writing the ledger."""
        self._slot_limits: dict[str, int] = {}
        self._first_lane_at: float | None = None
        self._most_lanes = 0
        self._stop = False
        self._state.take_over(frozenset(committed))
        try:
            self._state.flush()
        except (StoreError, StoreUnusable) as error:
            self.trouble.failed(error)
            raise
        self.trouble.succeeded()

    # -- the lanes' side ----------------------------------------------------------------------

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Process a lane's report and return its orders. Safe to repeat."""
        now = self._clock()
        lane = self._meet(report, now)
        name = lane.name(report.lane)
        for result in report.results:
            self._state.settle(result, name)
        self._reconcile(report, lane, name, now)
        drop = tuple(key for key in report.held if not self._state.is_held_by(key, name))
        if report.leaving:
            self._lanes.pop(report.lane)
            self._state.free(name, "released", "its lane returned")
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
        """The reporting lane; a new process in its place means that the old one has died."""
        lane = self._lanes.get(report.lane)
        if lane is None or lane.incarnation != report.incarnation:
            if lane is not None:
                self._bury(report.lane, "its lane died and was replaced")
            lane = LaneEntry(report.incarnation, report.slots, now, busy=now)
            self._lanes.add(report.lane, lane)
            self._most_lanes = max(self._most_lanes, len(self._lanes))
        if report.slots and report.slots < lane.slots:
            self._slot_limits[report.lane] = report.slots
            self._state.notify(
                f"lane {report.lane} ran out of memory: {report.slots} slots from now on"
            )
        self._lanes.update(lane, report, now)
        return lane

    def _reconcile(self, report: LaneReport, lane: LaneEntry, name: str, now: float) -> None:
        """Note progress; take back jobs leased in a response that the lane never received."""
        state = self._state
        is_due = now - lane.journaled >= self._settings.journal_s
        expires = self._wall_clock() + self._settings.lease_s
        for key, step in report.held.items():
            if step < 0 or not state.is_held_by(key, name):
                continue
            job = state.job(key)
            if is_due or job.status is Status.LEASED:
                job = state.record("progress", key, lane=name, step=step, expires=expires)
            state.index.note_live(job, step)
        if is_due:
            lane.journaled = now
        for key in state.index.held_by(name):
            if key not in report.held:
                state.hand_back(key, name, "its lease was lost on the way to the lane")

    def _grant(
        self, report: LaneReport, lane: LaneEntry, name: str, now: float
    ) -> tuple[Group | None, tuple[Lease, ...]]:
        if report.want <= 0:
            return None, ()
        if not report.held and not self._queues.num_ready():
            for other, waiting in self._lanes.take_waiting(name):
                self._state.hand_back(waiting, other, "another lane has a free slot")
        group = group_of(report)
        if group is None or (not report.held and not self._queues.has(group)):
            group = self._queues.best(self._lanes.num_busy)
        if group is None or (group.alone and report.held):
            return group, ()
        most = 1 if group.alone else self._fair_share(group, lane, now) - len(report.held)
        leases: list[Lease] = []
        while len(leases) < min(report.want, most):
            key = self._queues.pop(group)
            if key is None:
                break
            leases.append(self._lease(key, name))
        return group, tuple(leases)

    def _lease(self, key: str, lane: str) -> Lease:
        expires = self._wall_clock() + self._settings.lease_s
        may_resume = self._state.was_started or bool(self._state.job(key).lane)
        self._state.record("leased", key, lane=lane, expires=expires)
        return Lease(self._run.assignment(key), may_resume)

    def _fair_share(self, group: Group, lane: LaneEntry, now: float) -> int:
        """Jobs of a group that one lane may hold, so that prefetching starves no other lane."""
        if self._first_lane_at is None:
            self._first_lane_at = now
        awaited = 0
        if now - self._first_lane_at < self._settings.expect_s:
            awaited = max(0, self._settings.expected_lanes - self._most_lanes)
        num_lanes, num_held = self._lanes.sharing(group, lane)
        return math.ceil((self._queues.size(group) + num_held) / (num_lanes + awaited))

    # -- the driver's side --------------------------------------------------------------------

    def prior_is_ready(self, prior_key: str) -> None:
        """Note that a prior set is complete in the store, and queue the jobs that waited for it."""
        self._state.prior_is_ready(prior_key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str = "") -> None:
        """Note that a prior set cannot be generated; its jobs cannot be trained in this run."""
        self._state.prior_failed(prior_key, reason, remedy)

    def is_prior_needed(self, prior_key: str) -> bool:
        """Whether a job that has not ended trains against a prior set."""
        return self._state.index.is_prior_needed(prior_key)

    def cancel(self, keys: Iterable[str] | None = None, reason: str = "cancelled") -> int:
        """Cancel jobs that have not ended (None: all); returns how many. Lanes drop them with
        their next report."""
        return self._state.cancel(keys, reason)

    def retry(self, keys: Iterable[str] | None = None) -> int:
        """Queue quarantined, rejected and cancelled jobs again (None: all); returns how many."""
        return self._state.retry(keys)

    def stop(self) -> None:
        """Order every lane to save its jobs, release them and return."""
        self._stop = True

    def tick(self) -> None:
        """Declare silent lanes dead and write the ledger. Call about once a second.

        Raises:
            StoreError, StoreUnusable: if the ledger cannot be written; nothing is lost, call
                again.
        """
        oldest = self._clock() - self._settings.lease_s
        for place in self._lanes.silent_since(oldest):
            self._bury(place, f"its lane was silent for {self._settings.lease_s:.0f} s")
        self._state.flush()

    def lane_died(self, place: str) -> None:
        """Note that a lane is dead; its jobs are queued for others at once."""
        if place in self._lanes:
            self._bury(place, "its lane died")

    def _bury(self, place: str, reason: str) -> None:
        self._state.notify(f"lane {place}: {reason}", is_bad=True)
        lane = self._lanes.pop(place)
        self._state.lane_lost(lane.name(place), reason)

    @property
    def is_done(self) -> bool:
        """Whether every job has ended."""
        return not self._state.index.num_open

    def jobs(self) -> list[Job]:
        """Every job of the run, in the manifest's order."""
        return [self._state.job(key) for key in self._run]

    def news(self, since: int = 0) -> list[Notice]:
        """Lines for the user with at least this number."""
        return self._state.notices.since(since)

    def snapshot(self) -> Snapshot:
        """The run as the live view shows it."""
        index = self._state.index
        return Snapshot(
            counts=index.counts,
            num_jobs=len(self._run),
            done_share=index.done_share,
            dropped_share=index.dropped_share,
            lanes=self._lanes.views(),
            waiting_for_priors=self._queues.num_waiting(),
            is_done=self.is_done,
            trouble=worst_of([self.trouble.current(), *self._lanes.troubles]),
            at=self._clock(),
        )
