"""Inspection of one photo: readable, complete, large enough; its digest and perceptual hash.

Owns the check of a single photo, which can run in any process, and the facts of earlier checks:
a usable photo is read again only once its file or object has changed. Comparisons between photos
are in ``intake/compare.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass

import PIL
from PIL import Image

from farm.errors import PhotoFault
from farm.file_facts import FactsTable
from farm.intake.photos.budget import DECODING
from farm.intake.photos.bytes import PhotoReader, version_of
from farm.intake.photos.decode import (
    MIN_SIDE_PX,
    as_rgb,
    decoding,
    is_turned,
    load_pixels,
    open_header,
)
from farm.intake.photos.structure import (
    AVERAGED_MODES,
    LARGE_PIXELS,
    decoding_bytes,
    opening_bytes,
)
from farm.keys import bytes_digest
from farm.version import __version__

__all__ = [
    "KnownPhotos",
    "PhotoFacts",
    "PhotoRefusal",
    "inspect_changed",
    "inspect_photo",
    "inspect_photos",
    "judge_photo",
]

TILE_PX = 1_024
"""Side of the tiles in which pictures with transparency are reduced."""
LOOK_SIDE_PX = 64
"""Side at which JPEG decoders may shrink a photo while decoding: all bytes are read, so truncation
is found, at a fraction of the time."""
METHOD = 1
"""Increase it with every change of what a photo's facts are, or of what is refused."""
SAVED_TOGETHER = 2_000


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


Known = tuple[str, PhotoFacts]
"""The version of a photo and its facts."""


@dataclass(frozen=True, slots=True)
class PhotoRefusal:
    """Why a photo cannot be used; the message follows the photo's name."""

    message: str
    remedy: str


class KnownPhotos:
    """Facts of usable photos from earlier checks on this machine. Use it in one thread."""

    def __init__(self) -> None:
        self._table = FactsTable("photos", f"{__version__} {PIL.__version__} {METHOD}")
        self._new: list[tuple[str, str, PhotoFacts]] = []

    def of(self, uris: Iterable[str]) -> dict[str, Known]:
        """The facts that are known of some photos, and the version that each had."""
        found = self._table.known(uris)
        return {uri: (version, PhotoFacts(*facts)) for uri, (version, facts) in found.items()}

    def remember(self, uri: str, version: str, facts: PhotoFacts) -> None:
        """Add a photo; ``save`` stores it."""
        self._new.append((uri, version, facts))
        if len(self._new) >= SAVED_TOGETHER:
            self.save()

    def save(self) -> None:
        """Store the photos added since the last call."""
        self._table.add((uri, version, astuple(facts)) for uri, version, facts in self._new)
        self._new.clear()


def inspect_photos(uris: Sequence[str]) -> list[PhotoFacts | PhotoRefusal]:
    """Read, decode and check photos one after the other, in one thread."""
    with PhotoReader() as reader:
        return [inspect_photo(uri, reader) for uri in uris]


def inspect_changed(
    uris: Sequence[str], known: Mapping[str, Known]
) -> list[tuple[PhotoFacts | PhotoRefusal, str | None]]:
    """The same for photos that may be known: one whose version is the same is not read.

    Returns:
        The result of each photo; and its version, if the result is new and may be remembered.
    """
    with PhotoReader() as reader:
        return [_inspect(uri, reader, known) for uri in uris]


def _inspect(
    uri: str, reader: PhotoReader, known: Mapping[str, Known]
) -> tuple[PhotoFacts | PhotoRefusal, str | None]:
    version = version_of(uri)
    before = known.get(uri)
    if before is not None and before[0] == version:
        return before[1], None
    verdict = inspect_photo(uri, reader)
    is_lasting = isinstance(verdict, PhotoFacts) and version == version_of(uri)
    return verdict, version if is_lasting else None


def inspect_photo(uri: str, reader: PhotoReader) -> PhotoFacts | PhotoRefusal:
    """Read, decode and check one photo; never raises, whatever the photo holds."""
    try:
        data = reader.read(uri)
    except PhotoFault as fault:
        return PhotoRefusal(fault.message, fault.remedy)
    return judge_photo(data)


def judge_photo(data: bytes) -> PhotoFacts | PhotoRefusal:
    """Decode and check the bytes of one photo; never raises."""
    with ExitStack() as memory:
        # a fault's traceback holds the pixels: it ends before the reservation does
        try:
            if (num_bytes := opening_bytes(data)) > 0:
                _reserve(num_bytes, memory)
            return _facts(data, memory, reserved=num_bytes)
        except PhotoFault as fault:
            return PhotoRefusal(fault.message, fault.remedy)


def _reserve(num_bytes: int, memory: ExitStack) -> None:
    if num_bytes > DECODING.capacity:
        raise PhotoFault(
            f"it may take more than {DECODING.capacity // 2**20} MiB to decode", "save it smaller"
        )
    memory.enter_context(DECODING.reserve(num_bytes))


def _facts(data: bytes, memory: ExitStack, *, reserved: int) -> PhotoFacts:
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
    num_bytes = decoding_bytes(image, full_size, data)
    if not reserved:
        _reserve(num_bytes, memory)
    elif num_bytes > reserved:
        raise PhotoFault("its headers differ in size", "save it again as PNG or JPEG")
    with decoding():
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
    if image.mode in AVERAGED_MODES:
        reduced = _reduced(image, max(image.size) // (2 * LOOK_SIDE_PX))
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


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """``Image.reduce``, tile by tile where it would first copy the whole picture."""
    if image.mode not in {"RGBA", "LA"}:
        return image.reduce(factor)
    size = (-(-image.width // factor), -(-image.height // factor))
    reduced = Image.new(image.mode, size)
    side = factor * max(1, TILE_PX // factor)
    for top in range(0, image.height, side):
        for left in range(0, image.width, side):
            box = (left, top, min(left + side, image.width), min(top + side, image.height))
            reduced.paste(image.crop(box).reduce(factor), (left // factor, top // factor))
    return reduced


def _look(image: Image.Image) -> int:
    # imports scipy, which only checks need
    from imagehash import phash

    return int(str(phash(image)), 16)
