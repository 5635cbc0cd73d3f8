"""Generates the evaluation images of many adapters, all slots together.

Owns the flat list of (slot, prompt, seed) rows and the choice of seeds; ``farm.adapters.generate``
owns batching and routing. Seeds depend on the subject's seed, the purpose and the index of the
image, never on the slot or other rows, and are the same for base and adapter.

Legend: R images, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank.bank import Bank
from farm.adapters.generate import generate_adapted
from farm.base.interface import Base
from farm.keys import derive_seed
from farm.quality.protocol import ScoringBudget

__all__ = ["BASE_SLOT", "ImageRow", "generate_rows", "seeds_for"]

BASE_SLOT = -1
"""The slot of rows without an adapter."""


@dataclass(frozen=True)
class ImageRow:
    """One image to generate."""

    slot: int
    prompt: str
    seed: int


def seeds_for(seed: int, purpose: str, num: int) -> list[int]:
    """``num`` image seeds for one purpose."""
    return [derive_seed(seed, "quality", purpose, index) for index in range(num)]


def generate_rows(
    base: Base, bank: Bank, rows: Sequence[ImageRow], budget: ScoringBudget, *, batch: int = 32
) -> Tensor:
    """Images, uint8 [R, P, P, 3] on the CPU, in the order of ``rows``.

    Args:
        batch: images per pass; guidance doubles the denoiser's rows.
    """
    if not rows:
        side = base.resolution_px
        return torch.empty(0, side, side, 3, dtype=torch.uint8)
    return generate_adapted(
        base,
        bank,
        [row.prompt for row in rows],
        [row.seed for row in rows],
        [row.slot for row in rows],
        batch=batch,
        steps=budget.steps,
        guidance=budget.guidance,
        scheduler=budget.scheduler,
    )
