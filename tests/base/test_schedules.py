"""Noise schedules agree with diffusers' own schedulers, target by target."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from farm.base.loading import load_base
from farm.base.schedules import NoiseSchedule


@pytest.mark.parametrize("build", ["tiny", "tiny-v"])
def test_noise_target_and_snr_equal_diffusers(build: str) -> None:
    base = load_base(build)
    reference = DDPMScheduler.from_config(base.pipeline().scheduler.config)
    latents, noise = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 900, 999])
    schedule = base.schedule
    torch.testing.assert_close(
        schedule.add_noise(latents, noise, timesteps),
        reference.add_noise(latents, noise, timesteps),
    )
    expected = noise if build == "tiny" else reference.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), expected)
    alphas = reference.alphas_cumprod[timesteps]
    torch.testing.assert_close(schedule.snr(timesteps), alphas / (1 - alphas))


def test_flow_matching_moves_along_a_straight_line() -> None:
    sigma = torch.linspace(0, 1, 11)
    schedule = NoiseSchedule("flow", 1 - sigma, sigma)
    latents, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    timesteps = torch.tensor([0, 10])
    noised = schedule.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noised[0], latents[0])
    torch.testing.assert_close(noised[1], noise[1])
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), noise - latents)
