"""How a training pass runs on its device: compiled, captured, in which layout and kernels.

Owns the options and their defaults for a device. No option changes an adapter beyond float
tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farm.adapters.bank.grouped import Kernel

__all__ = ["COMPILED_WIDTHS", "Speed", "compiled_width"]

WIDE_BATCH_ROWS = 16
"""Rows from which channels-last is faster on a CPU: 5 % at 16, 10 % at 48; slower at 2
(measured)."""
CAPTURED_SLOTS = 4
"""Slots up to which a step is captured as a CUDA graph: with few rows, launching a step's 2,800
kernels takes longer than running them (counted; not measured on a GPU)."""
COMPILED_WIDTHS = (1, 4, 8, 16, 32, 64)
"""Widths of a compiled trainer: each is compiled once, and a lane resizes among them."""


@dataclass(frozen=True)
class Speed:
    """The options; None leaves one to its default on the device."""

    compile: bool | str | None = None
    """Compile the denoiser; a string is a mode or backend of ``torch.compile``. Default: on GPUs.
    """
    capture: bool | None = None
    """Run a step as one CUDA graph. Default: on GPUs, up to ``CAPTURED_SLOTS``."""
    channels_last: bool | None = None
    """Memory layout of convolutions. Default: for compiled passes on GPUs, and on CPUs for wide
    batches; eager passes on GPUs measure it."""
    kernel: Kernel | None = None
    """How adapters are multiplied. Default: products, which compiled passes fuse with others; eager
    passes on GPUs measure it."""
    evaluate_beside: bool | None = None
    """Evaluate slots in a queue of low priority while they train on. Default: on GPUs."""

    def on(self, device: torch.device, *, slots: int, rows: int, checkpointing: bool) -> Speed:
        """The options with their defaults for a device filled in; None is left to a measurement."""
        on_gpu = device.type == "cuda"
        compile = on_gpu if self.compile is None else self.compile
        measures = on_gpu and not compile
        few = slots <= CAPTURED_SLOTS and not checkpointing
        wide = None if measures else on_gpu or rows >= WIDE_BATCH_ROWS
        kernel: Kernel | None = None if measures else "products"
        return Speed(
            compile,
            on_gpu and few if self.capture is None else self.capture,
            wide if self.channels_last is None else self.channels_last,
            self.kernel or kernel,
            on_gpu if self.evaluate_beside is None else self.evaluate_beside,
        )


def compiled_width(slots: int, most: int) -> int:
    """The smallest compiled width with room for ``slots``, at most ``most``."""
    return min(most, next((width for width in COMPILED_WIDTHS if width >= slots), most))
