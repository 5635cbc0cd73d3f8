"""Removal of oversized metadata from photos: texts, profiles and comments.

Owns the parsing of PNG, JPEG, GIF and WebP containers. Decoders refuse a whole photo for metadata
over their limits, so metadata over a limit is dropped before they see it. Pixels and what is needed
to show them (palette, transparency, orientation, profile) are kept.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from farm.errors import PhotoFault
from farm.intake.photos.budget import MAX_COPIED_BYTES
from farm.intake.photos.structure import (
    has_all_scans,
    is_sane_exif,
    jpeg_segments,
    lacks_end,
)

__all__ = ["MAX_PROFILE_BYTES", "Trimmed", "bare", "trimmed", "whole_jpeg_tails"]

MAX_TEXT_BYTES = 2**16
"""Of a text chunk, unpacked. Every thread of a check holds one photo's texts."""
MAX_TEXTS_BYTES = 2**20
"""Of all text chunks of a file together."""
MAX_INNER_PROFILE_BYTES = 2**20
"""Of an ICC profile that the decoder unpacks; Pillow's own limit."""
MAX_PROFILE_BYTES = 2**22
"""Of any ICC profile, unpacked: those with lookup tables have one to four MB."""
MAX_RAW_EXIF_BYTES = 2**14
"""Of EXIF in a text chunk, in hexadecimal: its tags may multiply this a hundredfold."""
MAX_CHUNKS = 200_000
"""Of one PNG: 256 MiB in the usual pieces of 8 KiB are 33,000."""
MAX_DROPPED = 10_000
"""Metadata chunks left out of one PNG."""
MAX_GIF_BLOCKS = 1_000_000
"""Extensions, and pieces of them, before the first picture of a GIF."""
MAX_EXIF_SEGMENTS = 16
"""EXIF segments of one JPEG, which decoders join one by one."""
MAX_SEGMENTS_BYTES = 2**25
"""Of all metadata of one JPEG, of which decoders make a copy."""
_RAW_EXIF = b"raw profile type exif\0"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_SHOWN = frozenset((b"tRNS",))
"""Ancillary chunks without which the pixels look wrong."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A file with metadata left out, and the profile that it had."""

    data: bytes
    profile: bytes | None = None
    """Set where the file's own profile was left out for its size but can be used."""


def trimmed(data: bytes) -> Trimmed:
    """The photo without metadata over the limits; the same bytes if there is none.

    Raises:
        PhotoFault: if its metadata is in far too many pieces.
    """
    if data.startswith(_PNG):
        return _trimmed_png(data)
    if data.startswith(b"GIF8"):
        return Trimmed(_trimmed_gif(data))
    if data.startswith(b"\xff\xd8") and not _has_sane_tags(data):
        return Trimmed(_bare_jpeg(data) or data)
    return Trimmed(data)


def bare(data: bytes) -> bytes | None:
    """The photo without any metadata, for decoders that failed on it; None for unknown formats."""
    if data.startswith(_PNG):
        return _joined(_png(data, lambda name, _: name[:1].isupper() or name in _PNG_SHOWN))
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data)
    return None


# -- PNG ------------------------------------------------------------------------------------------


class _Texts:
    """Decides which metadata chunks of one PNG to keep."""

    def __init__(self) -> None:
        self.left_out = False
        self.profile: bytes | None = None
        self._room = MAX_TEXTS_BYTES

    def keeps(self, name: bytes, body: memoryview) -> bool:
        """Whether to keep a chunk."""
        if name == b"eXIf":
            is_kept = is_sane_exif(bytes(body))
        elif name in _PNG_TEXTS:
            size = _unpacked_size(name, body)
            self._room -= size
            is_kept = size < MAX_TEXT_BYTES and self._room > 0
            # ImageMagick writes EXIF as a text; nothing else in it is needed to show the pixels
            if bytes(body[: len(_RAW_EXIF)]).lower() == _RAW_EXIF:
                is_kept &= size < MAX_RAW_EXIF_BYTES
        elif name == b"iCCP":
            is_kept = self._keeps_profile(body)
        else:
            return True
        self.left_out |= not is_kept
        return is_kept

    def _keeps_profile(self, body: memoryview) -> bool:
        profile = _inflated(_after_names(body, 1, 1), MAX_PROFILE_BYTES)
        if profile is not None and len(profile) < MAX_INNER_PROFILE_BYTES:
            return True
        self.profile = profile
        return False


def _trimmed_png(data: bytes) -> Trimmed:
    texts = _Texts()
    parts = _png(data, texts.keeps)
    if not texts.left_out and bytes(parts[-1][-12:]) == data[-12:]:
        return Trimmed(data)
    return Trimmed(_joined(parts), texts.profile)


def _joined(parts: Sequence[memoryview | bytes]) -> bytes:
    """A copy of parts of a photo.

    Raises:
        PhotoFault: if it is too large to be copied.
    """
    if sum(map(len, parts)) > MAX_COPIED_BYTES:
        raise PhotoFault(
            f"its metadata is damaged or over the limits, and it is larger than "
            f"{MAX_COPIED_BYTES // 2**20} MiB",
            "save it again without metadata",
        )
    return b"".join(parts)


