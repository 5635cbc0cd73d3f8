"""Names of built-in bases. Imports no model library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

__all__ = [
    "EDITIONS",
    "EMBEDDED",
    "EMBEDDED_NOUNS",
    "FIRST_EDITION",
    "FIRST_FINGERPRINT",
    "BuiltName",
    "Fetched",
    "edition_of",
    "trained_on",
]

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

EMBEDDED_VERDICTS = (
    "The embedded base generates small cartoons: its verdicts judge adapters of such drawings, and "
    "mean nothing for real photos."
)
"""What every page that shows a verdict of an adapter on this base says too."""

FIRST_EDITION = "embedded-64"
"""The embedded base as it shipped before its text encoder kept identifiers."""

FIRST_FINGERPRINT = "181ad2d182c02d4a548c32e939f34a06247e84721ea23c7aa2a14fb957208bf0"
"""The first edition's fingerprint: adapters trained on it say ``embedded`` in their records."""

EDITIONS = {FIRST_EDITION: EMBEDDED}
"""Earlier editions of the embedded base, by name. They share its vocabulary, recipe and scorer;
their weights, and so their adapters, differ."""


def edition_of(name: str) -> str:
    """The name of the base that an edition is one of; other names as they are."""
    return EDITIONS.get(name, name)


def verdict_note(base: str) -> str:
    """What a verdict on a base is worth, in one sentence; empty for full-size bases."""
    return EMBEDDED_VERDICTS if edition_of(base) == EMBEDDED else ""


def trained_on(base_id: str, fingerprint: str) -> str:
    """The name by which an adapter's base is loaded today: its record's, or the edition's."""
    return FIRST_EDITION if (base_id, fingerprint) == (EMBEDDED, FIRST_FINGERPRINT) else base_id


Fetched = Callable[[int, int], None]
"""Called with the bytes fetched so far and the total number of bytes known."""
