"""The wrapped layers of the serving bank: a frozen layer plus the adapters of the pass's rows.

Owns the arithmetic of one layer, and the reuse of its output for repeated inputs.
``row_weights.py`` decides which rows have an adapter on a layer, and of what rank. A layer that no
row adapts costs the same as the bare layer, and rows without an adapter are only part of the frozen
product.

Legend: R rows of a pass, G groups of a part's rows that share one adapter each, N positions of a
group, I inputs, O outputs, r rank, H W image, L layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from farm.adapters.bank.layers import AdaptedConv2d, AdaptedLayer
from farm.base.device.quantized import unpacked
from farm.base.row_linear import row_linear

__all__ = ["MixedConv2d", "MixedLayer", "MixedLinear", "MixedRoute", "RowPart"]


@dataclass(frozen=True)
class RowPart:
    """Adjacent rows whose adapters have one shape; see ``farm.adapters.bank.row_weights``."""

    start: int
    """Index of the first row in the pass."""
    stop: int
    layers: Mapping[str, tuple[Tensor, Tensor]]
    """down [G, I, r] and up [G, r, O] of each layer that the adapters change."""
    factors: Mapping[str, Tensor] | None = None
    """Factors [G, 1, 1] on the hidden values by layer; None means 1."""
    is_direct: bool = False
    """Whether ``layers`` are views of a slot and not of the copies in row order."""


@dataclass
class MixedRoute:
    """The adapters of the current pass; one object shared by all layers of a bank."""

    parts: Sequence[RowPart] = field(default_factory=tuple)


class MixedLayer(AdaptedLayer):
    """A frozen layer with its name in the bank."""

    def __init__(self, base_layer: nn.Module, name: str, route: MixedRoute) -> None:
        super().__init__(base_layer)
        self.name = name
        self.route = route

    @property
    def is_in_use(self) -> bool:
        """Whether any row of the current pass has an adapter here."""
        return any(self.name in part.layers for part in self.route.parts)


@dataclass
class _Seen:
    """The last input of a layer, and its output once the input has been passed twice."""

    x: weakref.ref[Tensor]
    version: int
    parts: Sequence[RowPart]
    y: Tensor | None = None


class MixedLinear(MixedLayer):
    """``y = W x + b + scale · B A x`` with A and B of each row's adapter."""

    _seen: _Seen | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [R, …, I] → [R, …, O]."""
        parts = self.route.parts
        return self._remembered(x, parts) if _may_remember(x) else self._computed(x, parts)

    def _remembered(self, x: Tensor, parts: Sequence[RowPart]) -> Tensor:
        """The output, computed once for an input that is passed again as the same object.

        Encoded prompts are such inputs: they, and the keys and values of cross-attention, stay the
        same while an image is generated. Activations are new in every pass and are not cached.
        """
        seen, version = self._seen, x._version  # which changes when x is written in place
        if seen is not None and seen.x() is x and seen.version == version and seen.parts is parts:
            if seen.y is None:
                seen.y = self._computed(x, parts)
            return seen.y
        self._seen = _Seen(weakref.ref(x), version, parts)
        return self._computed(x, parts)

    def _computed(self, x: Tensor, parts: Sequence[RowPart]) -> Tensor:
        if x.ndim == 2 and x.device.type == "cpu":
            y = row_linear(x, unpacked(self.packed or self.weight, x.dtype), self.bias)
        else:
            y = self.frozen(x)
        for part in parts:
            pair = part.layers.get(self.name)
            if pair is None:
                continue
            down, up = pair
            is_whole = x.ndim == 3 and down.shape[0] == x.shape[0]  # each row has one, as it is
            x_GNI = x
            if not is_whole:
                x_GNI = x[part.start : part.stop].reshape(down.shape[0], -1, x.shape[-1])
            hidden_GNr = torch.bmm(x_GNI, down)
            if part.factors is not None:
                hidden_GNr = hidden_GNr * part.factors[self.name]
            if is_whole:
                y.baddbmm_(hidden_GNr, up)
                continue
            if not y.is_contiguous():
                y = y.contiguous()
            y[part.start : part.stop].view(down.shape[0], -1, y.shape[-1]).baddbmm_(hidden_GNr, up)
        return y


def _may_remember(x: Tensor) -> bool:
    """Not with gradients, nor while a pass is captured to be replayed with other values."""
    if torch.is_grad_enabled() or x.is_inference() or torch.compiler.is_compiling():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


class MixedConv2d(MixedLayer, AdaptedConv2d):
    """A frozen convolution plus, per row, the same convolution to r channels and a 1×1 up."""

    def forward(self, x: Tensor) -> Tensor:
        """x [R, I, H, W] → [R, O, H', W']."""
        y_ROHW: Tensor = self.base_layer(x)
        y_RHWO: Tensor | None = None
        for part in self.route.parts:
            pair = part.layers.get(self.name)
            if pair is None:
                continue
            if y_RHWO is None:  # a view if the pass runs in the channels-last layout
                y_RHWO = y_ROHW.permute(0, 2, 3, 1).contiguous()
            down, up = pair
            hidden_GNr = self.hidden(x[part.start : part.stop], down, y_ROHW.shape[2:])
            if part.factors is not None:
                hidden_GNr = hidden_GNr * part.factors[self.name]
            rows = y_RHWO[part.start : part.stop].view(down.shape[0], -1, y_RHWO.shape[3])
            rows.baddbmm_(hidden_GNr, up)
        return y_ROHW if y_RHWO is None else y_RHWO.permute(0, 3, 1, 2)
