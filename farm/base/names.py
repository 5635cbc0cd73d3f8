"""Names of built-in bases. Imports no model library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = ["BuiltName", "EDITIONS", "EMBEDDED", "EMBEDDED_NOUNS", "Fetched", "edition_of"]

BuiltName = Literal[
    "tiny",
    "tiny-v",
    "sd15",
    "tiny-sdxl",
    "sdxl",
    "tiny-z-image",
    "z-image",
    "tiny-klein",
    "tiny-klein-distilled",
    "klein-4b",
    "tiny-flux2-dev",
    "flux2-dev",
    "tiny-flux",
    "tiny-flux-schnell",
    "flux1-dev",
    "tiny-sd3",
    "tiny-sd3-clip",
    "sd35-medium",
    "tiny-qwen-image",
    "qwen-image",
    "tiny-krea2",
    "tiny-krea2-distilled",
    "krea2",
]
"""Random-weight pipelines that ``farm.base.random_weights`` makes on demand."""

EMBEDDED = "embedded"
"""The small Stable Diffusion that ships inside the package, in its current edition."""

EMBEDDED_NOUNS = ("cat", "dog", "bird", "fish", "mushroom", "robot", "car", "teapot")
"""The class nouns that the embedded base knows."""

EDITIONS = {"embedded-64": EMBEDDED}
"""Editions of the embedded base by name: ``embedded-`` and the side of their images. The current
one is ``embedded`` itself, so a store made with either name has the same adapters."""


def edition_of(name: str) -> str:
    """The name under which an edition of the embedded base is known; other names as they are."""
    return EDITIONS.get(name, name)


Fetched = Callable[[int, int], None]
"""Called with the bytes fetched so far and the total number of bytes known."""
