"""Decoding of photos, and the crops that training uses.

Owns decoding, its limits and its colour rules. Where the bytes come from is in ``bytes.py``.

Legend: N crops, P pixels of a side.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from farm.errors import PhotoFault
from farm.intake.photos.archives import OTHER_ARCHIVES, TAR_MARK, TAR_OFFSET, UNPACK
from farm.intake.photos.budget import MAX_COPIED_BYTES
from farm.intake.photos.bytes import read_photo_bytes
from farm.intake.photos.metadata import MAX_PROFILE_BYTES, bare, trimmed, whole_jpeg_tails
from farm.intake.photos.structure import check_container, check_cost, is_sane_exif

__all__ = [
    "FORMATS_REMEDY",
    "MAX_PHOTO_PIXELS",
    "MIN_SIDE_PX",
    "PHOTO_SUFFIXES",
    "as_rgb",
    "crop_frames",
    "crops",
    "decoding",
    "is_turned",
    "load_pixels",
    "open_header",
    "open_photo",
    "seen_size",
]

MAX_PHOTO_PIXELS = 100_000_000
"""Width times height: 300 MB once decoded. Read from the header, before anything is unpacked."""
MIN_SIDE_PX = 32
"""Minimum shorter side; below it there is nothing to learn at any resolution."""

BLOCK_ROWS = 64
"""Rows of a picture converted or compared at once."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA")
"""Decoders that photos may use. Pillow's others (PostScript, PSD, fonts …) are disabled."""
FORMATS_REMEDY = "give JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM or TGA"
"""The same for people."""
PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".mpo", ".tif", ".tiff", ".bmp", ".gif")
    + (".avif", ".jp2", ".ppm", ".pgm", ".tga", ".heic", ".heif")
)
"""Suffixes of files treated as photos in a folder, glob or archive. HEIC is included so that it is
reported as unreadable rather than skipped silently."""

