"""Scorers: models that place pictures and texts on a unit sphere, where likeness is a dot product.

Owns loading and preprocessing of real CLIP and DINO/DINOv2 models (any folder or hub id) and of
the embedded scorer, which is a small CLIP of the drawn world and takes the very same path. Owns no
formula: what is made of the vectors stands in ``scores.py``.

Legend: B pictures, H W picture, D width of the embedding, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from farm.errors import BaseModelError

__all__ = [
    "ClipScorer",
    "DinoScorer",
    "ImageScorer",
    "Preprocessing",
    "Scorer",
    "embedded_scorer",
    "load_scorer",
]

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "base" / "embedded" / "scorer"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class ImageScorer(Protocol):
    """Whatever embeds pictures."""

    name: str
    """As the user named it; stands beside every number made with it."""

    def embed_images(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU, of uint8 pictures."""
        ...


@runtime_checkable
class Scorer(ImageScorer, Protocol):
    """Whatever embeds pictures and texts in one space."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pictures, as its ``preprocessor_config.json`` says."""

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
        """From a transformers image processor's config; ``side_px`` fills in for absent sizes."""
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
        """Shorter side to ``resize_px``, then the middle, as transformers does it."""
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


class ClipScorer:
    """A CLIPModel (or a model of its interface): CLIP-I, CLIP-T and all that builds on them."""

    def __init__(
        self, source: str | Path, *, name: str = "", device: str = "cpu", batch: int = 32
    ) -> None:
        """Load a folder or hub id.

        Raises:
            BaseModelError: if it cannot be read, or holds no safetensors.
        """
        from transformers import AutoTokenizer, CLIPModel

        self.name = name or str(source)
        self._batch = batch
        self._device = torch.device(device)
        model = _load(CLIPModel, source)
        self._model = model.to(self._device)
        self._length = int(model.config.text_config.max_position_embeddings)
        self._preprocess = _preprocessing(source, int(model.config.vision_config.image_size))
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"the scorer {source} has no tokenizer: {error}",
                "name a whole CLIP folder, with tokenizer.json beside model.safetensors",
            ) from error

    @torch.inference_mode()
    def embed_images(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU, of uint8 pictures."""
        parts = []
        for start in range(0, len(pictures_BHW3), self._batch):
            pixels = self._preprocess(pictures_BHW3[start : start + self._batch])
            parts.append(_pooled(self._model.get_image_features(pixels.to(self._device))))
        return _unit(parts)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU."""
        parts = []
        for start in range(0, len(texts), self._batch):
            tokens = self._tokenizer(
                list(texts[start : start + self._batch]),
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            ).to(self._device)
            features = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            parts.append(_pooled(features))
        return _unit(parts)


class DinoScorer:
    """A self-supervised vision transformer (DINO, DINOv2, any with a class token first).

    The vector is the last layer's class token, as in the DreamBooth paper's DINO score (§4.1,
    ViT-S/16). It tells individuals of one class apart better than CLIP, which was trained to
    forget what captions do not mention.
    """

    def __init__(
        self, source: str | Path, *, name: str = "", device: str = "cpu", batch: int = 32
    ) -> None:
        """Load a folder or hub id.

        Raises:
            BaseModelError: if it cannot be read, or holds no safetensors.
        """
        from transformers import AutoModel

        self.name = name or str(source)
        self._batch = batch
        self._device = torch.device(device)
        model = _load(AutoModel, source)
        self._model = model.to(self._device)
        self._preprocess = _preprocessing(source, int(model.config.image_size))

    @torch.inference_mode()
    def embed_images(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU, of uint8 pictures."""
        parts = []
        for start in range(0, len(pictures_BHW3), self._batch):
            pixels = self._preprocess(pictures_BHW3[start : start + self._batch])
            output = self._model(pixel_values=pixels.to(self._device))
            parts.append(output.last_hidden_state[:, 0])
        return _unit(parts)


def embedded_scorer(device: str = "cpu") -> ClipScorer:
    """The scorer of the drawn world, shipped inside the package.

    Raises:
        BaseModelError: if this installation carries none.
    """
    if not EMBEDDED_FOLDER.is_dir():
        raise BaseModelError(
            "this installation carries no embedded scorer",
            "install a released wheel, or run: farm base train embedded",
        )
    return ClipScorer(EMBEDDED_FOLDER, name=EMBEDDED, device=device)


def load_scorer(name: str, *, device: str = "cpu") -> ImageScorer:
    """A scorer by name: ``embedded``, or the folder or hub id of a CLIP or DINO model.

    Raises:
        BaseModelError: if it cannot be read.
    """
    from transformers import AutoConfig

    if name == EMBEDDED:
        return embedded_scorer(device)
    try:
        family = str(AutoConfig.from_pretrained(name).model_type)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"cannot read the scorer {name}: {error}", _SCORER_REMEDY) from error
    return (ClipScorer if family == "clip" else DinoScorer)(name, device=device)


_SCORER_REMEDY = (
    "name a folder or hub id with config.json and model.safetensors, "
    "such as openai/clip-vit-large-patch14 or facebook/dinov2-small"
)


def _load(kind: Any, source: str | Path) -> Any:
    """The model in float32 evaluation mode, from safetensors only."""
    try:
        model = kind.from_pretrained(str(source), use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"cannot read the scorer {source}: {error}", _SCORER_REMEDY) from error
    return model.eval().requires_grad_(False)


def _preprocessing(source: str | Path, side_px: int) -> Preprocessing:
    """The model's own preprocessing, or CLIP's at the model's picture size where it has none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    except OSError:
        return Preprocessing(side_px, side_px)
    return Preprocessing.from_config(config, side_px)


def _side(size: object, absent: int) -> int:
    """One side in pixels from any of the forms that transformers configs use."""
    if isinstance(size, int):
        return size
    if isinstance(size, dict):
        return int(size.get("shortest_edge") or size.get("height") or absent)
    return absent


def _pillow(pictures_BHW3: Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures as Pillow's RGB."""
    if isinstance(pictures_BHW3, Tensor):
        return [Image.fromarray(picture) for picture in pictures_BHW3.cpu().numpy()]
    return [picture.convert("RGB") for picture in pictures_BHW3]


def _pooled(features: Any) -> Tensor:
    """transformers 5 wraps what 4 returned bare."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _unit(parts: list[Tensor]) -> Tensor:
    vectors_BD = torch.cat(parts).float().cpu()
    return nn.functional.normalize(vectors_BD, dim=-1)
