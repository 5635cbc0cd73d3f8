"""The training objective: DreamBooth with class-specific prior preservation, per slot.

A slot's loss is the mean over its instance rows plus λ times the mean over its prior rows
(Ruiz et al. 2023, eq. 2) of the squared error of the denoiser's prediction. Every row has its own
noise and timestep. All random values are arguments.

Legend: S slots, G rows per slot, R rows, C H W latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farm.base.schedules import NoiseSchedule
from farm.recipe import LossWeighting, Recipe

__all__ = ["level_weights", "min_snr_weights", "row_weights", "slot_losses"]


def min_snr_weights(schedule: NoiseSchedule, timesteps_R: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights (Hang et al. 2023): ``min(SNR, γ)`` on the error of the clean latent.

    Converted to a weight on the prediction's own error: ``min(SNR, γ) / SNR`` for epsilon,
    ``min(SNR, γ) / (SNR + 1)`` for velocity, ``min(SNR, γ) · sigma²`` for flow. At zero
    signal-to-noise ratio the first is 1, its limit.
    """
    snr_R = schedule.snr(timesteps_R)
    if schedule.prediction_type == "epsilon":
        return (gamma / snr_R).clamp(max=1)
    sigma_R = schedule.sigma_N[timesteps_R]
    # sigma² is 1 / (SNR + 1) where the process preserves variance; SNR may be infinite at sigma 0
    return snr_R.clamp(max=gamma) * sigma_R**2


def row_weights(
    schedule: NoiseSchedule, recipe: Recipe, timesteps_R: Tensor, instance_rows: int
) -> Tensor:
    """Each row's factor on its mean squared error; a slot's loss is then a plain sum.

    Args:
        timesteps_R: of one job's rows, instance rows first.
        instance_rows: number of instance rows among them.
    """
    weights_R = torch.full((len(timesteps_R),), 1 / instance_rows)
    prior_rows = len(timesteps_R) - instance_rows
    if prior_rows:
        weights_R[instance_rows:] = recipe.prior_weight / prior_rows
    if recipe.snr_gamma is not None:
        weights_R *= min_snr_weights(schedule, timesteps_R, recipe.snr_gamma)
    weighting = recipe.loss_weighting or schedule.weighting
    if weighting != "none":
        weights_R *= level_weights(weighting, schedule.sigma_N[timesteps_R])
    return weights_R


def level_weights(weighting: LossWeighting, sigma_R: Tensor) -> Tensor:
    """Weights by noise level, as ``compute_loss_weighting_for_sd3`` of the diffusers scripts has
    them; ``sigma_squared`` is what its ``precondition_outputs`` amounts to for flow matching."""
    if weighting == "sigma_sqrt":
        return sigma_R**-2.0
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma_R + 2 * sigma_R**2))
    return sigma_R**2 if weighting == "sigma_squared" else torch.ones_like(sigma_R)


def slot_losses(
    prediction_RCHW: Tensor, target_RCHW: Tensor, weights_R: Tensor, num_slots: int
) -> Tensor:
    """Loss of each slot [S], float32 or wider; rows are S equal groups in slot order.

    Rows of weight 0 are masked out, not multiplied by 0, so that a NaN in a blank row cannot
    reach its slot's loss.
    """
    wide = torch.promote_types(prediction_RCHW.dtype, torch.float32)
    error_RCHW = prediction_RCHW.to(wide) - target_RCHW
    error_R = error_RCHW.square().flatten(1).mean(1)
    weighted_R = torch.where(weights_R > 0, weights_R * error_R, 0.0)
    return weighted_R.view(num_slots, -1).sum(1)
