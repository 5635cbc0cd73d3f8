"""Settings for scoring finished adapters: the models, and scoring's share of the training cost.

Owns the value that carries these settings from the command line and the manifest's defaults to
every lane. Does not load the models; ``farm.quality.judge`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

__all__ = ["DEFAULT_SHARE", "WHOLE_CARD", "ScoringSettings"]

DEFAULT_SHARE = 0.12
"""Kept well below the promised 20 %: decoding, scoring and the base's images come on top."""
WHOLE_CARD = 1e9
"""A share that pays for the whole quality card, however short the training is."""


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """Settings of the quality cards; None leaves a field to the next source, or to its default."""

    scorer: str | None = None
    """A CLIP: ``embedded``, a folder or a hub id. Default: the embedded scorer for the embedded
    base, none for other bases, which are then not scored."""
    dino: str | None = None
    """A DINO or DINOv2, for the similarity of individuals; a folder or a hub id. Default: none."""
    share: float | None = None
    """Share of the training's cost that scoring may take, in denoiser rows. Default 0.12."""

    def over(self, below: Self) -> Self:
        """These settings, with those of ``below`` where a field is None."""
        missing = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(below, name) for name in missing})
