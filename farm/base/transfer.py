"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device.

    A plain copy to a CUDA device waits for everything that was queued there before, passes of the
    denoiser among it. This one goes through pinned memory and only takes its place in the queue;
    torch keeps the pinned block until the copy has ended. The host tensor may be changed at once.
    """
    if device.type != "cuda" or tensor.is_cuda or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
