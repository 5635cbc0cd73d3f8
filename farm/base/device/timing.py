"""Times a piece of work on a device, for choices that depend on the card and the libraries."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["fastest_s"]

REPEATS = 5


def fastest_s(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that is not timed; waits for the device."""
    run()
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