_SIGNATURES = (
    (4, b"ftyphe", "a HEIC photo", "convert it to JPEG; phones: camera `most compatible`"),
    (4, b"ftypavi", "a damaged AVIF photo", "copy it again, or convert it to JPEG"),
    (4, b"ftypcrx", "a camera's RAW photo", "develop it to JPEG or PNG"),
    (4, b"ftypmif1", "a HEIF photo", "convert it to JPEG"),
    (0, b"\xff\x0a", "a JPEG XL photo", "convert it to JPEG"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL photo", "convert it to JPEG"),
    (4, b"ftyp", "a video", "take photos, or still frames of it"),
    (0, b"%PDF", "a PDF document", "export its pictures as JPEG or PNG"),
    *((0, start, what, UNPACK) for start, what in OTHER_ARCHIVES),
    (0, b"PK\x03\x04", "an archive", "name it `….zip` in `photos`, or unpack it"),
    (0, b"8BPS", "a Photoshop document", "export it as PNG"),
    (0, b"<svg", "an SVG image", "export it as PNG"),
    (0, b"<?xml", "XML", "export it as PNG if it is an image"),
    (0, b"<!DOCTYPE", "a web page", "use the address of the picture itself"),
    (0, b"<html", "a web page", "use the address of the picture itself"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull`"),
)
_PHOTO_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"RIFF", "a WebP"),
)
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation."""
_SRGB = ImageCms.createProfile("sRGB")
_open_lock = threading.Lock()


def open_photo(photo: bytes | str) -> Image.Image:
    """Decode a photo as it should be seen: upright, sRGB, 8 bits, opaque.

    EXIF rotation is applied, colour profiles are converted, transparency is blended with white, and
    grey, palette, CMYK and 16-bit photos become RGB. The first frame of an animation is used.

    Args:
        photo: the file's bytes, or a URI as in ``Photo.uri``.

    Raises:
        PhotoFault: if it is missing, not a photo, truncated, or over ``MAX_PHOTO_PIXELS``.
    """
    data = read_photo_bytes(photo) if isinstance(photo, str) else photo
    image = open_header(data)
    with decoding():
        return as_rgb(load_pixels(image, data))


@contextmanager
def decoding() -> Iterator[None]:
    """Convert any error of a decoder to a ``PhotoFault``."""
    try:
        yield
    except Exception as error:  # each decoder raises errors of its own
        raise _decode_fault(error) from error


def open_header(data: bytes) -> Image.Image:
    """Identify a photo and check its size without decoding it; metadata over limits is dropped.

    Raises:
        PhotoFault: if it is empty, not a photo, or far too large.
    """
    if not data:
        raise PhotoFault("the file is empty", "copy it again")
    check_container(data)
    photo = trimmed(data)
    try:
        image = _identified(photo.data)
    except Image.DecompressionBombError as error:
        raise PhotoFault(
            f"it is larger than {MAX_PHOTO_PIXELS // 10**6} megapixels", "save it smaller"
        ) from error
    except Exception as error:  # each decoder raises errors of its own
        image = _identified_bare(data, error)
    if photo.profile is not None:
        image.info["icc_profile"] = photo.profile
    if image.width * image.height > MAX_PHOTO_PIXELS:
        raise PhotoFault(
            f"it is {image.width} x {image.height} px, more than "
            f"{MAX_PHOTO_PIXELS // 10**6} megapixels",
            "save it smaller; training never sees more than the resolution",
        )
    check_cost(image, data)
    if not is_sane_exif(image.info.get("exif") or b""):
        del image.info["exif"]
    if len(image.info.get("icc_profile") or b"") > MAX_PROFILE_BYTES:
        del image.info["icc_profile"]
    return image


def _identified(data: bytes) -> Image.Image:
    # Pillow warns of large sizes through process-wide filters; the size is checked elsewhere
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _identified_bare(data: bytes, error: Exception) -> Image.Image:
    """A photo opened without its metadata, if the metadata made the decoder fail."""
    rest = bare(data)
    if rest is None:
        raise _unidentified(data, error) from error
    try:
        return _identified(rest)
    except Exception:  # see above
        raise _unidentified(data, error) from error


def load_pixels(image: Image.Image, data: bytes) -> Image.Image:
    """An opened photo with its pixels decoded; data missing after the pixels is ignored.

    Args:
        data: the file that it was opened from.
    """
    try:
        image.load()
    except Exception:
        if (whole := _without_end(image, data)) is None:
            raise
        return whole
    return image


def _without_end(image: Image.Image, data: bytes) -> Image.Image | None:
    """A JPEG that lacks only its end marker."""
    is_jpeg = image.format in {"JPEG", "MPO"} and len(data) <= MAX_COPIED_BYTES
    digests = set()
    picture = None
    for tail in (whole_jpeg_tails(data) if is_jpeg else None) or ():
        picture = _identified(data.removesuffix(b"\xff") + tail)  # frees the one before
        picture.load()
        digests.add(_pixels_digest(picture))
    return picture if len(digests) == 1 else None


def _pixels_digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    for top in range(0, image.height, BLOCK_ROWS):
        box = (0, top, image.width, min(top + BLOCK_ROWS, image.height))
        digest.update(image.crop(box).tobytes())
    return digest.digest()


def _unidentified(data: bytes, error: Exception) -> PhotoFault:
    head = data[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    for offset, signature, what, remedy in _SIGNATURES:
        if head[offset:].startswith(signature):
            return PhotoFault(f"it is {what}, not a photo that can be read", remedy)
    if data[TAR_OFFSET : TAR_OFFSET + len(TAR_MARK)] == TAR_MARK:
        return PhotoFault("it is a tar archive, not a photo that can be read", UNPACK)
    if not data[:4096].strip(b"\0"):
        return PhotoFault("it holds only zeros, as an unfinished copy does", "copy it again")
    is_named = isinstance(error, OSError | SyntaxError) and "decoder object" not in str(error)
    if is_named and not isinstance(error, UnidentifiedImageError):
        return _decode_fault(error)
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return _decode_fault(EOFError())
    for signature, form in _PHOTO_SIGNATURES:
        if data.startswith(signature):
            return PhotoFault(
                f"it begins as {form}, but cannot be read: it is damaged, or of a rare variant",
                "open it in an image editor and save it as PNG or JPEG",
            )
    return PhotoFault("it is not a photo", FORMATS_REMEDY)


def _decode_fault(error: Exception) -> PhotoFault:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return PhotoFault("it is truncated", "copy it again; the end of the file is missing")
    return PhotoFault(f"it is damaged: {text[:200]}", "copy it again, or save it again")


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as an upright RGB one; see ``open_photo``."""
    profile = image.info.get("icc_profile")
    image = _upright(image)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if _is_transparent(image):
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
        image = image.convert("RGB")
    if profile:
        image = _in_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose: it rewrites the EXIF block, whose other parts are unchecked
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    upright = image.transpose(turn)
    upright.info = image.info
    return upright


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a broken EXIF block does not affect the pixels
        return None


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF rotation swaps width and height. Decodes a PNG whose EXIF may follow its
    pixels."""
    return _orientation(image) in {5, 6, 7, 8}


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened photo as it will be seen, EXIF rotation applied."""
    return (image.height, image.width) if is_turned(image) else image.size


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deep grey as 8-bit grey. Pillow's own conversion clips at 255: a white picture."""
    values_HW = np.asarray(image)
    peak = max(float(rows.max(initial=0.0)) for rows in _finite_rows(values_HW))
    if image.mode.startswith("I;16") or (image.mode == "I" and peak > 255):
        white = 65535.0 if peak <= 65535 else peak
    else:  # float and wide integer files have no white point: use the usual one that fits
        white = next((usual for usual in (1.0, 255.0, 65535.0) if peak <= usual), peak)
        white = 255.0 if image.mode == "I" else white
    grey_HW = np.empty(values_HW.shape, dtype=np.uint8)
    top = 0
    for rows in _finite_rows(values_HW):
        grey_HW[top : top + len(rows)] = (rows * (255.0 / white)).round().clip(0, 255)
        top += len(rows)
    return Image.fromarray(grey_HW)


def _finite_rows(values_HW: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """A picture's rows as finite floats, in blocks: all at once would take gigabytes."""
    for top in range(0, len(values_HW), BLOCK_ROWS):
        rows = values_HW[top : top + BLOCK_ROWS].astype(np.float64)
        yield np.nan_to_num(rows, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture in sRGB; unchanged if its profile is already sRGB, or broken."""
    if image.mode not in {"RGB", "CMYK", "L"}:
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    return converted if converted is not None else image


def crops(
    photo: Image.Image, resolution_px: int, count: int = 1, *, flip: bool = False, seed: int = 0
) -> NDArray[np.uint8]:
    """The square crops of a photo for training.

    The first is the centre crop over the whole shorter side, as in the diffusers scripts. The
    others have 85 to 100 % of its side, at a random position, so that square photos vary too.

    Args:
        photo: RGB.
        resolution_px: side of the crops.
        count: crops before mirroring.
        flip: also return every crop mirrored, after all the others.
        seed: root of the random positions.

    Returns:
        uint8 [N, P, P, 3] with N = count, or 2 x count with ``flip``.
    """
    pictures = []
    for left, top, side in _crop_squares(photo.size, count, seed):
        box = (left, top, left + side, top + side)
        # reducing_gap is off: it would make a crop depend on how far the photo is shrunk
        picture = photo.resize((resolution_px, resolution_px), Image.Resampling.LANCZOS, box=box)
        pictures.append(np.asarray(picture, dtype=np.uint8))
    plain_NPP3 = np.stack(pictures)
    return np.concatenate([plain_NPP3, plain_NPP3[:, :, ::-1]]) if flip else plain_NPP3


def crop_frames(
    size: tuple[int, int],
    resolution_px: int,
    count: int = 1,
    *,
    flip: bool = False,
    seed: int = 0,
) -> NDArray[np.int64]:
    """How ``crops`` cuts a photo of this size: its frames, int64 [N, 6], in the order of the crops.

    A frame is the photo's height and width, the top and left edge of the crop in the photo scaled
    to the crop's resolution, and the crop's height and width (SDXL's size and crop conditioning).
    A mirrored crop is one of the mirrored photo.
    """
    width, height = size
    plain, mirrored = [], []
    for left, top, side in _crop_squares(size, count, seed):
        scale = resolution_px / side
        right = width - left - side
        square = (resolution_px, resolution_px)
        plain.append((height, width, round(top * scale), round(left * scale), *square))
        mirrored.append((height, width, round(top * scale), round(right * scale), *square))
    return np.array(plain + mirrored if flip else plain, dtype=np.int64)


def _crop_squares(size: tuple[int, int], count: int, seed: int) -> list[tuple[float, float, float]]:
    """Left, top and side of each crop, in the photo's pixels."""
    random = np.random.default_rng(seed)
    shorter = min(size)
    squares = []
    for index in range(count):
        side = shorter if index == 0 else shorter * random.uniform(0.85, 1.0)
        room = np.array([size[0] - side, size[1] - side])
        left, top = room / 2 if index == 0 else room * random.uniform(size=2)
        squares.append((float(left), float(top), float(side)))
    return squares
