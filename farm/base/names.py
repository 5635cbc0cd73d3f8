"""The names by which a base is asked for, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["BuiltName", "EMBEDDED", "Fetched"]

BuiltName = Literal["tiny", "tiny-v", "sd15"]
"""Random-weight pipelines that ``farm.base.random_weights`` makes on demand."""

EMBEDDED = "embedded"
"""The small Stable Diffusion that ships inside the package."""

Fetched = Callable[[int, int], None]
"""Called with the bytes of a base that are fetched so far, and with all that are known of."""
