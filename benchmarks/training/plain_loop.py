"""The baseline: DreamBooth LoRA as in the usual script, one subject at a time.

Plain diffusers and peft: a base with peft's LoRA, one photo and one class image per step, torch's
AdamW, gradient clip. It omits the usual script's other work (decoding and encoding photos at every
step, unless requested; text encoding; logging), so that only the loop itself is compared. It shares
only the cached latents and prompts of a job with the farm.

Legend: R rows, C H W latent.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss

from farm.base.interface import Base
from farm.training.slots.job import TrainingJob


class PlainLoop:
    """One subject's training on its own base."""

    def __init__(self, base: Base, job: TrainingJob, *, encode_every_step: bool = False) -> None:
        """Add peft's LoRA to the base.

        Args:
            encode_every_step: run the VAE's encoder on two images per step, as the script does.
        """
        self.base, self.job, self.device = base, job, base.device
        self.pipeline = base.pipeline()
        self.unet = self.pipeline.unet
        self.unet.add_adapter(
            LoraConfig(
                r=job.recipe.rank,
                lora_alpha=job.recipe.rank,
                init_lora_weights="gaussian",
                target_modules=list(job.recipe.target_modules),
            )
        )
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=job.recipe.learning_rate)
        self.scheduler = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        side = base.resolution_px
        shape = (2, 3, side, side)
        self.pixels = (
            torch.rand(shape, device=self.device, dtype=base.dtype) if encode_every_step else None
        )
        assert job.prior is not None
        self.instance = torch.as_tensor(job.instance_moments).to(self.device)
        self.prior = torch.as_tensor(job.prior.moments).to(self.device)
        self.hidden = torch.cat(
            [job.instance_conditioning.hidden_RTD[:1], job.prior.conditioning.hidden_RTD[:1]]
        ).to(self.device, base.dtype)
        self.steps = 0

    def step(self) -> float:
        """One step of two rows; like the script, it reads the loss immediately."""
        moments = torch.stack(
            [
                self.instance[self.steps % len(self.instance)],
                self.prior[self.steps % len(self.prior)],
            ]
        )
        latents = self._latents(moments)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (2,), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.base.dtype)
        with self._autocast():
            prediction = self.unet(
                noisy, timesteps, encoder_hidden_states=self.hidden, return_dict=False
            )[0]
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        instance, prior = prediction.float().chunk(2)
        loss = mse_loss(instance, target[:1]) + self.job.recipe.prior_weight * mse_loss(
            prior, target[1:]
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return loss.item()

    def _latents(self, moments: Tensor) -> Tensor:
        if self.pixels is not None:
            moments = self.base.encode_photos(self.pixels)
        return moments[:, 0] + moments[:, 1] * torch.randn_like(moments[:, 1])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.base.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.base.dtype)


def synthetic_job(base: Base, number: int, **recipe: object) -> TrainingJob:
    """A job with random latents: timing does not depend on the content of photos."""
    from farm.recipe import Recipe
    from farm.training.slots.job import PriorSet

    generator = torch.Generator().manual_seed(number)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)

    def moments(count: int) -> Tensor:
        mean_NCHW = torch.randn(count, *shape, generator=generator)
        return torch.stack([mean_NCHW, torch.full_like(mean_NCHW, 0.1)], 1)

    settings = Recipe.model_validate({"seed": number, "steps": 100_000, **recipe})
    return TrainingJob(
        key=f"job-{number}",
        recipe=settings,
        seed=number,
        instance_moments=moments(20),
        instance_conditioning=base.encode_prompts(["a photo of sks cat"]).to("cpu"),
        prior=PriorSet(moments(50), base.encode_prompts(["a photo of a cat"]).to("cpu")),
    )


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_steps(step: Any, count: int, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of ``count`` calls."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu
