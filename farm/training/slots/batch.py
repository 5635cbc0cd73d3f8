"""The rows of a step: each slot's noised latents, targets and weights in one batch.

Owns the assembly on the host and the one transfer to the device; ``prompts`` owns their prompts.
All arithmetic on latents is done on the CPU in float32, so every device trains on the same values.
While the device runs one step, the host prepares the next.

Legend: S slots, G rows per slot, R = S·G rows, n one job's own rows, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from farm.base.interface import Base
from farm.base.schedules import NoiseSchedule
from farm.training.plan.shape import LaneShape
from farm.training.slots.job import TrainingJob, moment_rows
from farm.training.slots.objective import row_weights
from farm.training.slots.random import (
    RowNoise,
    TimestepRule,
    evaluation_noise,
    step_noise,
    visit_order,
)

__all__ = ["JobRows", "StepBatch", "evaluation_rows", "step_rows"]


@dataclass(frozen=True)
class JobRows:
    """One job's rows of one pass, on the CPU."""

    noisy_nCHW: Tensor
    target_nCHW: Tensor
    timesteps_n: Tensor
    """What the denoiser reads: ``NoiseSchedule.model_timesteps``."""
    weights_n: Tensor
    instances: list[int]
    """Indices of the cached crops behind the instance rows."""
    priors: list[int]


def step_rows(
    job: TrainingJob, step: int, schedule: NoiseSchedule, latent_shape: tuple[int, int, int]
) -> JobRows:
    """A job's rows of one training step; they depend only on its own random streams.

    Args:
        schedule: with its tables on the CPU.
    """
    noise = step_noise(
        job.seed,
        step,
        rows=job.instance_rows + job.prior_rows,
        latent_shape=latent_shape,
        timesteps=TimestepRule.of(job.recipe, schedule),
        noise_offset=job.recipe.noise_offset,
    )
    instances = visit_order(job.seed, "photos", step, job.instance_rows, job.num_instances)
    moments = moment_rows(job.instance_moments, instances)
    priors: list[int] = []
    if job.prior_rows:
        assert job.prior is not None
        priors = visit_order(job.seed, "priors", step, job.prior_rows, job.num_priors)
        moments = torch.cat([moments, moment_rows(job.prior.moments, priors)])
    weights_n = row_weights(schedule, job.recipe, noise.timesteps_R, job.instance_rows)
    return _noised(schedule, noise, moments, weights_n, instances, priors)


def evaluation_rows(
    job: TrainingJob, rows: int, schedule: NoiseSchedule, latent_shape: tuple[int, int, int]
) -> JobRows:
    """A job's evaluation rows: the same at every evaluation, with equal weights."""
    noise = evaluation_noise(
        job.seed, rows=rows, latent_shape=latent_shape, num_timesteps=schedule.num_timesteps
    )
    instances = [row % job.num_instances for row in range(rows)]
    moments = moment_rows(job.instance_moments, instances)
    return _noised(schedule, noise, moments, torch.full((rows,), 1 / rows), instances, [])


def _noised(
    schedule: NoiseSchedule,
    noise: RowNoise,
    moments_n2CHW: Tensor,
    weights_n: Tensor,
    instances: list[int],
    priors: list[int],
) -> JobRows:
    latents_nCHW = torch.addcmul(moments_n2CHW[:, 0], moments_n2CHW[:, 1], noise.latent_noise_RCHW)
    return JobRows(
        schedule.add_noise(latents_nCHW, noise.noise_RCHW, noise.timesteps_R),
        schedule.target(latents_nCHW, noise.noise_RCHW, noise.timesteps_R),
        schedule.model_timesteps(noise.timesteps_R),
        weights_n,
        instances,
        priors,
    )


@dataclass(frozen=True)
class StepBatch:
    """All slots' rows of one step on the device; blank rows have weight 0."""

    noisy_RCHW: Tensor
    """In the base's dtype."""
    target_RCHW: Tensor
    timesteps_R: Tensor
    weights_R: Tensor
    table_SK: Tensor
    """The optimizer's numbers: ``SlotUpdate.row`` of every slot."""

    @classmethod
    def assemble(
        cls,
        base: Base,
        shape: LaneShape,
        rows: Sequence[JobRows | None],
        table: Sequence[Sequence[float]],
    ) -> StepBatch:
        """Place each slot's rows in its group, instance rows first, and send them to the device.

        Args:
            rows: by slot; None where no job trains.
            table: ``SlotUpdate.row`` by slot.
        """
        latent_shape = base.latent_shape(shape.resolution_px, shape.resolution_px)
        count = len(rows) * shape.rows
        pin = base.device.type == "cuda"
        noisy = torch.zeros((count, *latent_shape), pin_memory=pin)
        target = torch.zeros((count, *latent_shape), pin_memory=pin)
        timesteps = torch.zeros(count, dtype=base.schedule.timestep_dtype, pin_memory=pin)
        weights = torch.zeros(count, pin_memory=pin)
        for slot, job_rows in enumerate(rows):
            if job_rows is None:
                continue
            first = slot * shape.rows
            instances, total = len(job_rows.instances), len(job_rows.timesteps_n)
            # a job with fewer rows than the shape leaves blanks after each kind
            places = [first + i for i in range(instances)]
            places += [first + shape.instance_rows + i for i in range(total - instances)]
            noisy[places] = job_rows.noisy_nCHW
            target[places] = job_rows.target_nCHW
            timesteps[places] = job_rows.timesteps_n
            weights[places] = job_rows.weights_n
        numbers = torch.tensor(table, dtype=torch.float64, pin_memory=pin)

        def to_device(tensor: Tensor) -> Tensor:
            return tensor.to(base.device, non_blocking=True)

        return cls(
            to_device(noisy).to(base.dtype),
            to_device(target),
            to_device(timesteps),
            to_device(weights),
            to_device(numbers),
        )

    def copy_(self, other: StepBatch) -> None:
        """Overwrite this batch with another one on the same device."""
        for field in fields(self):
            getattr(self, field.name).copy_(getattr(other, field.name))
