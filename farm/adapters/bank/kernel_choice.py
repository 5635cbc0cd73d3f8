"""The choice of the kernel for adapters, measured on the device and checked against products.

Legend: S slots, N positions of a slot's rows, D width, r rank.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from farm.adapters.bank import kernels
from farm.adapters.bank.grouped import Kernel, LinearParts, grouped_linear
from farm.base.device.timing import fastest_s

__all__ = ["choose_kernel"]

LOG = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference from the products, relative to the largest value."""


def choose_kernel(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Kernel:
    """``triton`` where it runs, gives the values of the products, and is faster than them.

    Args:
        shape: S, N, D and r of the layers that have the most positions.
    """
    if kernels.why_unavailable(device) is not None:
        return "products"
    try:
        seconds, values = {}, {}
        for kernel in ("products", "triton"):
            seconds[kernel], values[kernel] = _measured(shape, dtype, device, kernel)
    except Exception as error:  # such as a compiler that does not know the card
        LOG.warning("adapters run as batched products: %s", str(error).strip()[:300])
        return "products"
    difference = max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))
        for one, other in zip(values["products"], values["triton"], strict=True)
    )
    LOG.info(
        "an adapted layer takes %.3f ms as products, %.3f in one kernel; difference %.1e",
        1e3 * seconds["products"], 1e3 * seconds["triton"], difference,
    )  # fmt: skip
    is_same = difference <= TOLERANCE.get(dtype, 0.0)
    return "triton" if is_same and seconds["triton"] < seconds["products"] else "products"


def _measured(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, kernel: Kernel
) -> tuple[float, list[Tensor]]:
    """Seconds of a layer's forward and backward pass, and what they gave, in float32."""
    slots, positions, width, rank = shape
    generator = torch.Generator().manual_seed(0)

    def sampled(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    weight = sampled(width, width) / width**0.5
    x = sampled(slots, positions, width).requires_grad_(True)
    down = (sampled(slots, width, rank) / width**0.5).requires_grad_(True)
    up = sampled(slots, rank, width).requires_grad_(True)
    given = sampled(slots, positions, width)
    found: list[Tensor] = []

    def run() -> None:
        (y,) = grouped_linear(x, [LinearParts(weight, None, up)], down, None, kernel)
        found[:] = [y.detach(), *torch.autograd.grad(y, (x, down, up), given)]

    with torch.enable_grad():
        seconds = fastest_s(run, device)
    return seconds, [one.float() for one in found]
