"""Images generated from a base folder in batches with plain diffusers, and grids of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from farm.base.embedded.world.words import SCENERY

GUIDANCE = 4.0
NUM_STEPS = 25

_COLOURS = ("red", "blue", "yellow", "purple", "white", "black", "green", "pink")
_FIRST = ("cat", "dog", "bird", "fish", "mushroom", "robot", "car", "teapot")
_THEN = ("dog", "bird", "fish", "mushroom", "robot", "car", "teapot", "cat")
GRID_PROMPTS = tuple(
    f"a {colour} {noun} {SCENERY[index % len(SCENERY)]}"
    for index, (colour, noun) in enumerate(zip(_COLOURS * 4, (_FIRST + _THEN) * 2, strict=True))
)
"""The prompts of the grid that shows the training's progress."""


def generate_prompts(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seed: int = 0,
    guidance: float = GUIDANCE,
    num_steps: int = NUM_STEPS,
    batch_size: int = 32,
) -> NDArray[np.uint8]:
    """Generate one image per prompt, (N, 64, 64, 3); image i of a seed is the same in any batch."""
    pictures = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        generators = [
            torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(part))
        ]
        images = pipeline(
            part,
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        pictures.append((images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def tile(pictures_NHWC: NDArray[np.uint8], num_columns: int, zoom: int = 2) -> Image.Image:
    """Arrange images in rows, each enlarged `zoom` times."""
    num, height, width, _ = pictures_NHWC.shape
    sheet = Image.new("RGB", (num_columns * width * zoom, -(-num // num_columns) * height * zoom))
    for index, picture in enumerate(pictures_NHWC):
        row, column = divmod(index, num_columns)
        big = Image.fromarray(picture).resize(
            (width * zoom, height * zoom), Image.Resampling.NEAREST
        )
        sheet.paste(big, (column * width * zoom, row * height * zoom))
    return sheet


def generate_sample_grid(folder: Path, path: Path, *, num_steps: int = NUM_STEPS) -> None:
    """Generate the fixed grid of 32 prompts with a base folder."""
    from farm.base.embedded.folder import load_pipeline

    pictures = generate_prompts(load_pipeline(folder), list(GRID_PROMPTS), num_steps=num_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    tile(pictures, 8).save(path)
