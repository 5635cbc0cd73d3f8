"""Asynchronous copies from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device without waiting.

    A plain copy to a CUDA device waits for all work queued there, including denoiser passes. This
    one goes through pinned memory and is only queued; torch keeps the pinned block until the copy
    has finished. The host tensor may be changed immediately.
    """
    if device.type != "cuda" or tensor.is_cuda or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
