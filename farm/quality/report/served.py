"""Images that an endpoint generated with a run's adapters, stored with the run for its report.

Owns ``runs/<run_id>/served/``. Each file's own metadata names the adapter and the prompt.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from farm.quality.report.thumbs import data_uri
from farm.quality.report.view import ReportImage
from farm.serving.http.image_metadata import read_image_metadata
from farm.storage import Store

__all__ = ["keep_served", "kept_names", "read_served"]


def keep_served(store: Store, run_id: str, pictures: Mapping[str, bytes]) -> None:
    """Store PNG files by adapter name, replacing earlier ones."""
    folder = f"runs/{run_id}/served"
    store.delete(folder)
    for name, data in pictures.items():
        store.write(f"{folder}/{name}.png", data)


def kept_names(store: Store, run_id: str) -> set[str]:
    """The adapters that images of this run are stored of."""
    return {name.removesuffix(".png") for name in store.list(f"runs/{run_id}/served")}


def read_served(store: Store, run_id: str, side_px: int) -> list[ReportImage]:
    """The stored images as thumbnails, each with its adapter's name and prompt."""
    folder = f"runs/{run_id}/served"
    pictures = []
    for file_name in store.list(folder):
        data = store.read(f"{folder}/{file_name}")
        receipt = read_image_metadata(data) or {}
        name = file_name.removesuffix(".png")
        with Image.open(io.BytesIO(data)) as image:
            thumbnail = data_uri(image, side_px)
        pictures.append(ReportImage(thumbnail, f"{name}: {receipt.get('prompt', '')}"))
    return pictures
