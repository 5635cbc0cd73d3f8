"""Image preprocessing of CLIP and DINO models, as their ``preprocessor_config.json`` describes it.

Legend: B images, H W image, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Preprocessing", "preprocessing_of"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """A model's resizing, cropping and normalisation."""

    resize_px: int
    """Length of the shorter side after resizing."""
    crop_px: int
    """Side of the centre crop, at most ``resize_px``."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    normalises: bool = True

    @classmethod
    def from_config(cls, config: dict[str, Any], side_px: int) -> Preprocessing:
        """From a transformers image processor's config; ``side_px`` replaces missing sizes."""
        crops = bool(config.get("do_center_crop", False))
        resize_px = _side(config.get("size"), side_px)
        return cls(
            resize_px=resize_px,
            crop_px=_side(config.get("crop_size"), resize_px) if crops else resize_px,
            mean=tuple(config.get("image_mean") or CLIP_MEAN),
            std=tuple(config.get("image_std") or CLIP_STD),
            resample=int(config.get("resample", Image.Resampling.BICUBIC)),
            normalises=bool(config.get("do_normalize", True)),
        )

    def __call__(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Model input, float32 [B, 3, crop_px, crop_px]."""
        resized_BPP3 = np.stack([self._fit(picture) for picture in _pillow(pictures_BHW3)])
        pixels_B3PP = torch.from_numpy(resized_BPP3).permute(0, 3, 1, 2).float() / 255
        if not self.normalises:
            return pixels_B3PP
        mean_311 = torch.tensor(self.mean).view(3, 1, 1)
        std_311 = torch.tensor(self.std).view(3, 1, 1)
        return (pixels_B3PP - mean_311) / std_311

    def _fit(self, picture: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Resize the shorter side to ``resize_px``, then crop the centre, as transformers does."""
        width, height = picture.size
        if width <= height:
            size = (self.resize_px, int(self.resize_px * height / width))
        else:
            size = (int(self.resize_px * width / height), self.resize_px)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling(self.resample))
        left = (size[0] - self.crop_px) // 2
        top = (size[1] - self.crop_px) // 2
        if size != (self.crop_px, self.crop_px):
            picture = picture.crop((left, top, left + self.crop_px, top + self.crop_px))
        return np.asarray(picture, dtype=np.uint8)


def preprocessing_of(source: str | Path, side_px: int) -> Preprocessing:
    """The model's own preprocessing, or CLIP's at the model's image size if it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    except OSError:
        return Preprocessing(side_px, side_px)
    return Preprocessing.from_config(config, side_px)


def _side(size: object, absent: int) -> int:
    """One side in pixels, from any notation in transformers configs."""
    if isinstance(size, int):
        return size
    if isinstance(size, dict):
        return int(size.get("shortest_edge") or size.get("height") or absent)
    return absent


def _pillow(pictures_BHW3: Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    """Images as Pillow RGB images."""
    if isinstance(pictures_BHW3, Tensor):
        return [Image.fromarray(picture) for picture in pictures_BHW3.cpu().numpy()]
    return [picture.convert("RGB") for picture in pictures_BHW3]
