"""The names by which a base is asked for, before anything is loaded."""

from __future__ import annotations

from typing import Literal

__all__ = ["BuiltName", "EMBEDDED"]

BuiltName = Literal["tiny", "tiny-v", "sd15"]
"""Random-weight pipelines that ``farm.base.builder`` makes on demand."""

EMBEDDED = "embedded"
"""The small Stable Diffusion that ships inside the package."""
