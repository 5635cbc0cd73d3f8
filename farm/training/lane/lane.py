"""A lane: one base, many slots, and a loop that never waits while there is work.

Owns the training thread: fill slots, step, and settle what each step brought. The threads beside
it prepare jobs (``preparer``), write to the store (``publisher``) and speak with the dispatcher
(``messenger``). Knows no Ray; ``lanes`` runs it in Ray Train workers, ``local`` in this process.
"""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from farm.base.interface import Base, Conditioning
from farm.errors import FarmError
from farm.storage import Store
from farm.training.dispatch.messages import JobResult
from farm.training.lane.encode import assemble_job
from farm.training.lane.finalizer import Finalizer
from farm.training.lane.heartbeat import Heartbeat
from farm.training.lane.job_table import JobTable, LeasedJob
from farm.training.lane.prefetch import Prefetcher, ReadyJob
from farm.training.lane.publisher import Publisher
from farm.training.lane.settings import Judge, LaneSettings, Link
from farm.training.plan.shape import LaneShape
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import TrainingJob
from farm.training.slots.slot import NOT_FINITE_REMEDY
from farm.training.slots.trainer import SlotTrainer, StepReport

__all__ = ["Lane"]

KEPT_PROMPTS = 512
"""Encoded prompts kept at hand; most subjects share theirs."""
IDLE_S = 0.2


