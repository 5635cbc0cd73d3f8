"""Pictures made on the spot."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """A smooth random picture; two seeds never look alike."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
