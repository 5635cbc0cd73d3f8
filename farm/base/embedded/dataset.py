"""Images of the synthetic world in memory: rendered once, as uint8, seeded by (seed, index)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farm.base.embedded.world.render import PICTURE_PX, render_scene
from farm.base.embedded.world.scene import Scene, sample_scene

HELD_OUT_SEED = 1_000_003
"""Reserved for evaluation: images of this stream are never used in training."""


def render_dataset(seed: int, num_pictures: int, *, first: int = 0) -> NDArray[np.uint8]:
    """Render images of a stream from index `first` on: (N, 64, 64, 3)."""
    album = np.empty((num_pictures, PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)
    for index in range(num_pictures):
        album[index] = np.asarray(render_scene(sample_scene(seed, first + index)))
    return album


def scenes_of(seed: int, num_pictures: int) -> list[Scene]:
    """The scenes of an album, in order."""
    return [sample_scene(seed, index) for index in range(num_pictures)]


def load_dataset(path: Path, seed: int, num_pictures: int) -> NDArray[np.uint8]:
    """Read an album from a cache file, or render it and write the file."""
    if path.exists():
        album: NDArray[np.uint8] = np.load(path)
        if len(album) == num_pictures:
            return album
    album = render_dataset(seed, num_pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, album)
    return album


def batch_at(album: NDArray[np.uint8], seed: int, step: int, batch_size: int) -> NDArray[np.uint8]:
    """The random batch of one step, mirrored horizontally in half of the steps."""
    rng = np.random.default_rng([seed, step])
    batch = album[rng.integers(0, len(album), batch_size)]
    return np.ascontiguousarray(batch[:, :, ::-1]) if rng.random() < 0.5 else batch
