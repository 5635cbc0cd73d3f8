"""What flow-matching families need of the interface: schedules, sampling, stepping, padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.schedules import NoiseSchedule
from farm.base.stepping import clean_estimate, initial_scale, model_input, takes_generator
from farm.recipe import Recipe
from farm.training.slots.objective import level_weights, row_weights
from farm.training.slots.random import TimestepRule


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_schedule_has_the_schedulers_own_noise_levels(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = NoiseSchedule.of_flow(scheduler)
    indices = torch.tensor([0, 400, 999])
    # the official scripts: timesteps[indices], then the sigma at that timestep
    of_script = 999 - indices
    assert torch.equal(schedule.model_timesteps(indices), scheduler.timesteps[of_script])
    sigma = scheduler.sigmas[of_script].view(-1, 1, 1, 1)
    latents, noise = torch.randn(2, 3, 4, 2, 2).unbind()
    noisy = schedule.add_noise(latents, noise, indices)
    torch.testing.assert_close(noisy, (1.0 - sigma) * latents + sigma * noise)
    assert torch.equal(schedule.target(latents, noise, indices), noise - latents)
    assert schedule.to("cpu").timestep_dtype == torch.float32


def test_logit_normal_timesteps_follow_the_official_density() -> None:
    rule = TimestepRule(1000, "logit_normal", mean=0.0, std=1.0)
    ours = rule.sample(20_000, torch.Generator().manual_seed(0)) / 1000
    torch.manual_seed(1)
    theirs = compute_density_for_timestep_sampling("logit_normal", 20_000, 0.0, 1.0)
    points = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(ours, points), np.quantile(theirs, points), atol=0.01)
    shifted = TimestepRule(1000, "uniform", shift=3.0).sample(
        20_000, torch.Generator().manual_seed(0)
    )
    assert abs(float(shifted.float().median()) / 1000 - 0.75) < 0.01
    assert int(shifted.min()) >= 0
    assert int(shifted.max()) <= 999


def test_unshifted_uniform_timesteps_are_the_stream_they_were() -> None:
    rule = TimestepRule.of(Recipe(), NoiseSchedule.from_alphas(torch.rand(1000), "epsilon"))
    ours = rule.sample(5, torch.Generator().manual_seed(3))
    assert torch.equal(ours, torch.randint(1000, (5,), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("weighting", ["sigma_sqrt", "cosmap", "none"])
def test_loss_weights_equal_the_official_scripts(weighting: str) -> None:
    sigma = torch.tensor([0.001, 0.3, 0.7, 1.0])
    torch.testing.assert_close(
        level_weights(weighting, sigma),  # type: ignore[arg-type]
        compute_loss_weighting_for_sd3(weighting, sigma),
    )


def test_a_recipe_overrides_the_bases_sampling_and_weighting() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    schedule = NoiseSchedule.of_flow(scheduler, sampling="logit_normal", weighting="sigma_squared")
    assert TimestepRule.of(Recipe(), schedule).sampling == "logit_normal"
    assert TimestepRule.of(Recipe(timestep_sampling="uniform"), schedule).sampling == "uniform"
    timesteps = torch.tensor([499, 999])
    own = row_weights(schedule, Recipe(prior_rows=0), timesteps, 2)
    torch.testing.assert_close(own, schedule.sigma_N[timesteps] ** 2 / 2)
    plain = row_weights(schedule, Recipe(prior_rows=0, loss_weighting="none"), timesteps, 2)
    assert plain.tolist() == [0.5, 0.5]


def test_a_scheduler_without_alphas_steps_and_estimates_the_clean_latent() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert initial_scale(scheduler) == 1.0
    clean, noise = torch.randn(2, 1, 4, 2, 2).unbind()
    latents, arguments = noise, {"generator": None} if takes_generator(scheduler) else {}
    for timestep in scheduler.timesteps:
        assert model_input(scheduler, latents, timestep) is latents
        before = latents
        latents = scheduler.step(noise - clean, timestep, latents, **arguments)[0]
        estimate = clean_estimate(scheduler, noise - clean, before, timestep)
        torch.testing.assert_close(estimate, clean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents, clean, atol=1e-5, rtol=1e-4)
    assert hasattr(DDIMScheduler(), "alphas_cumprod")  # the other branch: tests of the engine


def test_prompts_of_different_lengths_are_padded_under_their_mask() -> None:
    def prompt(tokens: int) -> Conditioning:
        mask = torch.ones(1, tokens, dtype=torch.bool)
        return Conditioning(torch.ones(1, tokens, 3), {MASK: mask, "guidance": torch.ones(1)})

    both = Conditioning.concatenate([prompt(2), prompt(5)]).to(torch.float16)
    assert both.hidden_RTD.shape == (2, 5, 3)
    assert both.extra[MASK].tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert both.extra["guidance"].dtype == torch.float16
    unmasked = Conditioning(torch.ones(1, 2, 3), {})
    with pytest.raises(ValueError, match="cannot become 5"):
        Conditioning.concatenate([unmasked, Conditioning(torch.ones(1, 5, 3), {})])
    with_mask = Conditioning(torch.ones(1, 5, 3), {MASK: torch.ones(1, 5, dtype=torch.bool)})
    mixed = Conditioning.concatenate([unmasked, with_mask])
    assert mixed.extra[MASK].tolist() == [[True] * 2 + [False] * 3, [True] * 5]


def test_token_ids_of_several_encoders_move_by_rows() -> None:
    one = TokenIds({"a": torch.tensor([[1, 2]]), "b": torch.tensor([[3]])})
    two = TokenIds.concatenate([one, one[[0]].repeat(2)])
    assert len(two) == 3
    two.write(1, TokenIds({"a": torch.tensor([[8, 9]]), "b": torch.tensor([[7]])}))
    assert two.tensors["a"].tolist() == [[1, 2], [8, 9], [1, 2]]
    assert two.tensors["b"].tolist() == [[3], [7], [3]]
