"""Tiny real training jobs, each derived from a number, and trainers for them."""

from __future__ import annotations

import torch

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.recipe import Recipe
from farm.training.plan.shape import LaneShape
from farm.training.slots.job import PriorSet, TrainingJob
from farm.training.slots.trainer import SlotTrainer


def open_trainer(
    base: Base,
    *,
    num_slots: int,
    max_rank: int,
    instance_rows: int = 1,
    prior_rows: int = 1,
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    text_encoder_modules: tuple[str, ...] = (),
    **options: object,
) -> SlotTrainer:
    """A trainer of the base's own resolution."""
    shape = LaneShape(
        resolution_px=base.resolution_px,
        instance_rows=instance_rows,
        prior_rows=prior_rows,
        target_modules=target_modules,
        text_encoder_modules=text_encoder_modules,
        max_rank=max_rank,
    )
    return SlotTrainer(base, shape, num_slots=num_slots, **options)


def build_job(
    base: Base, number: int, *, photos: int = 5, prompt: str = "", **recipe: object
) -> TrainingJob:
    """A job whose latents, seed and prompt, unless one is given, are derived from its number."""
    generator = torch.Generator().manual_seed(1000 + number)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)

    def moments(count: int) -> torch.Tensor:
        mean_NCHW = torch.randn(count, *shape, generator=generator)
        std_NCHW = torch.rand(count, *shape, generator=generator) / 10
        return torch.stack([mean_NCHW, std_NCHW], 1)

    settings = Recipe.model_validate({"steps": 12, "learning_rate": 1e-2, "seed": number, **recipe})
    instance, prior = moments(photos), moments(7)
    prompts = [prompt or f"a photo of sks thing {number}"]
    chunked = settings.long_prompts == "chunk"
    windows = [base.num_windows(prompts[0]) if chunked else 1]
    return TrainingJob(
        key=f"job-{number}",
        recipe=settings,
        seed=settings.seed,
        instance_moments=instance,
        instance_conditioning=base.encode_prompts(prompts, windows),
        instance_tokens=base.tokenize(prompts, windows),
        prior=PriorSet(
            prior,
            base.encode_prompts(["a photo of a thing"]),
            base.tokenize(["a photo of a thing"]),
        )
        if settings.uses_prior
        else None,
    )


def train_alone(base: Base, job: TrainingJob, **shape: object) -> AdapterWeights:
    options = {
        "num_slots": 1,
        "max_rank": job.recipe.rank,
        "instance_rows": job.instance_rows,
        "prior_rows": job.prior_rows,
        "target_modules": job.recipe.target_modules,
        "text_encoder_modules": job.recipe.text_encoder_modules,
    } | shape
    trainer = open_trainer(base, **options)
    slot = trainer.admit(job)
    while trainer.active_slots:
        trainer.step()
    weights = trainer.weights(slot)
    trainer.close()
    return weights


def train_all(trainer: SlotTrainer, jobs: list[TrainingJob]) -> dict[str, AdapterWeights]:
    """Keep the slots full until every job is done, as a lane does."""
    waiting, done = list(jobs), {}
    while waiting or trainer.active_slots:
        while waiting and trainer.free_slots:
            trainer.admit(waiting.pop(0))
        for slot, key in trainer.step().finished:
            done[key] = trainer.weights(slot)
            trainer.release(slot)
    return done


def assert_close(found: AdapterWeights, wanted: AdapterWeights, tolerance: float) -> None:
    assert found.alphas == wanted.alphas
    for name, layer in wanted.layers.items():
        for ours, theirs in (
            (found.layers[name].down, layer.down),
            (found.layers[name].up, layer.up),
        ):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def assert_same_bits(found: AdapterWeights, wanted: AdapterWeights) -> None:
    assert found.alphas == wanted.alphas
    for name, layer in wanted.layers.items():
        assert torch.equal(found.layers[name].down, layer.down), name
        assert torch.equal(found.layers[name].up, layer.up), name
