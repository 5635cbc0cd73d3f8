"""Inspection of one photo: readable, complete, large enough; its digest and perceptual hash.

Owns the check of a single photo, which can run in any process. Comparisons between photos are in
``intake/compare.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from PIL import Image

from farm.intake.errors import PhotoFault
from farm.intake.photos.budget import DECODING
from farm.intake.photos.bytes import PhotoReader
from farm.intake.photos.decode import (
    MIN_SIDE_PX,
    as_rgb,
    decoding,
    is_turned,
    load_pixels,
    open_header,
)
from farm.intake.photos.structure import decoding_bytes, opening_bytes
from farm.keys import bytes_digest

__all__ = ["PhotoFacts", "PhotoRefusal", "inspect_photo", "inspect_photos"]

LARGE_PIXELS = 16_000_000
"""Palette and deep grey pictures above this are sampled, not converted whole."""
LOOK_SIDE_PX = 64
"""Side at which JPEG decoders may shrink a photo while decoding: all bytes are read, so truncation
is found, at a fraction of the time."""


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """Facts about a usable photo."""

    digest: str
    """sha256 of its bytes."""
    width_px: int
    height_px: int
    """As it is seen, EXIF rotation applied."""
    num_bytes: int
    look: int
    """Perceptual hash of 64 bits: near-duplicates differ in a few of them."""


@dataclass(frozen=True, slots=True)
class PhotoRefusal:
    """Why a photo cannot be used; the message follows the photo's name."""

    message: str
    remedy: str


def inspect_photos(uris: Sequence[str]) -> list[PhotoFacts | PhotoRefusal]:
    """Read, decode and check photos one after the other, in one thread."""
    with PhotoReader() as reader:
        return [inspect_photo(uri, reader) for uri in uris]


def inspect_photo(uri: str, reader: PhotoReader) -> PhotoFacts | PhotoRefusal:
    """Read, decode and check one photo; never raises, whatever the photo holds."""
    try:
        return _facts(reader.read(uri))
    except PhotoFault as fault:
        return PhotoRefusal(fault.message, fault.remedy)


def _facts(data: bytes) -> PhotoFacts:
    with ExitStack() as memory:
        if (num_bytes := opening_bytes(data)) > 0:
            memory.enter_context(DECODING.reserve(num_bytes))
        return _decoded_facts(data, memory, is_reserved=num_bytes > 0)


def _decoded_facts(data: bytes, memory: ExitStack, *, is_reserved: bool) -> PhotoFacts:
    image = open_header(data)
    width_px, height_px = image.size
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise PhotoFault(
            f"it is {width_px} x {height_px} px, too small to learn from",
            f"give one of at least {MIN_SIDE_PX} px on the shorter side, better the resolution",
        )
    full_size = image.size
    with decoding():
        image.draft("RGB", (LOOK_SIDE_PX, LOOK_SIDE_PX))
        if not is_reserved:
            memory.enter_context(DECODING.reserve(decoding_bytes(image, full_size)))
        image = load_pixels(image, data)
        # checked only now: the EXIF block of a PNG may follow its pixels, so this may decode it
        if is_turned(image):
            width_px, height_px = height_px, width_px
        if max(image.size) > 4 * LOOK_SIDE_PX:
            image = _shrunk(image)
        small = as_rgb(image)
    return PhotoFacts(bytes_digest(data), width_px, height_px, len(data), _look(small))


def _shrunk(image: Image.Image) -> Image.Image:
    """A smaller picture of the same kind; colours of palettes and deep grey cannot be averaged."""
    if image.mode in {"RGB", "L", "RGBA", "LA", "CMYK", "YCbCr"}:
        factor = max(image.size) // (2 * LOOK_SIDE_PX)
        reduced = image.reduce(factor)
        reduced.info = image.info
        return reduced
    if image.width * image.height > LARGE_PIXELS:
        # a sample of pixels is enough to compare such pictures
        scale = 8 * LOOK_SIDE_PX / max(image.size)
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        reduced = image.resize(size, Image.Resampling.NEAREST)
        reduced.info = image.info
        return reduced
    return image


def _look(image: Image.Image) -> int:
    # imports scipy, which only checks need
    from imagehash import phash

    return int(str(phash(image)), 16)
