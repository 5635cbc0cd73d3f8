"""The evaluation loss of slots on fixed noise, and the decisions made from its curve.

The training loss fluctuates with its timesteps. The loss on fixed noise at fixed, evenly spaced
timesteps falls smoothly and shows when a subject is learned (DVAR, Voronov et al. 2023). All slots
that are due share one forward pass.

Legend: R rows, E evaluation rows per job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.interface import Base
from farm.base.schedules import NoiseSchedule
from farm.recipe import EarlyStop
from farm.training.plan.shape import NUM_EVALUATION_ROWS
from farm.training.slots.batch import JobRows, evaluation_rows
from farm.training.slots.job import TrainingJob
from farm.training.slots.objective import slot_losses
from farm.training.slots.prompts import evaluation_prompts

__all__ = ["NUM_EVALUATION_ROWS", "evaluation_losses", "is_best", "should_stop"]

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


@torch.no_grad()
def evaluation_losses(
    base: Base,
    bank: Bank,
    jobs: Mapping[int, TrainingJob],
    schedule: NoiseSchedule,
    latent_shape: tuple[int, int, int],
    *,
    side_px: int,
    max_rows: int,
) -> dict[int, float]:
    """The loss of each job on its own fixed rows; waits for the device.

    Args:
        jobs: by slot.
        schedule: with its tables on the CPU.
        side_px: of the training crops.
        max_rows: largest number of rows in one pass, as memory allows.
    """
    jobs_per_pass = max(1, max_rows // NUM_EVALUATION_ROWS)
    slots = list(jobs)
    losses: dict[int, float] = {}
    for start in range(0, len(slots), jobs_per_pass):
        chosen = slots[start : start + jobs_per_pass]
        rows = [
            evaluation_rows(jobs[slot], NUM_EVALUATION_ROWS, schedule, latent_shape)
            for slot in chosen
        ]
        own = [jobs[slot] for slot in chosen]
        found = _one_pass(base, bank, own, chosen, rows, side_px)
        losses.update(zip(chosen, found.tolist(), strict=True))
    return losses


def _one_pass(
    base: Base,
    bank: Bank,
    jobs: Sequence[TrainingJob],
    slots: Sequence[int],
    rows: Sequence[JobRows],
    side_px: int,
) -> Tensor:
    noisy_RCHW = torch.cat([part.noisy_nCHW for part in rows]).to(base.device, base.dtype)
    target_RCHW = torch.cat([part.target_nCHW for part in rows]).to(base.device)
    timesteps_R = torch.cat([part.timesteps_n for part in rows]).to(base.device)
    weights_R = torch.cat([part.weights_n for part in rows]).to(base.device)
    slots_R = torch.tensor(slots).repeat_interleave(NUM_EVALUATION_ROWS)
    with bank.route(slots_R):
        prompts = evaluation_prompts(base, jobs, rows, side_px)
        prediction_RCHW = base.denoise(noisy_RCHW, timesteps_R, prompts)
    return slot_losses(prediction_RCHW, target_RCHW, weights_R, len(slots))
