"""Folders of small photos and other files, and the manifests that are read from them."""

from __future__ import annotations

from pathlib import Path

from farm.intake.manifest import Manifest, read_manifest
from support.photos import encoded, picture

PHOTOS = [encoded(picture(number)) for number in range(3)]
Files = dict[str, bytes | str]


def photos(prefix: str) -> Files:
    """Three photos."""
    return {f"{prefix}{number}.png": data for number, data in enumerate(PHOTOS)}


def read(folder: Path, files: Files, target: str = "") -> Manifest:
    """Write files, and read the folder or one of them as a manifest."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_manifest(str(folder / target), strict=False)
