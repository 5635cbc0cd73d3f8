"""The choice of a UNet's memory layout, measured on the device.

Convolutions are faster with channels last; CUDA's group norm knows only channels first, so an
eager pass copies around each norm. Compiled passes fuse these copies and always use channels last.

Legend: R rows, C channels, H W latent.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from farm.base.device.timing import fastest_s

__all__ = ["channels_last_is_faster"]

LOG = logging.getLogger(__name__)


def channels_last_is_faster(
    denoiser: nn.Module,
    latent_shape: tuple[int, int, int],
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether a norm, an activation and a convolution of the denoiser's first block, forward and
    backward, take less time with channels last; False for denoisers without such a block."""
    norm = next((one for one in denoiser.modules() if isinstance(one, nn.GroupNorm)), None)
    if norm is None:
        return False
    seconds = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        try:
            seconds[layout] = _seconds(norm, latent_shape, rows, dtype, device, layout)
        except RuntimeError:  # too little memory: the layout that needs no copies
            return False
    first, last = seconds.values()
    LOG.info("a block takes %.2f ms with channels first, %.2f with last", 1e3 * first, 1e3 * last)
    return last < first


def _seconds(
    norm: nn.GroupNorm,
    latent_shape: tuple[int, int, int],
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
) -> float:
    channels, (_, high, wide) = norm.num_channels, latent_shape
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    x = torch.zeros(rows, channels, high, wide, **options).to(memory_format=layout)
    x.requires_grad_(True)
    kernel = torch.zeros(channels, channels, 3, 3, **options).to(memory_format=layout)
    scale, shift = torch.ones(channels, **options), torch.zeros(channels, **options)

    def run() -> None:
        y = functional.silu(functional.group_norm(x, norm.num_groups, scale, shift))
        y = functional.conv2d(y, kernel, padding=1)
        torch.autograd.grad(y, x, torch.ones_like(y))

    with torch.enable_grad():
        return fastest_s(run, device)
