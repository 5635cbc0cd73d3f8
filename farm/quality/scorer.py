"""Scorers: models that embed images and texts as unit vectors; dot products are similarities.

Owns loading and use of CLIP and DINO/DINOv2 models (any folder or hub id) and of the embedded
scorer, a small CLIP of the synthetic world that is used like any other. Owns no formula: scores are
computed from the vectors in ``scores.py``.

Legend: B images, H W image, D width of the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from farm.errors import BaseModelError
from farm.quality.preprocessing import preprocessing_of

__all__ = [
    "ClipScorer",
    "DinoScorer",
    "ImageScorer",
    "Scorer",
    "embedded_scorer",
    "load_scorer",
]

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "base" / "embedded" / "scorer"


@runtime_checkable
class ImageScorer(Protocol):
    """Embeds images."""

    name: str
    """As the user named it; recorded with every score."""

    def embed_images(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU, of uint8 images."""
        ...


@runtime_checkable
class Scorer(ImageScorer, Protocol):
    """Embeds images and texts in one space."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU."""
        ...


class _TransformersScorer(ABC):
    """A transformers model with its own preprocessing; subclasses compute the features."""

    def __init__(
        self, source: str | Path, *, name: str = "", device: str = "cpu", batch: int = 32
    ) -> None:
        """Load a folder or hub id.

        Raises:
            BaseModelError: if it cannot be read or has no safetensors.
        """
        self.name = name or str(source)
        self._batch = batch
        self._device = torch.device(device)
        self._model: Any = _load(self._model_class(), source).to(self._device)
        self._preprocess = preprocessing_of(source, self._image_side_px())

    @staticmethod
    @abstractmethod
    def _model_class() -> Any:
        """The transformers class to load."""

    @abstractmethod
    def _image_side_px(self) -> int:
        """The image size in the model's config."""

    @abstractmethod
    def _features(self, pixels_B3PP: Tensor) -> Tensor:
        """Features [B, D] of preprocessed images."""

    @torch.inference_mode()
    def embed_images(self, pictures_BHW3: Tensor | Sequence[Image.Image]) -> Tensor:
        """Unit vectors, float32 [B, D] on the CPU, of uint8 images."""
        starts = range(0, len(pictures_BHW3), self._batch)
        batches = (self._preprocess(pictures_BHW3[at : at + self._batch]) for at in starts)
        return _unit([self._features(pixels.to(self._device)) for pixels in batches])


class ClipScorer(_TransformersScorer):
    """A CLIPModel, for CLIP-I, CLIP-T and all scores derived from them."""

    def __init__(
        self, source: str | Path, *, name: str = "", device: str = "cpu", batch: int = 32
    ) -> None:
        """Load a folder or hub id.

        Raises:
            BaseModelError: if it cannot be read, or has no safetensors or no tokenizer.
        """
        from transformers import AutoTokenizer

        super().__init__(source, name=name, device=device, batch=batch)
        self._length = int(self._model.config.text_config.max_position_embeddings)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"the scorer {source} has no tokenizer: {error}",
                "name a complete CLIP folder, with tokenizer.json beside model.safetensors",
            ) from error

    @staticmethod
    def _model_class() -> Any:
        from transformers import CLIPModel

        return CLIPModel

    def _image_side_px(self) -> int:
        return int(self._model.config.vision_config.image_size)

    def _features(self, pixels_B3PP: Tensor) -> Tensor:
        return _pooled(self._model.get_image_features(pixels_B3PP))

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


class DinoScorer(_TransformersScorer):
    """A self-supervised vision transformer (DINO, DINOv2, or any with a class token first).

    The vector is the last layer's class token, as in the DreamBooth paper's DINO score (§4.1,
    ViT-S/16). It distinguishes individuals of one class better than CLIP, whose training ignores
    whatever captions do not mention.
    """

    @staticmethod
    def _model_class() -> Any:
        from transformers import AutoModel

        return AutoModel

    def _image_side_px(self) -> int:
        return int(self._model.config.image_size)

    def _features(self, pixels_B3PP: Tensor) -> Tensor:
        states: Tensor = self._model(pixel_values=pixels_B3PP).last_hidden_state
        return states[:, 0]


def embedded_scorer(device: str = "cpu") -> ClipScorer:
    """The scorer of the synthetic world, included in the package.

    Raises:
        BaseModelError: if this installation does not include it.
    """
    if not EMBEDDED_FOLDER.is_dir():
        raise BaseModelError(
            "this installation does not include the embedded scorer",
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


def _pooled(features: Any) -> Tensor:
    """The features: transformers 5 wraps the tensor that 4 returned."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _unit(parts: list[Tensor]) -> Tensor:
    vectors_BD = torch.cat(parts).float().cpu()
    return nn.functional.normalize(vectors_BD, dim=-1)
