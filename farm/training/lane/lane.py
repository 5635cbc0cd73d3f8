"""A lane: one base, many slots, and a loop that trains while there is work.

Owns the training thread: fill slots, step, and handle the results of each step. Other threads
prepare jobs (``prefetch``), write to the store (``publisher``) and communicate with the dispatcher
(``heartbeat``). Independent of Ray: ``cluster.lanes`` runs it in Ray Train workers, and
``run.in_process`` in the current process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

import torch

from farm.base.device.queues import Queue, mark
from farm.base.interface import Base
from farm.errors import FarmError
from farm.storage import Store
from farm.training.dispatch.messages import JobResult
from farm.training.lane.finalizer import Finalizer
from farm.training.lane.finishing import Finishing
from farm.training.lane.heartbeat import Heartbeat
from farm.training.lane.job_table import JobTable, LaneJob
from farm.training.lane.prefetch import Prefetcher
from farm.training.lane.publisher import Publisher
from farm.training.lane.settings import Judge, LaneSettings, Link
from farm.training.lane.slot_pool import SlotPool
from farm.training.slots.slot import NOT_FINITE_REMEDY
from farm.training.slots.trainer import SlotTrainer, StepReport

__all__ = ["Lane"]

LOG = logging.getLogger(__name__)

IDLE_S = 0.2


class Lane:
    """One lane. Create it and call ``run`` once."""

    def __init__(
        self,
        name: str,
        base: Base,
        store: Store,
        link: Link,
        settings: LaneSettings | None = None,
        *,
        judge: Judge | None = None,
    ) -> None:
        """Nothing starts before ``run``.

        Args:
            name: the lane's place in the run; a lane that replaces it gets the same name.
        """
        settings = settings or LaneSettings()
        self._table = table = JobTable(name, slots=settings.slots, prefetch=max(2, settings.slots))
        self._heartbeat = Heartbeat(table, link, beat_s=settings.beat_s)
        self._prefetcher = Prefetcher(
            base, store, table, link, num_threads=settings.prepare_threads
        )
        self._publisher = Publisher(
            store,
            base,
            settings.forms,
            table.end,
            num_threads=settings.publish_threads,
            trouble=table.trouble,
        )
        self._device = base.device
        self._finishing = Finishing(
            base,
            Finalizer(base, settings.samples, judge),
            self._publisher.publish,
            lambda key: table.end(table.too_large(key)),
            beside=settings.finish_beside,
            save=self._publisher.checkpoint,
            is_stopping=lambda: table.is_stopping,
        )
        self._is_crowded = False
        """A step ran out of memory while other work had some of it."""
        self._is_judging = judge is not None
        self._pool = SlotPool(
            base,
            checkpointing=settings.checkpointing,
            compile=settings.compile,
            before_close=self._wait_for_finishing if self._finishing.is_beside else None,
        )
        self._throughput = _Throughput()

    def run(self) -> None:
        """Train until the dispatcher has no more jobs, or orders a stop.

        Raises:
            LaneLost: if the dispatcher cannot be reached.
            Exception: any training error that no single job caused. The lane must be replaced; its
                jobs resume from their checkpoints.
        """
        self._heartbeat.start()
        self._prefetcher.start()
        try:
            with Queue(self._device, is_urgent=True).active(mark(self._device)):
                self._work()
        finally:
            self._prefetcher.end()
            try:
                self._finishing.close()
            finally:
                self._publisher.close()
                self._heartbeat.end()
                self._pool.close()
        if self._heartbeat.lost is not None:
            raise self._heartbeat.lost

    def _work(self) -> None:
        while self._heartbeat.lost is None and not self._table.is_stopping:
            if self._table.may_leave and not self._table.num_held:
                break
            self._iterate()
        if self._table.is_stopping:
            self._publisher.hurry()
        if self._heartbeat.lost is None:
            self._save_and_release_all()

    def stop(self) -> None:
        """Make ``run`` save all jobs, return them to the queue and end. Thread-safe."""
        self._table.is_stopping = True
        self._table.notify()

    # -- one iteration ------------------------------------------------------------------------

    def _iterate(self) -> None:
        """Apply orders, fill slots, then take one step or wait for something to do."""
        self._collect()
        if self._table.out_of_memory:  # not where it is raised: the failed pass still holds memory
            self._table.out_of_memory = False
            self._halve_slots()
        self._release_dropped()
        self._fill()
        if self._table.out_of_memory:
            return
        trainer = self._pool.trainer
        if trainer is not None and (trainer.active_slots or trainer.has_news):
            self._step(trainer)
            return
        self._table.wait(IDLE_S)

    def _step(self, trainer: SlotTrainer) -> None:
        began = time.perf_counter()
        try:
            report = trainer.step()
        except torch.OutOfMemoryError:
            self._run_out()
            return
        for slot in trainer.active_slots:
            self._table.mark(self._pool.jobs[slot].key, "training", trainer.steps_done(slot))
        try:
            self._handle(trainer, report)
        except torch.OutOfMemoryError:
            self._table.out_of_memory = True
            return
        rows = report.num_active * trainer.shape.rows
        self._table.rows_per_s = self._throughput.add(rows, time.perf_counter() - began)

    def _run_out(self) -> None:
        """After a step ran out of memory: try again without other work, then with fewer slots."""
        if self._finishing.is_busy:
            self._is_crowded = True
        else:
            self._table.out_of_memory = True

    def _collect(self) -> None:
        """Take note of samples and cards that were made beside training."""
        is_crowded, self._is_crowded = self._is_crowded, False
        if is_crowded:
            LOG.warning("samples and steps do not fit into memory together: they take turns now")
            self._finishing.is_beside = False
        try:
            self._finishing.collect(wait=is_crowded)
        except torch.OutOfMemoryError:
            self._table.out_of_memory = True

    def _wait_for_finishing(self) -> None:
        try:
            self._finishing.collect(wait=True)
        except torch.OutOfMemoryError:  # the caller frees memory
            LOG.warning("samples do not fit into memory")

    def _handle(self, trainer: SlotTrainer, report: StepReport) -> None:
        self._give_up_failed(report.failed)
        for slot in report.due_checkpoint:
            self._publisher.checkpoint(trainer.state(slot))
        if report.due_sample:
            specs = {slot: self._pool.jobs[slot].spec for slot in report.due_sample}
            self._finishing.sample(trainer, specs)
        if report.finished:
            self._finish(trainer, [slot for slot, _ in report.finished])

    def _finish(self, trainer: SlotTrainer, slots: Sequence[int]) -> None:
        jobs = {slot: self._pool.jobs[slot] for slot in slots}

        def release(slot: int) -> None:
            job, steps = jobs[slot], trainer.steps_trained(slot)
            self._pool.release(slot).reference_photos = ()
            self._table.mark(job.key, "publishing", steps)

        self._finishing.finish(
            trainer,
            {slot: job.assignment for slot, job in jobs.items()},
            {slot: job.reference_photos for slot, job in jobs.items()},
            release,
        )

    # -- filling slots ------------------------------------------------------------------------

    def _fill(self) -> None:
        """Put prepared jobs into free slots; drop slots that no job is waiting for."""
        table, num_admitted = self._table, 0
        try:
            while self._pool.has_room(
                num_slots=table.num_slots, num_ready=self._prefetcher.num_ready
            ):
                job = self._prefetcher.take()
                if job is None:
                    break
                num_admitted += self._admit(job)
            if num_admitted:
                table.notify()  # the dispatcher learns at once which jobs are training
            if not table.num_waiting:
                self._pool.drop_empty_slots()
        except torch.OutOfMemoryError:
            table.out_of_memory = True

    def _admit(self, job: LaneJob) -> bool:
        """Put one prepared job into a slot, or end it; returns whether it is training now."""
        table, shape = self._table, self._table.shape
        if not table.is_wanted(job.key):
            table.end(JobResult(job.key, "released"))
            return False
        assert shape is not None, "a job is ready, so its lease named a shape"
        try:
            step = self._pool.admit(job, shape, table.num_slots)
        except torch.OutOfMemoryError:
            table.end(table.too_large(job.key))
            raise
        except (FarmError, ValueError) as error:
            table.end(JobResult.of_error(job.key, "failed", error))
            return False
        job.release_inputs(keep_photos=self._is_judging)
        table.mark(job.key, "training", step)
        return True

    # -- emptying slots -----------------------------------------------------------------------

    def _release_dropped(self) -> None:
        """Free the slots of jobs that were cancelled or given to other lanes."""
        dropped = self._table.dropped()
        if not dropped:
            return
        for slot, job in list(self._pool.jobs.items()):
            if job.key in dropped:
                self._give_up(slot, JobResult(job.key, "released"))
        self._prefetcher.drop(dropped)

    def _halve_slots(self) -> None:
        """After running out of memory: continue with half the slots.

        The jobs resume from their checkpoints. A job that was alone in the lane has failed.
        """
        slots = self._table.num_slots
        jobs = list(self._pool.jobs.values())
        self._pool.close()
        for job in jobs:
            self._finishing.forget(job.key)
            self._table.end(self._table.too_large(job.key))
        self._table.slots = max(1, slots // 2)

    def _save_and_release_all(self) -> None:
        """Checkpoint every running job, and return all jobs to the queue."""
        self._wait_for_finishing()
        trainer = self._pool.trainer
        if trainer is not None:
            self._give_up_failed(trainer.take_failures())
            for slot in trainer.active_slots:
                self._publisher.checkpoint(trainer.state(slot))
        self._publisher.wait()
        self._table.release_all("its lane saved it and returned")

    def _give_up_failed(self, failed: Iterable[tuple[int, str, str]]) -> None:
        for slot, key, reason in failed:
            self._give_up(slot, JobResult(key, "failed", reason, remedy=NOT_FINITE_REMEDY))

    def _give_up(self, slot: int, result: JobResult) -> None:
        """Free a slot whose job ends without an adapter."""
        self._pool.release(slot)
        self._finishing.forget(result.key)
        self._table.end(result)


class _Throughput:
    """Rows per second, averaged over about the last ten seconds."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._rows = self._seconds = 0.0

    def add(self, rows: int, seconds: float) -> float:
        """Add a step and return the current rate."""
        keep = max(0.0, 1.0 - seconds / self._window_s)
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + seconds
        return self._rows / self._seconds if self._seconds else 0.0