class Lane:
    """One lane's whole life. Build it, ``run`` it once."""

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
            name: the lane's place in the run; the lane that replaces it has the same.
        """
        self._settings = how = settings or LaneSettings()
        self._base, self._store = base, store
        self._held = JobTable(name, slots=how.slots, prefetch=max(2, how.slots))
        self._messenger = Heartbeat(self._held, link, beat_s=how.beat_s)
        self._preparer = Prefetcher(base, store, self._held, link, num_threads=how.prepare_threads)
        self._publisher = Publisher(
            store,
            base,
            how.forms,
            self._held.end,
            num_threads=how.publish_threads,
            trouble=self._held.trouble,
        )
        self._finisher = Finalizer(base, how.samples, judge)
        self._is_judging = judge is not None
        self._trainer: SlotTrainer | None = None
        self._jobs: dict[int, LeasedJob] = {}
        self._prompts: OrderedDict[str, tuple[Tensor, Conditioning]] = OrderedDict()
        self._speed = _Speed()

    def run(self) -> None:
        """Work until the dispatcher has nothing more, or says stop.

        Raises:
            LaneLost: if the dispatcher is gone.
            Exception: whatever the training raised that no single job is to blame for; the lane
                is to be replaced, and its jobs resume from their checkpoints.
        """
        self._messenger.start()
        self._preparer.start()
        try:
            while self._messenger.lost is None and not self._held.is_stopping:
                if self._held.may_leave and not self._held.num_held:
                    break
                self._turn()
            if self._messenger.lost is None:
                self._park()
        finally:
            self._preparer.end()
            self._publisher.close()
            self._messenger.end()
            self._close_trainer()
        if self._messenger.lost is not None:
            raise self._messenger.lost

    def stop(self) -> None:
        """Make ``run`` save every job, give all back and return. From any thread."""
        with self._held.changed:
            self._held.is_stopping = True
            self._held.changed.notify_all()

    # -- one turn -----------------------------------------------------------------------------

    def _turn(self) -> None:
        """Settle orders, fill slots, take one step or wait for something to do."""
        if self._held.is_short:  # not where it was noticed: the failed pass holds its memory there
            self._held.is_short = False
            self._shrink()
        self._let_go()
        self._fill()
        if self._held.is_short:
            return
        if self._trainer is not None and self._trainer.active_slots:
            self._step(self._trainer)
            return
        with self._held.changed:
            self._held.changed.wait(timeout=IDLE_S)

    def _step(self, trainer: SlotTrainer) -> None:
        began = time.perf_counter()
        try:
            report = trainer.step()
            for slot in trainer.active_slots:
                self._held.mark(self._key(slot), "training", trainer.steps_done(slot))
            self._settle(trainer, report)
        except torch.OutOfMemoryError:
            self._held.is_short = True
            return
        rows = report.num_active * (trainer.instance_rows + trainer.prior_rows)
        self._held.rows_per_s = self._speed.note(rows, time.perf_counter() - began)

    def _settle(self, trainer: SlotTrainer, report: StepReport) -> None:
        for slot, key, reason in report.failed:
            trainer.release(slot)
            self._empty(slot, JobResult(key, "failed", reason, remedy=NOT_FINITE_REMEDY))
        for slot in report.due_checkpoint:
            self._publisher.checkpoint(trainer.state(slot))
        if report.due_sample:
            specs = {slot: self._jobs[slot].lease.assignment.spec for slot in report.due_sample}
            self._finisher.draw_progress(trainer, specs)
        if report.finished:
            self._finish(trainer, [slot for slot, _ in report.finished])

    def _finish(self, trainer: SlotTrainer, slots: Sequence[int]) -> None:
        assignments = {slot: self._jobs[slot].lease.assignment for slot in slots}
        photos = {slot: self._jobs[slot].photos for slot in slots}
        finished = self._finisher.finish(trainer, assignments, photos)
        for slot, job in zip(assignments, finished, strict=True):
            trainer.release(slot)
            self._jobs.pop(slot).photos = ()
            self._held.mark(job.record.job_key, "publishing", job.record.steps_trained)
            self._publisher.publish(job)

    # -- filling slots ------------------------------------------------------------------------

    def _fill(self) -> None:
        """Put prepared jobs into free slots, in a trainer that is made for them."""
        admitted = False
        while self._has_room() and (ready := self._preparer.take()) is not None:
            key = ready.spec.key
            if not self._held.is_wanted(key):
                self._held.end(JobResult(key, "released"))
                continue
            try:
                slot = self._admit(ready)
            except torch.OutOfMemoryError:
                self._held.end(self._held.too_large(key))
                self._held.is_short = True
                return
            except (FarmError, ValueError) as error:
                self._held.end(JobResult.of_error(key, "failed", error))
                continue
            ready.held.photos = ready.photos.pictures if self._is_judging else ()
            self._jobs[slot] = ready.held
            admitted = True
        if admitted:
            with self._held.changed:
                self._held.changed.notify_all()  # the dispatcher learns at once who sits here
        self._fit_to_the_rest()

    def _has_room(self) -> bool:
        trainer = self._trainer
        if trainer is not None and not trainer.free_slots and self._may_resize():
            waiting = self._preparer.num_ready
            wanted = min(self._held.num_slots, trainer.num_slots + waiting)
            if wanted > trainer.num_slots:
                self._resize(wanted)
        return self._trainer is None or bool(self._trainer.free_slots)

    def _admit(self, ready: ReadyJob) -> int:
        trainer = self._fitting_trainer()
        job = assemble_job(ready.spec, ready.photos, ready.prior, self._encode_prompts)
        slot = _admit(trainer, job, ready.state)
        self._held.mark(ready.spec.key, "training", trainer.steps_done(slot))
        return slot

    def _fitting_trainer(self) -> SlotTrainer:
        """The trainer for the shape of the leases in hand, built anew if that changed."""
        shape = self._held.shape
        assert shape is not None, "a job is ready, so its lease named a shape"
        if self._trainer is not None and not self._jobs and not self._is_built_for(shape):
            self._close_trainer()
        if self._trainer is None:
            self._trainer = self._build(shape, self._held.num_slots)
        return self._trainer

    def _build(self, shape: LaneShape, slots: int) -> SlotTrainer:
        return SlotTrainer(
            self._base,
            num_slots=slots,
            max_rank=shape.max_rank,
            instance_rows=shape.instance_rows,
            prior_rows=shape.prior_rows,
            resolution_px=shape.resolution_px,
            target_modules=shape.target_modules,
            text_encoder_modules=shape.text_encoder_modules,
            checkpointing=self._settings.checkpointing,
            compile=self._settings.compile,
        )

    def _is_built_for(self, shape: LaneShape) -> bool:
        trainer = self._trainer
        return (
            trainer is not None
            and trainer.num_slots == self._held.num_slots
            and trainer.bank.max_rank == shape.max_rank
            and trainer.instance_rows == shape.instance_rows
            and trainer.prior_rows == shape.prior_rows
            and trainer.resolution_px == shape.resolution_px
            and trainer.target_modules == shape.target_modules
            and trainer.text_encoder_modules == shape.text_encoder_modules
        )

    # -- empty slots cost time ------------------------------------------------------------------

    def _may_resize(self) -> bool:
        """What is compiled runs one shape; else a blank row costs what any other does."""
        return not self._settings.compile

    def _fit_to_the_rest(self) -> None:
        """Drop empty slots once half of them are and nobody waits for one."""
        trainer = self._trainer
        if trainer is None or not self._may_resize() or self._held.num_waiting:
            return
        if self._jobs and len(self._jobs) <= trainer.num_slots // 2:
            self._resize(len(self._jobs))

    def _resize(self, slots: int) -> None:
        """The same jobs in a trainer of another width: a checkpoint and its restoration."""
        old, shape = self._trainer, self._held.shape
        assert old is not None
        assert shape is not None
        seats = [(old.job(slot), old.state(slot), job) for slot, job in self._jobs.items()]
        self._close_trainer()
        self._trainer = self._build(shape, slots)
        for training, state, job in seats:
            self._jobs[self._trainer.admit(training, state)] = job

    def _encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Conditioning]:
        found: list[tuple[Tensor, Conditioning]] = []
        for prompt in prompts:
            if prompt not in self._prompts:
                tokens_1T = self._base.tokenize([prompt])
                self._prompts[prompt] = (tokens_1T.cpu(), self._base.encode_prompts([prompt]))
            self._prompts.move_to_end(prompt)
            found.append(self._prompts[prompt])
        while len(self._prompts) > KEPT_PROMPTS:
            self._prompts.popitem(last=False)
        tokens_RT = torch.cat([tokens for tokens, _ in found])
        return tokens_RT, Conditioning.concatenate([conditioning for _, conditioning in found])

    # -- emptying slots -----------------------------------------------------------------------

    def _let_go(self) -> None:
        """Free the slots of jobs that were cancelled or given to others."""
        dropped = self._held.dropped()
        if not dropped:
            return
        for slot, job in list(self._jobs.items()):
            key = job.lease.assignment.spec.key
            if key in dropped and self._trainer is not None:
                self._trainer.release(slot)
                self._empty(slot, JobResult(key, "released"))
        self._preparer.drop(dropped)

    def _shrink(self) -> None:
        """Out of memory: come back with half the slots; the jobs resume from their checkpoints.

        What does not fit when it is alone has failed by its own doing.
        """
        slots = self._held.num_slots
        for slot, job in list(self._jobs.items()):
            self._empty(slot, self._held.too_large(job.lease.assignment.spec.key))
        self._close_trainer()
        self._held.slots = max(1, slots // 2)

    def _park(self) -> None:
        """Save every running job, and give all jobs back."""
        if self._held.is_stopping:
            self._publisher.hurry()
        if self._trainer is not None:
            for slot in self._trainer.active_slots:
                self._publisher.checkpoint(self._trainer.state(slot))
        self._publisher.wait()
        self._held.release_all("its lane saved it and returned")

    def _empty(self, slot: int, result: JobResult) -> None:
        del self._jobs[slot]
        self._finisher.forget(result.key)
        self._held.end(result)

    def _key(self, slot: int) -> str:
        return self._jobs[slot].lease.assignment.spec.key

    def _close_trainer(self) -> None:
        self._jobs.clear()
        if self._trainer is None:
            return
        self._trainer.close()
        self._trainer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _admit(trainer: SlotTrainer, job: TrainingJob, state: SlotState | None) -> int:
    """Admit a job where its checkpoint left it, or afresh if that is of no use any more."""
    if state is not None and state.step < job.recipe.steps:
        with suppress(ValueError, FarmError):
            return trainer.admit(job, state)
    return trainer.admit(job)


class _Speed:
    """Rows a second over the last ten seconds or so."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._rows = self._seconds = 0.0

    def note(self, rows: int, seconds: float) -> float:
        keep = max(0.0, 1.0 - seconds / self._window_s)
        self._rows = self._rows * keep + rows
        self._seconds = self._seconds * keep + seconds
        return self._rows / self._seconds if self._seconds else 0.0
