from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from support.photos import encoded, picture

from farm.errors import PhotoFault
from farm.intake.photos.decode import open_photo
from farm.intake.photos.inspect import PhotoFacts, judge_photo
from farm.intake.photos.metadata import trimmed

PHOTO = picture(1, (150, 100))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(*chunks: bytes, before_pixels: bool = True) -> bytes:
    plain = encoded(PHOTO)
    at = 33 if before_pixels else len(plain) - 12
    return plain[:at] + b"".join(chunks) + plain[at:]


def is_whole(data: bytes, like: Image.Image = PHOTO) -> bool:
    assert isinstance(judge_photo(data), PhotoFacts)
    return np.array_equal(np.asarray(open_photo(data)), np.asarray(like))


def texts(*sizes: int, packed: bool = True) -> bytes:
    info = PngImagePlugin.PngInfo()
    for number, size in enumerate(sizes):
        info.add_text(f"a{number}", "node " * (size // 5), zip=packed)
        info.add_itxt(f"b{number}", "é" * (size // 2), zip=packed)
    return encoded(PHOTO, pnginfo=info)


@pytest.mark.parametrize("packed", [True, False])
def test_long_texts_are_passed_over(packed: bool):
    assert is_whole(texts(3_000_000, packed=packed))


def test_many_texts_together_are_bounded():
    assert is_whole(texts(*[900_000] * 40))


def test_texts_behind_the_pixels_are_passed_over():
    long = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(9_000_000)))
    assert is_whole(png_with(long, before_pixels=False))


def test_damaged_metadata_is_passed_over():
    assert is_whole(png_with(chunk(b"iCCP", b"n\0\0garbage"), chunk(b"zTXt", b"n\0\0garbage")))
    assert is_whole(png_with(chunk(b"gAMA", b""), chunk(b"pHYs", b"1"), chunk(b"eXIf", b"zz")))


def test_a_large_profile_still_counts():
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert is_whole(encoded(PHOTO, icc_profile=swapped[:100] + bytes(1_300_000)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(PHOTO, icc_profile=profile + bytes(1_300_000))
    assert is_whole(data)
    assert trimmed(data).profile is not None


def test_a_profile_that_swells_is_bounded():
    bomb = chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(200_000_000)))
    assert trimmed(png_with(bomb)).profile is None
    assert is_whole(png_with(bomb))


def test_a_png_with_usual_metadata_stays_as_it_is():
    data = png_with(chunk(b"tEXt", b"Comment\0made by hand"))
    assert trimmed(data).data == data


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_png_that_lacks_its_end_is_whole(cut: int):
    assert is_whole(encoded(PHOTO)[:-cut])
    tail = chunk(b"tEXt", b"k\0" + bytes(900))
    assert is_whole((encoded(PHOTO)[:-12] + tail)[: -cut - 12])


@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_that_lacks_its_end_mark_is_whole(cut: int):
    data = encoded(PHOTO, "JPEG")
    assert is_whole(data[:-cut], open_photo(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_photo_that_lacks_pixels_is_truncated(form: str):
    data = encoded(PHOTO, form)
    for cut in (40, len(data) // 3):
        with pytest.raises(PhotoFault, match="truncated"):
            open_photo(data[:-cut])


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\x00\x02",
        b"\xff\xed\x00\x0cPhotoshop\0",
        b"\xff\xe2\x00\x12ICC_PROFILE\0\x01\x05xx",
        b"\xff\xe2\x00\x08MPF\0xx",
        b"\xff\xee\x00\x07Adobe",
    ],
)
def test_odd_segments_of_a_jpeg_are_passed_over(segment: bytes):
    data = encoded(PHOTO, "JPEG")
    assert is_whole(data[:2] + segment + data[2:], open_photo(data))


def test_a_webp_is_whole_whatever_its_metadata_lacks():
    data = encoded(PHOTO, "WEBP", lossless=True, xmp=b"x" * 2_000_000)
    assert is_whole(data)
    assert is_whole(data[:-1_000])


def test_animations_and_camera_pairs_give_their_first_frame():
    for form in ("PNG", "GIF", "WEBP", "MPO", "TIFF"):
        buffer = io.BytesIO()
        PHOTO.save(buffer, form, save_all=True, append_images=[picture(2, PHOTO.size)])
        image = open_photo(buffer.getvalue())
        distance = np.abs(np.asarray(image, int) - np.asarray(PHOTO, int)).mean()
        assert distance < 8, form
        assert image.size == PHOTO.size


def test_what_begins_as_a_photo_is_not_called_no_photo():
    with pytest.raises(PhotoFault, match="begins as a PNG"):
        open_photo(b"\x89PNG\r\n\x1a\n" + bytes(100))
