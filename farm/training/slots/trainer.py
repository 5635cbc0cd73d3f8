"""The slot trainer: many subjects in one forward and backward pass over one frozen base.

Owns the step and the life of slots: admit, train, evaluate, finish or fail, release. Takes plain
values and gives plain values; leases, stores and clusters are the lane's. A job trained beside
others ends as it does alone, within float tolerance: loss, clip, rate, step count and random
streams are its own, and rows of different slots meet nowhere in the base.

Legend: S slots, G rows per slot, R = S·G rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.adapters.generate import generate_by_slot
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.training.slots.batch import JobRows, PromptRows, StepBatch, step_rows
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.evaluation import (
    NUM_EVALUATION_ROWS,
    evaluation_losses,
    is_best,
    should_stop,
)
from farm.training.slots.job import TrainingJob
from farm.training.slots.objective import slot_losses
from farm.training.slots.optimizer import SlotAdamW, SlotUpdate
from farm.training.slots.slot import SlotJob, StepReport, restore, snapshot

__all__ = ["SlotTrainer", "StepReport"]

HALF_LOSS_SCALE = 1024.0
"""Keeps float16 gradients above that type's smallest numbers; bfloat16 needs none."""


WIDE_BATCH_ROWS = 16
"""Rows from which channels-last pays on a CPU: 5 % at 16, 10 % at 48, a loss at 2 (measured)."""


