"""One forward and backward pass over all slots, and the optimizer update that follows it.

Owns what the device needs for a step: the bank, the optimizer's moments, the resident prompts, and
the settings applied to the base (gradient checkpointing, memory format, compilation), which
``close`` reverts. ``trainer`` decides which slots train.

Legend: S slots, G rows per slot, R = S·G rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.interface import Base
from farm.training.plan.shape import LaneShape
from farm.training.slots.batch import JobRows, StepBatch, step_rows
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.objective import slot_losses
from farm.training.slots.optimizer import SlotAdamW, SlotUpdate
from farm.training.slots.prompts import PromptRows
from farm.training.slots.slot import SlotJob, restore, snapshot

__all__ = ["TrainingPass"]

HALF_LOSS_SCALE = 1024.0
"""Prevents underflow of float16 gradients; bfloat16 needs no scale."""

WIDE_BATCH_ROWS = 16
"""Rows from which channels-last is faster on a CPU: 5 % at 16, 10 % at 48; slower at 2
(measured)."""


class TrainingPass:
    """Trains S slots of one shape by one step per call."""

    def __init__(
        self,
        base: Base,
        shape: LaneShape,
        *,
        num_slots: int,
        checkpointing: bool = False,
        compile: bool | str = False,
    ) -> None:
        """Open a bank on the base and allocate S slots; see ``SlotTrainer`` for the arguments."""
        self.base, self.shape, self.num_slots = base, shape, num_slots
        self.latent_shape = base.latent_shape(shape.resolution_px, shape.resolution_px)
        self.schedule = base.schedule.to("cpu")
        self.bank = Bank(
            base,
            num_slots=num_slots,
            max_rank=shape.max_rank,
            target_modules=shape.target_modules,
            text_encoder_modules=shape.text_encoder_modules,
            dtype=torch.float64 if base.dtype == torch.float64 else torch.float32,
            trainable=True,
        )
        self._checkpointing, self._compiled = checkpointing, bool(compile)
        # channels-last is faster for convolutions on GPUs, and on CPUs for large batches
        self._channels_last = base.device.type == "cuda" or self.num_rows >= WIDE_BATCH_ROWS
        try:
            self._allocate(compile)
        except BaseException:  # such as out of memory: restore the base before raising
            self.close()
            raise

    def _allocate(self, compile: bool | str) -> None:
        base = self.base
        self._optimizer = SlotAdamW(self.bank)
        self._prompts = PromptRows(base, self.shape, self.num_slots)
        self._loss_scale = HALF_LOSS_SCALE if base.dtype == torch.float16 else 1.0
        denoiser = base.components[base.denoiser_name]
        if self._checkpointing:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if self._channels_last:
            denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._denoise = base.denoise
        if compile:
            mode = compile if isinstance(compile, str) else None
            self._denoise = torch.compile(base.denoise, dynamic=False, mode=mode)

    def close(self) -> None:
        """Restore the base to its original state."""
        self.bank.close()
        if self._compiled:  # dynamo stops compiling code that it has compiled for many shapes
            torch.compiler.reset()
        denoiser = self.base.components[self.base.denoiser_name]
        if self._checkpointing:
            denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
        if self._channels_last:
            denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def num_rows(self) -> int:
        """R, the rows of every step, blanks included."""
        return self.num_slots * self.shape.rows

    # -- slots --------------------------------------------------------------------------------

    def load(self, slot: int, slot_job: SlotJob, state: SlotState | None) -> None:
        """Prepare a slot for a job: its prompts, and initial weights or those of its checkpoint."""
        self._optimizer.clear_slot(slot)
        job = slot_job.job
        if state is None:
            alpha = job.recipe.scale * job.recipe.rank
            self.bank.init_slot(slot, job.recipe.rank, alpha, job.seed)
        else:
            restore(slot, slot_job, state, self.bank, self._optimizer)
        self._prompts.admit(slot, job)

    def state(self, slot: int, slot_job: SlotJob) -> SlotState:
        """The resumable state of a slot, copied to the host."""
        return snapshot(slot, slot_job, self.bank, self._optimizer)

    def clear(self, slot: int) -> None:
        """Zero a slot's weights and moments."""
        self.bank.clear_slot(slot)
        self._optimizer.clear_slot(slot)

    # -- the step -----------------------------------------------------------------------------

    def run(self, active: Mapping[int, SlotJob]) -> Tensor:
        """Train the given slots by one step.

        Returns:
            Losses and gradient norms [2, S], still on the device.
        """
        rows: list[JobRows | None] = [None] * self.num_slots
        table = [SlotUpdate().row()] * self.num_slots
        for slot, slot_job in active.items():
            job, step = slot_job.job, slot_job.step
            job_rows = step_rows(job, step, self.schedule, self.latent_shape)
            rows[slot], table[slot] = job_rows, SlotUpdate.of(job.recipe, step).row()
            self._prompts.update(slot, job, job_rows)
        batch = StepBatch.assemble(self.base, self.shape, rows, table)
        try:
            losses_S = self._backward(batch)
        except BaseException:  # out of memory: a partial gradient must not reach the next step
            self._optimizer.drop_gradients()
            raise
        norms_S = self._optimizer.step(batch.table_SK, losses_S, self._loss_scale)
        return torch.stack([losses_S, norms_S.to(losses_S)])

    def _backward(self, batch: StepBatch) -> Tensor:
        """Each slot's loss [S]; the gradients are left in the bank."""
        with torch.enable_grad(), self.bank.route_grouped(self.shape.rows):
            prediction_RCHW = self._denoise(
                batch.noisy_RCHW, batch.timesteps_R, self._prompts.conditioning()
            )
            losses_S = slot_losses(
                prediction_RCHW, batch.target_RCHW, batch.weights_R, self.num_slots
            )
            (losses_S.sum() * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        return losses_S.detach()
