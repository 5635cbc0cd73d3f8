"""One forward and backward pass over all slots, and the optimizer update that follows it.

Owns what the device needs for a step: the bank, the optimizer's moments, the resident prompts, and
the settings applied to the base (gradient checkpointing, memory format, compilation), which
``close`` reverts. ``trainer`` decides which slots train.

Legend: S slots, G rows per slot, R = S·G rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from farm.adapters.bank import kernels
from farm.adapters.bank.bank import Bank
from farm.adapters.bank.grouped import Kernel
from farm.adapters.bank.kernel_choice import choose_kernel
from farm.base.device.attention import AttentionShape, attention_shape, choose_attention
from farm.base.device.captured import Captured
from farm.base.device.compiled import Compiled
from farm.base.device.layout import channels_last_is_faster
from farm.base.interface import Base
from farm.training.plan.shape import LaneShape
from farm.training.slots.batch import JobRows, StepBatch, step_rows
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.objective import slot_losses
from farm.training.slots.optimizer import SlotAdamW, SlotUpdate
from farm.training.slots.prompts import PromptRows
from farm.training.slots.slot import SlotJob, restore, snapshot
from farm.training.slots.speed import Speed

__all__ = ["TrainingPass"]

LOG = logging.getLogger(__name__)

HALF_LOSS_SCALE = 1024.0
"""Prevents underflow of float16 gradients; bfloat16 needs no scale."""


class TrainingPass:
    """Trains S slots of one shape by one step per call."""

    def __init__(
        self,
        base: Base,
        shape: LaneShape,
        *,
        num_slots: int,
        checkpointing: bool = False,
        speed: Speed | None = None,
        num_kept: int = 0,
    ) -> None:
        """Open a bank on the base and allocate S slots; see ``SlotTrainer`` for the arguments."""
        self.base, self.shape, self.num_slots = base, shape, num_slots
        self.latent_shape = base.latent_shape(shape.resolution_px, shape.resolution_px)
        self.schedule = base.schedule.to("cpu")
        self._speed = (speed or Speed()).on(
            base.device, slots=num_slots, rows=self.num_rows, checkpointing=checkpointing
        )
        self.evaluates_beside = bool(self._speed.evaluate_beside)
        self.bank = Bank(
            base,
            num_slots=num_slots,
            max_rank=shape.max_rank,
            target_modules=shape.target_modules,
            text_encoder_modules=shape.text_encoder_modules,
            dtype=torch.float64 if base.dtype == torch.float64 else torch.float32,
            trainable=True,
            num_kept=num_kept + num_slots * self.evaluates_beside,
        )
        self._checkpointing = checkpointing
        # what a captured step reads; and the step, by what would change its kernels or addresses
        self._static: StepBatch | None = None
        self._captured: dict[tuple[object, ...], Captured] = {}
        self._denoise = Compiled(
            base.denoise, self._speed.compile or False, name="the denoiser's training pass"
        )
        try:
            self._allocate()
        except BaseException:  # such as out of memory: restore the base before raising
            self.close()
            raise

    def _allocate(self) -> None:
        base, device = self.base, self.base.device
        self._optimizer = SlotAdamW(self.bank)
        self._prompts = PromptRows(base, self.shape, self.num_slots)
        self._loss_scale = HALF_LOSS_SCALE if base.dtype == torch.float16 else 1.0
        denoiser = base.components[base.denoiser_name]
        if self._checkpointing:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        shape = attention_shape(denoiser, self.latent_shape, self.num_rows)
        self._measure(denoiser, shape)
        if self._speed.channels_last:
            denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._speed.kernel == "triton":
            missing = kernels.why_unavailable(device)
            if missing is None:
                self.bank.use_kernel("triton")
            else:
                LOG.warning("adapters run as batched products: %s", missing)
        self._attention = choose_attention(shape, base.dtype, device, trains=True)

    def _measure(self, denoiser: nn.Module, attention: AttentionShape | None) -> None:
        """Choose what ``Speed.on`` left open: the layout and the kernel of eager passes."""
        speed, dtype, device = self._speed, self.base.dtype, self.base.device
        if speed.channels_last is None:
            last = channels_last_is_faster(
                denoiser, self.latent_shape, self.num_rows, dtype, device
            )
            speed = replace(speed, channels_last=last)
        if speed.kernel is None:
            kernel: Kernel = "products"
            if attention is not None:
                _, heads, positions, width = attention
                layer = (
                    self.num_slots, positions * self.shape.rows, heads * width, self.shape.max_rank,
                )  # fmt: skip
                kernel = choose_kernel(layer, dtype, device)
            speed = replace(speed, kernel=kernel)
        self._speed = speed

    def close(self) -> None:
        """Restore the base to its original state."""
        self._captured.clear()
        self.bank.close()
        self._denoise.close()
        denoiser = self.base.components[self.base.denoiser_name]
        if self._checkpointing:
            denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
        if self._speed.channels_last:
            denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def num_rows(self) -> int:
        """R, the rows of every step, blanks included."""
        return self.num_slots * self.shape.rows

    @property
    def speed_report(self) -> str:
        """How steps run, in words: what was asked, and what the device allowed."""
        is_replayed = any(step.is_replayed for step in self._captured.values())
        words = ["compiled" if self._denoise.is_compiled else "eager"]
        words += ["captured"] * is_replayed + ["checkpointing"] * self._checkpointing
        words.append("channels-last" if self._speed.channels_last else "channels-first")
        words += ["Triton"] * (self._speed.kernel == "triton")
        return f"{', '.join(words)}; {self._attention.report}"

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
        with self._attention.active():
            if self._speed.capture:
                return self._replayed(batch).clone()
            return self._train(batch)

    def _replayed(self, batch: StepBatch) -> Tensor:
        """The step on tensors that stay where they are, as a graph needs them."""
        if self._static is None:
            self._static = batch
        else:
            self._static.copy_(batch)
        static, addresses = self._static, self._prompts.addresses
        key = (addresses, *self.bank.scale_kinds)
        if key not in self._captured:
            for old in [old for old in self._captured if old[0] != addresses]:
                del self._captured[old]  # the prompts have moved
            self._captured[key] = Captured(
                lambda: self._train(static), self.base.device, name="the training step"
            )
        return self._captured[key]()

    def _train(self, batch: StepBatch) -> Tensor:
        try:
            losses_S = self._backward(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self._denoise.give_up(error):
                raise
            losses_S = self._backward(batch)
        self._denoise.is_proven = True
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
            self.bank.backward(losses_S.sum() * self._loss_scale)
        return losses_S.detach()