def _png(data: bytes, keeps: Callable[[bytes, memoryview], bool]) -> list[memoryview | bytes]:
    """The parts of a PNG to keep. A truncated chunk after the pixels is dropped."""
    view = memoryview(data)
    parts: list[memoryview | bytes] = []
    begin, at, count, num_dropped, has_pixels = 0, 8, 0, 0, False
    while at + 8 <= len(data):
        count += 1
        if count > MAX_CHUNKS or num_dropped > MAX_DROPPED:
            most = MAX_CHUNKS if count > MAX_CHUNKS else MAX_DROPPED
            raise PhotoFault(f"it has more than {most} chunks", "save it again as PNG")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            if has_pixels and name != b"IDAT":
                break
            return [*parts, view[begin:]]
        has_pixels |= name == b"IDAT"
        if not keeps(name, view[at + 8 : at + 8 + length]):
            num_dropped += 1
            parts.append(view[begin:at])
            begin = end
        at = end
        if name == b"IEND":
            return [*parts, view[begin:at]]
    parts.append(view[begin:at])
    if has_pixels:
        parts.append(b"\x00\x00\x00\x00IEND\xaeB`\x82")
    return parts


def _unpacked_size(name: bytes, body: memoryview) -> int:
    """The size of a text once unpacked, or the limit where it is unknown."""
    if name == b"tEXt" or (name == b"iTXt" and not _is_packed(body)):
        return len(body)
    start = _after_names(body, 1, 1) if name == b"zTXt" else _after_names(body, 1, 2, 2)
    text = _inflated(start, MAX_TEXT_BYTES)
    return MAX_TEXT_BYTES if text is None else len(text)


def _is_packed(body: memoryview) -> bool:
    end = bytes(body[:100]).find(b"\0")
    return end >= 0 and end + 1 < len(body) and body[end + 1] == 1


def _after_names(body: memoryview, names: int, skipped: int, more: int = 0) -> memoryview:
    """What follows some names that end in zeros, some bytes, and some names more."""
    head = bytes(body[:2_000])
    at = 0
    for _ in range(names):
        at = head.find(b"\0", at) + 1
    at += skipped
    for _ in range(more):
        at = head.find(b"\0", at) + 1
    return body[at:]


def _inflated(packed: memoryview, limit: int) -> bytes | None:
    """Unpacked bytes; None where there are more than the limit, or they cannot be unpacked."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, limit)
    except zlib.error:
        return None
    return data if inflater.eof else None


# -- JPEG -----------------------------------------------------------------------------------------

_JPEG_SHOWN = ((b"JFIF\0", 16), (b"Adobe", 14))
"""Segments that define how colours are coded, and their minimum length."""
_MPF = b"MPF\0"


def _has_sane_tags(data: bytes) -> bool:
    """Whether the EXIF and multi-picture blocks of a JPEG can be read within bounds."""
    view = memoryview(data)
    exif: list[memoryview] = []
    total = 0
    for marker, start, end in jpeg_segments(data):
        body = view[start + 4 : end]
        total += end - start if _is_metadata(marker) else 0
        if total > MAX_SEGMENTS_BYTES or len(exif) > MAX_EXIF_SEGMENTS:
            return False
        if marker == 0xE1 and bytes(body[:6]) == b"Exif\0\0":
            exif.append(body[6:] if exif else body)
        elif marker == 0xE2 and bytes(body[:4]) == _MPF and not is_sane_exif(bytes(body[4:])):
            return False
    return is_sane_exif(b"".join(exif))


def _is_metadata(marker: int) -> bool:
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


def _bare_jpeg(data: bytes) -> bytes | None:
    view = memoryview(data)
    parts: list[memoryview] = [view[:2]]
    for marker, at, end in jpeg_segments(data):
        if marker == 0xDA:
            return _joined([*parts, view[at:]])
        start, length = bytes(view[at + 4 : at + 9]), end - at - 2
        if not _is_metadata(marker) or any(
            start == name and length >= size for name, size in _JPEG_SHOWN
        ):
            parts.append(view[at:end])
    return None


def whole_jpeg_tails(data: bytes) -> list[bytes] | None:
    """Ends for a JPEG whose end marker is missing; None if it lacks more than that.

    The decoder accepts any of them. If all pixels are there the pictures are equal; if pixels are
    missing, each end replaces them differently.
    """
    if not data.startswith(b"\xff\xd8") or not lacks_end(data) or not has_all_scans(data):
        return None
    return [fill * 32 + b"\xff\xd9" for fill in (b"", b"\xaa", b"\x15")]


# -- GIF ------------------------------------------------------------------------------------------


def _trimmed_gif(data: bytes) -> bytes:
    """A GIF without comments before its first picture, which decoders join piece by piece."""
    view = memoryview(data)
    flags = data[10] if len(data) > 13 else 0
    begin = at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = view[:0]
    count = 0
    while at + 2 < len(data) and data[at] == 0x21:
        end = at + 2
        count += 1
        while end < len(data) and data[end]:
            end += data[end] + 1
            count += 1
        if count > MAX_GIF_BLOCKS:
            raise PhotoFault("its comments have too many blocks", "save it again as PNG")
        if data[at + 1] == 0xF9:  # a later one replaces it
            control = view[at : end + 1]
        at = end + 1
    if at - begin <= len(control) + 768:
        return data
    return _joined([view[:begin], control, view[at:]])


# -- WebP -----------------------------------------------------------------------------------------


def _bare_webp(data: bytes) -> bytes | None:
    if len(data) > MAX_COPIED_BYTES:
        return None
    parts: list[bytes] = []
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        body = data[at:end]
        is_pixels = name in {b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"VP8X"}
        if is_pixels and at + 8 + length > len(data):
            return None
        if name == b"VP8X":
            # no EXIF, XMP or profile follows any more
            body = body[:8] + bytes([body[8] & ~0x2C]) + body[9:]
        if is_pixels:
            parts.append(body + b"\0" * (end - at - len(body)))
        at = end
    inner = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner if parts else None
