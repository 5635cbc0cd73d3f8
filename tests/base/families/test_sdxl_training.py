"""Training Stable Diffusion XL in slots: the official script's loss, and a job alone or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from support.jobs import assert_close, build_job, open_trainer, train_all, train_alone
from support.training.plain_dreambooth import (
    add_peft,
    latents_and_noise,
    loss_of,
    optimizer_of,
    peft_weights,
    visited,
)
from torch.nn.functional import mse_loss

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.intake.photos.decode import crop_frames, crops
from farm.recipe import Recipe
from farm.training.slots.job import TrainingJob

TEXT = ("q_proj", "out_proj")
PARTS = ("unet", "text_encoder", "text_encoder_2")


def framed(job: TrainingJob) -> TrainingJob:
    """A job whose crops were cut from photos of other sizes."""
    generator = torch.Generator().manual_seed(job.seed)
    frames = torch.randint(0, 200, (job.num_instances, 6), generator=generator)
    return replace(job, instance_frames=frames)


def learning_groups(adapted: Mapping[str, torch.nn.Module], recipe: Recipe) -> list[dict[str, Any]]:
    """What the optimizer trains: the text encoders may have a rate of their own."""
    text_rate = recipe.text_encoder_learning_rate or recipe.learning_rate
    return [
        {
            "params": [p for p in module.parameters() if p.requires_grad],
            "lr": recipe.learning_rate if part == "unet" else text_rate,
        }
        for part, module in adapted.items()
    ]


def plain_loop(base: Base, job: TrainingJob) -> tuple[AdapterWeights, list[float]]:
    """One subject by diffusers and peft, as ``train_dreambooth_lora_sdxl.py`` does it."""
    recipe, pipeline = job.recipe, base.pipeline()
    adapted = {"unet": pipeline.unet}
    add_peft(pipeline.unet, "unet", recipe.target_modules, job)
    if recipe.text_encoder_modules:
        for part in PARTS[1:]:
            adapted[part] = getattr(pipeline, part)
            add_peft(adapted[part], part, recipe.text_encoder_modules, job)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    parameters = [p for module in adapted.values() for p in module.parameters() if p.requires_grad]
    optimizer, rates = optimizer_of(learning_groups(adapted, recipe), recipe)
    assert job.instance_tokens is not None
    assert job.instance_frames is not None
    assert job.prior is not None
    assert job.prior.tokens is not None
    losses = []
    for step in range(recipe.steps):
        latents, noise, timesteps = latents_and_noise(job, step)
        states = []
        for part in PARTS[1:]:
            ids = [job.instance_tokens.tensors[part], job.prior.tokens.tensors[part]]
            output = getattr(pipeline, part)(torch.cat(ids), output_hidden_states=True)
            pooled, states = output[0], [*states, output.hidden_states[-2]]
        (crop,) = visited(job.seed, "photos", step, 1, job.num_instances)
        side = base.resolution_px
        whole = torch.tensor([side, side, 0, 0, side, side])
        added = {
            "text_embeds": pooled,
            "time_ids": torch.stack([job.instance_frames[crop], whole]),
        }
        prediction = pipeline.unet(
            scheduler.add_noise(latents.to(base.dtype), noise.to(base.dtype), timesteps),
            timesteps,
            encoder_hidden_states=torch.cat(states, dim=-1),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        error = mse_loss(prediction, noise.to(base.dtype), reduction="none").mean((1, 2, 3))
        loss = loss_of(error, timesteps, scheduler, job)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return peft_weights(adapted, recipe), losses


@pytest.mark.proves("Stable Diffusion XL", "train")
@pytest.mark.proves("Stable Diffusion XL", "train text encoders")
@pytest.mark.parametrize("text", [(), TEXT])
def test_training_equals_the_official_scripts_loop(text: tuple[str, ...]) -> None:
    base = load_base("tiny-sdxl", dtype=torch.float64)
    # torch's AdamW decays no layer without a gradient, such as the first encoder's unread last one;
    # a larger epsilon keeps gradients near zero from amplifying rounding errors
    recipe = {"weight_decay": 0.0, "adam_epsilon": 1e-5, "text_encoder_modules": text}
    recipe |= {"text_encoder_learning_rate": 3e-3} if text else {}
    job = framed(build_job(base, 4, steps=5, alpha=6.0, prior_weight=0.7, snr_gamma=5.0, **recipe))
    trainer = open_trainer(base, num_slots=2, max_rank=5, text_encoder_modules=text)
    trainer.admit(framed(build_job(base, 5, steps=40, text_encoder_modules=text)))
    slot = trainer.admit(job)
    while slot in trainer.active_slots:
        trainer.step()
    found, curve = trainer.weights(slot), trainer.loss_curve(slot)
    trainer.close()
    wanted, losses = plain_loop(load_base("tiny-sdxl", dtype=torch.float64), job)
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert_close(found, wanted, 1e-4)
    assert found.components == (("text_encoder", "text_encoder_2", "unet") if text else ("unet",))


def test_four_slots_train_what_each_job_trains_alone() -> None:
    base = load_base("tiny-sdxl", dtype=torch.float64)
    jobs = [framed(build_job(base, number, steps=4 + number)) for number in range(5)]
    jobs[1] = replace(jobs[1], instance_frames=None)  # uncropped, in a slot that was not
    trainer = open_trainer(base, num_slots=4, max_rank=4)
    together = train_all(trainer, jobs)
    trainer.close()
    for job in (jobs[1], jobs[4]):
        assert_close(together[job.key], train_alone(base, job), 1e-7)


def test_one_text_encoder_alone_can_be_trained() -> None:
    base = load_base("tiny-sdxl")
    only = ("text_encoder_2.q_proj",)
    weights = train_alone(base, build_job(base, 0, steps=2, text_encoder_modules=only))
    assert weights.components == ("text_encoder_2", "unet")


def test_frames_are_where_the_crops_were_cut() -> None:
    """In a photo whose colours are its coordinates, a crop's colours give its edges and scale."""
    x, y = np.meshgrid(np.arange(120), np.arange(80))
    photo = Image.fromarray(np.stack([2 * x, 2 * y, 0 * x], 2).astype(np.uint8))
    frames = crop_frames(photo.size, 32, 3, flip=True, seed=1)
    pixels = crops(photo, 32, 3, flip=True, seed=1)
    for number, (frame, crop) in enumerate(zip(frames, pixels, strict=True)):
        height, width, top, left, *side = frame.tolist()
        assert (height, width, side) == (80, 120, [32, 32])
        middle = crop[16].astype(float)
        per_pixel = abs(middle[28, 0] - middle[4, 0]) / 2 / 24  # photo pixels
        first_x = (
            middle[4, 0] / 2 - 4 * per_pixel
            if number < 3
            else (119 - middle[4, 0] / 2 - 4 * per_pixel)
        )
        assert first_x / per_pixel == pytest.approx(left, abs=1.5)
        first_y = crop[4, 16, 1] / 2 - 4 * per_pixel
        assert first_y / per_pixel == pytest.approx(top, abs=1.5)
