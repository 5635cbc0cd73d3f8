"""The lane's trainer and the jobs in its slots.

Owns building the trainer for a shape, changing its width, and closing it. ``lane`` decides which
jobs are admitted and released. Out-of-memory errors are raised; the jobs in the slots stay listed,
so that the lane can return them to the queue.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch

from farm.base.interface import Base
from farm.errors import FarmError
from farm.training.lane.encode import TrainingPrompts, assemble_job
from farm.training.lane.job_table import LaneJob
from farm.training.plan.shape import LaneShape
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import TrainingJob
from farm.training.slots.speed import Speed, compiled_width
from farm.training.slots.trainer import SlotTrainer

__all__ = ["SlotPool"]


class SlotPool:
    """At most one trainer, and which job is in which of its slots."""

    def __init__(
        self,
        base: Base,
        *,
        checkpointing: bool,
        compile: bool | None = None,
        before_close: Callable[[], None] | None = None,
    ) -> None:
        """Start without a trainer.

        Args:
            compile: None compiles on GPUs.
            before_close: waits until nothing else uses the trainer's copies of slots, called before
                the trainer is closed; None keeps no copies.
        """
        self._before_close = before_close
        self._base = base
        self._checkpointing, self._speed = checkpointing, Speed(compile=compile)
        self._is_compiled = base.device.type == "cuda" if compile is None else compile
        self._encode_prompts = TrainingPrompts(base)
        self._jobs: dict[int, LaneJob] = {}
        self.trainer: SlotTrainer | None = None

    @property
    def jobs(self) -> Mapping[int, LaneJob]:
        """The jobs by slot."""
        return self._jobs

    def has_room(self, *, num_slots: int, num_ready: int) -> bool:
        """Whether a job can be admitted; widens the trainer for jobs that are ready.

        Args:
            num_slots: upper bound of the trainer's slots.
        """
        trainer = self.trainer
        if trainer is not None and not trainer.free_slots:
            wanted = self._width(min(num_slots, trainer.num_slots + num_ready), num_slots)
            if wanted > trainer.num_slots:
                self._resize(trainer, wanted)
        return self.trainer is None or bool(self.trainer.free_slots)

    def admit(self, job: LaneJob, shape: LaneShape, num_slots: int) -> int:
        """Put a prepared job into a slot of a trainer of this shape; return its steps done.

        Raises:
            ValueError, FarmError: if the job cannot be trained in this shape.
        """
        assert job.photos is not None, "only prepared jobs are admitted"
        trainer = self._trainer_for(shape, num_slots)
        with trainer.bank.turns:  # another thread may be encoding prompts with an adapter
            training = assemble_job(job.spec, job.photos, job.prior, self._encode_prompts)
        slot = _admit(trainer, training, job.state)
        self._jobs[slot] = job
        return trainer.steps_done(slot)

    def release(self, slot: int) -> LaneJob:
        """Free a slot and return its job."""
        job = self._jobs.pop(slot)
        if self.trainer is not None:
            self.trainer.release(slot)
        return job

    def drop_empty_slots(self) -> None:
        """Narrow the trainer once at least half of its slots are empty: a blank row costs as much
        as any other."""
        trainer = self.trainer
        if trainer is None or not self._jobs or len(self._jobs) > trainer.num_slots // 2:
            return
        wanted = self._width(len(self._jobs), trainer.num_slots)
        if wanted < trainer.num_slots:
            self._resize(trainer, wanted)

    def close(self) -> None:
        """Free the trainer and forget the jobs."""
        self._jobs.clear()
        self._close_trainer()

    def _trainer_for(self, shape: LaneShape, num_slots: int) -> SlotTrainer:
        """The trainer of this shape; an empty trainer of another shape or width is replaced."""
        found = self.trainer
        if (
            found is not None
            and not self._jobs
            and (found.shape, found.num_slots)
            != (
                shape,
                num_slots,
            )
        ):
            self._close_trainer()
        if self.trainer is None:
            self.trainer = self._build(shape, num_slots)
        return self.trainer

    def _width(self, slots: int, most: int) -> int:
        """The trainer's width for a number of slots: a compiled one has few, each compiled once."""
        return compiled_width(slots, most) if self._is_compiled else slots

    def _build(self, shape: LaneShape, num_slots: int) -> SlotTrainer:
        return SlotTrainer(
            self._base,
            shape,
            num_slots=num_slots,
            checkpointing=self._checkpointing,
            speed=self._speed,
            num_kept=num_slots if self._before_close is not None else 0,
        )

    def _resize(self, trainer: SlotTrainer, num_slots: int) -> None:
        """Move the jobs to a trainer of another width by means of checkpoints; not while a slot has
        failed, which the next step reports."""
        if trainer.has_news:
            return
        moved = [(trainer.job(slot), trainer.state(slot), job) for slot, job in self._jobs.items()]
        shape = trainer.shape
        self._close_trainer()
        self.trainer = wider = self._build(shape, num_slots)
        self._jobs = {wider.admit(training, state): job for training, state, job in moved}

    def _close_trainer(self) -> None:
        if self.trainer is None:
            return
        if self._before_close is not None:
            self._before_close()
        self.trainer.close()
        self.trainer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _admit(trainer: SlotTrainer, job: TrainingJob, state: SlotState | None) -> int:
    """Admit a job from its checkpoint, or from the start if the checkpoint cannot be used."""
    if state is not None and (state.ended or state.step < job.recipe.steps):
        with suppress(ValueError, FarmError):
            return trainer.admit(job, state)
    return trainer.admit(job)
