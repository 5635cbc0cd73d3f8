"""Scheduler steps as tables of numbers, so that one operation steps all images of a pass.

Owns the tables and the batched step. A step of DDIM, Euler, DPM++ 2M or flow matching's Euler is
linear in the latent, the prediction and the previous estimate of the clean latent. Its factors are
read off diffusers' own scheduler object, which steps three unit vectors; the table is used only if
it also reproduces that object on random numbers. Others keep their scheduler object.

Legend: P images, T steps, C channels, H W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from farm.base.device.transfer import sent
from farm.base.interface import Base
from farm.base.stepping import model_input
from farm.schedulers import SchedulerName

__all__ = ["StepTable", "step_all", "table_of"]

TABULATED = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
MAX_TABLES = 256
"""Tables kept for a base; each takes a few kilobytes."""
TOLERANCE = 1e-4
"""Relative difference from the scheduler object, whose own steps round to float32."""


@dataclass(frozen=True)
class StepTable:
    """A scheduler's steps for one number of steps."""

    input_scale_T: tuple[float, ...]
    """Factor on the latent that gives the denoiser's input."""
    factors_T6: tuple[tuple[float, ...], ...]
    """On latent, prediction and previous estimate: of the next latent, then of the estimate."""


def table_of(
    base: Base, scheduler: SchedulerName, steps: int, shape: tuple[int, int, int]
) -> StepTable | None:
    """The table of a base's scheduler; None if its steps are not of this form."""
    known, key = _KNOWN.setdefault(base, {}), (scheduler, steps, shape)
    if key not in known:
        if len(known) >= MAX_TABLES:
            known.clear()
        known[key] = _made(lambda: base.start_scheduler(scheduler, steps, shape))
    return known[key]


_KNOWN: WeakKeyDictionary[
    Base, dict[tuple[SchedulerName, int, tuple[int, int, int]], StepTable | None]
] = WeakKeyDictionary()
"""The tables of each base, made once."""


def _made(start: Callable[[], Any]) -> StepTable | None:
    if type(start()).__name__ not in TABULATED:
        return None
    found = _read_off(start())
    return found if found is not None and _reproduces(found, start()) else None


def _read_off(scheduler: Any) -> StepTable | None:
    scales, factors = [], []
    latent, prediction, previous = torch.eye(3).unsqueeze(1)  # [1, 3] each
    for timestep in scheduler.timesteps:
        scales.append(float(model_input(scheduler, torch.ones(1, 1), timestep)))
        outputs = getattr(scheduler, "model_outputs", None)
        if outputs is not None and outputs[-1] is not None:
            outputs[-1] = previous
        after = scheduler.step(prediction, timestep, latent, return_dict=False)
        estimate = _estimate(scheduler, after, latent, prediction)
        if estimate is None:
            return None
        factors.append((*after[0].flatten().tolist(), *estimate.flatten().tolist()))
    return StepTable(tuple(scales), tuple(factors))


def _estimate(
    scheduler: Any, after: Sequence[Tensor], latent: Tensor, prediction: Tensor
) -> Tensor | None:
    """The estimate of the clean latent after a step, as ``Sampler.advance`` finds it."""
    if len(after) > 1:
        return after[1]
    if hasattr(scheduler, "model_outputs"):
        found: Tensor | None = scheduler.model_outputs[-1]
        return found
    if not hasattr(scheduler, "alphas_cumprod"):  # flow matching
        flow: Tensor = latent - scheduler.sigmas[scheduler.step_index - 1] * prediction
        return flow
    return None


def _reproduces(table: StepTable, scheduler: Any) -> bool:
    """Whether the table steps random numbers as the scheduler does: clipping would differ."""
    generator = torch.Generator().manual_seed(0)
    latent = 8 * torch.randn(1, 64, generator=generator)
    expected, estimate = latent, torch.zeros_like(latent)
    for timestep, factors in zip(scheduler.timesteps, table.factors_T6, strict=True):
        prediction = torch.randn(latent.shape, generator=generator)
        model_input(scheduler, expected, timestep)  # Euler asks for it before each step
        latent, estimate = _step(latent, prediction, estimate, list(torch.tensor(factors)))
        expected = scheduler.step(prediction, timestep, expected, return_dict=False)[0]
    return bool(torch.allclose(latent, expected, rtol=TOLERANCE, atol=TOLERANCE))


def step_all(
    latents_PCHW: Tensor, predictions_PCHW: Tensor, estimates_PCHW: Tensor,
    factors: Sequence[Sequence[float]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The next latents and the estimates of the clean ones.

    Args:
        factors: of each image's own step.
    """
    table_P6 = sent(torch.tensor(factors, dtype=torch.float32), latents_PCHW.device)
    columns = table_P6.t().reshape(6, -1, 1, 1, 1)
    return _step(latents_PCHW, predictions_PCHW, estimates_PCHW, list(columns))


def _step(
    latent: Tensor, prediction: Tensor, estimate: Tensor, factors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Elementwise, so that an image's rounding does not depend on the others of the pass."""
    after = latent * factors[0]
    after = after.addcmul_(prediction, factors[1]).addcmul_(estimate, factors[2])
    clean = (latent * factors[3]).addcmul_(prediction, factors[4])
    return after, clean
