"""Draw pictures through a bank, text-encoder adapters included.

``farm.base.generate`` encodes prompts before it enters a routing, which is right for adapters of
the denoiser alone. Here the prompts are encoded under the routing too, as plain diffusers does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.base.generate import generate_latents, in_batches, to_uint8
from farm.base.interface import Base
from farm.schedulers import SchedulerName

__all__ = ["generate_adapted", "generate_by_slot"]


@torch.no_grad()
def generate_adapted(
    base: Base,
    bank: Bank,
    prompts: Sequence[str],
    seeds: Sequence[int],
    slots: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    negative_prompt: str = "",
    batch: int = 16,
    steps: int = 25,
    guidance: float = 5.0,
    width_px: int | None = None,
    height_px: int | None = None,
    scheduler: SchedulerName = "base",
) -> Tensor:
    """One picture per prompt, each by its own slot's adapter; -1 is the bare base.

    Returns:
        uint8 [R, P, P, 3] on the CPU; a picture does not depend on the others of the call.
    """

    def draw(rows: slice) -> Tensor:
        slots_R = torch.tensor(slots[rows])
        factors_R = None if weights is None else torch.tensor(weights[rows])
        with bank.route(slots_R, factors_R):
            conditioning = base.encode_prompts(prompts[rows])
            negative = base.encode_prompts([negative_prompt] * len(slots_R))
        latents_RCHW = generate_latents(
            base,
            conditioning,
            seeds[rows],
            negative=negative,
            steps=steps,
            guidance=guidance,
            width_px=width_px,
            height_px=height_px,
            scheduler=scheduler,
            routing=bank.draw_routing(slots_R, factors_R),
        )
        return to_uint8(base.decode(latents_RCHW))

    return in_batches(len(prompts), batch, draw)


def generate_by_slot(
    base: Base,
    bank: Bank,
    prompts: Mapping[int, Sequence[str]],
    seeds: Sequence[int],
    *,
    side_px: int,
    steps: int = 25,
    guidance: float = 5.0,
) -> dict[int, Tensor]:
    """Square pictures of several slots' prompts, all drawn together.

    Args:
        prompts: by slot; the i-th prompt of each slot is drawn with the i-th seed.

    Returns:
        uint8 [prompts, P, P, 3] on the CPU by slot.
    """
    asked = [(slot, i, text) for slot, texts in prompts.items() for i, text in enumerate(texts)]
    if not asked:
        return {}
    pictures = generate_adapted(
        base,
        bank,
        [text for _, _, text in asked],
        [seeds[i % len(seeds)] for _, i, _ in asked],
        [slot for slot, _, _ in asked],
        steps=steps,
        guidance=guidance,
        width_px=side_px,
        height_px=side_px,
    )
    counts = [len(texts) for texts in prompts.values()]
    return dict(zip(prompts, torch.split(pictures, counts), strict=True))