class SlotTrainer:
    """S slots over one base, trained together."""

    def __init__(
        self,
        base: Base,
        *,
        num_slots: int,
        max_rank: int,
        instance_rows: int = 1,
        prior_rows: int = 1,
        resolution_px: int | None = None,
        target_modules: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0"),
        text_encoder_modules: Sequence[str] = (),
        checkpointing: bool = False,
        compile: bool | str = False,
        sync_every: int | None = None,
    ) -> None:
        """Open a bank on the base and make room for S jobs.

        Args:
            instance_rows: photo rows per slot and step; jobs with fewer leave blanks.
            prior_rows: class rows per slot and step.
            resolution_px: side of all jobs' pictures; None takes the base's own.
            checkpointing: recompute activations in the backward pass (less memory, +47 % FLOP).
            compile: compile the denoiser; a string names torch.compile's mode.
            sync_every: steps between two looks at the device; None means 1 on a CPU, else 8.
        """
        self.base = base
        self.num_slots, self.instance_rows, self.prior_rows = num_slots, instance_rows, prior_rows
        self.resolution_px = resolution_px or base.resolution_px
        self.target_modules = tuple(target_modules)
        self.text_encoder_modules = tuple(text_encoder_modules)
        self.latent_shape = base.latent_shape(self.resolution_px, self.resolution_px)
        self._schedule = base.schedule.to("cpu")
        self.bank = Bank(
            base,
            num_slots=num_slots,
            max_rank=max_rank,
            target_modules=self.target_modules,
            text_encoder_modules=self.text_encoder_modules,
            dtype=torch.float64 if base.dtype == torch.float64 else torch.float32,
            trainable=True,
        )
        self._checkpointing, self._compiled = checkpointing, bool(compile)
        # channels last suits convolutions on GPUs, and on CPUs once the batch is wide
        self._channels_last = base.device.type == "cuda" or self.num_rows >= WIDE_BATCH_ROWS
        try:
            self._make_room(base, compile, sync_every)
        except BaseException:  # out of memory: the base must be as it was
            self.close()
            raise

    def _make_room(self, base: Base, compile: bool | str, sync_every: int | None) -> None:
        self._optimizer = SlotAdamW(self.bank)
        self._prompts = PromptRows(
            self.num_slots,
            self.instance_rows,
            self.prior_rows,
            base,
            as_tokens=bool(self.text_encoder_modules),
        )
        self._seats: list[SlotJob | None] = [None] * self.num_slots
        self._pending: list[tuple[list[int], Tensor]] = []
        self._sync_every = sync_every or (1 if base.device.type == "cpu" else 8)
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
        """Give the base back as it was."""
        self.bank.close()
        if self._compiled:  # dynamo gives up on code that it has compiled for many shapes
            torch.compiler.reset()
        denoiser = self.base.components[self.base.denoiser_name]
        if self._checkpointing:
            denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
        if self._channels_last:
            denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def num_rows(self) -> int:
        """R, the rows of every step, blanks included."""
        return self.num_slots * (self.instance_rows + self.prior_rows)

    # -- the life of a slot -------------------------------------------------------------------

    @property
    def free_slots(self) -> tuple[int, ...]:
        """Slots that hold no job."""
        return tuple(slot for slot, seat in enumerate(self._seats) if seat is None)

    @property
    def active_slots(self) -> tuple[int, ...]:
        """Slots whose job still trains."""
        return tuple(
            slot
            for slot, seat in enumerate(self._seats)
            if seat is not None and seat.status == "training"
        )

    def job(self, slot: int) -> TrainingJob:
        """The job in a slot."""
        return self._seat(slot).job

    def admit(
        self, job: TrainingJob, state: SlotState | None = None, *, slot: int | None = None
    ) -> int:
        """Put a job into a free slot, fresh or where its checkpoint left it.

        Raises:
            ValueError: if the job does not fit the trainer's shape, or no slot is free.
        """
        job.check_fits(
            max_rank=self.bank.max_rank,
            instance_rows=self.instance_rows,
            prior_rows=self.prior_rows,
            latent_shape=self.latent_shape,
            target_modules=self.target_modules,
            text_encoder_modules=self.text_encoder_modules,
        )
        if state is not None and state.key != job.key:
            raise ValueError(f"the state is of job {state.key}, not of {job.key}")
        chosen = slot if slot is not None else next(iter(self.free_slots), None)
        if chosen is None or self._seats[chosen] is not None:
            raise ValueError("no free slot")
        self._optimizer.clear_slot(chosen)
        seat = SlotJob(job)
        if state is None:
            alpha = job.recipe.scale * job.recipe.rank
            self.bank.init_slot(chosen, job.recipe.rank, alpha, job.seed)
        else:
            restore(chosen, seat, state, self.bank, self._optimizer)
        self._prompts.admit(chosen, job)
        self._seats[chosen] = seat
        return chosen

    def release(self, slot: int) -> None:
        """Free a slot, whatever became of its job."""
        self._settle_pending()
        self._seats[slot] = None
        self.bank.clear_slot(slot)
        self._optimizer.clear_slot(slot)

    # -- the step -----------------------------------------------------------------------------

    def step(self) -> StepReport:
        """Train every active slot by one step."""
        began = time.perf_counter()
        active = [slot for slot in self.active_slots if not self._seat(slot).is_done]
        if active:
            self._pending.append((active, self._train(active)))
            for slot in active:
                self._seat(slot).step += 1
        due = len(self._pending) >= self._sync_every or any(
            self._seat(slot).wants_host for slot in self.active_slots
        )
        report = self._settle(len(active)) if due else StepReport(num_active=len(active))
        share = (time.perf_counter() - began) / max(1, len(active))
        for slot in active:
            self._seat(slot).seconds += share
        return report

    def _train(self, active: Sequence[int]) -> Tensor:
        """One pass and update; losses and gradient norms [2, S] stay on the device."""
        rows: list[JobRows | None] = [None] * self.num_slots
        table = [SlotUpdate().row()] * self.num_slots
        for slot in active:
            seat = self._seat(slot)
            job_rows = step_rows(seat.job, seat.step, self._schedule, self.latent_shape)
            rows[slot], table[slot] = job_rows, SlotUpdate.of(seat.job.recipe, seat.step).row()
            self._prompts.update(slot, seat.job, job_rows)
        batch = StepBatch.assemble(
            rows,
            instance_rows=self.instance_rows,
            prior_rows=self.prior_rows,
            latent_shape=self.latent_shape,
            table=table,
            base=self.base,
        )
        try:
            losses_S = self._backward(batch)
        except BaseException:  # out of memory, say: no half of a gradient may meet the next step
            self._optimizer.drop_gradients()
            raise
        norms_S = self._optimizer.step(batch.table_SK, losses_S, self._loss_scale)
        return torch.stack([losses_S, norms_S.to(losses_S)])

    def _backward(self, batch: StepBatch) -> Tensor:
        """Each slot's loss [S], its gradients left in the bank."""
        with torch.enable_grad(), self.bank.route_grouped(self.instance_rows + self.prior_rows):
            prediction_RCHW = self._denoise(
                batch.noisy_RCHW, batch.timesteps_R, self._prompts.conditioning()
            )
            losses_S = slot_losses(
                prediction_RCHW, batch.target_RCHW, batch.weights_R, self.num_slots
            )
            (losses_S.sum() * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        return losses_S.detach()

    # -- what the host learns -----------------------------------------------------------------

    def _settle_pending(self) -> None:
        """Read the losses of all steps since the last look; mark slots that diverged."""
        if not self._pending:
            return
        found = torch.stack([numbers for _, numbers in self._pending]).cpu().tolist()
        for (active, _), (losses, norms) in zip(self._pending, found, strict=True):
            for slot in active:
                seat = self._seats[slot]
                if seat is None or seat.status == "failed":
                    continue
                if math.isfinite(losses[slot]) and math.isfinite(norms[slot]):
                    seat.loss_curve.append(losses[slot])
                else:
                    what = "gradient" if math.isfinite(losses[slot]) else "loss"
                    self._fail(slot, f"the {what} is not finite at step {len(seat.loss_curve)}")
        self._pending.clear()

    def _settle(self, num_active: int) -> StepReport:
        before = self.active_slots
        self._settle_pending()
        training = [slot for slot in before if self._seat(slot).status == "training"]
        self._evaluate(training)
        for slot in training:
            if self._seat(slot).is_done and self._seat(slot).status == "training":
                self._finish(slot, "steps")
        seats = [(slot, self._seat(slot)) for slot in before]
        going = [(slot, seat) for slot, seat in seats if seat.status == "training"]
        return StepReport(
            tuple((slot, seat.job.key) for slot, seat in seats if seat.status == "finished"),
            tuple(
                (slot, seat.job.key, seat.stopped_because)
                for slot, seat in seats
                if seat.status == "failed"
            ),
            tuple(s for s, seat in going if seat.is_due(seat.job.recipe.checkpoint_every)),
            tuple(s for s, seat in going if seat.is_due(seat.job.recipe.sample_every)),
            num_active,
        )

    def _fail(self, slot: int, reason: str) -> None:
        seat = self._seat(slot)
        seat.status, seat.stopped_because = "failed", reason
        self.bank.clear_slot(slot)
        self._optimizer.clear_slot(slot)

    def _finish(self, slot: int, why: str) -> None:
        seat = self._seat(slot)
        if seat.best_row_P is not None and seat.best_step != seat.step:
            self.bank.write_row(slot, seat.best_row_P)
            why = why if why == "early_stop" else "keep_best"
        if not bool(torch.isfinite(self.bank.flat_ZP[slot]).all()):
            self._fail(slot, f"the weights are not finite after step {seat.step}")
            return
        seat.status, seat.stopped_because = "finished", why

    def _evaluate(self, slots: Sequence[int]) -> None:
        """Evaluate the slots that are due, keep their best weights, stop those that stand still."""
        due = [
            slot
            for slot in slots
            if (seat := self._seat(slot)).evaluation_every
            and (seat.is_due(seat.evaluation_every) or seat.is_done)
        ]
        for slot, loss in self.evaluation_loss(due).items():
            seat = self._seat(slot)
            if not math.isfinite(loss):
                self._fail(slot, f"the evaluation loss is not finite at step {seat.step}")
                continue
            seat.evaluation_curve.append((seat.step, loss))
            if seat.job.recipe.keep_best and is_best(seat.evaluation_curve):
                seat.best_row_P = self.bank.flat_ZP[slot].cpu().clone()
                seat.best_step = seat.step
            rule = seat.job.recipe.early_stop
            if rule and not seat.is_done and should_stop(seat.evaluation_curve, rule):
                self._finish(slot, "early_stop")

    def evaluation_loss(self, slots: Sequence[int] | None = None) -> dict[int, float]:
        """The loss of slots on their own fixed noise and timesteps, all in shared passes."""
        chosen = self.active_slots if slots is None else slots
        return evaluation_losses(
            self.base,
            self.bank,
            {slot: self._seat(slot).job for slot in chosen},
            self._schedule,
            self.latent_shape,
            # without gradients, twice the rows of a training pass fit with room to spare
            max_rows=max(NUM_EVALUATION_ROWS, 2 * self.num_rows),
        )

    # -- results ------------------------------------------------------------------------------

    def weights(self, slot: int) -> AdapterWeights:
        """The adapter as it stands, or as it is to be committed once the job has finished."""
        return self.bank.slot_weights(slot)

    def loss_curve(self, slot: int) -> tuple[float, ...]:
        """Training loss of each step done."""
        self._settle_pending()
        return tuple(self._seat(slot).loss_curve)

    def evaluation_curve(self, slot: int) -> tuple[tuple[int, float], ...]:
        """(step, loss) of each evaluation."""
        return tuple(self._seat(slot).evaluation_curve)

    def steps_done(self, slot: int) -> int:
        """Steps that this job has trained."""
        return self._seat(slot).step

    def steps_trained(self, slot: int) -> int:
        """Steps behind the weights: fewer than done where an earlier evaluation was the best."""
        seat = self._seat(slot)
        kept = seat.status == "finished" and seat.best_row_P is not None
        return seat.best_step if kept else seat.step

    def stopped_because(self, slot: int) -> str:
        """Why a finished job ended: ``steps``, ``early_stop`` or ``keep_best``; or its failure."""
        return self._seat(slot).stopped_because

    def seconds(self, slot: int) -> float:
        """This job's share of the time of its steps."""
        return self._seat(slot).seconds

    def state(self, slot: int) -> SlotState:
        """All that the rest of a job's training depends on; waits for the device."""
        self._settle_pending()
        seat = self._seat(slot)
        if seat.status == "failed":
            raise ValueError(f"job {seat.job.key} has failed; its state is gone")
        return snapshot(slot, seat, self.bank, self._optimizer)

    def sample(
        self,
        prompts: Mapping[int, Sequence[str]],
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: float = 5.0,
    ) -> dict[int, Tensor]:
        """Pictures of slots' prompts, drawn from the bank itself, all slots together.

        Args:
            prompts: by slot; the i-th prompt of each slot is drawn with the i-th seed.

        Returns:
            uint8 [prompts, P, P, 3] on the CPU by slot.
        """
        return generate_by_slot(
            self.base,
            self.bank,
            prompts,
            seeds,
            side_px=self.resolution_px,
            steps=steps,
            guidance=guidance,
        )

    # -- checks -------------------------------------------------------------------------------

    def _seat(self, slot: int) -> SlotJob:
        seat = self._seats[slot]
        if seat is None:
            raise ValueError(f"slot {slot} is empty")
        return seat
