"""The grouped product: frozen linear layers of one input, plus each slot's adapters on them.

Owns the forward and backward arithmetic of training. Layers that read the same input share one
product with their down halves. Sums are made in place in both directions, unlike in
autograd, which adds the gradients of the frozen layer and of the adapter, and those of several
layers of one input, with one pass over memory each.

Legend: S slots, N positions of a slot's rows, I inputs, O outputs, r rank, m layers of one input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from farm.adapters.bank import kernels
from farm.base.device.quantized import Frozen, PackedWeight, unpacked

__all__ = ["Kernel", "LinearParts", "grouped_linear"]

Kernel = Literal["products", "triton"]
"""``products`` uses batched matrix products, on any device; ``triton`` one kernel for down, up and
sum, on GPUs."""


@dataclass(frozen=True)
class LinearParts:
    """One frozen linear layer and the up halves of its adapters."""

    weight_OI: Frozen
    bias_O: Tensor | None
    up_SrO: Tensor


def grouped_linear(
    x: Tensor,
    parts: Sequence[LinearParts],
    down_SIk: Tensor,
    factor: Tensor | None,
    kernel: Kernel = "products",
) -> tuple[Tensor, ...]:
    """``x W^T + b + (x A) B`` of m layers with the same input.

    Args:
        x: [R, …, I], rows in S equal groups.
        down_SIk: the m down halves side by side, k = m·r.
        factor: on the hidden values, [S, 1, 1] or [S, 1, k]; None means 1.

    Returns:
        [R, …, O] for each layer.
    """
    x_SNI = x.reshape(down_SIk.shape[0], -1, x.shape[-1])
    tensors: list[Frozen | None] = []
    for part in parts:
        tensors += [part.weight_OI, part.bias_O, part.up_SrO.to(x.dtype)]
    outputs = _GroupedLinear.apply(x_SNI, down_SIk.to(x.dtype), factor, kernel, *tensors)  # type: ignore[no-untyped-call]
    return tuple(y_SNO.view(*x.shape[:-1], -1) for y_SNO in outputs)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_SNI: Tensor,
        down_SIk: Tensor,
        factor: Tensor | None,
        kernel: Kernel,
        *parts: Any,
    ) -> tuple[Tensor, ...]:
        weights, biases, ups = parts[0::3], parts[1::3], parts[2::3]
        outputs = [
            functional.linear(x_SNI, unpacked(w, x_SNI.dtype), b)
            for w, b in zip(weights, biases, strict=True)
        ]
        if kernel == "triton" and len(ups) == 1 and factor is None:
            hidden = kernels.add_adapters(outputs[0], x_SNI, down_SIk, ups[0])
        else:
            hidden = torch.bmm(x_SNI, down_SIk)
            if factor is not None:
                hidden.mul_(factor)
            for y, hidden_SNr, up in zip(outputs, _split(hidden, len(ups)), ups, strict=True):
                y.baddbmm_(hidden_SNr, up)
        ctx.has_factor, ctx.num_layers, ctx.kernel = factor is not None, len(ups), kernel
        # packed weights are frozen modules' own and unpacked again; autograd keeps tensors only
        ctx.packed = weights if any(isinstance(w, PackedWeight) for w in weights) else None
        plain = weights if ctx.packed is None else ()
        ctx.save_for_backward(
            x_SNI, down_SIk, hidden, *([] if factor is None else [factor]), *ups, *plain
        )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x_SNI, down_SIk, hidden, *rest = ctx.saved_tensors
        factor = rest.pop(0) if ctx.has_factor else None
        count = ctx.num_layers
        ups, weights = rest[:count], ctx.packed or rest[count:]
        grad_x = _through_frozen(grads, weights) if ctx.needs_input_grad[0] else None
        if ctx.kernel == "triton" and count == 1 and factor is None and grad_x is not None:
            grad_hidden = kernels.add_input_gradients(grad_x, grads[0], down_SIk, ups[0])
        else:
            each = [torch.bmm(g, up.transpose(1, 2)) for g, up in zip(grads, ups, strict=True)]
            grad_hidden = each[0] if count == 1 else torch.cat(each, 2)
            if factor is not None:
                grad_hidden.mul_(factor)
            if grad_x is not None:
                grad_x.baddbmm_(grad_hidden, down_SIk.transpose(1, 2))
        grad_down = torch.bmm(x_SNI.transpose(1, 2), grad_hidden)
        grad_ups = [
            torch.bmm(part.transpose(1, 2), g)
            for part, g in zip(_split(hidden, count), grads, strict=True)
        ]
        of_parts = [grad for grad_up in grad_ups for grad in (None, None, grad_up)]
        return grad_x, grad_down, None, None, *of_parts


def _split(hidden_SNk: Tensor, count: int) -> Sequence[Tensor]:
    return [hidden_SNk] if count == 1 else hidden_SNk.chunk(count, 2)


def _through_frozen(grads: Sequence[Tensor], weights: Sequence[Frozen]) -> Tensor:
    """The gradient of the input through the frozen layers, summed in place."""
    first, *others = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    total = first @ unpacked(weights[0], first.dtype)
    for grad, weight in zip(others, weights[1:], strict=True):
        total.addmm_(grad, unpacked(weight, grad.dtype))
    return total.view(*grads[0].shape[:-1], -1)
