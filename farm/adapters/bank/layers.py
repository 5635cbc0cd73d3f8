"""The wrapped layers of a bank: a frozen linear or convolution layer plus each row's own adapter.

Owns the arithmetic of one layer in both routings. The bank holds the weights and assigns rows to
slots; a layer has views of the weights. The layers of the serving bank are in ``mixed_layers.py``;
they share ``AdaptedLayer`` and the convolution with these.

Two routings. *Grouped*: rows come as S equal groups in slot order, so one ``bmm`` applies the
stacked weights without a copy; used in training. *Gathered*: each row names K slots, whose weights
are gathered per row, so other slots, even with NaN values, have no effect.

Legend: S slots, R rows, K adapters per row, N positions, I inputs, O outputs, r rank, H W image,
G groups of rows that share one adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from farm.adapters.bank.grouped import Kernel, LinearParts, grouped_linear
from farm.base.device.quantized import packed_weight, unpacked

__all__ = [
    "AdaptedConv2d",
    "AdaptedLayer",
    "BankConv2d",
    "BankLayer",
    "BankLinear",
    "DownBlock",
    "Route",
    "StackedWeights",
]


PLAIN_CONVOLUTION_RANK = 32
"""From this rank on, a single adapter runs as a plain convolution."""


@dataclass
class Route:
    """The slots of the current pass's rows; one object shared by all layers."""

    mode: Literal["none", "grouped", "gathered"] = "none"
    has_scale: bool = False
    """Whether alpha / rank is still to be applied; not if it is 1 or part of the down halves."""
    kernel: Kernel = "products"
    slots_RK: Tensor | None = None
    """int64; the index S (a row that is always zero) means no adapter."""
    weights_RK: Tensor | None = None
    """Factors on each row's adapters; None means 1."""


@dataclass(frozen=True)
class DownBlock:
    """The down halves of layers that read one input, side by side, of all slots."""

    down_SIk: Tensor
    """k = layers · r; a leaf with a gradient if the bank is trainable."""
    num_layers: int


@dataclass(frozen=True)
class StackedWeights:
    """One layer's weights of all slots: views into the bank's flat storage."""

    block: DownBlock
    place: int
    """The layer's place in the block."""
    up_SrO: Tensor
    """The S slots; a leaf with a gradient if the bank is trainable."""
    all_down_ZIr: Tensor
    """Z = S + 1: the slots and the zero adapter, for gathering; never needs a gradient."""
    all_up_ZrO: Tensor
    scale_Z: Tensor
    """alpha / rank of this layer in each slot."""

    @property
    def down(self) -> Tensor:
        """The layer's own part [S, I, r] of its block."""
        block = self.block
        if block.num_layers == 1:
            return block.down_SIk
        rank = self.up_SrO.shape[1]
        return block.down_SIk[:, :, self.place * rank : (self.place + 1) * rank]


class AdaptedLayer(nn.Module):
    """A frozen layer with adapters of any kind."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.packed = packed_weight(base_layer)
        """How to unpack the frozen weight, if it is quantised."""

    @property
    def weight(self) -> Tensor:
        """The frozen layer's own weight, for callers that read its dtype or shape."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's own bias."""
        bias = self.base_layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def frozen(self, x: Tensor) -> Tensor:
        """The frozen linear layer's own output."""
        return functional.linear(x, unpacked(self.packed or self.weight, x.dtype), self.bias)


