"""Random streams: a job's values depend only on its seed and step."""

import torch

from farm.training.slots.random import TimestepRule, step_noise


def test_streams_depend_on_the_jobs_seed_and_step_alone() -> None:
    shape = {"rows": 3, "latent_shape": (4, 8, 8), "timesteps": TimestepRule(1000)}
    once, again = step_noise(5, 7, **shape), step_noise(5, 7, **shape)
    assert torch.equal(once.noise_RCHW, again.noise_RCHW)
    assert torch.equal(once.timesteps_R, again.timesteps_R)
    for seed, step in ((5, 8), (6, 7)):
        assert not torch.equal(step_noise(seed, step, **shape).noise_RCHW, once.noise_RCHW)
    offset = step_noise(5, 7, noise_offset=0.5, **shape)
    assert torch.equal(offset.timesteps_R, once.timesteps_R)
    assert torch.equal(offset.latent_noise_RCHW, once.latent_noise_RCHW)
    moved = offset.noise_RCHW - once.noise_RCHW
    assert moved.flatten(2).std(2).max() < 1e-6
    assert moved.abs().max() > 0.01
