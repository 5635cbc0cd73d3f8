"""The choice of the kernel for scaled dot product attention, measured on the device.

Owns the measurement and the choice. PyTorch picks a kernel by fixed rules; which one
is fastest depends on the card, the library's version and the size of the heads.

Legend: R rows, h heads, N positions, d width of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from farm.base.device.timing import fastest_s

__all__ = [
    "Attention",
    "AttentionShape",
    "attention_shape",
    "choose_attention",
    "fastest_attention",
]

LOG = logging.getLogger(__name__)

AttentionShape = tuple[int, int, int, int]
"""R, h, N, d of a self-attention."""

CANDIDATES = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
)


def fastest_attention(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    trains: bool,
    candidates: Sequence[SDPBackend] = CANDIDATES,
) -> tuple[SDPBackend | None, dict[str, float]]:
    """The fastest backend for this shape, and the milliseconds of each one that supports it.

    Args:
        trains: whether the backward pass counts too.
    """
    found: dict[str, float] = {}
    best: SDPBackend | None = None
    for backend in candidates:
        try:
            with sdpa_kernel(backend):
                seconds = _seconds(shape, dtype, device, trains)
        except RuntimeError:  # this backend does not support the shape, or memory is short
            continue
        if best is None or 1e3 * seconds < min(found.values()):
            best = backend
        found[backend.name.lower()] = 1e3 * seconds
    return best, found


@dataclass(frozen=True)
class Attention:
    """The choice; the other backends stay allowed for shapes that the first does not support."""

    best: SDPBackend | None
    """None leaves the choice to PyTorch."""
    report: str
    """For the log: the choice and the times."""

    def active(self) -> AbstractContextManager[object]:
        """Within the context, attention uses the chosen backend."""
        if self.best is None:
            return nullcontext()
        order = [self.best, *(one for one in CANDIDATES if one != self.best), SDPBackend.MATH]
        chosen: AbstractContextManager[object] = sdpa_kernel(order, set_priority=True)
        return chosen


def choose_attention(
    shape: AttentionShape | None, dtype: torch.dtype, device: torch.device, *, trains: bool
) -> Attention:
    """Measure the backends on a CUDA device and log the fastest."""
    if device.type != "cuda" or shape is None:
        return Attention(None, "attention: PyTorch's choice")
    best, found = fastest_attention(shape, dtype, device, trains=trains)
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in found.items())
    name = "PyTorch's choice" if best is None else best.name.lower()
    report = f"attention: {name} ({times})"
    LOG.info("%s", report)
    return Attention(best, report)


def attention_shape(
    denoiser: nn.Module, latent_shape: tuple[int, int, int], rows: int
) -> AttentionShape | None:
    """The largest self-attention of a UNet's pass; None for other denoisers."""
    config: Any = getattr(denoiser, "config", {})
    blocks = config.get("down_block_types", ())
    depth = next((i for i, kind in enumerate(blocks) if "Attn" in kind), None)
    attention: Any = next(
        (one for one in denoiser.modules() if hasattr(one, "heads") and hasattr(one, "to_q")), None
    )
    if depth is None or attention is None:
        return None
    _, high, wide = latent_shape
    width = attention.to_q.weight.shape[0]
    return rows, attention.heads, (high >> depth) * (wide >> depth), width // attention.heads


def _seconds(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device, trains: bool
) -> float:
    query, key, value = (
        torch.zeros(shape, dtype=dtype, device=device, requires_grad=trains) for _ in range(3)
    )

    def run() -> None:
        with nullcontext() if trains else torch.no_grad():
            mixed = functional.scaled_dot_product_attention(query, key, value)
        if trains:
            torch.autograd.grad(mixed.sum(), (query, key, value))

    return fastest_s(run, device)
