"""Generate images from a base in plain batches: class images, training samples, scores.

Owns the simple denoising loop in which all rows advance together. The serving engine has its own,
in which rows join and leave; both produce the image that plain diffusers produces for the same
seed.

Legend: R rows, C channels, H W latent, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from farm.base.conditioning import Conditioning
from farm.base.device.transfer import sent
from farm.base.interface import Base
from farm.base.stepping import initial_scale, model_input, takes_generator
from farm.base.stopping import raise_if_stopped
from farm.schedulers import SchedulerName

__all__ = [
    "Routing",
    "SamplingOptions",
    "generate_images",
    "generate_latents",
    "image_windows",
    "in_batches",
    "initial_noise",
    "to_uint8",
]

Routing = Callable[[Tensor], AbstractContextManager[object]]
"""Enters the bank's routing for a pass, given the image index of each of its rows (int64 [R]; a
guided pass has two rows per image)."""


class SamplingOptions(TypedDict, total=False):
    """Keyword options of all generating functions."""

    steps: int
    """Denoising steps; 25 if not given."""
    guidance: float
    """Guidance scale, 5.0 if not given; without effect on a base that has no guidance. Where it is
    classifier-free, 1 or less runs no unconditional rows."""
    width_px: int | None
    """None means the base's own resolution, as for the height."""
    height_px: int | None
    scheduler: SchedulerName
    """``base``, the base's own, if not given."""


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, float32 [R, C, H, W], one CPU generator per seed.

    Equal to plain diffusers' noise for ``generator=torch.Generator("cpu").manual_seed(seed)``,
    regardless of the device and of the other rows of the batch.
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
    routing: Routing | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """Denoise one image per row of ``conditioning``.

    Args:
        conditioning: R encoded prompts.
        seeds: R seeds; an image depends only on its own seed and prompt.
        negative: R (or 1) prompts encoded by ``encode_negative``; None means the empty prompt.
        routing: enters a bank's routing for the image indices of a pass.

    Returns:
        Latents, float32 [R, C, H, W] on the base's device.
    """
    count, guidance = len(conditioning), options.get("guidance", 5.0)
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts")
    width_px = options.get("width_px") or base.resolution_px
    height_px = options.get("height_px") or base.resolution_px
    shape = base.latent_shape(width_px, height_px)
    name = options.get("scheduler", "base")
    sampler = base.start_scheduler(name, options.get("steps", 25), shape, base.device)
    latents_RCHW: Tensor = sent(initial_noise(seeds, shape), base.device) * initial_scale(sampler)
    images_R, guided = torch.arange(count), base.needs_unprompted(guidance)
    if guided:
        negative = base.encode_negative([""]) if negative is None else negative
        negative = negative.repeat(count) if len(negative) == 1 else negative
        conditioning = Conditioning.concatenate([negative, conditioning])
        images_R = images_R.repeat(2)
    conditioning = base.for_images(
        conditioning, width_px=width_px, height_px=height_px, guidance=guidance
    )
    extra = _step_arguments(sampler, seeds, shape)
    for timestep in sampler.timesteps:
        raise_if_stopped()
        rows_RCHW = torch.cat([latents_RCHW] * 2) if guided else latents_RCHW
        rows_RCHW = model_input(sampler, rows_RCHW, timestep).to(base.dtype)
        timesteps_R = timestep.expand(len(rows_RCHW))
        with _entered(routing, images_R):  # for each pass, so that training steps fit in between
            prediction_RCHW = base.denoise(rows_RCHW, timesteps_R, conditioning).float()
        if guided:
            prediction_RCHW = _guided(base, prediction_RCHW, guidance)
        latents_RCHW = sampler.step(prediction_RCHW, timestep, latents_RCHW, **extra)[0]
    return latents_RCHW.float()


def _guided(base: Base, prediction_RCHW: Tensor, guidance: float) -> Tensor:
    """The guided prediction of a pass whose first half has the negative prompts."""
    plain_RCHW, prompted_RCHW = prediction_RCHW.chunk(2)
    return base.guide(prompted_RCHW, plain_RCHW, guidance)


def _step_arguments(
    sampler: object, seeds: Sequence[int], shape: tuple[int, int, int]
) -> dict[str, object]:
    """The keyword arguments that this scheduler's ``step`` accepts, found as diffusers does."""
    arguments: dict[str, object] = {"return_dict": False}
    if takes_generator(sampler):
        # ancestral samplers add noise at each step: one stream per row keeps rows independent
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        for generator in generators:
            torch.randn(shape, generator=generator)
        arguments["generator"] = generators
    return arguments


def _entered(routing: Routing | None, images_R: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if routing is None else routing(images_R)


def in_batches(count: int, batch: int, generate: Callable[[slice], Tensor]) -> Tensor:
    """Generate ``count`` images, ``batch`` at a time, or as many at a time as fit in memory.

    Args:
        generate: images of a range of rows; a row's image must not depend on the other rows.

    Raises:
        torch.OutOfMemoryError: if a single image does not fit.
    """
    images: list[Tensor] = []
    start = 0
    while start < count:
        rows = slice(start, min(start + batch, count))
        size = rows.stop - rows.start
        try:
            images.append(generate(rows))
        except torch.OutOfMemoryError:  # retried outside: the exception holds the failed pass
            if size == 1:
                raise
            batch = size // 2
        else:
            start = rows.stop
    return torch.cat(images)


@torch.no_grad()
def generate_images(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str = "",
    chunked: Sequence[bool] | None = None,
    batch: int = 16,
    routing: Routing | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """Images as uint8 [R, P, P, 3] on the CPU, generated in batches; see ``generate_latents``.

    Prompts are encoded under the routing too, so adapters of the text encoder take effect.

    Args:
        chunked: which prompts are read in windows where they are long; None cuts all of them.
    """
    windows = image_windows(base, prompts, negative_prompt, chunked)

    def generate(rows: slice) -> Tensor:
        count, mine = rows.stop - rows.start, _shifted(routing, rows.start)
        with _entered(mine, torch.arange(count)):
            mine_windows = None if windows is None else windows[rows]
            conditioning = base.encode_prompts(prompts[rows], mine_windows)
            negative = base.encode_negative([negative_prompt] * count, mine_windows)
        latents_RCHW = generate_latents(
            base, conditioning, seeds[rows], negative=negative, routing=mine, **options
        )
        return to_uint8(base.decode(latents_RCHW))

    return in_batches(len(prompts), batch, generate)


def image_windows(
    base: Base, prompts: Sequence[str], negative_prompt: str, chunked: Sequence[bool] | None
) -> list[int] | None:
    """Windows of each image: those of the longer of its prompts, 1 where they are cut.

    Returns:
        None if every image has one.
    """
    if chunked is None or not any(chunked):
        return None
    least = base.num_windows(negative_prompt)
    return [
        max(least, base.num_windows(prompt)) if is_chunked else 1
        for prompt, is_chunked in zip(prompts, chunked, strict=True)
    ]


def _shifted(routing: Routing | None, start: int) -> Routing | None:
    """The routing of a batch whose first image has index ``start``."""
    if routing is None:
        return None
    return lambda images_R: routing(images_R + start)


def to_uint8(pixels_B3PP: Tensor) -> Tensor:
    """Images in [0, 1] as uint8 [B, P, P, 3] on the CPU, rounded as in diffusers."""
    return (pixels_B3PP.permute(0, 2, 3, 1).float().cpu() * 255).round().clamp(0, 255).byte()
