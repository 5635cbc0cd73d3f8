"""Stepping diffusers' scheduler objects of any kind: scaling, arguments and estimates.

Owns the differences between schedulers that have ``alphas_cumprod``, ``init_noise_sigma`` or
``scale_model_input`` and those of flow matching, which have none of them.

Legend: R rows, C channels, H W latent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["clean_estimate", "initial_scale", "model_input", "takes_generator"]


def initial_scale(scheduler: Any) -> Any:
    """The factor on standard normal noise that gives the first latent."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def model_input(scheduler: Any, latents_RCHW: Tensor, timestep: Tensor) -> Tensor:
    """The denoiser's input for a latent."""
    scale: Callable[..., Tensor] | None = getattr(scheduler, "scale_model_input", None)
    return latents_RCHW if scale is None else scale(latents_RCHW, timestep)


def takes_generator(scheduler: Any) -> bool:
    """Whether ``step`` takes a generator, found as diffusers' pipelines do."""
    return "generator" in inspect.signature(scheduler.step).parameters


def clean_estimate(scheduler: Any, prediction: Tensor, latents: Tensor, timestep: Tensor) -> Tensor:
    """The clean latent that a prediction implies; called after ``step``."""
    if not hasattr(scheduler, "alphas_cumprod"):  # flow matching: x_t = x_0 + sigma · v
        flow: Tensor = latents - scheduler.sigmas[scheduler.step_index - 1] * prediction
        return flow
    alpha = scheduler.alphas_cumprod[int(timestep)]
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    if scheduler.config.prediction_type == "v_prediction":
        clean: Tensor = signal * latents - spread * prediction
    else:
        clean = (latents - spread * prediction) / signal
    return clean
