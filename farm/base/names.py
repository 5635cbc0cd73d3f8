"""Names of built-in bases. Imports no model library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["BuiltName", "EMBEDDED", "Fetched"]

BuiltName = Literal["tiny", "tiny-v", "sd15", "tiny-sdxl", "sdxl"]
"""Random-weight pipelines that ``farm.base.random_weights`` makes on demand."""

EMBEDDED = "embedded"
"""The small Stable Diffusion that ships inside the package."""

Fetched = Callable[[int, int], None]
"""Called with the bytes fetched so far and the total number of bytes known."""
