"""The rows of a step: each slot's noised latents, targets, weights and prompts in one batch.

Owns the assembly on the host and the one transfer to the device. All arithmetic on latents is done
on the CPU in float32, so every device trains on the same values. While the device runs one step,
the host prepares the next.

Legend: S slots, G rows per slot, R = S·G rows, n one job's own rows, C H W latent, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from farm.base.interface import Base, Conditioning
from farm.base.schedules import NoiseSchedule
from farm.training.plan.shape import LaneShape
from farm.training.slots.job import TrainingJob, moment_rows
from farm.training.slots.objective import row_weights
from farm.training.slots.random import RowNoise, evaluation_noise, step_noise, visit_order

__all__ = ["JobRows", "PromptRows", "StepBatch", "evaluation_rows", "prompt_indices", "step_rows"]


@dataclass(frozen=True)
class JobRows:
    """One job's rows of one pass, on the CPU."""

    noisy_nCHW: Tensor
    target_nCHW: Tensor
    timesteps_n: Tensor
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
        num_timesteps=schedule.num_timesteps,
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
        noise.timesteps_R,
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
        timesteps = torch.zeros(count, dtype=torch.int64, pin_memory=pin)
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


class PromptRows:
    """Each row's prompt, resident on the device; only rows whose caption changes are rewritten.

    Holds encoded prompts, or token ids if the text encoder is adapted too.
    """

    def __init__(self, base: Base, shape: LaneShape, num_slots: int) -> None:
        self._base, self._as_tokens = base, bool(shape.text_encoder_modules)
        self._instance_rows, self._group = shape.instance_rows, shape.rows
        self._count = num_slots * self._group
        # blank rows hold the empty prompt, a valid input, so that they give finite numbers
        empty = base.encode_prompts([""]).to(base.dtype)
        self._encoded = empty.repeat(self._count)
        self._tokens_RT = base.tokenize([""]).to(base.device).repeat(self._count, 1)

    def admit(self, slot: int, job: TrainingJob) -> None:
        """Write a job's prompts; if all photos share one prompt, they never change."""
        self._write(slot, job, [0] * job.instance_rows, [0] * job.prior_rows)

    def update(self, slot: int, job: TrainingJob, rows: JobRows) -> None:
        """Write the captions of this step's photos, if each photo has its own."""
        if self._varies(job):
            self._write(slot, job, rows.instances, rows.priors)

    def conditioning(self) -> Conditioning:
        """All rows' prompts; tokens are encoded now, under the caller's routing."""
        return self._base.encode_tokens(self._tokens_RT) if self._as_tokens else self._encoded

    def _varies(self, job: TrainingJob) -> bool:
        if self._as_tokens:
            assert job.instance_tokens is not None
            prior = job.prior.tokens if job.prior is not None else None
            return len(job.instance_tokens) > 1 or (prior is not None and len(prior) > 1)
        prior_count = len(job.prior.conditioning) if job.prior is not None else 1
        return len(job.instance_conditioning) > 1 or prior_count > 1

    def _write(self, slot: int, job: TrainingJob, instances: list[int], priors: list[int]) -> None:
        first = slot * self._group
        second = first + self._instance_rows
        if self._as_tokens:
            assert job.instance_tokens is not None
            _put_tokens(self._tokens_RT, first, job.instance_tokens, instances)
            if priors and job.prior is not None and job.prior.tokens is not None:
                _put_tokens(self._tokens_RT, second, job.prior.tokens, priors)
            return
        _put(self._encoded, first, job.instance_conditioning, instances)
        if priors and job.prior is not None:
            _put(self._encoded, second, job.prior.conditioning, priors)


def prompt_indices(prompts: Sized, samples: list[int]) -> list[int]:
    """The index of each sample's prompt: its own, or that of the only one."""
    return samples if len(prompts) > 1 else [0] * len(samples)


def _put(buffer: Conditioning, start: int, source: Conditioning, indices: list[int]) -> None:
    # row by row: a list of indices would be copied to the device synchronously
    for row, index in enumerate(prompt_indices(source, indices), start):
        buffer.hidden_RTD[row].copy_(source.hidden_RTD[index], non_blocking=True)
        for name, value in buffer.extra.items():
            value[row].copy_(source.extra[name][index], non_blocking=True)


def _put_tokens(buffer_RT: Tensor, start: int, source: Tensor, indices: list[int]) -> None:
    chosen = source[prompt_indices(source, indices)]
    buffer_RT[start : start + len(indices)].copy_(chosen, non_blocking=True)
