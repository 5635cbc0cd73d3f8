"""Draw the pictures by which many adapters are judged, all slots together.

Owns the flat list of (slot, prompt, seed) rows and its batching through the bank; the denoising
itself is ``farm.base.draw``. Seeds depend on the subject's seed, the purpose and the number of the
picture, never on slot or neighbours, and the same ones serve base and adapter.

Legend: R pictures, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from farm.base.draw import draw_latents, to_uint8
from farm.base.model import Base
from farm.keys import derive_seed
from farm.quality.protocol import ScoringBudget

if TYPE_CHECKING:
    from farm.adapters.bank import Bank

__all__ = ["BASE_SLOT", "PictureRow", "draw_rows", "seeds_for"]

BASE_SLOT = -1
"""Routes a row past every adapter."""


@dataclass(frozen=True)
class PictureRow:
    """One picture to draw."""

    slot: int
    prompt: str
    seed: int


def seeds_for(seed: int, purpose: str, num: int) -> list[int]:
    """``num`` picture seeds for one purpose."""
    return [derive_seed(seed, "quality", purpose, index) for index in range(num)]


@torch.no_grad()
def draw_rows(
    base: Base,
    bank: Bank | None,
    rows: Sequence[PictureRow],
    budget: ScoringBudget,
    *,
    batch: int = 32,
) -> Tensor:
    """Pictures, uint8 [R, P, P, 3] on the CPU, in the order of ``rows``.

    Args:
        bank: routes each row to its slot; None draws all with the bare base.
        batch: pictures in one pass; guidance doubles the denoiser's rows.
    """
    if not rows:
        side = base.resolution_px
        return torch.empty(0, side, side, 3, dtype=torch.uint8)
    parts = []
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        routing = bank.draw_routing([row.slot for row in chunk]) if bank is not None else None
        # adapters of the text encoder change both prompts, as in a pipeline that carries one
        with routing(torch.arange(len(chunk))) if routing is not None else nullcontext():
            encoded = base.encode_prompts([row.prompt for row in chunk])
            negative = base.encode_prompts([""] * len(chunk))
        latents_RCHW = draw_latents(
            base,
            encoded,
            [row.seed for row in chunk],
            negative=negative,
            steps=budget.steps,
            guidance=budget.guidance,
            scheduler=budget.scheduler,
            routing=routing,
        )
        parts.append(to_uint8(base.decode(latents_RCHW)))
    return torch.cat(parts)
