from __future__ import annotations

import io
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.photos import encoded, picture

from farm.errors import PhotoFault
from farm.intake.photos.archives import MAX_DIRECTORY_BYTES
from farm.intake.photos.bytes import member_uri, read_photo_bytes
from farm.intake.photos.decode import open_photo
from farm.intake.photos.inspect import PhotoRefusal, inspect_photos


def refused(data: bytes) -> str:
    with pytest.raises(PhotoFault) as told:
        open_photo(data)
    assert told.value.remedy
    return told.value.message


def directory(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A little-endian TIFF header and one directory of (tag, type, count, value) entries."""
    body = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + body + bytes(4)


def many_tags_over_the_same_bytes(length: int = 50_000) -> bytes:
    return directory([(40_000 + number, 7, length, 8) for number in range(4_000)]) + bytes(length)


def with_jpeg_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    parts = [struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments]
    return data[:2] + b"".join(parts) + data[2:]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_tags_that_all_point_at_the_same_bytes_are_refused_in_a_tiff():
    assert "tags are longer" in refused(many_tags_over_the_same_bytes())


def test_tags_that_all_point_at_the_same_bytes_are_left_out_of_other_photos():
    exif = many_tags_over_the_same_bytes(12_000)
    jpeg = with_jpeg_segments(encoded(picture(), "JPEG"), (0xE1, b"Exif\0\0" + exif))
    png = encoded(picture(), "PNG")
    png = png[:33] + chunk(b"eXIf", exif) + png[33:]
    webp = io.BytesIO()
    picture().save(webp, "WEBP", exif=b"Exif\0\0" + exif)
    for data in (jpeg, png, webp.getvalue()):
        started = time.monotonic()
        assert open_photo(data).size == picture().size
        assert time.monotonic() - started < 5


def test_a_tile_larger_than_the_picture_is_refused():
    tile = [(256, 4, 1, 64), (257, 4, 1, 64), (322, 4, 1, 60_000), (323, 4, 1, 60_000)]
    assert "tiles are too large" in refused(directory(tile))


def test_a_jpeg_of_thousands_of_scans_is_refused():
    file = io.BytesIO()
    picture().save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    assert "scans" in refused(data[:last] + data[last:-2] * 500 + b"\xff\xd9")


def test_two_scan_markers_in_metadata_are_no_scans():
    previews = [(0xE4, b"\xff\xda" * 1_000)]
    assert open_photo(with_jpeg_segments(encoded(picture(), "JPEG"), *previews)).mode == "RGB"


def test_a_gif_with_a_comment_in_a_million_pieces_is_read_in_linear_time():
    data = encoded(picture(), "GIF")
    end = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"
    started = time.monotonic()
    assert open_photo(data[:end] + comment + data[end:]).size == picture().size
    assert time.monotonic() - started < 5


def test_a_png_of_countless_empty_chunks_is_refused():
    data = encoded(picture(), "PNG")
    assert "chunks" in refused(data[:33] + chunk(b"teSt", b"") * 200_001 + data[33:])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_pixels_are_bounded_in_every_depth_before_they_are_decoded(mode: str, form: str):
    if mode == "P" and form == "TIFF":
        pytest.skip("the same as L")
    file = io.BytesIO()
    Image.new(mode, (16, 16)).save(file, form, **({"compression": "raw"} if form == "TIFF" else {}))
    data = bytearray(file.getvalue())
    if form == "PNG":
        header = struct.pack(">II", 60_000, 60_000) + bytes(data[24:29])
        data[8:33] = chunk(b"IHDR", header)
    else:
        at = struct.unpack_from("<L", data, 4)[0]
        for number in range(struct.unpack_from("<H", data, at)[0]):
            entry = at + 2 + 12 * number
            if struct.unpack_from("<H", data, entry)[0] in {256, 257}:
                data[entry : entry + 12] = data[entry : entry + 2] + struct.pack(
                    "<HLL", 4, 1, 60_000
                )
    assert "megapixels" in refused(bytes(data))


def test_a_jpeg2000_whose_codestream_is_larger_than_its_header_is_refused():
    file = io.BytesIO()
    picture().save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">LL", data, at + 8, 60_000, 60_000)
    assert "differ" in refused(bytes(data))


def test_a_slow_variant_is_refused_when_it_is_large():
    assert "slow" in refused(b"P6 5000 4000 254\n" + bytes(100))
    assert "text bitmap" in refused(b"P3 2000 2000 255\n" + b"0 " * 2**23 + b"0")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_its_end_mark_alone_is_whole(progressive: bool):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", progressive=progressive)
    whole = file.getvalue()
    assert open_photo(whole[:-2]).tobytes() == open_photo(whole).tobytes()
    assert "truncated" in refused(whole[: len(whole) // 2])
    if progressive:
        # cut exactly between two scans: what is there is complete, but it is not all
        assert "truncated" in refused(whole[: whole.rindex(b"\xff\xda")])


def test_an_archive_whose_directory_is_huge_is_refused_before_it_is_read(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("0.png")
        for number in range(MAX_DIRECTORY_BYTES // 65_000 + 2):
            info = zipfile.ZipInfo(f"{number}.png")
            info.comment = b"x" * 65_000
            archive.writestr(info, b"")
    with pytest.raises(PhotoFault, match="directory is larger"):
        read_photo_bytes(member_uri("0.png", str(path)))


def test_a_member_packed_with_lzma_is_refused(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0.png", encoded(picture()))
    with pytest.raises(PhotoFault, match="method"):
        read_photo_bytes(member_uri("0.png", str(path)))


def test_an_archive_inside_an_archive_is_no_photo(tmp_path: Path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("0.png", encoded(picture()))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.png", inner.getvalue())
    [verdict] = inspect_photos([member_uri("inner.png", str(path))])
    assert isinstance(verdict, PhotoRefusal)
    assert "an archive" in verdict.message
