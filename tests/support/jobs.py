"""Tiny real training jobs, made from a number alone."""

from __future__ import annotations

import torch

from farm.base.interface import Base
from farm.recipe import Recipe
from farm.training.slots.job import PriorSet, TrainingJob


def build_job(base: Base, number: int, *, photos: int = 5, **recipe: object) -> TrainingJob:
    """A job whose latents, prompts and seed follow from its number."""
    generator = torch.Generator().manual_seed(1000 + number)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)

    def moments(count: int) -> torch.Tensor:
        mean_NCHW = torch.randn(count, *shape, generator=generator)
        std_NCHW = torch.rand(count, *shape, generator=generator) / 10
        return torch.stack([mean_NCHW, std_NCHW], 1)

    settings = Recipe.model_validate({"steps": 12, "learning_rate": 1e-2, "seed": number, **recipe})
    instance, prior = moments(photos), moments(7)
    prompts = [f"a photo of sks thing {number}"]
    return TrainingJob(
        key=f"job-{number}",
        recipe=settings,
        seed=settings.seed,
        instance_moments=instance,
        instance_conditioning=base.encode_prompts(prompts),
        instance_tokens=base.tokenize(prompts),
        prior=PriorSet(
            prior,
            base.encode_prompts(["a photo of a thing"]),
            base.tokenize(["a photo of a thing"]),
        )
        if settings.uses_prior
        else None,
    )
