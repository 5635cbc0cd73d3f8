"""Thumbnails as data URIs, small enough for a page of a thousand subjects.

Owns sizes and the page's image budget.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageOps

__all__ = ["ThumbBudget", "budget_for", "data_uri"]


@dataclass(frozen=True)
class ThumbBudget:
    """Number and size of the images per subject on the page."""

    side_px: int
    """Side of a square thumbnail; smaller images keep their size."""
    row_px: int
    quality: int
    """WebP quality, 0 to 100."""
    num_photos: int
    num_progress: int
    num_gallery: int
    num_class: int


def budget_for(num_subjects: int) -> ThumbBudget:
    """A budget of at most about 50 MB of images for up to 10,000 subjects."""
    if num_subjects <= 40:
        return ThumbBudget(224, 96, 84, 8, 16, 16, 6)
    if num_subjects <= 300:
        return ThumbBudget(144, 80, 78, 6, 10, 8, 4)
    if num_subjects <= 1200:
        return ThumbBudget(96, 64, 68, 4, 6, 4, 0)
    if num_subjects <= 4000:
        return ThumbBudget(64, 48, 60, 2, 0, 2, 0)
    return ThumbBudget(48, 40, 55, 1, 0, 1, 0)


def data_uri(picture: Image.Image, side_px: int, quality: int = 80) -> str:
    """A square WebP thumbnail of the image's centre."""
    side = min(side_px, *picture.size)
    small = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
