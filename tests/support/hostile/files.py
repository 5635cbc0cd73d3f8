"""Hostile photos and archives: small files that ask a reader for far more than they hold.

Shared by the tests and by ``benchmarks/hostile.py``. Every kind is made by hand, byte by byte,
because encoders refuse to write it.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

__all__ = ["KINDS", "NAMES", "flat_png", "hostile_photo", "hostile_zip", "overlapping_zip"]

Dice = random.Random
FORMS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA")
NAMES = (
    "\x1b[2J\x1b[1;1H all photos are fine.png",
    "\x1b]0;title\x07.png",
    "\x1b]8;;x\x07.png",
    "\u202egnp.exe",
    "a\nerror: forged line.png",
    "a\r\x1b[Kok.png",
    "\x9b31m.png",
    "\u2066\u2069.png",
    "[bold red]markup[bold].png",
    "a\tb.png",
    "\ufeff.png",
    "x" * 240 + ".png",
)
"""Names that rewrite the terminal in which they are printed."""


@cache
def zeros(num_bytes: int) -> bytes:
    """That many zeros, packed by zlib, without ever holding or packing them."""
    packer = zlib.compressobj(9)
    head = packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(bytes(num_bytes % (1 << 20))) + packer.flush()[:-4]
    checksum = num_bytes % 65_521 << 16 | 1
    return head + block * (num_bytes >> 20) + last + struct.pack(">I", checksum)


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def flat_png(
    width: int, height: int, *, depth: int = 1, colour: int = 0, extra: bytes = b"", more: int = 0
) -> bytes:
    """A black PNG of any size; ``more`` bytes follow its pixels in the same stream."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * depth * samples + 7) // 8
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    pixels = chunk(b"IDAT", zeros(row * height + more))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + palette + extra + pixels + chunk(b"IEND", b"")


def _tiff(width: int, height: int, tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    entries = {256: (4, 1, width), 257: (4, 1, height), **tags}
    body = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data


def _packed_tiff(dice: Dice) -> bytes:
    """Deflated pixels, of 8 to 64 bits."""
    bits = dice.choice([8, 16, 32, 64])
    width, height = 5_000, dice.choice([4_000, 12_000])
    data = zeros(width * height * bits // 8)
    at = 10 + 12 * 9 + 4
    tags = {258: (3, 1, bits), 259: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, at)}
    tags |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(data))}
    return _tiff(width, height, tags, data)


def _endless_tiff(dice: Dice) -> bytes:
    """A billion pixels, a directory that is its own successor, or tags longer than the file."""
    data = bytearray(_tiff(64, 64, {258: (3, 1, 8), 273: (4, 1, 8)}, bytes(64 * 64)))
    if dice.random() < 0.3:
        return _tiff(31_623, 31_623, {258: (3, 1, 8), 273: (4, 1, 8)}, b"")
    if dice.random() < 0.5:
        data[10 + 12 * 4 : 14 + 12 * 4] = struct.pack("<I", 8)
        return bytes(data)
    many = {40_000 + number: (2, 2**30, 8) for number in range(200)}
    return _tiff(64, 64, many, bytes(64 * 64))


