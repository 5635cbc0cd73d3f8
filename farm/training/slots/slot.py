"""The host's record of each slot's job between steps, and the report of a step.

Owns the bookkeeping of one admitted job. The trained tensors belong to the bank and the optimizer.

Legend: P parameters per slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.recipe import Recipe
from farm.training.plan.shape import evaluation_period
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import TrainingJob
from farm.training.slots.optimizer import SlotAdamW

__all__ = ["SlotJob", "StepReport", "restore", "snapshot"]


NOT_FINITE_REMEDY = "lower `learning_rate` to a third, or add `warmup_steps`, and run again"
"""The remedy for every job in ``StepReport.failed``."""


@dataclass(frozen=True)
class StepReport:
    """The outcome of one step. Failures and ends appear at the next sync with the device."""

    finished: tuple[tuple[int, str], ...] = ()
    """(slot, job key): read its results, then release the slot."""
    failed: tuple[tuple[int, str, str], ...] = ()
    """(slot, job key, reason): the loss, a gradient or the weights are not finite."""
    due_checkpoint: tuple[int, ...] = ()
    """Slots whose recipe asks for a checkpoint now."""
    due_sample: tuple[int, ...] = ()
    """Slots whose recipe asks for sample images now."""
    num_active: int = 0
    """Slots that trained in this step."""


@dataclass
class SlotJob:
    """One admitted job and its progress."""

    job: TrainingJob
    step: int = 0
    """Steps done, or queued on the device."""
    status: Literal["training", "finished", "failed"] = "training"
    stopped_because: str = "steps"
    loss_curve: list[float] = field(default_factory=list)
    evaluation_curve: list[tuple[int, float]] = field(default_factory=list)
    best_row_P: Tensor | None = None
    best_step: int = 0
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """The job's key."""
        return self.job.key

    @property
    def recipe(self) -> Recipe:
        """The job's recipe."""
        return self.job.recipe

    @property
    def evaluation_every(self) -> int:
        """Steps between evaluations; 0 if the recipe asks for none."""
        return evaluation_period(self.recipe)

    def is_due(self, every: int) -> bool:
        """Whether the current step is a multiple of a period."""
        return every > 0 and self.step > 0 and self.step % every == 0

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.recipe.steps

    @property
    def has_output(self) -> bool:
        """Whether this step's weights leave the trainer: finished, as a checkpoint, as samples."""
        recipe = self.recipe
        return self.is_done or any(map(self.is_due, (recipe.checkpoint_every, recipe.sample_every)))

    @property
    def needs_sync(self) -> bool:
        """Whether the host must read this step's results immediately."""
        return self.has_output or self.is_due(self.evaluation_every)


def snapshot(slot: int, slot_job: SlotJob, bank: Bank, optimizer: SlotAdamW) -> SlotState:
    """Everything that the job's remaining training depends on, copied to the host."""
    best = slot_job.best_row_P
    return SlotState(
        key=slot_job.key,
        step=slot_job.step,
        weights=bank.slot_weights(slot),
        first=bank.unpack(slot, optimizer.first_SP[slot]),
        second=bank.unpack(slot, optimizer.second_SP[slot]),
        loss_curve=tuple(slot_job.loss_curve),
        evaluation_curve=tuple(slot_job.evaluation_curve),
        best=None if best is None else bank.unpack(slot, best),
        best_step=slot_job.best_step,
        seconds=slot_job.seconds,
    )


def restore(
    slot: int, slot_job: SlotJob, state: SlotState, bank: Bank, optimizer: SlotAdamW
) -> None:
    """Load a checkpoint into any slot of any bank that is wide enough."""
    bank.set_slot(slot, state.weights)
    optimizer.first_SP[slot].copy_(bank.pack(state.first))
    optimizer.second_SP[slot].copy_(bank.pack(state.second))
    slot_job.step, slot_job.seconds = state.step, state.seconds
    slot_job.loss_curve = list(state.loss_curve)
    slot_job.evaluation_curve = list(state.evaluation_curve)
    slot_job.best_row_P = None if state.best is None else bank.pack(state.best)
    slot_job.best_step = state.best_step
    if state.ended:
        slot_job.status, slot_job.stopped_because = "finished", state.ended
        if state.best_step != state.step:  # the weights are those of the best step
            slot_job.best_row_P = bank.pack(state.weights)
