"""What the host knows of each slot's job between steps, and what it reports of a step.

Owns the bookkeeping of one admitted job. The numbers that train are the bank's and the optimiser's.

Legend: P parameters per slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.recipe import EarlyStop
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import TrainingJob
from farm.training.slots.optimizer import SlotAdamW

__all__ = ["SlotJob", "StepReport", "restore", "snapshot"]


NOT_FINITE_REMEDY = "lower `learning_rate` to a third, or add `warmup_steps`, and run again"
"""Of every job in ``StepReport.failed``."""


@dataclass(frozen=True)
class StepReport:
    """What became known with one step. Failures and ends show at the next sync with the device."""

    finished: tuple[tuple[int, str], ...] = ()
    """(slot, job key): read its results, then release the slot."""
    failed: tuple[tuple[int, str, str], ...] = ()
    """(slot, job key, reason): the loss, a gradient or the weights are not finite."""
    due_checkpoint: tuple[int, ...] = ()
    """Slots whose recipe wants a checkpoint now."""
    due_sample: tuple[int, ...] = ()
    """Slots whose recipe wants sample pictures now."""
    num_active: int = 0
    """Slots that trained in this step."""


@dataclass
class SlotJob:
    """One admitted job and what the host knows of it."""

    job: TrainingJob
    step: int = 0
    """Steps done, or under way on the device."""
    status: Literal["training", "finished", "failed"] = "training"
    stopped_because: str = "steps"
    loss_curve: list[float] = field(default_factory=list)
    evaluation_curve: list[tuple[int, float]] = field(default_factory=list)
    best_row_P: Tensor | None = None
    best_step: int = 0
    seconds: float = 0.0

    @property
    def evaluation_every(self) -> int:
        """Steps between evaluations; 0 where the recipe wants none."""
        recipe = self.job.recipe
        if recipe.early_stop is not None:
            return recipe.early_stop.every_steps
        return EarlyStop().every_steps if recipe.keep_best else 0

    def is_due(self, every: int) -> bool:
        """Whether something of this period falls on the present step."""
        return every > 0 and self.step > 0 and self.step % every == 0

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.job.recipe.steps

    @property
    def wants_host(self) -> bool:
        """Whether the host must look at this step's results at once."""
        recipe = self.job.recipe
        return self.is_done or any(
            self.is_due(every)
            for every in (self.evaluation_every, recipe.checkpoint_every, recipe.sample_every)
        )


def snapshot(slot: int, seat: SlotJob, bank: Bank, optimizer: SlotAdamW) -> SlotState:
    """All that the rest of a job's training depends on, copied to the host."""
    best = seat.best_row_P
    return SlotState(
        key=seat.job.key,
        step=seat.step,
        weights=bank.slot_weights(slot),
        first=bank.unpack(slot, optimizer.first_SP[slot]),
        second=bank.unpack(slot, optimizer.second_SP[slot]),
        loss_curve=tuple(seat.loss_curve),
        evaluation_curve=tuple(seat.evaluation_curve),
        best=None if best is None else bank.unpack(slot, best),
        best_step=seat.best_step,
        seconds=seat.seconds,
    )


def restore(slot: int, seat: SlotJob, state: SlotState, bank: Bank, optimizer: SlotAdamW) -> None:
    """Put a job where its checkpoint left it, in any slot of any bank wide enough."""
    bank.set_slot(slot, state.weights)
    optimizer.first_SP[slot].copy_(bank.pack(state.first))
    optimizer.second_SP[slot].copy_(bank.pack(state.second))
    seat.step, seat.seconds = state.step, state.seconds
    seat.loss_curve = list(state.loss_curve)
    seat.evaluation_curve = list(state.evaluation_curve)
    seat.best_row_P = None if state.best is None else bank.pack(state.best)
    seat.best_step = state.best_step
