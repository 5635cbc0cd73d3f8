"""The jobs that a lane holds, and the reports and orders it exchanges with the dispatcher.

Owns the lane's side of ``exchange``: its jobs, their progress, the results of ended jobs, and the
effect of the dispatcher's orders. Thread-safe. Does not train, prepare or publish jobs.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from farm.intake.job import JobSpec
from farm.store_trouble import TroubleNote
from farm.training.dispatch.messages import Assignment, JobResult, LaneOrders, LaneReport
from farm.training.lane.encode import PreparedPhotos
from farm.training.plan.shape import LaneShape
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import PriorSet

__all__ = ["JobTable", "LaneJob"]

TOO_LARGE_REMEDY = (
    "lower `resolution_px`, `rank` or the rows of a step, or give lanes more with --gpu-fraction"
)
Stage = Literal["leased", "training", "publishing"]


@dataclass(slots=True)
class LaneJob:
    """One job in this lane, from its lease to the hand-over of its adapter."""

    assignment: Assignment
    may_resume: bool = False
    """Whether a checkpoint of it may exist."""
    stage: Stage = "leased"
    step: int = -1
    """Steps trained; -1 until it is in a slot."""
    photos: PreparedPhotos | None = None
    """Set by the prefetcher, like ``prior`` and ``state``; freed once the job is in a slot."""
    prior: PriorSet | None = None
    state: SlotState | None = None
    """The checkpoint that another lane left."""
    reference_photos: tuple[Image.Image, ...] = ()
    """For the judge, while the job is in a slot."""
    is_dropped: bool = False
    """The dispatcher has taken it from this lane."""

    @property
    def key(self) -> str:
        """The job's key."""
        return self.assignment.spec.key

    @property
    def spec(self) -> JobSpec:
        """The job's specification."""
        return self.assignment.spec

    def release_inputs(self, *, keep_photos: bool) -> None:
        """Free the data that only the admission to a slot needs.

        Args:
            keep_photos: whether a judge will compare the adapter with its photos.
        """
        if keep_photos and self.photos is not None:
            self.reference_photos = self.photos.pictures
        self.photos = self.prior = self.state = None


class JobTable:
    """All jobs of one lane."""

    def __init__(self, lane: str, *, slots: int, prefetch: int) -> None:
        """Asks for ``prefetch`` jobs beyond the slots, so that a free slot never waits."""
        self.lane, self.incarnation = lane, uuid.uuid4().hex[:8]
        self.slots = slots
        self.prefetch = prefetch
        self.shape: LaneShape | None = None
        self.alone = False
        self.rows_per_s = 0.0
        self.rss_bytes = 0
        self.changed = threading.Condition()
        """Notified when orders arrive and when work is done."""
        self.is_stopping = False
        self.may_leave = False
        self.slot_limit: int | None = None
        self.out_of_memory = False
        """A thread ran out of memory, and the lane has not reduced its slots yet."""
        self.trouble = TroubleNote()
        """Trouble with the lane's writes to the store."""
        self._jobs: dict[str, LaneJob] = {}
        self._results: dict[str, JobResult] = {}
        self._unprepared: deque[LaneJob] = deque()

    def notify(self) -> None:
        """Wake the threads that wait for a change."""
        with self.changed:
            self.changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait for a change."""
        with self.changed:
            self.changed.wait(timeout=timeout_s)

    # -- the training side --------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Slots that the trainer may have under the current orders."""
        if self.alone:
            return 1
        return min(self.slots, self.slot_limit or self.slots)

    def too_large(self, key: str) -> JobResult:
        """The result of a job that ran out of memory: it failed if it was alone in the lane."""
        if self.num_slots == 1:
            reason = "out of memory: it does not fit alone in a lane"
            return JobResult(key, "failed", reason, remedy=TOO_LARGE_REMEDY)
        return JobResult(key, "released", f"out of memory with {self.num_slots} slots")

    def take_unprepared(self) -> LaneJob | None:
        """The next job whose preparation has not begun."""
        with self.changed:
            while self._unprepared:
                job = self._unprepared.popleft()
                if not job.is_dropped:
                    return job
            return None

    def mark(self, key: str, stage: Stage, step: int) -> None:
        """Record a job's progress."""
        with self.changed:
            job = self._jobs.get(key)
            if job is not None:
                job.stage, job.step = stage, step

    def end(self, result: JobResult) -> None:
        """Remove a job; its result goes out with the next report."""
        with self.changed:
            job = self._jobs.pop(result.key, None)
            if job is not None and not job.is_dropped:
                self._results[result.key] = result
            self.changed.notify_all()

    def is_wanted(self, key: str) -> bool:
        """Whether the lane holds a job that was not dropped."""
        with self.changed:
            job = self._jobs.get(key)
            return job is not None and not job.is_dropped

    def dropped(self) -> set[str]:
        """Keys of dropped jobs; ``end`` removes them."""
        with self.changed:
            return {key for key, job in self._jobs.items() if job.is_dropped}

    @property
    def has_results(self) -> bool:
        """Whether there are results to report."""
        return bool(self._results)

    @property
    def num_held(self) -> int:
        """Jobs in the table."""
        with self.changed:
            return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a slot."""
        with self.changed:
            return sum(job.stage == "leased" for job in self._jobs.values())

    def release_all(self, reason: str) -> None:
        """Give back every job."""
        with self.changed:
            for key, job in self._jobs.items():
                if not job.is_dropped:
                    step = max(0, job.step)
                    self._results[key] = JobResult(key, "released", reason, step=step)
            self._jobs.clear()
            self._unprepared.clear()

    # -- the dispatcher's side ----------------------------------------------------------------

    def report(self, *, leaving: bool = False) -> LaneReport:
        """The lane's current report."""
        with self.changed:
            return LaneReport(
                lane=self.lane,
                incarnation=self.incarnation,
                slots=self.slots,
                held={key: job.step for key, job in self._jobs.items()},
                results=tuple(self._results.values()),
                want=0 if leaving or self.is_stopping else self._num_wanted(),
                shape=self.shape,
                alone=self.alone,
                leaving=leaving,
                rows_per_s=self.rows_per_s,
                rss_bytes=self.rss_bytes,
                pid=os.getpid(),
                trouble=self.trouble.current(),
            )

    def _num_wanted(self) -> int:
        stages = [job.stage for job in self._jobs.values()]
        publishing = stages.count("publishing")
        if publishing > 2 * (self.slots + self.prefetch):
            return 0  # the store is slow: do not train faster than it accepts adapters
        return max(0, self.slots + self.prefetch - (len(stages) - publishing))

    def apply(self, sent: LaneReport, orders: LaneOrders) -> None:
        """Apply the dispatcher's answer to a report."""
        with self.changed:
            for result in sent.results:
                self._results.pop(result.key, None)
            for key in orders.drop:
                if key in self._jobs:
                    self._jobs[key].is_dropped = True
            if orders.leases:
                self.shape, self.alone = orders.shape, orders.alone
            for lease in orders.leases:
                job = LaneJob(lease.assignment, lease.may_resume)
                self._jobs[job.key] = job
                self._unprepared.append(job)
            self.is_stopping |= orders.stop
            self.may_leave = orders.leave
            self.slot_limit = orders.slots
            self.changed.notify_all()
