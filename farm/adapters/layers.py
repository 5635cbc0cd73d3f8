"""The wrapped layers of a bank: a frozen linear or convolution layer plus each row's own adapter.

Owns the arithmetic of one layer in both routings. Which rows belong to which slot is decided by
the bank, which holds the weights too; a layer sees views of them.

Three routings. *Grouped*: rows come as S equal groups in slot order, so the stacked weights meet
them in one ``bmm`` without a copy; training uses it. *Gathered*: each row names K slots; their
weights are gathered per row, so what another slot holds, NaN included, is never touched. *Parts*:
the same, gathered beforehand by ``farm.adapters.rows``; serving uses it.

Legend: S slots, R rows, K adapters per row, N positions, I inputs, O outputs, r rank, H W picture.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BankConv2d", "BankLayer", "BankLinear", "Route", "RowPart", "StackedWeights"]


@dataclass
class RowPart:
    """One adapter of every row, gathered beforehand; see ``farm.adapters.rows``."""

    layers: list[tuple[Tensor, Tensor]]
    """down [R, I, r] and up [R, r, O] of each layer, in the bank's order."""
    factor_LR11: Tensor | None = None
    """Factors on the hidden values by layer and row; None means 1."""


@dataclass
class Route:
    """Which slots the rows of the present pass belong to; one object shared by all layers."""

    mode: Literal["none", "grouped", "gathered", "parts"] = "none"
    slots_RK: Tensor | None = None
    """int64; the index S (the bank's last, always zero) stands for no adapter."""
    weights_RK: Tensor | None = None
    """Factors on each row's adapters; None means 1."""
    parts: Sequence[RowPart] = ()
    """The rows' weights where they were gathered beforehand (mode ``parts``)."""


@dataclass(frozen=True)
class StackedWeights:
    """One layer's weights of all slots: views into the bank's flat storage."""

    down_SIr: Tensor
    """Leaf with gradient when the bank trains; exactly the S slots."""
    up_SrO: Tensor
    all_down_ZIr: Tensor
    """Z = S + 1: the slots and the zero adapter, for gathering; never needs a gradient."""
    all_up_ZrO: Tensor
    scale_Z: Tensor
    """alpha / rank of this layer in each slot."""
    index: int = 0
    """Of the layer in its bank."""


