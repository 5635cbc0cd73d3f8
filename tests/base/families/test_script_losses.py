"""Training the families with a language model: the losses of the official scripts' loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline, QwenImagePipeline
from support.jobs import build_job, open_trainer
from support.training.plain_dreambooth import add_peft, latents_and_noise, loss_of, optimizer_of
from torch import Tensor

from farm.base.families.flow import TRAINING_GUIDANCE
from farm.base.loading import load_base
from farm.base.random_weights import build_pipeline
from farm.training.slots.job import TrainingJob

Predict = Callable[[Any, Tensor, Tensor, Any], Tensor]
"""Of a pipeline, noisy latents, timesteps, and what its ``encode_prompt`` gives."""


def flux2(pipeline: Any, noisy: Tensor, timesteps: Tensor, text: Any) -> Tensor:
    """The transformer's call in ``train_dreambooth_lora_flux2.py`` and ``…_flux2_klein.py``."""
    embeds, text_ids = text
    ids = Flux2Pipeline._prepare_latent_ids(noisy)
    has_guidance = pipeline.transformer.config.guidance_embeds
    predicted = pipeline.transformer(
        hidden_states=Flux2Pipeline._pack_latents(noisy),
        timestep=timesteps / 1000,
        guidance=torch.full([len(noisy)], TRAINING_GUIDANCE) if has_guidance else None,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return torch.as_tensor(Flux2Pipeline._unpack_latents_with_ids(predicted, ids))


def qwen_image(pipeline: Any, noisy: Tensor, timesteps: Tensor, text: Any) -> Tensor:
    """The same in ``train_dreambooth_lora_qwen_image.py``."""
    embeds, mask = text
    rows, channels, height, width = noisy.shape
    predicted = pipeline.transformer(
        hidden_states=QwenImagePipeline._pack_latents(
            noisy.unsqueeze(1), rows, channels, height, width
        ),
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        timestep=timesteps / 1000,
        img_shapes=[(1, height // 2, width // 2)] * rows,
        return_dict=False,
    )[0]
    unpacked: Tensor = QwenImagePipeline._unpack_latents(predicted, height * 8, width * 8, 8)
    return unpacked.squeeze(2)


def krea2(pipeline: Any, noisy: Tensor, timesteps: Tensor, text: Any) -> Tensor:
    """The same in ``train_dreambooth_lora_krea2.py``."""
    embeds, mask = text
    rows, channels, height, width = noisy.shape
    predicted = pipeline.transformer(
        hidden_states=pipeline._pack_latents(noisy, rows, channels, height, width),
        encoder_hidden_states=embeds,
        timestep=timesteps / 1000,
        position_ids=pipeline.prepare_position_ids(
            embeds.shape[1], height // 2, width // 2, noisy.device
        ),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    unpacked: Tensor = pipeline._unpack_latents(predicted, height * 8, width * 8)
    return unpacked.squeeze(2)


CASES: dict[str, Predict] = {
    "tiny-klein": flux2,
    "tiny-flux2-dev": flux2,
    "tiny-qwen-image": qwen_image,
    "tiny-krea2": krea2,
}


@torch.no_grad()
def encoded(pipeline: Any, prompts: Sequence[str]) -> Any:
    return pipeline.encode_prompt(list(prompts), max_sequence_length=512)


def script_losses(pipeline: Any, job: TrainingJob, predict: Predict) -> list[float]:
    """The losses of a subject and its prior in the scripts' loop, with diffusers and peft."""
    recipe = job.recipe
    add_peft(pipeline.transformer, "transformer", recipe.target_modules, job)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    parameters = [p for p in pipeline.transformer.parameters() if p.requires_grad]
    optimizer, rates = optimizer_of(parameters, recipe)
    prompts = [f"a photo of sks thing {recipe.seed}", "a photo of a thing"]
    text = encoded(pipeline, prompts)
    losses = []
    for step in range(recipe.steps):
        latents, noise, places = latents_and_noise(job, step)
        indices = 999 - places  # the scripts' table begins with noise
        timesteps = scheduler.timesteps[indices]
        sigmas = scheduler.sigmas[indices].view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        predicted = predict(pipeline, noisy, timesteps, text)
        error = ((predicted - (noise - latents)) ** 2).mean((1, 2, 3))
        loss = loss_of(error, timesteps, scheduler, job)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_official_script(name: str) -> None:
    base = load_base(name)
    job = build_job(base, 4, steps=3, alpha=6.0, prior_weight=0.7, adam_epsilon=1e-5)
    if base.family.pipeline.startswith("Flux2"):  # its script trains on the mode of latents
        assert not base.encode_photos(torch.zeros(1, 3, 64, 64))[:, 1].any()
    trainer = open_trainer(base, num_slots=2, max_rank=4)
    slot = trainer.admit(job)
    while slot in trainer.active_slots:
        trainer.step()
    curve = trainer.loss_curve(slot)
    trainer.close()
    wanted = script_losses(build_pipeline(name), job, CASES[name])  # type: ignore[arg-type]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    assert len(set(curve)) == 3


@pytest.mark.parametrize("name", CASES)
def test_denoising_is_the_transformers_own_pass_at_any_shape(name: str) -> None:
    base = load_base(name)
    prompts = ["a photo of sks cat", "rain"]
    shape = base.latent_shape(96, 64)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([900.0, 250.0])
    with torch.no_grad():
        ours = base.denoise(latents, timesteps, base.encode_prompts(prompts))
        plain = build_pipeline(name)  # type: ignore[arg-type]
        theirs = CASES[name](plain, latents, timesteps, encoded(plain, prompts))
    assert ours.shape == latents.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
