"""All random choices of a job's training, keyed only by (job seed, step).

Streams do not depend on the slot, its neighbours, the trainer's shape or the device. A job
therefore uses the same values in any slot and beside any other job, and a resumed job continues as
if it had never stopped. Other training loops can reproduce the streams, which are defined as
follows:

- A generator is ``torch.Generator("cpu").manual_seed(derive_seed(seed, name, number))``.
- ``(seed, "photos", epoch)``: one ``randperm(N)``, the order in which the N cached crops are
  visited in that epoch. Sample number ``step · I + i`` belongs to row i of the step's I instance
  rows; its epoch and position are the quotient and remainder by N. ``(seed, "priors", epoch)`` is
  the same for the M prior images and the step's P prior rows.
- ``(seed, "step", step)``, steps counted from 0, gives in this order, for the job's own
  R = I + P rows, instance rows first: the timesteps, the noise ``randn(R, C, H, W)``, the noise of
  the latents' own distribution ``randn(R, C, H, W)``, and if the recipe offsets noise
  ``randn(R, C, 1, 1)``. Unshifted uniform timesteps are ``randint(num_timesteps, (R,))``; all
  others are ``floor(num_timesteps · u)``, with u from ``rand(R)`` or from the sigmoid of
  ``mean + std · randn(R)``, shifted by s to ``s·u / (1 + (s - 1)·u)``.
- ``(seed, "evaluation", 0)``: noise, then the latents' noise, for the E evaluation rows.

Legend: N crops, M priors, I instance rows, P prior rows, R rows, C H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from farm.base.schedules import NoiseSchedule
from farm.keys import derive_seed
from farm.recipe import Recipe, TimestepSampling

__all__ = ["RowNoise", "TimestepRule", "evaluation_noise", "step_noise", "visit_order"]


@dataclass(frozen=True)
class TimestepRule:
    """The distribution of a job's training timesteps."""

    num_timesteps: int
    sampling: TimestepSampling = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe, schedule: NoiseSchedule) -> TimestepRule:
        """A recipe's rule, with the base's own where the recipe has none."""
        sampling = recipe.timestep_sampling or schedule.sampling
        return cls(
            schedule.num_timesteps,
            sampling,
            recipe.logit_mean,
            recipe.logit_std,
            recipe.timestep_shift,
        )

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Training timesteps, int64 [R]; 0 is the cleanest."""
        if self.sampling == "uniform" and self.shift == 1:
            return torch.randint(self.num_timesteps, (rows,), generator=generator)
        if self.sampling == "uniform":
            level_R = torch.rand(rows, generator=generator)
        else:
            level_R = torch.sigmoid(self.mean + self.std * torch.randn(rows, generator=generator))
        level_R = self.shift * level_R / (1 + (self.shift - 1) * level_R)
        return (level_R * self.num_timesteps).long().clamp(max=self.num_timesteps - 1)


@dataclass(frozen=True)
class RowNoise:
    """Timesteps and noise of one job's rows in one pass, on the CPU in float32."""

    timesteps_R: Tensor
    noise_RCHW: Tensor
    latent_noise_RCHW: Tensor
    """Samples the latents from their moments: ``mean + std · noise``."""


def _generator(seed: int, name: str, number: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derive_seed(seed, name, number))


def step_noise(
    seed: int,
    step: int,
    *,
    rows: int,
    latent_shape: tuple[int, int, int],
    timesteps: TimestepRule,
    noise_offset: float = 0.0,
) -> RowNoise:
    """Timesteps and noise of one training step, in the order given in the module docstring."""
    generator = _generator(seed, "step", step)
    shape = (rows, *latent_shape)
    timesteps_R = timesteps.sample(rows, generator)
    noise_RCHW = torch.randn(shape, generator=generator)
    latent_noise_RCHW = torch.randn(shape, generator=generator)
    if noise_offset:
        offset = torch.randn((rows, latent_shape[0], 1, 1), generator=generator)
        noise_RCHW += noise_offset * offset
    return RowNoise(timesteps_R, noise_RCHW, latent_noise_RCHW)


def evaluation_noise(
    seed: int, *, rows: int, latent_shape: tuple[int, int, int], num_timesteps: int
) -> RowNoise:
    """Fixed noise and evenly spaced timesteps, the same at every evaluation (DVAR)."""
    generator = _generator(seed, "evaluation", 0)
    shape = (rows, *latent_shape)
    timesteps_R = ((torch.arange(rows) + 0.5) * num_timesteps / rows).long()
    noise_RCHW = torch.randn(shape, generator=generator)
    return RowNoise(timesteps_R, noise_RCHW, torch.randn(shape, generator=generator))


def visit_order(seed: int, name: str, step: int, rows: int, count: int) -> list[int]:
    """Which of ``count`` samples a step's rows use: reshuffled each epoch, none skipped.

    Args:
        name: ``photos`` or ``priors``.
    """
    order = []
    for number in range(step * rows, (step + 1) * rows):
        epoch, position = divmod(number, count)
        order.append(_permutation(seed, name, epoch, count)[position])
    return order


@lru_cache(maxsize=512)
def _permutation(seed: int, name: str, epoch: int, count: int) -> tuple[int, ...]:
    permutation: list[int] = torch.randperm(count, generator=_generator(seed, name, epoch)).tolist()
    return tuple(permutation)
