"""The slot trainer: many subjects in one forward and backward pass over one frozen base.

Owns the life cycle of slots: admit, train, evaluate, finish or fail, release. The pass itself is in
``training_pass``; the lane owns leases and the store. A job trained beside others yields the same
adapter as when trained alone, within float tolerance: each job has its own loss, gradient clip,
learning rate, step count and random streams, and rows of different slots never mix in the base.

Legend: S slots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from farm.adapters.generate import generate_by_slot
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.recipe import Recipe
from farm.training.plan.costs import BESIDE_ROWS
from farm.training.plan.shape import LaneShape
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.evaluation import (
    NUM_EVALUATION_ROWS,
    Evaluator,
    is_best,
    should_stop,
)
from farm.training.slots.job import TrainingJob
from farm.training.slots.slot import SlotJob, StepReport
from farm.training.slots.speed import Speed
from farm.training.slots.training_pass import TrainingPass

__all__ = ["SlotTrainer", "StepReport"]


class SlotTrainer:
    """S slots over one base, trained together."""

    def __init__(
        self,
        base: Base,
        shape: LaneShape,
        *,
        num_slots: int,
        checkpointing: bool = False,
        speed: Speed | None = None,
        sync_every: int | None = None,
        num_kept: int = 0,
    ) -> None:
        """Open a bank on the base and allocate S slots.

        Args:
            shape: rows, modules, rank and resolution; jobs with fewer rows leave blanks.
            checkpointing: recompute activations in the backward pass (less memory, +47 % FLOP).
            speed: how passes run; None means the defaults of the base's device.
            sync_every: steps between two reads from the device; None means 1 on a CPU, else 8.
            num_kept: copies of slots that may exist at once; see ``keep``.
        """
        self.base, self.shape, self.num_slots = base, shape, num_slots
        self._pass = TrainingPass(
            base,
            shape,
            num_slots=num_slots,
            checkpointing=checkpointing,
            speed=speed,
            num_kept=num_kept,
        )
        self.bank = self._pass.bank
        self._slots: list[SlotJob | None] = [None] * num_slots
        self._pending: list[tuple[list[int], Tensor]] = []
        self._unreported: list[int] = []
        """Slots that failed since the last report: any read of the device can find a failure."""
        self._ended: list[int] = []
        """Slots that finished since the last report."""
        self._free_kept = list(range(num_kept))
        self._kept: dict[int, Recipe] = {}
        beside = self._pass.evaluates_beside
        self._evaluator = Evaluator(
            base,
            self.bank,
            self._pass.schedule,
            side_px=shape.resolution_px,
            # without gradients, twice the rows of a training pass fit easily
            max_rows=BESIDE_ROWS if beside else max(NUM_EVALUATION_ROWS, 2 * self._pass.num_rows),
            first_place=num_kept,
        )
        self._sync_every = sync_every or (1 if base.device.type == "cpu" else 8)

    def close(self) -> None:
        """Restore the base to its original state."""
        self._pass.close()

    @property
    def speed_report(self) -> str:
        """How steps run, in words."""
        return self._pass.speed_report

    # -- life cycle of a slot -----------------------------------------------------------------

    @property
    def free_slots(self) -> tuple[int, ...]:
        """Slots that hold no job."""
        return tuple(slot for slot, slot_job in enumerate(self._slots) if slot_job is None)

    @property
    def active_slots(self) -> tuple[int, ...]:
        """Slots whose job is still training."""
        return tuple(
            slot
            for slot, slot_job in enumerate(self._slots)
            if slot_job is not None and slot_job.status == "training"
        )

    def job(self, slot: int) -> TrainingJob:
        """The job in a slot."""
        return self._slot_job(slot).job

    def admit(
        self, job: TrainingJob, state: SlotState | None = None, *, slot: int | None = None
    ) -> int:
        """Put a job into a free slot, from its first step or from a checkpoint; the next report
        contains one that has ended.

        Raises:
            ValueError: if the job does not fit the trainer's shape, or no slot is free.
        """
        job.check_fits(self.shape, self._pass.latent_shape)
        if state is not None and state.key != job.key:
            raise ValueError(f"the state belongs to job {state.key}, not to {job.key}")
        chosen = slot if slot is not None else next(iter(self.free_slots), None)
        if chosen is None or self._slots[chosen] is not None:
            raise ValueError("no free slot")
        slot_job = SlotJob(job)
        self._pass.load(chosen, slot_job, state)
        self._slots[chosen] = slot_job
        self._ended += [chosen] if slot_job.status == "finished" else []
        return chosen

    def release(self, slot: int) -> None:
        """Free a slot, whether its job has finished, failed or is still training."""
        self._read_pending()
        self._slots[slot] = None
        self._unreported = [failed for failed in self._unreported if failed != slot]
        self._ended = [ended for ended in self._ended if ended != slot]
        self._pass.clear(slot)

    # -- the step -----------------------------------------------------------------------------

    def step(self) -> StepReport:
        """Train every active slot by one step."""
        began = time.perf_counter()
        active = [slot for slot in self.active_slots if not self._slot_job(slot).is_done]
        if active:
            numbers_2S = self._pass.run({slot: self._slot_job(slot) for slot in active})
            self._pending.append((active, numbers_2S))
            for slot in active:
                self._slot_job(slot).step += 1
        due = len(self._pending) >= self._sync_every or any(
            self._slot_job(slot).needs_sync for slot in self.active_slots
        )
        due = due or bool(self._unreported or self._ended)
        report = self._sync(len(active)) if due else StepReport(num_active=len(active))
        share = (time.perf_counter() - began) / max(1, len(active))
        for slot in active:
            self._slot_job(slot).seconds += share
        return report

    # -- reading results from the device ------------------------------------------------------

    def _read_pending(self) -> None:
        """Read the losses of all steps since the last read; mark slots that diverged.

        Evaluations come first: a slot that stopped at one has no later steps.
        """
        for slot, step, loss in self._evaluator.take():
            slot_job = self._slots[slot]
            if slot_job is not None and slot_job.status == "training":
                self._judge(slot, step, loss, self._evaluator.copy_of(slot))
        if not self._pending:
            return
        found = torch.stack([numbers for _, numbers in self._pending]).cpu().tolist()
        for (active, _), (losses, norms) in zip(self._pending, found, strict=True):
            for slot in active:
                slot_job = self._slots[slot]
                if slot_job is None or slot_job.status != "training":
                    continue
                if math.isfinite(losses[slot]) and math.isfinite(norms[slot]):
                    slot_job.loss_curve.append(losses[slot])
                else:
                    what = "gradient" if math.isfinite(losses[slot]) else "loss"
                    step = len(slot_job.loss_curve)
                    self._fail(slot, f"the {what} is not finite at step {step}")
        self._pending.clear()

    def _sync(self, num_active: int) -> StepReport:
        """Read the device, evaluate, and report which slots finished, failed or are due."""
        self._read_pending()
        training = list(self.active_slots)
        self._evaluate(training)
        for slot in training:
            if self._slot_job(slot).is_done and self._slot_job(slot).status == "training":
                self._finish(slot, "steps")
        running = [(slot, self._slot_job(slot)) for slot in self.active_slots]
        failed = self._new_failures()  # without reading what was just started
        ended, self._ended = self._ended, []
        return StepReport(
            tuple((slot, self._slot_job(slot).key) for slot in sorted(ended)),
            failed,
            tuple(
                slot
                for slot, slot_job in running
                if slot_job.is_due(slot_job.recipe.checkpoint_every)
            ),
            tuple(
                slot for slot, slot_job in running if slot_job.is_due(slot_job.recipe.sample_every)
            ),
            num_active,
        )

    @property
    def has_news(self) -> bool:
        """Whether a job has failed or finished that was not reported yet; waits for the device."""
        self._read_pending()
        return bool(self._unreported or self._ended)

    def take_failures(self) -> tuple[tuple[int, str, str], ...]:
        """(slot, job key, reason) of jobs that failed since the last report; waits for the
        device."""
        self._read_pending()
        return self._new_failures()

    def _new_failures(self) -> tuple[tuple[int, str, str], ...]:
        failed, self._unreported = self._unreported, []
        jobs = [(slot, self._slot_job(slot)) for slot in failed]
        return tuple((slot, job.key, job.stopped_because) for slot, job in jobs)

    def _fail(self, slot: int, reason: str) -> None:
        slot_job = self._slot_job(slot)
        slot_job.status, slot_job.stopped_because = "failed", reason
        self._unreported.append(slot)
        self._pass.clear(slot)

    def _finish(self, slot: int, why: str) -> None:
        slot_job = self._slot_job(slot)
        if slot_job.best_row_P is not None and slot_job.best_step != slot_job.step:
            self.bank.write_row(slot, slot_job.best_row_P)
            why = why if why == "early_stop" else "keep_best"
        if not bool(torch.isfinite(self.bank.flat_ZP[slot]).all()):
            self._fail(slot, f"the weights are not finite after step {slot_job.step}")
            return
        slot_job.status, slot_job.stopped_because = "finished", why
        self._ended.append(slot)

    def _evaluate(self, slots: Sequence[int]) -> None:
        """Evaluate the slots that are due: beside the next steps, or now where a result follows."""
        due = {
            slot: slot_job
            for slot in slots
            if (slot_job := self._slot_job(slot)).evaluation_every
            and (slot_job.is_due(slot_job.evaluation_every) or slot_job.is_done)
        }
        may_wait = self._pass.evaluates_beside
        later = {slot: one for slot, one in due.items() if may_wait and not one.has_output}
        if later:
            jobs = {slot: slot_job.job for slot, slot_job in later.items()}
            self._evaluator.start(jobs, {slot: one.step for slot, one in later.items()})
        now = [slot for slot in due if slot not in later]
        for slot, loss in self.evaluation_loss(now).items():
            self._judge(slot, self._slot_job(slot).step, loss, self.bank.flat_ZP[slot])

    def _judge(self, slot: int, step: int, loss: float, weights_P: Tensor) -> None:
        """Keep a slot's best weights, or stop a slot without progress.

        Args:
            step: at which it was evaluated; it may have trained on since.
            weights_P: at that step.
        """
        slot_job = self._slot_job(slot)
        if not math.isfinite(loss):
            self._fail(slot, f"the evaluation loss is not finite at step {step}")
            return
        slot_job.evaluation_curve.append((step, loss))
        if slot_job.recipe.keep_best and is_best(slot_job.evaluation_curve):
            slot_job.best_row_P = weights_P.cpu().clone()
            slot_job.best_step = step
        rule = slot_job.recipe.early_stop
        is_last = step >= slot_job.recipe.steps
        if rule and not is_last and should_stop(slot_job.evaluation_curve, rule):
            if step != slot_job.step:  # discard the steps since
                self.bank.write_row(slot, weights_P)
                slot_job.step = step
                del slot_job.loss_curve[step:]
            self._finish(slot, "early_stop")

    def evaluation_loss(self, slots: Sequence[int] | None = None) -> dict[int, float]:
        """The loss of slots on their own fixed noise and timesteps, computed in shared passes."""
        chosen = self.active_slots if slots is None else slots
        return self._evaluator.losses({slot: self._slot_job(slot).job for slot in chosen})

    # -- results ------------------------------------------------------------------------------

    def weights(self, slot: int) -> AdapterWeights:
        """The adapter's current weights; of a finished job, those to commit."""
        return self.bank.slot_weights(slot)

    def keep(self, slot: int) -> int | None:
        """Copy a slot's weights to a row that training does not change; ``sample`` takes it like a
        slot. None if there are already as many copies as there may be."""
        if not self._free_kept:
            return None
        row = self.bank.keep(slot, self._free_kept.pop())
        self._kept[row] = self._slot_job(slot).recipe
        return row

    def drop_kept(self, row: int) -> None:
        """Give back a row of ``keep``."""
        del self._kept[row]
        self._free_kept.append(row - self.num_slots - 1)

    def _recipe(self, row: int) -> Recipe:
        """The recipe of a slot or of a copy."""
        return self._kept.get(row) or self._slot_job(row).recipe

    def loss_curve(self, slot: int) -> tuple[float, ...]:
        """Training loss of each completed step."""
        self._read_pending()
        return tuple(self._slot_job(slot).loss_curve)

    def evaluation_curve(self, slot: int) -> tuple[tuple[int, float], ...]:
        """(step, loss) of each evaluation."""
        self._read_pending()
        return tuple(self._slot_job(slot).evaluation_curve)

    def steps_done(self, slot: int) -> int:
        """Steps that this job has trained."""
        return self._slot_job(slot).step

    def steps_trained(self, slot: int) -> int:
        """Steps that the weights were trained for: fewer if an earlier evaluation was the best."""
        slot_job = self._slot_job(slot)
        kept = slot_job.status == "finished" and slot_job.best_row_P is not None
        return slot_job.best_step if kept else slot_job.step

    def stopped_because(self, slot: int) -> str:
        """Why a finished job ended: ``steps``, ``early_stop`` or ``keep_best``; or its failure."""
        return self._slot_job(slot).stopped_because

    def seconds(self, slot: int) -> float:
        """This job's share of the time of its steps."""
        return self._slot_job(slot).seconds

    def state(self, slot: int) -> SlotState:
        """Everything that the job's remaining training depends on; waits for the device."""
        self._read_pending()
        slot_job = self._slot_job(slot)
        if slot_job.status == "failed":
            raise ValueError(f"job {slot_job.key} has failed; its state is gone")
        return self._pass.state(slot, slot_job)

    def sample(
        self,
        prompts: Mapping[int, Sequence[str]],
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: float = 5.0,
    ) -> dict[int, Tensor]:
        """Generate images from the bank's current weights, for all slots together.

        Args:
            prompts: by slot; the i-th prompt of each slot uses the i-th seed.

        Returns:
            uint8 [prompts, P, P, 3] on the CPU by slot.
        """
        on_gpu = self.base.device.type == "cuda"
        return generate_by_slot(
            self.base,
            self.bank,
            prompts,
            seeds,
            width_px=self.shape.resolution_px,
            height_px=self.shape.resolution_px,
            steps=steps,
            guidance=guidance,
            # on GPUs beside training steps, which need the memory
            batch=BESIDE_ROWS // 2 if on_gpu else 16,
            chunked=[row for row in prompts if self._recipe(row).long_prompts == "chunk"],
        )

    def _slot_job(self, slot: int) -> SlotJob:
        slot_job = self._slots[slot]
        if slot_job is None:
            raise ValueError(f"slot {slot} is empty")
        return slot_job
