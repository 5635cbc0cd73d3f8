"""Every random choice of a job's training, keyed by (job seed, step) and by nothing else.

Neither the slot, nor the neighbours, nor the trainer's shape, nor the device enters a stream, so a
job draws the same numbers wherever and beside whomever it trains, and a resumed job goes on as if
it had never stopped. Other loops can reproduce the streams; this is the whole of them:

- A generator is ``torch.Generator("cpu").manual_seed(derive_seed(seed, name, number))``.
- ``(seed, "photos", epoch)``: one ``randperm(N)``, the order in which the N cached crops are
  visited in that epoch. Sample number ``step · I + i`` belongs to row i of the step's I instance
  rows; epoch and place in it are its quotient and remainder by N. ``(seed, "priors", epoch)`` is
  the same for the M prior images and the step's P prior rows.
- ``(seed, "step", step)``, steps counted from 0, draws in this order, for the job's own
  R = I + P rows, instance rows first: ``randint(num_timesteps, (R,))``, the noise
  ``randn(R, C, H, W)``, the noise of the latents' own distribution ``randn(R, C, H, W)``, and
  where the recipe offsets noise ``randn(R, C, 1, 1)``.
- ``(seed, "evaluation", 0)``: noise and the latents' noise in one order for the E evaluation rows.

Legend: N crops, M priors, I instance rows, P prior rows, R rows, C H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from farm.keys import derive_seed

__all__ = ["StepDraw", "draw_evaluation", "draw_step", "visit_order"]


@dataclass(frozen=True)
class StepDraw:
    """The random numbers of one pass over one job's rows, on the CPU in float32."""

    timesteps_R: Tensor
    noise_RCHW: Tensor
    latent_noise_RCHW: Tensor
    """Samples the latents from their moments: ``mean + std · noise``."""


def _generator(seed: int, name: str, number: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derive_seed(seed, name, number))


def draw_step(
    seed: int,
    step: int,
    *,
    rows: int,
    latent_shape: tuple[int, int, int],
    num_timesteps: int,
    noise_offset: float = 0.0,
) -> StepDraw:
    """The numbers of one training step, in the order that the module's head gives."""
    generator = _generator(seed, "step", step)
    shape = (rows, *latent_shape)
    timesteps_R = torch.randint(num_timesteps, (rows,), generator=generator)
    noise_RCHW = torch.randn(shape, generator=generator)
    latent_noise_RCHW = torch.randn(shape, generator=generator)
    if noise_offset:
        offset = torch.randn((rows, latent_shape[0], 1, 1), generator=generator)
        noise_RCHW += noise_offset * offset
    return StepDraw(timesteps_R, noise_RCHW, latent_noise_RCHW)


def draw_evaluation(
    seed: int, *, rows: int, latent_shape: tuple[int, int, int], num_timesteps: int
) -> StepDraw:
    """The same numbers at every evaluation: fixed noise, timesteps spread evenly (DVAR)."""
    generator = _generator(seed, "evaluation", 0)
    shape = (rows, *latent_shape)
    timesteps_R = ((torch.arange(rows) + 0.5) * num_timesteps / rows).long()
    noise_RCHW = torch.randn(shape, generator=generator)
    return StepDraw(timesteps_R, noise_RCHW, torch.randn(shape, generator=generator))


def visit_order(seed: int, name: str, step: int, rows: int, count: int) -> list[int]:
    """Which of ``count`` samples a step's rows visit: shuffled anew each epoch, none skipped.

    Args:
        name: ``photos`` or ``priors``.
    """
    order = []
    for number in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(number, count)
        order.append(_permutation(seed, name, epoch, count)[place])
    return order


@lru_cache(maxsize=512)
def _permutation(seed: int, name: str, epoch: int, count: int) -> tuple[int, ...]:
    permutation: list[int] = torch.randperm(count, generator=_generator(seed, name, epoch)).tolist()
    return tuple(permutation)
