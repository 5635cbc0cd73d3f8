"""The evaluation loss of slots on fixed noise, and the decisions made from its curve.

The training loss fluctuates with its timesteps. The loss on fixed noise at fixed, evenly spaced
timesteps falls smoothly and shows when a subject is learned (DVAR, Voronov et al. 2023). All slots
that are due share one forward pass. On a GPU it runs beside the next training steps, from copies of
the slots; a decision that comes late discards the steps after the evaluation.

Legend: R rows, E evaluation rows per job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.device.queues import Queue, mark
from farm.base.device.transfer import sent
from farm.base.interface import Base
from farm.base.schedules import NoiseSchedule
from farm.recipe import EarlyStop
from farm.training.plan.shape import NUM_EVALUATION_ROWS
from farm.training.slots.batch import evaluation_rows
from farm.training.slots.job import TrainingJob
from farm.training.slots.objective import slot_losses
from farm.training.slots.prompts import evaluation_prompts

__all__ = ["NUM_EVALUATION_ROWS", "Evaluator", "is_best", "should_stop"]

KEEP_TOLERANCE = 0.02
"""Relative difference below which two evaluation losses count as equal; of equal steps the latest
is kept. On 50 rendered subjects the lowest loss was 80 steps before the stop on average, and
keeping it cost 3 % of fidelity, which still increases after the loss has levelled off."""


def is_best(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether the last evaluation is as low as any so far, within ``KEEP_TOLERANCE``."""
    lowest = min(loss for _, loss in curve)
    return curve[-1][1] <= lowest * (1 + KEEP_TOLERANCE)


def should_stop(curve: Sequence[tuple[int, float]], rule: EarlyStop) -> bool:
    """Whether the loss has stopped falling: ``patience`` evaluations without enough improvement."""
    if not curve or curve[-1][0] < rule.min_steps:
        return False
    best, num_stale = float("inf"), 0
    for _, loss in curve:
        if loss < best * (1 - rule.min_delta):
            best, num_stale = loss, 0
        else:
            num_stale += 1
    return num_stale >= rule.patience


@dataclass(frozen=True)
class _Started:
    """Evaluations whose losses are still being computed."""

    steps: Mapping[int, int]
    """Steps done by each slot when its weights were copied."""
    losses_by_pass: Sequence[Tensor]


class Evaluator:
    """Evaluates a trainer's slots: at once, or from copies in a queue of low priority."""

    def __init__(
        self,
        base: Base,
        bank: Bank,
        schedule: NoiseSchedule,
        *,
        side_px: int,
        max_rows: int,
        first_place: int,
    ) -> None:
        """Create the queue.

        Args:
            schedule: with its tables on the CPU.
            side_px: of the training crops.
            max_rows: largest number of rows in one pass, as memory allows.
            first_place: in the bank's kept rows, the one for the copy of slot 0.
        """
        self._base, self._bank, self._schedule = base, bank, schedule
        self._side_px, self._max_rows, self._first_place = side_px, max_rows, first_place
        self._queue = Queue(base.device)
        self._started: list[_Started] = []

    def losses(self, jobs: Mapping[int, TrainingJob]) -> dict[int, float]:
        """The loss of each slot's job on its own fixed rows; waits for the device."""
        found = [loss for part in self._passes(jobs, jobs) for loss in part.tolist()]
        return dict(zip(jobs, found, strict=True))

    def start(self, jobs: Mapping[int, TrainingJob], steps: Mapping[int, int]) -> None:
        """Copy the slots and queue their evaluation; ``take`` returns the losses.

        Args:
            steps: done by each slot.
        """
        rows = {slot: self._bank.keep(slot, self._first_place + slot) for slot in jobs}
        with self._queue.active(mark(self._base.device)):
            losses = self._passes(jobs, rows.values())
            self._started.append(_Started(dict(steps), losses))

    def take(self) -> list[tuple[int, int, float]]:
        """(slot, steps, loss) of all evaluations that were started; waits for them."""
        started, self._started = self._started, []
        found: list[tuple[int, int, float]] = []
        for one in started:
            with self._queue.active():
                losses = [loss for part in one.losses_by_pass for loss in part.tolist()]
            steps = one.steps.items()
            found += [(slot, step, loss) for (slot, step), loss in zip(steps, losses, strict=True)]
        return found

    def copy_of(self, slot: int) -> Tensor:
        """The weights [P] of a slot at its last evaluation from a copy."""
        return self._bank.flat_ZP[self._bank.num_slots + 1 + self._first_place + slot]

    @torch.no_grad()
    def _passes(self, jobs: Mapping[int, TrainingJob], rows: Iterable[int]) -> list[Tensor]:
        """The losses of the jobs, by pass; each with the weights of its row of the bank."""
        pairs = list(zip(jobs.values(), rows, strict=True))
        jobs_per_pass = max(1, self._max_rows // NUM_EVALUATION_ROWS)
        starts = range(0, len(pairs), jobs_per_pass)
        return [self._one_pass(pairs[start : start + jobs_per_pass]) for start in starts]

    def _one_pass(self, chosen: Sequence[tuple[TrainingJob, int]]) -> Tensor:
        base, jobs = self._base, [job for job, _ in chosen]
        shape = base.latent_shape(self._side_px, self._side_px)
        parts = [evaluation_rows(job, NUM_EVALUATION_ROWS, self._schedule, shape) for job in jobs]

        def on_device(tensors: Sequence[Tensor]) -> Tensor:
            return sent(torch.cat(list(tensors)), base.device)

        noisy_RCHW = on_device([part.noisy_nCHW for part in parts]).to(base.dtype)
        target_RCHW = on_device([part.target_nCHW for part in parts])
        timesteps_R = on_device([part.timesteps_n for part in parts])
        weights_R = on_device([part.weights_n for part in parts])
        rows_R = torch.tensor([row for _, row in chosen]).repeat_interleave(NUM_EVALUATION_ROWS)
        with self._bank.route(rows_R):
            prompts = evaluation_prompts(base, jobs, parts, self._side_px)
            prediction_RCHW = base.denoise(noisy_RCHW, timesteps_R, prompts)
        return slot_losses(prediction_RCHW, target_RCHW, weights_R, len(jobs))
