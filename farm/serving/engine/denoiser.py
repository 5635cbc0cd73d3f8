"""One denoising pass over rows that differ in everything but image size.

Owns the assembly of a pass (a prompted row for each image and an unconditional row for each
guided one, each with its own adapters) and guidance. Inputs that do not change while the same
images run together are assembled once, and a row keeps its place in the pass until its image is
finished, so an image that joins or leaves costs only the copy of its own weights.

Legend: P images, G guided ones among them, R rows, K adapters per row, C H W latent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.bank.row_weights import RowWeights
from farm.base.device.captured import WARM_UP_CALLS
from farm.base.device.transfer import sent
from farm.base.fast_blocks import restore, use_fast_blocks
from farm.base.interface import Base, Conditioning
from farm.serving.engine.passes import Passes, padded_rows
from farm.serving.engine.row import Row, Size
from farm.serving.engine.sampler import inputs_of

__all__ = ["Denoiser", "arranged"]

MAX_IDLE_SIZES = 4
"""Image sizes without images whose row weights are kept for captured passes."""

Line = tuple[Row, bool]
"""One row of a pass: its image, and whether it is the prompted row."""

Grouped = dict[tuple[int, ...], list[Line]]
"""The lines of a pass in order, by the shapes of their adapters: neighbours share products."""


@dataclass(frozen=True)
class _Layout:
    """Inputs of a pass other than latents and timesteps; constant for the same images."""

    rows: tuple[Row, ...]
    groups: Grouped
    lines: list[Line]
    """In order, and repetitions of the last one that pad the pass."""
    pictures_R: Tensor
    """int64: the image of each row."""
    prompted_P: Tensor
    """int64: index in the pass of each image's prompted row."""
    guided_G: Tensor
    """int64: which images are guided."""
    plain_G: Tensor
    """int64: index in the pass of their unconditional rows."""
    guidance_G111: Tensor
    conditioning: Conditioning
    has_adapters: bool


