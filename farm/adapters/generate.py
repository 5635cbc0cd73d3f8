"""Generate images with the adapters of a bank's slots."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.generate import SamplingOptions, generate_images
from farm.base.interface import Base

__all__ = ["generate_adapted", "generate_by_slot"]


def generate_adapted(
    base: Base,
    bank: Bank,
    prompts: Sequence[str],
    seeds: Sequence[int],
    slots: Sequence[int],
    *,
    negative_prompt: str = "",
    chunked: Sequence[bool] | None = None,
    batch: int = 16,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """One image per prompt, each with its own slot's adapter; -1 means the base alone.

    Returns:
        uint8 [R, P, P, 3] on the CPU; an image does not depend on the others of the call.
    """
    routing = bank.image_routing(slots)
    return generate_images(
        base,
        prompts,
        seeds,
        negative_prompt=negative_prompt,
        chunked=chunked,
        batch=batch,
        routing=routing,
        **options,
    )


def generate_by_slot(
    base: Base,
    bank: Bank,
    prompts: Mapping[int, Sequence[str]],
    seeds: Sequence[int],
    *,
    batch: int = 16,
    chunked: Container[int] = (),
    **options: Unpack[SamplingOptions],
) -> dict[int, Tensor]:
    """Images of several slots' prompts, all generated together.

    Args:
        prompts: by slot; the i-th prompt of each slot uses the i-th seed.
        chunked: slots whose long prompts are read in windows.

    Returns:
        uint8 [prompts, H, W, 3] on the CPU by slot.
    """
    asked = [(slot, i, text) for slot, texts in prompts.items() for i, text in enumerate(texts)]
    if not asked:
        return {}
    images = generate_adapted(
        base,
        bank,
        [text for _, _, text in asked],
        [seeds[i % len(seeds)] for _, i, _ in asked],
        [slot for slot, _, _ in asked],
        batch=batch,
        chunked=[slot in chunked for slot, _, _ in asked],
        **options,
    )
    counts = [len(texts) for texts in prompts.values()]
    return dict(zip(prompts, torch.split(images, counts), strict=True))
