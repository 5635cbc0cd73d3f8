"""Whether this machine has a GPU that PyTorch can use, asked without PyTorch where it has none.

Importing torch takes a second of CPU time, which commands that only plan need not spend.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["has_gpu"]

DEVICES = ("nvidiactl", "nvmap", "nvhost-ctrl-gpu", "dxg", "kfd")
"""Files of ``/dev`` that a GPU's driver makes: NVIDIA's, its Tegra's, WSL's and AMD's."""
DRIVER = "libcuda.so.1"
"""NVIDIA's driver, which CUDA loads by this name."""


def has_gpu() -> bool:
    """What ``torch.cuda.is_available`` says."""
    if not _may_have_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _may_have_driver() -> bool:
    """False if this machine has certainly no driver of a GPU."""
    if os.uname().sysname != "Linux" or any(Path("/dev", one).exists() for one in DEVICES):
        return True
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True
