"""The photo in a file without the metadata around it: texts, profiles and comments of any size.

Owns walking the containers of PNG, JPEG and WebP. Decoders have limits on metadata, and refuse a
whole photo for a long text; here whatever is over a limit is left out before they see it. Pixels
and what is needed to show them (palette, transparency, orientation, profile) stay.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Trimmed", "bare", "trimmed", "whole_jpeg_tails"]

MAX_TEXT_BYTES = 2**20
"""Of a text chunk, unpacked; Pillow's own limit."""
MAX_TEXTS_BYTES = 2**25
"""Of all text chunks of a file together; Pillow's own limit is twice that."""
MAX_PROFILE_BYTES = 2**24
"""Of an ICC profile, unpacked: those with lookup tables have one to four MB."""
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
    """The same photo without metadata over the limits; the very same bytes where there is none."""
    return _trimmed_png(data) if data.startswith(_PNG) else Trimmed(data)


def bare(data: bytes) -> bytes | None:
    """The same photo without any metadata, for decoders that stumbled on it; None if not known."""
    if data.startswith(_PNG):
        return _png(data, lambda name, _: name[:1].isupper() or name in _PNG_SHOWN)
    if data.startswith(b"\xff\xd8"):
        return _bare_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data)
    return None


# -- PNG ------------------------------------------------------------------------------------------


class _Texts:
    """Judges the metadata chunks of one PNG."""

    def __init__(self) -> None:
        self.left_out = False
        self.profile: bytes | None = None
        self._room = MAX_TEXTS_BYTES

    def keeps(self, name: bytes, body: memoryview) -> bool:
        """Whether a chunk stays."""
        if name in _PNG_TEXTS:
            size = _unpacked_size(name, body)
            self._room -= size
            is_kept = size < MAX_TEXT_BYTES and self._room > 0
        elif name == b"iCCP":
            is_kept = self._keeps_profile(body)
        else:
            return True
        self.left_out |= not is_kept
        return is_kept

    def _keeps_profile(self, body: memoryview) -> bool:
        profile = _inflated(_after_names(body, 1, 1), MAX_PROFILE_BYTES)
        if profile is not None and len(profile) < MAX_TEXT_BYTES:
            return True
        self.profile = profile
        return False


def _trimmed_png(data: bytes) -> Trimmed:
    texts = _Texts()
    rebuilt = _png(data, texts.keeps)
    if not texts.left_out and rebuilt[-12:] == data[-12:]:
        return Trimmed(data)
    return Trimmed(rebuilt, texts.profile)


def _png(data: bytes, keeps: Callable[[bytes, memoryview], bool]) -> bytes:
    """A PNG of the chunks that are kept. Behind the pixels, a chunk that is cut off is dropped."""
    view = memoryview(data)
    parts: list[memoryview | bytes] = [view[:8]]
    at, has_pixels = 8, False
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            if has_pixels and name != b"IDAT":
                break
            parts.append(view[at:])
            return b"".join(parts)
        has_pixels |= name == b"IDAT"
        if keeps(name, view[at + 8 : at + 8 + length]):
            parts.append(view[at:end])
        at = end
        if name == b"IEND":
            return b"".join(parts)
    if has_pixels:
        parts.append(b"\x00\x00\x00\x00IEND\xaeB`\x82")
    return b"".join(parts)


def _unpacked_size(name: bytes, body: memoryview) -> int:
    """The size of a text once unpacked, or over the limit where it cannot be told."""
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
"""Segments that say how colours are coded, and their least length."""
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_END = b"\xff\xd9"


def _bare_jpeg(data: bytes) -> bytes | None:
    view = memoryview(data)
    parts: list[memoryview] = [view[:2]]
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:
            return b"".join([*parts, view[at:]])
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        start, length = bytes(view[at + 4 : at + 9]), end - at - 2
        if not is_metadata or any(start == name and length >= size for name, size in _JPEG_SHOWN):
            parts.append(view[at:end])
        at = end
    return None


def whole_jpeg_tails(data: bytes) -> list[bytes] | None:
    """Ends for a JPEG whose end mark is missing; None where that is not what it lacks.

    The decoder takes any of them. If all pixels are there the pictures are equal; if pixels are
    missing each end stands in for them differently. Only files of one scan can be told so.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    frame = 0
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _FRAMES:
            frame = data[at + 9] if marker in {0xC0, 0xC1} else 0
        if marker == 0xDA:
            is_one_scan = frame and data[at + 4] == frame
            return [fill * 32 + _END for fill in (b"", b"\xaa", b"\x15")] if is_one_scan else None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


# -- WebP -----------------------------------------------------------------------------------------


def _bare_webp(data: bytes) -> bytes | None:
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
