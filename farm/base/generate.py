"""Draw pictures from a base in plain batches: priors, training samples, scores.

Owns the simple denoising loop in which all rows go together. The serving engine has its own, in
which rows come and go; both give the picture that plain diffusers gives for the same seed.

Legend: R rows, C channels, H W latent, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from farm.base.interface import Base, Conditioning
from farm.schedulers import SchedulerName

__all__ = [
    "Routing",
    "generate_latents",
    "generate_images",
    "in_batches",
    "initial_noise",
    "to_uint8",
]

Routing = Callable[[Tensor], AbstractContextManager[object]]
"""Enters the bank's routing for a pass, given the picture index of each of its rows (int64 [R]; a
guided pass has two rows a picture)."""


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, float32 [R, C, H, W], one CPU generator per seed.

    Equal to what plain diffusers draws for ``generator=torch.Generator("cpu").manual_seed(seed)``,
    whatever the device and whoever shares the batch.
    """
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    )


@torch.no_grad()
def generate_latents(
    base: Base,
    conditioning: Conditioning,
    seeds: Sequence[int],
    *,
    negative: Conditioning | None = None,
    steps: int = 25,
    guidance: float = 5.0,
    width_px: int | None = None,
    height_px: int | None = None,
    scheduler: SchedulerName = "base",
    routing: Routing | None = None,
) -> Tensor:
    """Denoise one picture per row of ``conditioning``.

    Args:
        conditioning: R encoded prompts.
        seeds: R seeds; a picture depends on its own seed and prompt alone.
        negative: R (or 1) encoded negative prompts; None means the empty prompt.
        guidance: classifier-free guidance scale; 1 or less runs no unconditional rows.
        routing: enters a bank's routing for the picture indices of a pass.

    Returns:
        Latents, float32 [R, C, H, W] on the base's device.
    """
    count = len(conditioning)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts")
    shape = base.latent_shape(width_px or base.resolution_px, height_px or base.resolution_px)
    sampler = base.scheduler(scheduler)
    sampler.set_timesteps(steps, device=base.device)
    latents_RCHW: Tensor = initial_noise(seeds, shape).to(base.device) * sampler.init_noise_sigma
    pictures_R = torch.arange(count)
    guided = guidance > 1
    if guided:
        if negative is None:
            negative = base.encode_prompts([""])
        if len(negative) == 1 and count != 1:
            negative = negative.repeat(count)
        conditioning = Conditioning.concatenate([negative, conditioning])
        pictures_R = torch.cat([pictures_R, pictures_R])
    # ancestral samplers add noise at each step: one stream per row keeps rows independent
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    for generator in generators:
        torch.randn(shape, generator=generator)
    extra = _step_arguments(sampler, generators)
    with routing(pictures_R) if routing is not None else nullcontext():
        for timestep in sampler.timesteps:
            rows_RCHW = torch.cat([latents_RCHW] * 2) if guided else latents_RCHW
            rows_RCHW = sampler.scale_model_input(rows_RCHW, timestep)
            timesteps_R = timestep.expand(len(rows_RCHW))
            prediction_RCHW = base.denoise(rows_RCHW.to(base.dtype), timesteps_R, conditioning)
            prediction_RCHW = prediction_RCHW.float()
            if guided:
                plain_RCHW, prompted_RCHW = prediction_RCHW.chunk(2)
                prediction_RCHW = plain_RCHW + guidance * (prompted_RCHW - plain_RCHW)
            latents_RCHW = sampler.step(prediction_RCHW, timestep, latents_RCHW, **extra)[0]
    return latents_RCHW.float()


def _step_arguments(sampler: object, generators: list[torch.Generator]) -> dict[str, object]:
    """The keyword arguments that this scheduler's ``step`` takes, as diffusers inspects them."""
    import inspect

    accepted = inspect.signature(sampler.step).parameters  # type: ignore[attr-defined]
    arguments: dict[str, object] = {"return_dict": False}
    if "generator" in accepted:
        arguments["generator"] = generators
    return arguments


def in_batches(count: int, batch: int, draw: Callable[[slice], Tensor]) -> Tensor:
    """Draw ``count`` pictures, ``batch`` of them at a time, or as many as there is memory for.

    Args:
        draw: pictures of a range of rows; those of one row do not depend on its neighbours.

    Raises:
        torch.OutOfMemoryError: if a single one does not fit.
    """
    drawn: list[Tensor] = []
    start = 0
    while start < count:
        rows = slice(start, min(start + batch, count))
        size = rows.stop - rows.start
        try:
            drawn.append(draw(rows))
        except torch.OutOfMemoryError:  # the next try comes after it: it holds the failed pass
            if size == 1:
                raise
            batch = size // 2
        else:
            start = rows.stop
    return torch.cat(drawn)


@torch.no_grad()
def generate_images(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str = "",
    batch: int = 16,
    steps: int = 25,
    guidance: float = 5.0,
    width_px: int | None = None,
    height_px: int | None = None,
    scheduler: SchedulerName = "base",
    routing: Routing | None = None,
) -> Tensor:
    """Pictures as uint8 [R, P, P, 3] on the CPU, drawn in batches; see ``generate_latents``."""
    negative = base.encode_prompts([negative_prompt])

    def draw(rows: slice) -> Tensor:
        latents_RCHW = generate_latents(
            base,
            base.encode_prompts(prompts[rows]),
            seeds[rows],
            negative=negative,
            steps=steps,
            guidance=guidance,
            width_px=width_px,
            height_px=height_px,
            scheduler=scheduler,
            routing=_shifted(routing, rows.start),
        )
        return to_uint8(base.decode(latents_RCHW))

    return in_batches(len(prompts), batch, draw)


def _shifted(routing: Routing | None, start: int) -> Routing | None:
    """The routing of a batch whose first picture is number ``start`` of all."""
    if routing is None:
        return None
    return lambda pictures_R: routing(pictures_R + start)


def to_uint8(pixels_B3PP: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8 [B, P, P, 3] on the CPU, rounded as diffusers rounds."""
    return (pixels_B3PP.permute(0, 2, 3, 1).float().cpu() * 255).round().clamp(0, 255).byte()
