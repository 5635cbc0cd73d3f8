"""What a lane holds: the book that its threads share, and the words that it sends and receives.

Owns the lane's side of ``exchange``: which jobs it has, how far each is, what became of those that
ended, and what the dispatcher's orders change. Thread-safe; trains, prepares and publishes nothing.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from farm.store_trouble import TroubleNote
from farm.training.dispatch.messages import JobResult, LaneOrders, LaneReport, Lease
from farm.training.plan.shape import LaneShape

__all__ = ["LeasedJob", "JobTable"]

TOO_LARGE_REMEDY = (
    "lower `resolution_px`, `rank` or the rows of a step, or give lanes more with --gpu-fraction"
)
Stage = Literal["leased", "training", "publishing"]


@dataclass(slots=True)
class LeasedJob:
    """One job in this lane's hands."""

    lease: Lease
    stage: Stage = "leased"
    step: int = -1
    """Steps trained; -1 until it sits in a slot."""
    photos: tuple[Image.Image, ...] = ()
    """For the judge, while it sits in a slot."""
    is_dropped: bool = False
    """The dispatcher wants no more of it."""


class JobTable:
    """The book of one lane."""

    def __init__(self, lane: str, *, slots: int, prefetch: int) -> None:
        """``prefetch`` jobs beyond the slots are asked for, so that a free slot never waits."""
        self.lane, self.incarnation = lane, uuid.uuid4().hex[:8]
        self.slots = slots
        self.prefetch = prefetch
        self.shape: LaneShape | None = None
        self.alone = False
        self.rows_per_s = 0.0
        self.rss_bytes = 0
        self.changed = threading.Condition()
        """Notified when orders came or work was done."""
        self.is_stopping = False
        self.may_leave = False
        self.slot_limit: int | None = None
        self.is_short = False
        """Of memory: somebody ran out, and the lane has not shrunk yet."""
        self.trouble = TroubleNote()
        """What the lane's writes to the store come to."""
        self._jobs: dict[str, LeasedJob] = {}
        self._results: dict[str, JobResult] = {}
        self._fresh: deque[LeasedJob] = deque()

    # -- the training side --------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        """Slots of the trainer that the orders ask for."""
        if self.alone:
            return 1
        return min(self.slots, self.slot_limit or self.slots)

    def too_large(self, key: str) -> JobResult:
        """What becomes of a job that found too little memory: alone in a lane it is at fault."""
        if self.num_slots == 1:
            reason = "out of memory: it does not fit alone in a lane"
            return JobResult(key, "failed", reason, remedy=TOO_LARGE_REMEDY)
        return JobResult(key, "released", f"out of memory with {self.num_slots} slots")

    def take_fresh(self) -> LeasedJob | None:
        """The next lease that nobody has begun to prepare."""
        with self.changed:
            while self._fresh:
                job = self._fresh.popleft()
                if not job.is_dropped:
                    return job
            return None

    def mark(self, key: str, stage: Stage, step: int) -> None:
        """Note how far a job is."""
        with self.changed:
            job = self._jobs.get(key)
            if job is not None:
                job.stage, job.step = stage, step

    def end(self, result: JobResult) -> None:
        """A job has left this lane; the next word to the dispatcher tells it."""
        with self.changed:
            job = self._jobs.pop(result.key, None)
            if job is not None and not job.is_dropped:
                self._results[result.key] = result
            self.changed.notify_all()

    def is_wanted(self, key: str) -> bool:
        """Whether the lane still holds a job that was not dropped."""
        with self.changed:
            job = self._jobs.get(key)
            return job is not None and not job.is_dropped

    def dropped(self) -> set[str]:
        """Keys held that are to be let go; they leave the book with ``end``."""
        with self.changed:
            return {key for key, job in self._jobs.items() if job.is_dropped}

    @property
    def has_results(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._results)

    @property
    def num_held(self) -> int:
        """Jobs in the book."""
        with self.changed:
            return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a slot."""
        with self.changed:
            return sum(job.stage == "leased" for job in self._jobs.values())

    def release_all(self, reason: str) -> None:
        """Give back whatever is held."""
        with self.changed:
            for key, job in self._jobs.items():
                if not job.is_dropped:
                    step = max(0, job.step)
                    self._results[key] = JobResult(key, "released", reason, step=step)
            self._jobs.clear()
            self._fresh.clear()

    # -- the dispatcher's side ----------------------------------------------------------------

    def report(self, *, leaving: bool = False) -> LaneReport:
        """What the lane has to say now."""
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
            return 0  # the store is slow: do not train faster than it takes
        return max(0, self.slots + self.prefetch - (len(stages) - publishing))

    def obey(self, sent: LaneReport, orders: LaneOrders) -> None:
        """Take the dispatcher's answer to a report in."""
        with self.changed:
            for result in sent.results:
                self._results.pop(result.key, None)
            for key in orders.drop:
                if key in self._jobs:
                    self._jobs[key].is_dropped = True
            if orders.leases:
                self.shape, self.alone = orders.shape, orders.alone
            for lease in orders.leases:
                job = LeasedJob(lease)
                self._jobs[lease.assignment.spec.key] = job
                self._fresh.append(job)
            self.is_stopping |= orders.stop
            self.may_leave = orders.leave
            self.slot_limit = orders.slots
            self.changed.notify_all()
