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
from typing import Literal

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
        # in place: a frozen layer's backward pass needs its weight, never its output
        return y_GNO.baddbmm_(hidden_GNr, up).view(*x.shape[:-1], -1)

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
        groups = down.shape[0]
        # [R, C, H, W] as S (or R) groups side by side on the channels: one grouped convolution
        x_PGHW = x.reshape(groups, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        layer = self.base_layer
        kernel = down.transpose(1, 2).reshape(-1, layer.in_channels, *layer.kernel_size)
        hidden = functional.conv2d(
            x_PGHW, kernel, None, layer.stride, layer.padding, layer.dilation, groups=groups
        )
        hidden_PGrN = hidden.reshape(hidden.shape[0], groups, down.shape[2], -1)
        hidden_GPrN = hidden_PGrN.transpose(0, 1) * factor.transpose(1, 2).unsqueeze(1)
        added = torch.matmul(up.transpose(1, 2).unsqueeze(1), hidden_GPrN)  # [G, P, O, H'·W']
        return y_ROHW + added.reshape(y_ROHW.shape)