def _jpeg_of(width: int, height: int, *, progressive: bool = False) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=progressive)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _scan_by_scan(_: Dice) -> bytes:
    """A baseline JPEG of 98 megapixels whose first scan holds one of its components."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", subsampling=0)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 9_900, 9_900)
    at = data.index(b"\xff\xda")
    data[at : at + 14] = b"\xff\xda\x00\x08\x01" + bytes(data[at + 5 : at + 7]) + b"\x00\x3f\x00"
    return bytes(data)


def _deep_tiff(_: Dice) -> bytes:
    """99 megapixels of 64-bit floats, in one strip."""
    width, height = 9_900, 10_000
    data = zeros(width * height * 8)
    tags = {258: (3, 1, 64), 259: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 10 + 12 * 10 + 4)}
    tags |= {277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, len(data)), 339: (3, 1, 3)}
    return _tiff(width, height, tags, data)


@cache
def _avif_bytes() -> bytes:
    """36 megapixels that say they are few."""
    file = io.BytesIO()
    Image.new("L", (6_000, 6_000)).save(file, "AVIF", speed=10, quality=1)
    data = bytearray(file.getvalue())
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 64, 64)
    return bytes(data)


def _many_scans(dice: Dice) -> bytes:
    data = _jpeg_of(9_000, 9_000, progressive=True)
    scan = data.index(b"\xff\xda")
    return data[:-2] + data[scan:-2] * dice.choice([5, 90, 4_000]) + b"\xff\xd9"


def _segments(dice: Dice) -> bytes:
    data = _jpeg_of(64, 64)
    kind = dice.choice(
        [b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xfe\x00\x02", b"\xff\xe2\x00\x10MPF\0II*\0"]
    )
    return data[:2] + kind.ljust(2 + int.from_bytes(kind[2:4], "big"), b"\xff") * 30_000 + data[2:]


def _gif(dice: Dice) -> bytes:
    """A screen of four gigapixels, frames beyond it, or endless comments."""
    side = dice.choice([64, 8_000, 65_535])
    head = b"GIF89a" + struct.pack("<HH", side, side) + b"\xf0\0\0" + bytes(6)
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * dice.choice([1, 20_000]) + b"\0"
    frame = b"," + struct.pack("<HHHH", 0, 0, dice.choice([64, side]), 64) + b"\0\x02\x02\x4c\x01\0"
    return head + comment + frame * dice.choice([1, 20_000]) + b";"


def _webp(dice: Dice) -> bytes:
    side = dice.choice([4_000, 7_000, 16_383])
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    bits = int.from_bytes(data[21:25], "little") & ~0xFFF_FFFF | (side - 1) | (side - 1) << 14
    data[21:25] = bits.to_bytes(4, "little")
    return bytes(data)


def _avif(dice: Dice) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "AVIF")
    data = bytearray(file.getvalue())
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", *[dice.choice([64, 6_000, 65_535, 2**32 - 1])] * 2)
    return bytes(data)


def _jpeg2000(dice: Dice) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    side = struct.pack(">II", *[dice.choice([5_000, 60_000, 2**31])] * 2)
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = side
    if dice.random() < 0.5:
        at = data.index(b"ihdr") + 4
        data[at : at + 8] = side
    return bytes(data)


def _text_png(dice: Dice) -> bytes:
    size = dice.choice([2**16, 2**21, 2**28])
    name = dice.choice([b"zTXt", b"iCCP", b"iTXt"])
    inner = b"a\0\0" if name != b"iTXt" else b"a\0\x01\0\0\0"
    return flat_png(64, 64, extra=chunk(name, inner + zeros(size)) * dice.choice([1, 40]))


def _chunks(dice: Dice) -> bytes:
    return flat_png(64, 64, extra=chunk(dice.choice([b"tEXt", b"vpAg"]), b"a\0b") * 250_000)


def _ppm(dice: Dice) -> bytes:
    head = dice.choice([b"P3", b"P6", b"P5", b"P2", b"P4"])
    side = dice.choice([b"5000", b"60000", b"9" * 4_000])
    return head + b" " + side + b" " + side + b" 255\n" + b"0 " * dice.choice([10, 2_000_000])


def _bmp(dice: Dice) -> bytes:
    side = dice.choice([4_000, 9_000, 60_000, -60_000])
    head = struct.pack(
        "<IiiHHIIiiII", 40, side, abs(side), 1, 8, dice.choice([0, 1]), 0, 0, 0, 0, 0
    )
    return (
        b"BM"
        + struct.pack("<IHHI", 2**31 - 1, 0, 0, 54 + 1024)
        + head
        + bytes(1024)
        + b"\xff\1" * 99
    )


def _tga(dice: Dice) -> bytes:
    side = struct.pack("<HH", *[dice.choice([64, 9_000, 65_535])] * 2)
    return bytes([0, 0, 10]) + bytes(9) + side + b"\x20\x08" + b"\xff\1\2\3\4" * 1_000


def _mutated(dice: Dice) -> bytes:
    form = dice.choice(
        ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA"]
    )
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, form)
    data = bytearray(file.getvalue())
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.choice([0, 255, dice.randrange(256)])
    return bytes(data[: dice.randint(1, len(data))] if dice.random() < 0.3 else data)


def _other(dice: Dice) -> bytes:
    forms = [b"", b"\x1f\x8b" + bytes(99), b"%PDF-1.4", b"<svg>", b"PK\x03\x04" + bytes(99)]
    forms += [
        b"\0" * 20_000_000,
        dice.randbytes(5_000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS" + bytes(99),
    ]
    return dice.choice(forms)


KINDS: dict[str, Callable[[Dice], bytes]] = {
    "1-bit PNG of 90 megapixels": lambda _: flat_png(9_000, 10_000),
    "16-bit PNG of 40 megapixels": lambda _: flat_png(8_000, 5_000, depth=16, colour=6),
    "palette PNG of 99 megapixels": lambda _: flat_png(9_900, 10_000, depth=8, colour=3),
    "PNG of four gigapixels": lambda _: (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zeros(2**20))
    ),
    "PNG with a gigabyte behind its pixels": lambda _: flat_png(64, 64, more=2**30),
    "PNG texts and profiles": _text_png,
    "PNG of many chunks": _chunks,
    "packed TIFF": _packed_tiff,
    "endless TIFF": _endless_tiff,
    "JPEG of four gigapixels": lambda _: _jpeg_of(65_500, 65_500),
    "progressive JPEG": lambda _: _jpeg_of(9_900, 9_900, progressive=True),
    "JPEG of many scans": _many_scans,
    "JPEG of many segments": _segments,
    "JPEG scan by scan": _scan_by_scan,
    "JPEG without an end": lambda _: _jpeg_of(9_900, 6_000)[:-2],
    "EXIF in thousands of segments": lambda _: (
        b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 500 + _jpeg_of(64, 64)[2:]
    ),
    "deep TIFF": _deep_tiff,
    "AVIF larger than it says": lambda dice: _avif_bytes(),
    "GIF of countless controls": lambda _: (
        b"GIF89a" + struct.pack("<HH", 64, 64) + bytes(3) + b"!\xf9\0" * 2_500_000
    ),
    "GIF": _gif,
    "WebP": _webp,
    "AVIF": _avif,
    "JPEG 2000": _jpeg2000,
    "PPM": _ppm,
    "BMP": _bmp,
    "TGA": _tga,
    "mutated photo": _mutated,
    "other file": _other,
}


def hostile_photo(number: int) -> tuple[str, bytes]:
    """The kind and the bytes of one hostile photo; the same for the same number."""
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    return kind, KINDS[kind](random.Random(number))


def hostile_zip(number: int) -> bytes:
    """An archive that unpacks too far, holds too much, or claims a size that it does not have."""
    dice, file = random.Random(number), io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        kind = number % 5
        if kind == 0:
            archive.writestr("a.png", bytes(30 * 2**20))
        elif kind == 1:
            for member in range(12_000):
                archive.writestr(f"{member}.png", b"")
        elif kind == 2:
            for name in ("../a.png", "/etc/a.png", "C:\\a.png", "a\0.png", "\x1b[2J.png"):
                archive.writestr(name, flat_png(64, 64))
        else:
            for member in range(20):
                archive.writestr(f"{member}.png", hostile_photo(dice.randrange(10_000))[1])
    data = bytearray(file.getvalue())
    if number % 5 == 4:  # the directory claims another size, method or place
        at = data.rindex(b"PK\x05\x06")
        data[at + 8 : at + 20] = dice.randbytes(12)
    return bytes(data)


def overlapping_zip(members: int) -> bytes:
    """Many members that share one packed stream: 100 MB unpacked each, from 100 kB in all."""
    packed = zeros(100 * 2**20)[2:-4]
    crc = zlib.crc32(bytes(100 * 2**20))
    sizes = struct.pack("<III", crc, len(packed), 100 * 2**20)
    local = b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0" + sizes + struct.pack("<HH", 5, 0) + b"a.png"
    entries = b""
    for number in range(members):
        name = f"{number}.png".encode()
        entries += b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0" + sizes
        entries += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack(
        "<4sHHHHIIH",
        b"PK\x05\x06",
        0,
        0,
        members,
        members,
        len(entries),
        len(local) + len(packed),
        0,
    )
    return local + packed + entries + end