class BankLayer(AdaptedLayer):
    """A frozen layer and the stacked adapters on it."""

    def __init__(self, base_layer: nn.Module, route: Route, stacked: StackedWeights) -> None:
        super().__init__(base_layer)
        self.route = route
        self.stacked = stacked
        self.num_slots = stacked.up_SrO.shape[0]

    @property
    def grouped_factor(self) -> Tensor | None:
        """Factors on the slots' hidden values [S, 1, 1]; None means 1."""
        if not self.route.has_scale:
            return None
        return self.stacked.scale_Z[: self.num_slots].view(-1, 1, 1)

    def gathered(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Each row's weights, K adapters side by side along the rank.

        Returns:
            down [R, I, K·r], up [R, K·r, O] and the factors on the hidden values [R, 1, K·r], None
            for 1.
        """
        slots_RK, weights_RK = self.route.slots_RK, self.route.weights_RK
        assert slots_RK is not None
        rows, count = slots_RK.shape
        down, up, scale_Z = self.stacked.all_down_ZIr, self.stacked.all_up_ZrO, self.stacked.scale_Z
        rank = down.shape[2]
        factor_RK = scale_Z[slots_RK] if self.route.has_scale else None
        if weights_RK is not None:
            factor_RK = weights_RK if factor_RK is None else factor_RK * weights_RK
        factor_R1k = None
        if factor_RK is not None:
            factor_R1k = factor_RK.repeat_interleave(rank, 1).unsqueeze(1).to(like.dtype)
        if count == 1:
            slots_R = slots_RK.squeeze(1)
            return (
                down.index_select(0, slots_R).to(like.dtype),
                up.index_select(0, slots_R).to(like.dtype),
                factor_R1k,
            )
        down_RIk = down[slots_RK].transpose(1, 2).reshape(rows, -1, count * rank)
        up_RkO = up[slots_RK].reshape(rows, count * rank, -1)
        return down_RIk.to(like.dtype), up_RkO.to(like.dtype), factor_R1k


class BankLinear(BankLayer):
    """``y = W x + b + scale · B A x`` with A and B of each row's slot."""

    @property
    def parts(self) -> LinearParts:
        """The frozen layer and the up halves, for a grouped product."""
        return LinearParts(self.packed or self.weight, self.bias, self.stacked.up_SrO)

    def forward(self, x: Tensor) -> Tensor:
        """x [R, …, I] → [R, …, O]."""
        mode = self.route.mode
        if mode == "none":
            return self.frozen(x)
        if mode == "grouped":
            down = self.stacked.down
            return grouped_linear(x, [self.parts], down, self.grouped_factor, self.route.kernel)[0]
        x_RNI = x.reshape(x.shape[0], -1, x.shape[-1])
        down, up, factor = self.gathered(x)
        y_RNO = self.frozen(x_RNI)
        hidden_RNr = _scaled(torch.bmm(x_RNI, down), factor)
        return _with_product(y_RNO, hidden_RNr, up).view(*x.shape[:-1], -1)


def _scaled(hidden: Tensor, factor: Tensor | None) -> Tensor:
    return hidden if factor is None else hidden * factor


def _with_product(y: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
    """``y + hidden @ up``, in place where no gradient is kept.

    With gradients, y may be a view of a frozen layer's output, and autograd copies the gradient
    of a view that was written in place, twice.
    """
    return torch.baddbmm(y, hidden, up) if torch.is_grad_enabled() else y.baddbmm_(hidden, up)


class AdaptedConv2d(AdaptedLayer):
    """A frozen convolution with adapters: the same convolution to r channels, then a 1×1 up."""

    base_layer: nn.Conv2d

    def hidden(self, x: Tensor, down_GIr: Tensor, size: torch.Size) -> Tensor:
        """Apply the down halves to x [R, I, H, W], in G equal groups of rows: [G, N, r].

        Args:
            size: height and width of the layer's output.
        """
        groups, _, rank = down_GIr.shape
        if self._keeps_size() and (groups > 1 or rank < PLAIN_CONVOLUTION_RANK):
            return self._hidden_by_products(x, down_GIr)
        return self._hidden_by_convolution(x, down_GIr, size)

    def _keeps_size(self) -> bool:
        """Whether the output has the input's height and width, with matching positions."""
        layer = self.base_layer
        high, wide = layer.kernel_size
        return (
            layer.stride == (1, 1)
            and layer.dilation == (1, 1)
            and (high % 2, wide % 2) == (1, 1)
            and layer.padding == (high // 2, wide // 2)
        )

    def _hidden_by_products(self, x: Tensor, down_GIr: Tensor) -> Tensor:
        """The convolution to r channels as one product for all taps, then a sum of shifted taps.

        Grouped convolutions with few channels are much slower than a product and need copies into
        another memory layout.
        """
        high, wide = self.base_layer.kernel_size
        x_GNI = x.permute(0, 2, 3, 1).reshape(down_GIr.shape[0], -1, x.shape[1])
        rank = down_GIr.shape[2]
        if (high, wide) == (1, 1):
            return torch.bmm(x_GNI, down_GIr)
        # rows of a slot's down half: inputs, then the kernel's taps
        taps = torch.bmm(x_GNI, down_GIr.reshape(down_GIr.shape[0], x.shape[1], -1))
        taps = taps.view(x.shape[0], *x.shape[2:], high, wide, rank)
        hidden: Tensor = _ShiftedSum.apply(taps)  # type: ignore[no-untyped-call]
        return hidden.view(down_GIr.shape[0], -1, rank)

    def _hidden_by_convolution(self, x: Tensor, down_GIr: Tensor, size: torch.Size) -> Tensor:
        """One grouped convolution, for any stride, dilation and padding."""
        layer, (groups, _, rank) = self.base_layer, down_GIr.shape
        # [R, C, H, W] as G groups side by side on the channels
        x_PGHW = x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        kernel = down_GIr.transpose(1, 2).reshape(-1, layer.in_channels, *layer.kernel_size)
        hidden = functional.conv2d(
            x_PGHW, kernel, None, layer.stride, layer.padding, layer.dilation, groups=groups
        )
        hidden_PGrHW = hidden.view(hidden.shape[0], groups, rank, *size)
        return hidden_PGrHW.permute(1, 0, 3, 4, 2).reshape(groups, -1, rank)


class BankConv2d(BankLayer, AdaptedConv2d):
    """A frozen convolution plus, per slot, a convolution to r channels and a 1×1 up."""

    def forward(self, x: Tensor) -> Tensor:
        """x [R, I, H, W] → [R, O, H', W']."""
        y_ROHW: Tensor = self.base_layer(x)
        mode = self.route.mode
        if mode == "none":
            return y_ROHW
        if mode == "grouped":
            down, up = self.stacked.down.to(x.dtype), self.stacked.up_SrO.to(x.dtype)
            factor = self.grouped_factor
        else:
            down, up, factor = self.gathered(x)
        hidden_GNr = _scaled(self.hidden(x, down, y_ROHW.shape[2:]), factor)
        # channels last on both sides; a view if the pass runs in that layout
        y_RHWO = y_ROHW.permute(0, 2, 3, 1)
        y_GNO = y_RHWO.reshape(down.shape[0], -1, y_RHWO.shape[3])
        return _with_product(y_GNO, hidden_GNr, up).view(y_RHWO.shape).permute(0, 3, 1, 2)


class _ShiftedSum(torch.autograd.Function):
    """Sum of a convolution's taps, each shifted to its position; zeros outside.

    Taps [R, H, W, kh, kw, r] → [R, H, W, r]: position p gets tap (i, j) of the position at offset
    (i - kh // 2, j - kw // 2).
    """

    @staticmethod
    def forward(ctx: Any, taps: Tensor) -> Tensor:
        ctx.taps_shape = taps.shape
        _, height, width, high, wide, _ = taps.shape
        out = taps[:, :, :, high // 2, wide // 2].clone(memory_format=torch.contiguous_format)
        for i, to_y, from_y in _shifts(high, height):
            for j, to_x, from_x in _shifts(wide, width):
                if (i, j) != (high // 2, wide // 2):
                    out[:, to_y, to_x] += taps[:, from_y, from_x, i, j]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        _, height, width, high, wide, _ = ctx.taps_shape
        out = grad.new_zeros(ctx.taps_shape)
        for i, to_y, from_y in _shifts(high, height):
            for j, to_x, from_x in _shifts(wide, width):
                out[:, from_y, from_x, i, j] = grad[:, to_y, to_x]
        return out


def _shifts(taps: int, size: int) -> list[tuple[int, slice, slice]]:
    """For each tap along one axis: its target positions and its source positions."""
    shifts = []
    for tap in range(taps):
        offset = tap - taps // 2
        reach = max(0, size - abs(offset))
        to_start, from_start = max(0, -offset), max(0, offset)
        shifts.append(
            (tap, slice(to_start, to_start + reach), slice(from_start, from_start + reach))
        )
    return shifts
