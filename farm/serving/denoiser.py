"""One denoising pass over rows that differ in everything but their picture size.

Owns the assembly of a pass: prompted rows of all pictures first, unconditional rows of the guided
ones after them, each row routed to its own slots of the bank; then guidance and each picture's
own scheduler step. What stays equal while the same pictures go on together is assembled once.

Legend: P pictures, R rows (P prompted, then G unconditional), K adapters per row, C H W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank import Bank
from farm.base.model import Base, Conditioning
from farm.serving.rows import Row

__all__ = ["Denoiser"]


@dataclass(frozen=True)
class _Layout:
    """What a pass needs beside latents and timesteps; the same for the same pictures."""

    rows: tuple[Row, ...]
    conditioning: Conditioning
    guided_G: Tensor
    """int64: which pictures have an unconditional row, in the order of those rows."""
    guidance_G111: Tensor
    slots_RK: Tensor | None
    """None if no picture has an adapter: then the base runs bare."""
    factors_RK: Tensor | None
    """None if all factors are 1."""


class Denoiser:
    """Takes pictures one step further, all in one pass."""

    def __init__(self, base: Base, bank: Bank | None) -> None:
        self._base = base
        self._bank = bank
        self._layout: _Layout | None = None

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> Tensor:
        """The guided prediction for each picture at its own timestep, float32 [P, C, H, W].

        One pass of the denoiser; the pictures must share a size. Changes nothing in them.
        """
        layout = self._layout_of(tuple(rows))
        latents_PCHW = torch.cat([row.sampler.model_input() for row in rows])
        guided_G = layout.guided_G
        latents_RCHW = torch.cat([latents_PCHW, latents_PCHW[guided_G]])
        timesteps_P = torch.tensor([row.sampler.timestep for row in rows], dtype=torch.float32)
        timesteps_R = torch.cat([timesteps_P, timesteps_P[guided_G.cpu()]])
        with self._routed(layout):
            prediction_RCHW = self._base.denoise(
                latents_RCHW.to(self._base.dtype),
                timesteps_R.to(self._base.device, non_blocking=True),
                layout.conditioning,
            ).float()
        prompted_PCHW = prediction_RCHW[: len(rows)]
        if not len(guided_G):
            return prompted_PCHW
        plain_GCHW = prediction_RCHW[len(rows) :]
        change_GCHW = layout.guidance_G111 * (prompted_PCHW[guided_G] - plain_GCHW)
        return prompted_PCHW.index_copy(0, guided_G, plain_GCHW + change_GCHW)

    def forget(self) -> None:
        """Let go of the last pass's pictures."""
        self._layout = None

    def _routed(self, layout: _Layout) -> AbstractContextManager[None]:
        if self._bank is None or layout.slots_RK is None:
            return nullcontext()
        return self._bank.route(layout.slots_RK, layout.factors_RK)

    def _layout_of(self, rows: tuple[Row, ...]) -> _Layout:
        if self._layout is None or self._layout.rows != rows:
            self._layout = self._assembled(rows)
        return self._layout

    def _assembled(self, rows: tuple[Row, ...]) -> _Layout:
        device = self._base.device
        guided = [i for i, row in enumerate(rows) if row.unprompted is not None]
        unprompted = [row.unprompted for row in rows if row.unprompted is not None]
        guidance_G = torch.tensor([rows[i].request.guidance for i in guided])
        slots_RK, factors_RK = self._routing(rows, guided)
        return _Layout(
            rows=rows,
            conditioning=Conditioning.concatenate([row.prompted for row in rows] + unprompted),
            guided_G=torch.tensor(guided, dtype=torch.int64, device=device),
            guidance_G111=guidance_G.view(-1, 1, 1, 1).to(device),
            slots_RK=slots_RK,
            factors_RK=factors_RK,
        )

    def _routing(
        self, rows: tuple[Row, ...], guided: list[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        width = max(len(row.slots) for row in rows)
        if not width:
            return None, None
        # slot 0 is the bare base: a row with fewer adapters fills up with it
        slots_PK = torch.tensor([_padded(row.slots, width, 0) for row in rows])
        factors_PK = torch.tensor([_padded(row.factors, width, 1.0) for row in rows])
        slots_RK = torch.cat([slots_PK, slots_PK[guided]])
        if bool((factors_PK == 1).all()):
            return slots_RK, None
        return slots_RK, torch.cat([factors_PK, factors_PK[guided]])


def _padded(values: Sequence[float], width: int, filler: float) -> list[float]:
    return [*values, *[filler] * (width - len(values))]
