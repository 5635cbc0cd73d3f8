"""Denoising passes of a few fixed sizes, each replayed as a CUDA graph where it can be.

Owns the sizes that passes are padded to, the tensors that a graph reads, and the graphs. Few sizes
mean that libraries choose their kernels once for each, and not whenever an image joins.

Legend: R rows of a padded pass, C channels, H W latent.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank.row_weights import RowWeights
from farm.base.conditioning import Conditioning
from farm.base.device.captured import Captured, Pool
from farm.base.interface import Base

__all__ = ["Passes", "padded_counts", "padded_rows"]

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a padded pass; beyond, multiples of the last."""
MAX_GRAPHS = 32
"""Graphs kept. They share the memory of their activations: passes follow each other, and each
result is read before the next pass."""


def padded_rows(rows: int) -> int:
    """The smallest size of a pass with room for these rows."""
    largest = ROW_COUNTS[-1]
    fitting = (count for count in ROW_COUNTS if count >= rows)
    return next(fitting, -(-rows // largest) * largest)


def padded_counts(rows: int) -> list[int]:
    """The sizes of passes with up to this many rows, largest first."""
    return sorted({padded_rows(count) for count in range(1, rows + 1)}, reverse=True)


@dataclass
class _Fixed:
    """The tensors that one graph reads, and what it must keep alive."""

    latents_RCHW: Tensor
    timesteps_R: Tensor
    conditioning: Conditioning
    filled_from: Conditioning
    weights: tuple[object, ...]
    run: Captured


class Passes:
    """Runs a base's denoiser."""

    def __init__(self, base: Base, *, captures: bool) -> None:
        """Wrap a base.

        Args:
            captures: whether passes are captured; on a CPU they then run on fixed tensors only.
        """
        self._base, self._captures = base, captures
        self._fixed: OrderedDict[tuple[object, ...], _Fixed] = OrderedDict()
        self._pool = Pool()

    def run(
        self,
        latents_RCHW: Tensor,
        timesteps_R: Tensor,
        conditioning: Conditioning,
        weights: RowWeights | None,
        routing: AbstractContextManager[None],
    ) -> Tensor:
        """One pass; the next one may overwrite the result.

        Args:
            weights: of the rows' adapters; None for the bare base.
            routing: makes these weights active.
        """
        kept = () if weights is None else weights.fixed_parts()
        with routing:
            if not self._captures or kept is None:
                return self._base.denoise(latents_RCHW, timesteps_R, conditioning)
            fixed = self._fixed_for(latents_RCHW, timesteps_R, conditioning, kept)
            return fixed.run()

    def forget(self) -> None:
        """Free all graphs and their memory."""
        self._fixed.clear()
        self._pool = Pool()

    def _fixed_for(
        self,
        latents_RCHW: Tensor,
        timesteps_R: Tensor,
        conditioning: Conditioning,
        kept: tuple[object, ...],
    ) -> _Fixed:
        extra = sorted((name, value.shape) for name, value in conditioning.extra.items())
        # the kept objects live as long as their entry, so their ids stay theirs
        key = (latents_RCHW.shape, conditioning.hidden_RTD.shape, *extra, *map(id, kept))
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = self._made(latents_RCHW, timesteps_R, conditioning, kept)
            while len(self._fixed) > MAX_GRAPHS:
                self._fixed.popitem(last=False)
            return fixed
        self._fixed.move_to_end(key)
        fixed.latents_RCHW.copy_(latents_RCHW)
        fixed.timesteps_R.copy_(timesteps_R)
        if fixed.filled_from is not conditioning:
            fixed.conditioning.hidden_RTD.copy_(conditioning.hidden_RTD)
            for name, value in fixed.conditioning.extra.items():
                value.copy_(conditioning.extra[name])
            fixed.filled_from = conditioning
        return fixed

    def _made(
        self,
        latents_RCHW: Tensor,
        timesteps_R: Tensor,
        conditioning: Conditioning,
        kept: tuple[object, ...],
    ) -> _Fixed:
        latents, timesteps = latents_RCHW.clone(), timesteps_R.clone()
        mine = Conditioning(
            conditioning.hidden_RTD.clone(),
            {name: value.clone() for name, value in conditioning.extra.items()},
        )

        @torch.no_grad()
        def run() -> Tensor:
            return self._base.denoise(latents, timesteps, mine)

        captured = Captured(run, self._base.device, name="a denoising pass", pool=self._pool)
        return _Fixed(latents, timesteps, mine, conditioning, kept, captured)
