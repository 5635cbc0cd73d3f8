"""The kinds of quantised bases by name. Imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["PACKED_BYTES", "Quantization"]

Quantization = Literal["int8", "nf4"]
"""How a base's denoiser is kept: ``int8`` by torchao, ``nf4`` (4 bits) by bitsandbytes."""

PACKED_BYTES: Mapping[Quantization, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a quantised weight; nf4 has a float32 factor for each 64 of them, int8 one for each
output."""
