"""Image files with metadata on how the image was made.

Owns the encoding of images and where each format keeps the metadata. Its content comes from the
engine; see ``farm.serving.request.Picture``.

    PNG    iTXt ``farm.receipt`` (JSON), and ``parameters`` in the form other tools read
    JPEG   EXIF UserComment (JSON)
    WebP   EXIF UserComment (JSON)
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OutputFormat", "encode_picture", "read_image_metadata"]

OutputFormat = Literal["png", "jpeg", "webp"]

METADATA_KEYWORD = "farm.receipt"
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
UNICODE_PREFIX = b"UNICODE\0"
"""EXIF 2.3's mark of a Unicode comment; the text follows in UTF-8, which most readers expect."""
JPEG_QUALITY = 95


def encode_picture(
    pixels: NDArray[np.uint8],
    metadata: Mapping[str, Any] | None = None,
    output_format: OutputFormat = "png",
    *,
    quality: int | None = None,
    fast: bool = False,
) -> bytes:
    """Encode an image as a file.

    Args:
        pixels: uint8 [H, W, 3].
        metadata: plain JSON values to embed; None embeds nothing.
        quality: 1..100 for JPEG and WebP.
        fast: compress less, for short-lived previews.
    """
    image = Image.fromarray(pixels)
    text = json.dumps(metadata, sort_keys=True) if metadata is not None else None
    out = io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        if text is not None and metadata is not None:
            info.add_itxt(METADATA_KEYWORD, text)
            info.add_itxt("parameters", _parameters(metadata))
        image.save(out, "PNG", pnginfo=info, compress_level=1 if fast else 6)
        return out.getvalue()
    exif = Image.Exif()
    if text is not None:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE_PREFIX + text.encode()
    image.save(
        out,
        output_format.upper(),
        exif=exif.tobytes() if text is not None else b"",
        quality=max(1, quality if quality is not None else JPEG_QUALITY),
    )
    return out.getvalue()


def read_image_metadata(data: bytes) -> dict[str, Any] | None:
    """The metadata of an image file, or None."""
    with Image.open(io.BytesIO(data)) as image:
        text: object = getattr(image, "text", {}).get(METADATA_KEYWORD)
        if text is None:
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
            if isinstance(comment, bytes) and comment.startswith(UNICODE_PREFIX):
                text = comment.removeprefix(UNICODE_PREFIX).decode()
    if not isinstance(text, str):
        return None
    metadata = json.loads(text)
    return metadata if isinstance(metadata, dict) else None


def _parameters(metadata: Mapping[str, Any]) -> str:
    """The one-line form that A1111 and similar tools write and read."""
    facts = {
        "Steps": metadata.get("steps"),
        "Sampler": metadata.get("scheduler"),
        "CFG scale": metadata.get("guidance"),
        "Seed": metadata.get("seed"),
        "Size": f"{metadata.get('width_px')}x{metadata.get('height_px')}",
        "Model": metadata.get("base"),
    }
    lines = [str(metadata.get("prompt", ""))]
    if metadata.get("negative_prompt"):
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    lines.append(", ".join(f"{key}: {value}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)
