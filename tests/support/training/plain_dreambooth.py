"""The parts of a plain DreamBooth loop of diffusers and peft, independent of the trainer.

They follow the diffusers example scripts. They share only the documented random streams with the
trainer, and derive them independently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import Tensor

from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.recipe import Recipe
from farm.training.slots.job import TrainingJob


def stream(*parts: object) -> torch.Generator:
    text = json.dumps(list(parts), separators=(",", ":")).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
    return torch.Generator("cpu").manual_seed(seed)


def visited(seed: int, name: str, step: int, rows: int, count: int) -> list[int]:
    numbers = range(step * rows, step * rows + rows)
    return [
        int(torch.randperm(count, generator=stream(seed, name, number // count))[number % count])
        for number in numbers
    ]


def add_peft(module: Any, component: str, endings: tuple[str, ...], job: TrainingJob) -> None:
    recipe = job.recipe
    module.add_adapter(
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha or recipe.rank,
            init_lora_weights="gaussian",
            target_modules=list(endings),
        )
    )
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            down = layer.lora_A["default"].weight
            noise = torch.randn(
                down.shape, generator=stream(job.seed, "init", f"{component}.{name}")
            )
            down.data = (noise / recipe.rank).to(down.dtype)


def optimizer_of(parameters: list[Any], recipe: Recipe) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.weight_decay,
        eps=recipe.adam_epsilon,
    )
    name = recipe.learning_rate_schedule
    rates = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=recipe.warmup_steps,
        num_training_steps=recipe.steps,
    )
    return optimizer, rates


def latents_and_noise(job: TrainingJob, step: int) -> tuple[Tensor, Tensor, Tensor]:
    recipe = job.recipe
    moments = job.instance_moments[
        visited(job.seed, "photos", step, recipe.instance_rows, len(job.instance_moments))
    ]
    if job.prior is not None:
        chosen = visited(job.seed, "priors", step, recipe.prior_rows, len(job.prior.moments))
        moments = torch.cat([moments, job.prior.moments[chosen]])
    generator = stream(job.seed, "step", step)
    timesteps = torch.randint(1000, (len(moments),), generator=generator)
    noise = torch.randn(moments[:, 0].shape, generator=generator)
    latents = moments[:, 0] + moments[:, 1] * torch.randn(noise.shape, generator=generator)
    if recipe.noise_offset:
        shape = (*noise.shape[:2], 1, 1)
        noise = noise + recipe.noise_offset * torch.randn(shape, generator=generator)
    return latents, noise, timesteps


def loss_of(error: Tensor, timesteps: Tensor, scheduler: Any, job: TrainingJob) -> Tensor:
    recipe = job.recipe
    if recipe.snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        capped = torch.minimum(snr, torch.full_like(snr, recipe.snr_gamma))
        velocity = scheduler.config.prediction_type == "v_prediction"
        error = error * capped / (snr + 1 if velocity else snr)
    loss = error[: recipe.instance_rows].mean()
    if job.prior is not None:
        loss = loss + recipe.prior_weight * error[recipe.instance_rows :].mean()
    return loss


def peft_weights(adapted: Mapping[str, torch.nn.Module], recipe: Recipe) -> AdapterWeights:
    """The adapters of modules under peft, by component."""
    layers = {
        f"{component}.{name}": LayerWeights(
            layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        )
        for component, module in adapted.items()
        for name, layer in module.named_modules()
        if hasattr(layer, "lora_A")
    }
    return AdapterWeights.with_alpha(layers, float(recipe.alpha or recipe.rank))
