"""Limits on structures inside photos that are too costly to read.

Owns the limits on a decoder's work other than pixels: tags of TIFF and EXIF that all point to the
same bytes, tiles larger than the picture, thousands of scans, contradictory headers.
The number of pixels is bounded in ``decode.py``, the size of texts and profiles in ``metadata.py``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from PIL import Image

from farm.errors import PhotoFault
from farm.intake.photos.budget import DECODING, MAX_COPIED_BYTES

__all__ = [
    "AVERAGED_MODES",
    "LARGE_PIXELS",
    "check_container",
    "check_cost",
    "decoding_bytes",
    "has_all_scans",
    "is_sane_exif",
    "jpeg_segments",
    "lacks_end",
    "opening_bytes",
]

MAX_SIDE_PX = 65_535
"""The limit of JPEG itself."""
MAX_SCANS = 100
"""Maximum number in one JPEG; each passes over all pixels. Progressive encoders write ten."""
MAX_SEGMENTS = 10_000
"""Maximum number in one JPEG before its pixels."""
MAX_TAGS = 65_536
MAX_HEADS = 64
MAX_STRIPS = 100_000
"""Strips or tiles of one TIFF."""
MAX_TAG_BYTES = 2 * 2**20
"""Maximum size of all tags of an image directory together, unless the file itself is larger."""
MAX_SLOW_BYTES = 16 * 2**20
MAX_SLOW_PIXELS = 16_000_000
"""Maximum size of files that Pillow decodes in Python: text PPM, run-length BMP."""
MAX_PIXELS = {"WEBP": 40_000_000, "AVIF": 37_000_000, "JPEG2000": 25_000_000}
"""Maximum sizes of formats whose decoders hold several copies of the picture."""
_DECODER_BYTES = {"WEBP": 16, "AVIF": 18}
"""Bytes a pixel that decoders hold at once, the result included."""
LARGE_PIXELS = 16_000_000
"""Palette and deep grey pictures above this are sampled, not converted whole."""
AVERAGED_MODES = frozenset(("RGB", "L", "RGBA", "LA", "CMYK", "YCbCr"))
"""Modes that are reduced before they are converted."""
_CONVERSION_BYTES = 18
"""Bytes a pixel for converting a picture of another mode to RGB, with transparency and profile."""
_SLOW_BYTES = 12
"""Bytes a pixel that decoders in Python hold besides the picture."""
_BLOCKS_BYTES = 2**25
"""For the parts in which a picture is reduced, or compared to find whether it lacks its end."""
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000_HEADS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
_TILE_WIDTH, _TILE_LENGTH, _STRIP_OFFSETS, _TILE_OFFSETS = 322, 323, 273, 324
_BITS, _SAMPLES, _ROWS_PER_STRIP = 258, 277, 278
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of baseline, extended and progressive frames; others are not decoded as photos."""
_SLOW_DECODERS = frozenset(("ppm", "ppm_plain", "bmp_rle"))


def check_container(data: bytes) -> None:
    """Refuse a file whose structure would be too costly to decode, before any decoder reads it.

    Raises:
        PhotoFault: names what is wrong.
    """
    if data.startswith(_TIFF_HEADS):
        _check_tiff(data)
    elif data.startswith(b"\xff\xd8"):
        if sum(1 for _ in islice(jpeg_scans(data), MAX_SCANS + 1)) > MAX_SCANS:
            raise _refusal(f"it has more than {MAX_SCANS} scans")
    elif data[:2] in {b"P1", b"P2", b"P3"} and len(data) > MAX_SLOW_BYTES:
        raise _refusal(f"it is a text bitmap larger than {MAX_SLOW_BYTES // 2**20} MiB")
    elif data[4:8] == b"ftyp" and len(data) <= MAX_COPIED_BYTES and not _is_sane_avif(data):
        raise _refusal("its EXIF block is damaged")
    elif _is_copied(data) and len(data) > MAX_COPIED_BYTES:
        raise _refusal(
            f"it is a JPEG 2000, WebP or AVIF larger than {MAX_COPIED_BYTES // 2**20} MiB"
        )


def _is_copied(data: bytes) -> bool:
    """Whether the decoder of a file makes a copy of it."""
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    return is_webp or data[4:8] == b"ftyp" or data.startswith(_JPEG2000_HEADS)