class BankLayer(nn.Module):
    """A frozen layer and the stacked adapters on it."""

    def __init__(self, base_layer: nn.Module, route: Route, stacked: StackedWeights) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.route = route
        self.stacked = stacked
        self.num_slots = stacked.down_SIr.shape[0]

    @property
    def weight(self) -> Tensor:
        """The frozen layer's own weight, for callers that ask for its dtype or shape."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's own bias."""
        bias = self.base_layer.bias
        assert bias is None or isinstance(bias, Tensor)
        return bias

    def gathered(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each row's weights, K adapters side by side along the rank.

        Returns:
            down [R, I, K·r], up [R, K·r, O] and the factors on the hidden values [R, 1, K·r].
        """
        if self.route.mode == "parts":
            return self._beforehand()
        slots_RK, weights_RK = self.route.slots_RK, self.route.weights_RK
        assert slots_RK is not None
        rows, count = slots_RK.shape
        down, up, scale_Z = self.stacked.all_down_ZIr, self.stacked.all_up_ZrO, self.stacked.scale_Z
        rank = down.shape[2]
        factor_RK = scale_Z[slots_RK]
        if weights_RK is not None:
            factor_RK = factor_RK * weights_RK
        factor_R1k = factor_RK.repeat_interleave(rank, 1).unsqueeze(1)
        if count == 1:
            slots_R = slots_RK.squeeze(1)
            return (
                down.index_select(0, slots_R).to(like.dtype),
                up.index_select(0, slots_R).to(like.dtype),
                factor_R1k.to(like.dtype),
            )
        down_RIk = down[slots_RK].transpose(1, 2).reshape(rows, -1, count * rank)
        up_RkO = up[slots_RK].reshape(rows, count * rank, -1)
        return down_RIk.to(like.dtype), up_RkO.to(like.dtype), factor_R1k.to(like.dtype)

    def _beforehand(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same from weights that were gathered beforehand."""
        index = self.stacked.index
        downs, ups, factors = [], [], []
        for part in self.route.parts:
            down, up = part.layers[index]
            downs.append(down)
            ups.append(up)
            given = part.factor_LR11
            rows, rank = down.shape[0], down.shape[2]
            one = down.new_ones(rows, 1, 1) if given is None else given[index]
            factors.append(one.expand(rows, 1, rank))
        return torch.cat(downs, 2), torch.cat(ups, 1), torch.cat(factors, 2)


@dataclass
class _Seen:
    """The last input of a layer, and its output once the input has come twice."""

    x: weakref.ref[Tensor]
    version: int
    parts: Sequence[RowPart]
    y: Tensor | None = None


class BankLinear(BankLayer):
    """``y = W x + b + scale · B A x`` with A and B of each row's slot."""

    _seen: _Seen | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [R, …, I] → [R, …, O]."""
        mode = self.route.mode
        if mode in ("none", "parts") and _may_remember(x):
            return self._remembered(x, self.route.parts)
        if mode == "none":
            return functional.linear(x, self.weight, self.bias)
        if mode == "parts":
            return self._with_parts(x)
        if mode == "grouped":
            x_GNI = x.reshape(self.num_slots, -1, x.shape[-1])
            down, up = self.stacked.down_SIr.to(x.dtype), self.stacked.up_SrO.to(x.dtype)
            factor = self.stacked.scale_Z[: self.num_slots].view(-1, 1, 1)
        else:
            x_GNI = x.reshape(x.shape[0], -1, x.shape[-1])
            down, up, factor = self.gathered(x)
        y_GNO = functional.linear(x_GNI, self.weight, self.bias)
        hidden_GNr = torch.bmm(x_GNI, down) * factor
        return _with_product(y_GNO, hidden_GNr, up).view(*x.shape[:-1], -1)

    def _remembered(self, x: Tensor, parts: Sequence[RowPart]) -> Tensor:
        """The output, computed once for an input that comes again as the same object.

        That is what encoded prompts do: they stay while a picture is drawn, and so do the keys
        and values of cross-attention. Activations never come again, and are not kept.
        """
        seen, version = self._seen, x._version  # which changes when x is written in place
        if seen is not None and seen.x() is x and seen.version == version and seen.parts is parts:
            if seen.y is None:
                seen.y = self._plain(x, parts)
            return seen.y
        self._seen = _Seen(weakref.ref(x), version, parts)
        return self._plain(x, parts)

    def _plain(self, x: Tensor, parts: Sequence[RowPart]) -> Tensor:
        return self._with_parts(x) if parts else functional.linear(x, self.weight, self.bias)

    def _with_parts(self, x: Tensor) -> Tensor:
        """Nothing but products: the weights and factors of each row lie ready."""
        x_RNI = x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
        y_RNO = functional.linear(x_RNI, self.weight, self.bias)
        for part in self.route.parts:
            down, up = part.layers[self.stacked.index]
            hidden_RNr = torch.bmm(x_RNI, down)
            if part.factor_LR11 is not None:
                hidden_RNr = hidden_RNr * part.factor_LR11[self.stacked.index]
            y_RNO = y_RNO.baddbmm_(hidden_RNr, up)
        return y_RNO if x.ndim == 3 else y_RNO.view(*x.shape[:-1], -1)


def _may_remember(x: Tensor) -> bool:
    """Not where gradients flow, nor where a pass is recorded to be run again on other values."""
    if torch.is_grad_enabled() or x.is_inference() or torch.compiler.is_compiling():
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _with_product(y: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
    """``y + hidden @ up``, in place where no gradient is kept.

    With gradients, y may be a view of a frozen layer's output, and autograd copies the gradient
    of a view that was written in place, twice.
    """
    return torch.baddbmm(y, hidden, up) if torch.is_grad_enabled() else y.baddbmm_(hidden, up)


class BankConv2d(BankLayer):
    """A frozen convolution plus, per slot, a like convolution to r channels and a 1×1 back up."""

    base_layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """x [R, I, H, W] → [R, O, H', W']."""
        y_ROHW: Tensor = self.base_layer(x)
        mode = self.route.mode
        if mode == "none":
            return y_ROHW
        if mode == "grouped":
            down, up = self.stacked.down_SIr.to(x.dtype), self.stacked.up_SrO.to(x.dtype)
            factor = self.stacked.scale_Z[: self.num_slots].view(-1, 1, 1)
        else:
            down, up, factor = self.gathered(x)
        if self._keeps_size():
            hidden_GNr = self._hidden_by_products(x, down) * factor
        else:
            hidden_GNr = self._hidden_by_convolution(x, down, y_ROHW.shape[2:]) * factor
        # channels last on both sides, as a view where the pass runs in that layout
        y_RHWO = y_ROHW.permute(0, 2, 3, 1)
        y_GNO = y_RHWO.reshape(down.shape[0], -1, y_RHWO.shape[3])
        return _with_product(y_GNO, hidden_GNr, up).view(y_RHWO.shape).permute(0, 3, 1, 2)

    def _keeps_size(self) -> bool:
        """Whether the output has the input's height and width, position by position."""
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

        Grouped convolutions with so few channels run at a fraction of a product's speed, and need
        copies into a layout of their own.
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
        """The same for any stride, dilation and padding, as one grouped convolution."""
        layer, (groups, _, rank) = self.base_layer, down_GIr.shape
        # [R, C, H, W] as G groups side by side on the channels
        x_PGHW = x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        kernel = down_GIr.transpose(1, 2).reshape(-1, layer.in_channels, *layer.kernel_size)
        hidden = functional.conv2d(
            x_PGHW, kernel, None, layer.stride, layer.padding, layer.dilation, groups=groups
        )
        hidden_PGrHW = hidden.view(hidden.shape[0], groups, rank, *size)
        return hidden_PGrHW.permute(1, 0, 3, 4, 2).reshape(groups, -1, rank)


class _ShiftedSum(torch.autograd.Function):
    """Sum of a convolution's taps, each shifted to where it belongs; zeros outside.

    Taps [R, H, W, kh, kw, r] → [R, H, W, r]: position p gets tap (i, j) of the position that lies
    (i - kh // 2, j - kw // 2) away from it.
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
    """For each tap along one side: the positions that it adds to, and those that it comes from."""
    shifts = []
    for tap in range(taps):
        offset = tap - taps // 2
        reach = max(0, size - abs(offset))
        to_start, from_start = max(0, -offset), max(0, offset)
        shifts.append(
            (tap, slice(to_start, to_start + reach), slice(from_start, from_start + reach))
        )
    return shifts
