"""Writes TensorBoard's event files with TensorBoard's own writer.

A tracker like accelerate's, whose import takes two CPU seconds, most of them for torch. Every run
is logged for TensorBoard, and its driver needs no torch otherwise.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["EventFiles"]

COLUMNS = 8


class EventFiles:
    """One subject's event file, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        self._add(step, [{"tag": tag, "simple_value": value} for tag, value in values.items()])

    def log_images(self, values: Mapping[str, NDArray[np.uint8]], step: int) -> None:
        """Add images, [N, H, W, 3] under each name, as one grid."""
        self._add(step, [{"tag": tag, "image": _image(one)} for tag, one in values.items()])

    def finish(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def _add(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary={"value": values})
        self._writer.add_event(event)


def _image(images_NHW3: NDArray[np.uint8]) -> dict[str, Any]:
    """The fields of a ``Summary.Image``: the images row by row, as a PNG file."""
    num, high, wide, _ = images_NHW3.shape
    columns = min(num, COLUMNS)
    rows = -(-num // columns)
    places = np.zeros((rows * columns, high, wide, 3), np.uint8)
    places[:num] = images_NHW3
    grid = places.reshape(rows, columns, high, wide, 3).swapaxes(1, 2)
    grid = grid.reshape(rows * high, columns * wide, 3)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "png")
    return {
        "height": grid.shape[0],
        "width": grid.shape[1],
        "colorspace": 3,  # RGB
        "encoded_image_string": file.getvalue(),
    }
