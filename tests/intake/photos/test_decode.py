from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.photos import encoded, picture, png_bomb

from farm.errors import PhotoFault
from farm.intake.photos.decode import (
    FORMATS,
    FORMATS_REMEDY,
    crops,
    open_header,
    open_photo,
    seen_size,
)

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def close(image: Image.Image, expected: Image.Image, tolerance: float = 3) -> bool:
    difference = np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)
    return bool(np.abs(difference).mean() <= tolerance)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF"])
def test_every_usual_form_opens(form: str):
    image = open_photo(encoded(picture(), form))
    assert image.mode == "RGB"
    assert close(image, picture(), 12)


def test_a_rotated_photo_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    data = encoded(picture(size=(90, 60)), "JPEG", exif=exif, quality=95)
    image = open_photo(data)
    assert image.size == (60, 90)
    assert close(image, picture(size=(90, 60)).rotate(-90, expand=True))
    assert seen_size(open_header(data)) == (60, 90)


def test_a_broken_exif_block_does_not_hide_a_good_photo():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f broken")
    assert open_photo(data).size == (96, 80)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode: str):
    image = Image.new("RGBA", (40, 40), (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 40))
    form = "TIFF" if mode == "PA" else "PNG"
    made = image.convert("LA") if mode == "LA" else image
    opened = open_photo(encoded(made, form))
    assert pixel(opened, 2, 2) == WHITE
    assert pixel(opened, 30, 2) != WHITE


def test_half_transparent_colours_blend_with_white():
    opened = open_photo(encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 128))))
    assert pixel(opened) == pytest.approx((255, 127, 127), abs=1)


def test_a_palette_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (20, 0, 40, 40))
    opened = open_photo(encoded(image, "PNG", transparency=0))
    assert pixel(opened, 0, 0) == WHITE
    assert pixel(opened, 30, 0) == RED


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str):
    source = picture(mode="RGB").convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    opened = open_photo(encoded(source, form))
    assert opened.mode == "RGB"
    assert close(opened, source.convert("RGB"))


def test_cmyk_jpeg_keeps_its_colours():
    source = picture().convert("CMYK")
    opened = open_photo(encoded(source, "JPEG", quality=95))
    assert close(opened, picture(), 6)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_tones(form: str):
    tones = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    opened = open_photo(encoded(Image.fromarray(tones.astype(np.uint16)), form))
    assert np.abs(np.asarray(opened)[..., 0] - tones / 257).max() <= 1


def test_sixteen_bit_colour_png_opens():
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 40 for _ in range(40))

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert pixel(open_photo(data)) == pytest.approx((255, 128, 0), abs=1)


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_float_tiff_is_scaled_by_its_white_point(top: float):
    tones = np.linspace(0, top, 64 * 64, dtype=np.float32).reshape(64, 64)
    opened = np.asarray(open_photo(encoded(Image.fromarray(tones), "TIFF")))
    assert opened.max() >= 15
    assert opened.min() == 0


def test_float_tiff_with_holes_opens():
    tones = np.full((64, 64), np.nan, dtype=np.float32)
    tones[:32] = 0.5
    assert pixel(open_photo(encoded(Image.fromarray(tones), "TIFF"))) == (128, 128, 128)


def test_a_wide_gamut_profile_is_converted():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    opened = open_photo(encoded(picture(), "PNG", icc_profile=profile.tobytes()))
    assert close(opened, picture())  # a profile of another colour space is no reason to fail


def test_a_broken_profile_is_passed_over():
    opened = open_photo(encoded(picture(), "PNG", icc_profile=b"not a profile" * 20))
    assert close(opened, picture())


def test_an_animation_gives_its_first_frame():
    frames = [picture(seed) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert close(open_photo(data), picture(0), 12)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_truncated_photo_is_refused(form: str, share: float):
    data = encoded(picture(size=(300, 300)), form)
    with pytest.raises(PhotoFault):
        open_photo(data[: int(len(data) * share)])


def test_truncation_is_named():
    data = encoded(picture(size=(300, 300)), "JPEG")
    with pytest.raises(PhotoFault, match="truncated") as told:
        open_photo(data[: len(data) // 2])
    assert "copy it again" in told.value.remedy


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"hello", "not a photo"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41", "video"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not a photo"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    ],
)
def test_what_is_no_photo_is_told_what_it_is(data: bytes, what: str):
    with pytest.raises(PhotoFault, match=what) as told:
        open_photo(data)
    assert told.value.remedy


@pytest.mark.parametrize("side", [11_000, 20_000, 2_000_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int):
    bomb = png_bomb(side)
    assert len(bomb) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoFault, match="megapixels"):
            open_photo(bomb)


def test_any_bytes_either_open_or_are_refused():
    random = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        data = bytearray(encoded(picture(size=(64, 64)), form))
        for _ in range(40):
            spoilt = bytearray(data)
            for place in random.integers(0, len(data), 6):
                spoilt[place] = int(random.integers(256))
            with contextlib.suppress(PhotoFault):
                assert open_photo(bytes(spoilt)).mode == "RGB"


def test_the_first_crop_is_the_centre():
    photo = Image.new("RGB", (120, 60), WHITE)
    photo.paste(RED, (30, 0, 90, 60))
    made = crops(photo, 32)
    assert made.shape == (1, 32, 32, 3)
    assert made.dtype == np.uint8
    assert (made[:, :, 3:-3] == np.array(RED)).all()  # the filter blends at the very edge


def test_crops_depend_on_the_seed_alone():
    one = crops(picture(), 32, 4, flip=True, seed=5)
    assert one.shape == (8, 32, 32, 3)
    assert (one == crops(picture(), 32, 4, flip=True, seed=5)).all()
    other = crops(picture(), 32, 4, flip=True, seed=6)
    assert (one[0] == other[0]).all()
    assert (one[1] != other[1]).any()


def test_mirrored_crops_follow_the_plain_ones():
    made = crops(picture(), 32, 3, flip=True)
    assert (made[3:] == made[:3, :, ::-1]).all()


def test_square_photos_give_different_crops():
    made = crops(picture(size=(64, 64)), 32, 4)
    assert len(np.unique(made.reshape(4, -1), axis=0)) == 4


def test_small_photos_are_enlarged():
    assert crops(picture(size=(20, 16)), 64, 2).shape == (2, 64, 64, 3)


def test_the_remedy_names_every_form_that_is_read() -> None:
    named = FORMATS_REMEDY.removeprefix("give ").replace(" or ", ", ").split(", ")
    assert [name.upper().replace(" ", "") for name in named] == list(FORMATS)
    page = (Path(__file__).parents[3] / "docs/manifest.md").read_text()
    assert f"{FORMATS_REMEDY.removeprefix('give ').replace(' or ', ' and ')} are read" in page
