"""Modules whose weights stay in host memory and reach the device one layer at a time.

Text encoders can be larger than what a card has left beside the denoiser, and a prompt is encoded
once. Owns the choice of diffusers' group offloading for them.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["stream_weights"]


def stream_weights(module: nn.Module, device: torch.device) -> None:
    """Keep a module's weights on the host; each layer's are copied to the device while it runs.

    Inputs and outputs are on the device. The module must not be moved afterwards.
    """
    from diffusers.hooks import apply_group_offloading

    module.to("cpu")
    apply_group_offloading(
        module, onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
