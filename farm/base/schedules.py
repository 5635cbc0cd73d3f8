"""Noise schedules and prediction types: how a latent is noised and what the denoiser predicts.

Owns the arithmetic of training targets. Generation uses diffusers' own scheduler objects instead.

Legend: R rows, C channels, H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from farm.recipe import LossWeighting, TimestepSampling

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

__all__ = ["NoiseSchedule", "PredictionType"]

PredictionType = Literal["epsilon", "v_prediction", "flow"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The forward process of one base: ``x_t = signal(t) · x_0 + sigma(t) · noise``.

    For epsilon and v-prediction the process is variance preserving; for flow matching it is the
    straight line of rectified flow, ``signal = 1 - sigma``.
    """

    prediction_type: PredictionType
    signal_N: Tensor
    """float32 factor of the clean latent at each of the N training timesteps (1000)."""
    sigma_N: Tensor
    """float32 factor of the noise at each training timestep, increasing."""
    timestep_N: Tensor | None = None
    """float32: what the denoiser reads at each training timestep; None if that is its index."""
    sampling: TimestepSampling = "uniform"
    """How the base's official script samples timesteps."""
    weighting: LossWeighting = "none"
    """How the base's official script weights the loss."""

    @classmethod
    def from_alphas(
        cls, alphas_cumprod_N: Tensor, prediction_type: PredictionType
    ) -> NoiseSchedule:
        """From the cumulative product of alphas of a DDPM-like scheduler (Ho et al. 2020)."""
        alphas_N = alphas_cumprod_N.float()
        return cls(prediction_type, alphas_N.sqrt(), (1 - alphas_N).sqrt())

    @classmethod
    def of_flow(
        cls,
        scheduler: FlowMatchEulerDiscreteScheduler,
        *,
        sampling: TimestepSampling = "uniform",
        weighting: LossWeighting = "none",
    ) -> NoiseSchedule:
        """The training table of a flow-matching scheduler, its static shift included.

        The scheduler's own table runs from noise to the clean latent; this one runs the other way,
        as for all other schedules. Index i here is index N - 1 - i of the official scripts.
        """
        plain = type(scheduler).from_config(scheduler.config)
        sigma_N = plain.sigmas.float().flip(0)
        timestep_N = plain.timesteps.float().flip(0)
        return cls("flow", 1 - sigma_N, sigma_N, timestep_N, sampling, weighting)

    @property
    def num_timesteps(self) -> int:
        """Training timesteps."""
        return self.signal_N.numel()

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tensors on a device."""
        return replace(
            self,
            signal_N=self.signal_N.to(device),
            sigma_N=self.sigma_N.to(device),
            timestep_N=None if self.timestep_N is None else self.timestep_N.to(device),
        )

    @property
    def timestep_dtype(self) -> torch.dtype:
        """Of ``model_timesteps``."""
        return torch.int64 if self.timestep_N is None else self.timestep_N.dtype

    def model_timesteps(self, timesteps_R: Tensor) -> Tensor:
        """What the denoiser reads at these training timesteps, in the scheduler's units."""
        return timesteps_R if self.timestep_N is None else self.timestep_N[timesteps_R]

    def add_noise(self, latents_RCHW: Tensor, noise_RCHW: Tensor, timesteps_R: Tensor) -> Tensor:
        """Latents with noise added, each row at its own timestep."""
        signal, sigma = self._factors(timesteps_R, latents_RCHW)
        return signal * latents_RCHW + sigma * noise_RCHW

    def target(self, latents_RCHW: Tensor, noise_RCHW: Tensor, timesteps_R: Tensor) -> Tensor:
        """The denoiser's target: noise, velocity (Salimans & Ho 2022) or flow."""
        if self.prediction_type == "epsilon":
            return noise_RCHW
        if self.prediction_type == "flow":
            return noise_RCHW - latents_RCHW
        signal, sigma = self._factors(timesteps_R, latents_RCHW)
        return signal * noise_RCHW - sigma * latents_RCHW

    def snr(self, timesteps_R: Tensor) -> Tensor:
        """Signal-to-noise ratio of each row's timestep."""
        return (self.signal_N[timesteps_R] / self.sigma_N[timesteps_R]) ** 2

    def _factors(self, timesteps_R: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *([1] * (like.ndim - 1)))
        signal_R = self.signal_N[timesteps_R].to(like.dtype)
        sigma_R = self.sigma_N[timesteps_R].to(like.dtype)
        return signal_R.view(shape), sigma_R.view(shape)
