"""Triton kernels of the grouped product: down, up and sum in one pass over memory.

Owns the kernels and their launch. Batched products write the hidden values and read them again,
and read and write the output once more; these kernels keep them in registers. Triton is imported
when a kernel is first used. With ``TRITON_INTERPRET=1`` they run on a CPU, for tests.

Legend: S slots, N positions of a slot's rows, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["add_adapters", "add_input_gradients", "why_unavailable"]

ROWS = 64
"""Positions of one program."""
COLUMNS = 64
"""Inputs or outputs handled at once."""
SMALLEST_DOT = 16
"""Triton's smallest dimension of a product; a lower rank is padded with zeros."""


def why_unavailable(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None if they can."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton does not run on {device.type}"
    return None


def add_adapters(y_SNO: Tensor, x_SNI: Tensor, down_SIr: Tensor, up_SrO: Tensor) -> Tensor:
    """``y += (x A) B`` in place; returns the hidden values ``x A`` [S, N, r]."""
    return _launch(y_SNO, x_SNI, down_SIr, up_SrO)


def add_input_gradients(
    grad_x_SNI: Tensor, grad_y_SNO: Tensor, down_SIr: Tensor, up_SrO: Tensor
) -> Tensor:
    """``grad_x += (grad_y B^T) A^T`` in place; returns the hidden values' gradient [S, N, r]."""
    return _launch(grad_x_SNI, grad_y_SNO, up_SrO.transpose(1, 2), down_SIr.transpose(1, 2))


def _launch(total: Tensor, source: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``total += (source first) second``: one program for each block of positions of a slot."""
    slots, positions, inputs = source.shape
    rank, outputs = second.shape[1:]
    hidden = torch.empty(slots, positions, rank, dtype=source.dtype, device=source.device)
    grid = (slots, (positions + ROWS - 1) // ROWS)
    _kernel()[grid](
        total, source, first, second, hidden,
        positions, inputs, outputs, rank,
        *total.stride(), *source.stride(), *first.stride(), *second.stride(), *hidden.stride(),
        ROWS=ROWS, COLUMNS=COLUMNS, RANK=max(SMALLEST_DOT, 1 << (rank - 1).bit_length()),
        WIDENS=source.device.type == "cpu",
    )  # fmt: skip
    return hidden


@cache
def _kernel() -> Any:
    import triton

    from farm.adapters.bank.triton_source import two_products

    return triton.jit(two_products)
