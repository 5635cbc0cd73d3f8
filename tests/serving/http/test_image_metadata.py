"""Picture files and their embedded metadata."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from farm.serving.http.image_metadata import OutputFormat, encode_picture, read_image_metadata

METADATA = {"base": "tiny", "prompt": "a „sks“ cat 🐈\nat night", "seed": 2**63 - 1, "steps": 25}


def picture(side_px: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3)).astype(np.uint8)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_metadata_survives_the_file(output_format: OutputFormat) -> None:
    data = encode_picture(picture(), METADATA, output_format)
    assert read_image_metadata(data) == METADATA
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == output_format.upper()


def test_a_png_holds_the_exact_pixels() -> None:
    pixels = picture()
    for fast in (False, True):
        with Image.open(io.BytesIO(encode_picture(pixels, METADATA, fast=fast))) as image:
            assert np.array_equal(np.asarray(image), pixels)


def test_other_tools_find_their_parameters_line() -> None:
    metadata = {**METADATA, "negative_prompt": "blur", "width_px": 32, "height_px": 32}
    with Image.open(io.BytesIO(encode_picture(picture(), metadata))) as image:
        lines = image.text["parameters"].splitlines()
    assert lines[2] == "Negative prompt: blur"
    assert "Steps: 25" in lines[3]
    assert "Size: 32x32" in lines[3]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_without_a_receipt_has_none(output_format: OutputFormat) -> None:
    assert read_image_metadata(encode_picture(picture(), None, output_format)) is None


def test_quality_makes_smaller_files() -> None:
    small = encode_picture(picture(), METADATA, "jpeg", quality=0)
    large = encode_picture(picture(), METADATA, "jpeg", quality=95)
    assert len(small) < len(large)