def check_cost(image: Image.Image, data: bytes) -> None:
    """Refuse an opened photo whose pixels would be too costly to decode.

    Raises:
        PhotoFault: names what is wrong.
    """
    if max(image.size) > MAX_SIDE_PX:
        raise _refusal(f"it is {image.width} x {image.height} px, longer than {MAX_SIDE_PX} px")
    pixels = image.width * image.height
    if pixels > (limit := MAX_PIXELS.get(image.format or "", pixels)):
        raise PhotoFault(
            f"it is a {image.format} of more than {limit // 10**6} megapixels",
            "save it smaller, or as JPEG or PNG",
        )
    decoders = {str(tile[0]) for tile in getattr(image, "tile", None) or ()}
    if decoders & _SLOW_DECODERS and (len(data) > MAX_SLOW_BYTES or pixels > MAX_SLOW_PIXELS):
        raise _refusal("it is large, and of a variant that is slow to decode")
    if image.format == "JPEG2000" and _codestream_size(data) != image.size:
        raise _refusal("its header and its codestream differ in size")


def decoding_bytes(image: Image.Image, full_size: tuple[int, int], data: bytes) -> int:
    """An upper limit of the memory for decoding an opened photo and reducing it.

    Args:
        full_size: of the photo in its file; the image itself may be a reduced draft of it.
        data: the file.
    """
    shown, pixels = image.width * image.height, full_size[0] * full_size[1]
    form = image.format or ""
    if form in {"JPEG", "MPO"}:
        # a decoder of several scans holds the coefficients of the whole picture
        held = 2 * getattr(image, "layers", 4) * pixels if _has_several_scans(data) else 0
        # one without an end is decoded at full size
        return held + 8 * shown + (4 * pixels + _BLOCKS_BYTES if lacks_end(data) else 0)
    if form in _DECODER_BYTES:
        return pixels * _DECODER_BYTES[form]
    if form == "JPEG2000":
        return pixels * (2 + 8 * len(image.getbands()))
    held = pixels if image.mode in {"1", "L", "P"} else 4 * pixels
    if image.mode in {"RGBA", "LA"}:
        held += _BLOCKS_BYTES
    elif image.mode not in AVERAGED_MODES:
        held += _CONVERSION_BYTES * min(pixels, LARGE_PIXELS)
    if form == "TIFF":
        held += _tiff_block_bytes(data, full_size)
    if {str(tile[0]) for tile in getattr(image, "tile", None) or ()} & _SLOW_DECODERS:
        held += _SLOW_BYTES * pixels
    return held


def opening_bytes(data: bytes) -> int:
    """The memory that a file takes, for decoders that allocate when they open it."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        kind, body = data[12:16], data[20:30]
        if kind == b"VP8X":
            width = 1 + int.from_bytes(body[4:7], "little")
            height = 1 + int.from_bytes(body[7:10], "little")
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        else:
            width = int.from_bytes(body[6:8], "little") & 0x3FFF
            height = int.from_bytes(body[8:10], "little") & 0x3FFF
        return width * height * _DECODER_BYTES["WEBP"]
    # the size that an AVIF names may differ from that of the pictures inside
    return DECODING.capacity if data[4:8] == b"ftyp" else 0


def _refusal(message: str) -> PhotoFault:
    return PhotoFault(message, "open it in an image editor and save it as PNG or JPEG")


# -- TIFF and EXIF --------------------------------------------------------------------------------


def _directory(data: bytes, base: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Tag, size in bytes and value field of every entry of the first directory; stops at the end.

    Args:
        base: where in the data the TIFF header is.

    Raises:
        struct.error: if the header itself is cut off.
        PhotoFault: if there are more entries than tags.
    """
    order = "<" if data.startswith(b"II", base) else ">"
    is_big = data[base + 2 : base + 4] in {b"+\0", b"\0+"}
    where, kind_of_count = (8, "Q") if is_big else (4, "H")
    start = base + int(struct.unpack_from(order + "LQ"[is_big], data, base + where)[0])
    count: int = struct.unpack_from(order + kind_of_count, data, start)[0]
    if count > MAX_TAGS:
        raise _refusal("it has more tags than there are")
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHL4s"))
    at = start + (8 if is_big else 2)
    while count > 0 and at + entry.size <= len(data):
        tag, kind, length, value = entry.unpack_from(data, at)
        yield tag, length * _TYPE_BYTES.get(kind, 1), value
        at, count = at + entry.size, count - 1


def is_sane_exif(exif: bytes, base: int = 0) -> bool:
    """Whether the tags of an EXIF block stay within the memory limit of metadata."""
    base += 6 * exif.startswith(b"Exif\0\0", base)
    try:
        return sum(size for _, size, _ in _directory(exif, base)) <= max(MAX_TAG_BYTES, len(exif))
    except struct.error:
        return True  # there is no directory to read
    except PhotoFault:
        return False


def _check_tiff(data: bytes) -> None:
    total = 0
    tile = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    try:
        for tag, size, value in _directory(data):
            total += size
            if tag in {_STRIP_OFFSETS, _TILE_OFFSETS} and size > 8 * MAX_STRIPS:
                raise _refusal(f"it has more than {MAX_STRIPS} strips or tiles")
            if tag in tile:
                tile[tag] = max(tile[tag], _number(value, size, order))
    except struct.error:
        return  # the decoder reports the error
    if total > max(MAX_TAG_BYTES, min(len(data), MAX_COPIED_BYTES)):
        raise _refusal("its tags are longer than the file, or than a photo's can be")
    if tile[_TILE_WIDTH] * tile[_TILE_LENGTH] > 2**24:
        raise _refusal("its tiles are too large")


