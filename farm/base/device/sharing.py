"""Several processes on one GPU: the allocator's setting, and whether NVIDIA's MPS runs.

Owns the detection; the plan reports it. Without the Multi-Process Service, processes take turns on
a GPU; with it, their kernels overlap.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["mps_is_running", "use_expandable_segments"]

MPS_FOLDER = "/tmp/nvidia-mps"
"""Default of ``CUDA_MPS_PIPE_DIRECTORY``."""


def mps_is_running() -> bool:
    """Whether this machine's MPS control daemon has opened its pipe."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", MPS_FOLDER))
    return (folder / "control").exists()


def use_expandable_segments() -> None:
    """Let PyTorch's allocator grow its blocks, unless the user has set it up; before CUDA starts.

    In a capped share of a GPU, blocks of fixed size leave gaps that no later pass can use.
    """
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
