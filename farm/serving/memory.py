"""Free and total memory of the device and the host."""

from __future__ import annotations

import psutil
import torch

__all__ = ["device_memory", "free_bytes", "host_memory"]


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that can be allocated, including torch's cached blocks, and total bytes."""
    free, total = torch.cuda.mem_get_info(device)
    ready = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + ready, total


def host_memory() -> tuple[int, int]:
    """Available and total bytes of the host."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def free_bytes(device: torch.device) -> int:
    """Free bytes of the device's own memory, or of the host's on a CPU."""
    free, _ = device_memory(device) if device.type == "cuda" else host_memory()
    return free
