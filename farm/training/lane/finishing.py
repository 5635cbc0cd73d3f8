"""Finishes trained slots: at once, or on a GPU beside the training of the other slots.

Owns the thread and the queue of low priority in which samples are generated and adapters judged,
and the copies of weights that this work reads. A slot is refilled as soon as it is copied. Work
that runs out of memory beside training is done again alone, between two steps. Work that the end of
the lane interrupts leaves checkpoints, from which another lane does it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from farm.base.device.cuda_errors import without_frames
from farm.base.device.queues import Mark, Queue, mark
from farm.base.interface import Base
from farm.base.stopping import GenerationStopped, stoppable
from farm.intake.job import JobSpec
from farm.training.dispatch.messages import Assignment
from farm.training.lane.finalizer import Finalizer, Trained
from farm.training.lane.publisher import FinishedJob
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.trainer import SlotTrainer

__all__ = ["Finishing"]

LOG = logging.getLogger(__name__)

Work = Callable[[], None]


@dataclass(frozen=True)
class _Pending:
    """Work that was given to the thread."""

    future: Future[None]
    work: Work
    trainer: SlotTrainer | None = None
    rows: Sequence[int] = ()
    """Copies in the trainer's bank that it reads."""
    keys: Sequence[str] = ()
    """Jobs that it ends."""


class Finishing:
    """The work after training. All methods are called from the training thread."""

    def __init__(
        self,
        base: Base,
        finalizer: Finalizer,
        publish: Callable[[FinishedJob], None],
        too_large: Callable[[str], None],
        *,
        beside: bool | None = None,
        save: Callable[[SlotState], None] = lambda state: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread, if there is one.

        Args:
            publish: called with each finished job, in the thread that finished it.
            too_large: called with the key of each job whose images do not fit, even alone.
            beside: whether the work runs beside training; None means on GPUs.
            save: called with the checkpoint of each job whose images were interrupted.
            is_stopping: whether the lane has to return, so that no more images are generated.
        """
        self._device, self._finalizer, self._publish = base.device, finalizer, publish
        self._too_large, self._save, self._is_stopping = too_large, save, is_stopping
        self.is_beside = base.device.type == "cuda" if beside is None else beside
        self._queue = Queue(base.device)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._pending: deque[_Pending] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether work is waiting or running."""
        return bool(self._pending)

    def finish(
        self,
        trainer: SlotTrainer,
        assignments: Mapping[int, Assignment],
        photos: Mapping[int, Sequence[Image.Image]],
        release: Callable[[int], None],
    ) -> None:
        """Sample, judge and publish the adapters of these slots, and release the slots.

        Args:
            photos: of each slot, for the judge.
            release: called once nothing here needs the slot any more.

        Raises:
            torch.OutOfMemoryError: if the images do not fit, even alone.
        """
        rows = self._kept(trainer, list(assignments))
        trained = [
            self._finalizer.take(trainer, slot, rows[slot], assignment, photos[slot])
            for slot, assignment in assignments.items()
        ]
        work = partial(self._complete, trainer, trained)
        if not self.is_beside:
            work()
        for slot in assignments:
            release(slot)
        if self.is_beside:
            keys = [assignment.key for assignment in assignments.values()]
            self._submit(work, trainer=trainer, rows=list(rows.values()), keys=keys)

    def sample(self, trainer: SlotTrainer, specs: Mapping[int, JobSpec]) -> None:
        """Generate samples of running jobs, which are published with their adapters."""
        rows = self._kept(trainer, list(specs))
        steps = {row: trainer.steps_done(slot) for slot, row in rows.items()}
        of_rows = {rows[slot]: spec for slot, spec in specs.items()}
        work = partial(self._generate_progress_samples, trainer, of_rows, steps)
        if self.is_beside:
            self._submit(work, trainer=trainer, rows=list(rows.values()))
        else:
            work()

    def forget(self, key: str) -> None:
        """Discard the progress samples of a job that left its slot unfinished."""
        if self.is_busy:  # some of them may still be generated
            self._submit(partial(self._finalizer.forget, key))
        else:
            self._finalizer.forget(key)

    def collect(self, *, wait: bool = False) -> None:
        """Give back the copies of work that is done; repeat alone what ran out of memory.

        Args:
            wait: for all work.

        Raises:
            Exception: what the work raised.
        """
        while self._pending and (wait or self._pending[0].future.done()):
            one = self._pending[0]
            error = one.future.exception()  # waits
            self._pending.popleft()
            try:
                if isinstance(error, torch.OutOfMemoryError):
                    self._repeat(without_frames(error), one)
                elif error is not None:
                    raise without_frames(error)
            finally:
                if one.trainer is not None:
                    for row in one.rows:
                        one.trainer.drop_kept(row)

    def _repeat(self, error: BaseException, one: _Pending) -> None:
        LOG.warning("samples did not fit beside training, and are generated alone: %s", error)
        try:
            one.work()
        except torch.OutOfMemoryError:
            for key in one.keys:
                self._too_large(key)
            raise

    def close(self) -> None:
        """Finish the work and end the thread."""
        try:
            self.collect(wait=True)
        finally:
            self._worker.shutdown(wait=True)

    def _kept(self, trainer: SlotTrainer, slots: Sequence[int]) -> dict[int, int]:
        """Copies of these slots, which images are generated from; the slots themselves if the work
        is done at once."""
        if not self.is_beside:
            return {slot: slot for slot in slots}
        rows: dict[int, int] = {}
        for slot in slots:
            row = trainer.keep(slot)
            if row is None:
                self.collect(wait=True)
                row = trainer.keep(slot)
            assert row is not None, "a trainer keeps as many copies as it has slots"
            rows[slot] = row
        return rows

    def _submit(self, work: Work, **needs: Any) -> None:
        future = self._worker.submit(self._run, mark(self._device), work)
        self._pending.append(_Pending(future, work, **needs))

    def _run(self, copied: Mark, work: Work) -> None:
        with self._queue.active(copied):
            work()  # ends with copies to the host, so nothing is in flight

    def _complete(self, trainer: SlotTrainer, trained: Sequence[Trained]) -> None:
        try:
            with stoppable(self._is_stopping):
                finished = self._finalizer.complete(trainer, trained)
        except GenerationStopped:
            for one in trained:
                self._save(one.state)
            return
        for job in finished:
            self._publish(job)

    def _generate_progress_samples(
        self, trainer: SlotTrainer, specs: Mapping[int, JobSpec], steps: Mapping[int, int]
    ) -> None:
        with suppress(GenerationStopped), stoppable(self._is_stopping):
            self._finalizer.generate_progress_samples(trainer, specs, steps)