def _number(value: bytes, size: int, order: Literal["little", "big"]) -> int:
    """The first value of a tag, if it is in the entry itself."""
    return int.from_bytes(value[:size] if size in {2, 4} else value[:4], order)


def _tiff_block_bytes(data: bytes, full_size: tuple[int, int]) -> int:
    """The size of the largest strip or tile of a TIFF, unpacked: decoders hold a whole one."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    rows, samples, bits, tile = full_size[1], 1, 1, 1
    try:
        for tag, size, value in _directory(data):
            if tag == _ROWS_PER_STRIP:
                rows = min(rows, max(1, _number(value, size, order)))
            elif tag == _SAMPLES:
                samples = max(samples, _number(value, size, order))
            elif tag == _BITS:
                at = 0 if size <= len(value) else int.from_bytes(value, order)
                field = value[:size] if size <= len(value) else data[at : at + min(size, 64)]
                samples = max(samples, size // 2)
                bits = max(
                    bits,
                    *(int.from_bytes(field[n : n + 2], order) for n in range(0, len(field), 2)),
                    1,
                )
            elif tag in {_TILE_WIDTH, _TILE_LENGTH}:
                tile *= max(1, _number(value, size, order))
    except struct.error:
        pass  # the decoder reports the error
    return max(full_size[0] * rows, tile) * samples * ((bits + 7) // 8)


def _is_sane_avif(data: bytes) -> bool:
    """Whether every possible header of an EXIF block in an AVIF is harmless."""
    heads = list(islice(re.finditer(rb"II\*\0|MM\0\*", data), MAX_HEADS + 1))
    return len(heads) <= MAX_HEADS and all(is_sane_exif(data, one.start()) for one in heads)


# -- JPEG -----------------------------------------------------------------------------------------


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment before a JPEG's pixels, the first scan's header last.

    Raises:
        PhotoFault: if there are too many.
    """
    at, count = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        yield marker, at, end
        if marker == 0xDA:
            return
        at, count = end, count + 1
        if count > MAX_SEGMENTS:
            raise _refusal(f"it has more than {MAX_SEGMENTS} segments")


def jpeg_scans(data: bytes) -> Iterator[int]:
    """The offset of every scan of a JPEG, without embedded previews and further pictures."""
    at = next((start for marker, start, _ in jpeg_segments(data) if marker == 0xDA), None)
    while at is not None and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:
            yield at
        end = at + 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        match = _MARKER.search(data, end)
        if match is None or match.group()[-1] == 0xD9:
            return
        at = match.end() - 2


def _has_several_scans(data: bytes) -> bool:
    """Whether the decoder of a JPEG must hold all its coefficients."""
    num_components = 1
    for marker, start, _ in jpeg_segments(data):
        if marker & 0xF0 == 0xC0 and marker not in {0xC4, 0xC8, 0xCC} and start + 10 <= len(data):
            if marker & 3 == 2:  # progressive, of any coding
                return True
            num_components = data[start + 9]
        elif marker == 0xDA and start + 5 <= len(data):
            return data[start + 4] < num_components
    return False


def lacks_end(data: bytes) -> bool:
    """Whether a JPEG has no end marker after its pixels begin."""
    first = next((at for marker, at, _ in jpeg_segments(data) if marker == 0xDA), 0)
    return data.find(b"\xff\xd9", first) < 0


def has_all_scans(data: bytes) -> bool:
    """Whether the scans present in a JPEG fully code every coefficient of every component."""
    missing: dict[int, set[int]] = {}
    for marker, start, _ in jpeg_segments(data):
        if marker in _FRAMES and start + 10 <= len(data):
            ids = data[start + 10 : start + 10 + 3 * data[start + 9] : 3]
            is_sequential = marker in {0xC0, 0xC1}
            missing = {one: {0} if is_sequential else set(range(64)) for one in ids}
    if not missing:
        return False
    for at in jpeg_scans(data):
        count = data[at + 4] if at + 4 < len(data) else 0
        tail = data[at + 5 + 2 * count : at + 8 + 2 * count]
        if len(tail) == 3 and tail[2] & 0x0F == 0:
            for one in data[at + 5 : at + 5 + 2 * count : 2]:
                missing.get(one, set()).difference_update(range(tail[0], tail[1] + 1))
    return not any(missing.values())


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in a JPEG 2000 codestream's own header."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">4L", data, at + 8)
    return right - left, bottom - top