class Denoiser:
    """Runs the denoiser for many images in one pass."""

    def __init__(self, base: Base, bank: MixedBank | None, *, pads: bool | None = None) -> None:
        """Use the base's denoiser.

        Args:
            pads: whether passes are padded to a few sizes, and captured; None means on GPUs.
        """
        self._base = base
        self._bank = bank
        self.pads = base.device.type == "cuda" if pads is None else pads
        self._passes = Passes(base, captures=self.pads)
        if base.device.type == "cpu":
            use_fast_blocks(base.components[base.denoiser_name])
        # sizes take turns: each keeps its own assembled layout
        self._layouts: dict[Size, _Layout] = {}
        self._weights: OrderedDict[Size, RowWeights] = OrderedDict()

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> Tensor:
        """The guided prediction for each image at its own timestep, float32 [P, C, H, W].

        One pass of the denoiser; the images must share a size. Does not modify them.
        """
        layout = self._layout_of(tuple(rows))
        latents_PCHW = inputs_of([row.sampler for row in rows])
        latents_RCHW = latents_PCHW.index_select(0, layout.pictures_R).to(self._base.dtype)
        timesteps_R = sent(
            torch.tensor([row.sampler.timestep for row, _ in layout.lines], dtype=torch.float32),
            self._base.device,
        )
        weights = self._weights[rows[0].waiting.size] if layout.has_adapters else None
        prediction_RCHW = self._passes.run(
            latents_RCHW,
            timesteps_R,
            layout.conditioning,
            weights,
            nullcontext() if weights is None else weights.active(),
        ).float()
        prompted_PCHW = prediction_RCHW.index_select(0, layout.prompted_P)
        if not len(layout.guided_G):
            return prompted_PCHW
        plain_GCHW = prediction_RCHW.index_select(0, layout.plain_G)
        guided_GCHW = prompted_PCHW.index_select(0, layout.guided_G)
        guided_GCHW = self._base.guide(guided_GCHW, plain_GCHW, layout.guidance_G111)
        return prompted_PCHW.index_copy(0, layout.guided_G, guided_GCHW)

    @torch.no_grad()
    def warm_up(self, rows: int, prompt: Conditioning) -> None:
        """Run passes of this many rows at the base's own size, until they are captured: with the
        adapter in slot 0, and with none.

        Args:
            prompt: one row.
        """
        base, side_px = self._base, self._base.resolution_px
        shape = base.latent_shape(side_px, side_px)
        latents_RCHW = torch.zeros(rows, *shape, dtype=base.dtype, device=base.device)
        timesteps_R = torch.full((rows,), 500.0, device=base.device)
        prompts = prompt.repeat(rows)
        calls = 1 + WARM_UP_CALLS if base.device.type == "cuda" else 1
        weights = self._weights_of((side_px, side_px))
        for one in (weights, None) if weights is not None else (None,):
            if one is not None:
                one.assign([[0]] * rows)
            for _ in range(calls):
                routing = nullcontext() if one is None else one.active()
                self._passes.run(latents_RCHW, timesteps_R, prompts, one, routing)
        self._layouts.pop((side_px, side_px), None)  # running rows get their weights back

    def forget(self, size: Size) -> None:
        """Drop the layout of a size; called when its last image has left."""
        self._layouts.pop(size, None)
        if not self.pads:
            self._weights.pop(size, None)
        elif size in self._weights:  # captured passes read its copies
            self._weights[size].assign([])

    def free_graphs(self) -> None:
        """Free the memory of captured passes; called after running out of it."""
        self._passes.forget()
        if self.pads:
            for size in self._weights.keys() - self._layouts.keys():
                del self._weights[size]

    def close(self) -> None:
        """Restore the original forward of the base's blocks."""
        self._passes.forget()
        restore(self._base.components[self._base.denoiser_name])

    def _layout_of(self, rows: tuple[Row, ...]) -> _Layout:
        size = rows[0].waiting.size
        layout = self._layouts.get(size)
        if layout is None or layout.rows != rows:
            layout = self._assembled(rows, layout.groups if layout is not None else {})
            self._layouts[size] = layout
        return layout

    def _assembled(self, rows: tuple[Row, ...], before: Grouped) -> _Layout:
        device = self._base.device
        wanted = [(row, True) for row in rows]
        wanted += [(row, False) for row in rows if row.unprompted is not None]
        groups = self._grouped(before, wanted)
        lines = [line for group in groups.values() for line in group]
        place = {line: i for i, line in enumerate(lines)}
        if self.pads:
            lines += lines[-1:] * (padded_rows(len(lines)) - len(lines))
        picture = {row: i for i, row in enumerate(rows)}
        guided = [i for i, row in enumerate(rows) if row.unprompted is not None]
        guidance_G = torch.tensor([rows[i].request.guidance for i in guided])

        def indices(values: list[int]) -> Tensor:
            return sent(torch.tensor(values, dtype=torch.int64), device)

        return _Layout(
            rows=rows,
            groups=groups,
            lines=lines,
            pictures_R=indices([picture[row] for row, _ in lines]),
            prompted_P=indices([place[row, True] for row in rows]),
            guided_G=indices(guided),
            plain_G=indices([place[rows[i], False] for i in guided]),
            guidance_G111=sent(guidance_G.view(-1, 1, 1, 1), device),
            conditioning=Conditioning.concatenate([_conditioning(line) for line in lines]),
            has_adapters=self._assign(rows[0].waiting.size, lines),
        )

    def _grouped(self, before: Grouped, wanted: list[Line]) -> Grouped:
        """The wanted lines by the shapes of their adapters; lines already present keep their
        order."""
        wanted_by: Grouped = {group: [] for group in before}
        for line in wanted:
            slots = line[0].slots
            group = self._bank.group_of(slots) if slots and self._bank is not None else ()
            wanted_by.setdefault(group, []).append(line)
        return {
            group: arranged(before.get(group, []), lines)
            for group, lines in wanted_by.items()
            if lines
        }

    def _assign(self, size: Size, lines: list[Line]) -> bool:
        """Assign the rows' weights; False if no image has an adapter."""
        if not any(row.slots for row, _ in lines):
            return False
        weights = self._weights_of(size)
        assert weights is not None
        weights.assign([row.slots for row, _ in lines], [row.factors for row, _ in lines])
        return True

    def _weights_of(self, size: Size) -> RowWeights | None:
        """The row weights of a size; None without a bank."""
        if self._bank is None:
            return None
        if size not in self._weights:
            idle = [other for other in self._weights if other not in self._layouts]
            for other in idle[: max(0, len(idle) + 1 - MAX_IDLE_SIZES)]:
                del self._weights[other]
            self._weights[size] = RowWeights(self._bank)
        self._weights.move_to_end(size)
        return self._weights[size]


def arranged(before: Sequence[Line], wanted: Sequence[Line]) -> list[Line]:
    """The wanted lines in an order that keeps as many as possible in place."""
    missing = set(wanted)
    places: list[Line | None] = [None] * len(wanted)
    for i, line in enumerate(before[: len(wanted)]):
        if line in missing:
            places[i] = line
            missing.discard(line)
    rest = iter([line for line in wanted if line in missing])
    return [line if line is not None else next(rest) for line in places]


def _conditioning(line: Line) -> Conditioning:
    row, is_prompted = line
    conditioning = row.prompted if is_prompted else row.unprompted
    assert conditioning is not None
    return conditioning
