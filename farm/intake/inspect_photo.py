"""One photo judged: readable, whole, large enough; its digest and its look.

Owns the judgement of a single photo, so that it can run in any process. What several photos have
in common is in ``check.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from PIL import Image

from farm.intake.errors import PhotoFault
from farm.intake.photos import MIN_SIDE_PX, as_rgb, decoding, open_header
from farm.intake.reading import read_photo_bytes
from farm.keys import bytes_digest

__all__ = ["PhotoFacts", "PhotoVerdict", "inspect_photo", "inspect_photos"]

LOOK_SIDE_PX = 64
"""Side at which JPEG decoders may shrink a photo while decoding: all bytes are read, so truncation
is found, at a fraction of the time."""


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """What is known of a photo that can be used."""

    digest: str
    """sha256 of its bytes."""
    width_px: int
    height_px: int
    """As it is seen, EXIF rotation applied."""
    num_bytes: int
    look: int
    """Perceptual hash of 64 bits: near-duplicates differ in a few of them."""


@dataclass(frozen=True, slots=True)
class PhotoVerdict:
    """A photo's facts, or what is wrong with it."""

    facts: PhotoFacts | None
    message: str = ""
    remedy: str = ""


def inspect_photos(uris: list[str]) -> list[PhotoVerdict]:
    """Judge photos one after the other; what a worker process is asked."""
    return [inspect_photo(uri) for uri in uris]


def inspect_photo(uri: str) -> PhotoVerdict:
    """Read, decode and judge one photo. Never raises for what a photo may be."""
    try:
        return PhotoVerdict(_facts(read_photo_bytes(uri)))
    except PhotoFault as fault:
        return PhotoVerdict(None, fault.message, fault.remedy)


def _facts(data: bytes) -> PhotoFacts:
    image = open_header(data)
    width_px, height_px = image.size
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise PhotoFault(
            f"it is {width_px} x {height_px} px, too small to learn from",
            f"give one of at least {MIN_SIDE_PX} px on the shorter side, better the resolution",
        )
    with decoding():
        image.draft("RGB", (LOOK_SIDE_PX, LOOK_SIDE_PX))
        image.load()
        if max(image.size) > 4 * LOOK_SIDE_PX:
            image = _shrunk(image)
        small = as_rgb(image)
    if (small.width > small.height) != (width_px > height_px) and small.width != small.height:
        width_px, height_px = height_px, width_px
    return PhotoFacts(bytes_digest(data), width_px, height_px, len(data), _look(small))


def _shrunk(image: Image.Image) -> Image.Image:
    """A smaller picture of the same kind; colours of palettes and deep grey cannot be averaged."""
    if image.mode in {"RGB", "L", "RGBA", "LA", "CMYK", "YCbCr"}:
        factor = max(image.size) // (2 * LOOK_SIDE_PX)
        reduced = image.reduce(factor)
        reduced.info = image.info
        return reduced
    return image


def _look(image: Image.Image) -> int:
    bits = _hasher()(image).hash.flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


@cache
def _hasher():  # type: ignore[no-untyped-def]  # imagehash brings scipy; only checks pay for it
    import imagehash

    return imagehash.phash
