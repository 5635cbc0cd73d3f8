"""Scorers read real model folders and agree with transformers' own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from farm.errors import BaseModelError
from farm.quality.preprocessing import Preprocessing
from farm.quality.scorer import (
    ClipScorer,
    DinoScorer,
    ImageScorer,
    Scorer,
    load_scorer,
)


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def test_a_clip_folder_embeds_pictures_and_texts_as_unit_vectors(clip_folder: Path) -> None:
    scorer = ClipScorer(clip_folder, batch=2)
    pictures = scorer.embed_images(photos((40, 32), (32, 50), (32, 32)))
    texts = scorer.embed_texts(["a cat in the snow", "a dog"])
    assert pictures.shape == (3, 8)
    assert texts.shape == (2, 8)
    assert torch.allclose(pictures.norm(dim=1), torch.ones(3))
    assert torch.allclose(texts.norm(dim=1), torch.ones(2))
    assert not torch.allclose(texts[0], texts[1])


def test_clip_vectors_are_what_plain_transformers_gives(clip_folder: Path) -> None:
    pictures = photos((48, 40), (64, 64))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        features = CLIPModel.from_pretrained(clip_folder).get_image_features(pixels)
    expected = torch.nn.functional.normalize(features.pooler_output, dim=-1)
    assert torch.allclose(ClipScorer(clip_folder).embed_images(pictures), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 48), (33, 90), (224, 224), (31, 31)])
def test_preprocessing_equals_the_model_folders_own_processor(size: tuple[int, int]) -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    )
    config = json.loads(processor.to_json_string())
    picture = photos(size)
    ours = Preprocessing.from_config(config, 32)(picture)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_pictures_that_fit_already_are_not_resampled() -> None:
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    plain = Preprocessing(32, 32, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((plain(pictures) * 255).round().byte().permute(0, 2, 3, 1), pictures)


def test_dino_folders_of_both_generations_embed_pictures(
    dino_folder: Path, dinov2_folder: Path
) -> None:
    for folder in (dino_folder, dinov2_folder):
        scorer = load_scorer(str(folder))
        assert isinstance(scorer, DinoScorer)
        assert isinstance(scorer, ImageScorer)
        assert not isinstance(scorer, Scorer)  # it cannot embed texts
        vectors = scorer.embed_images(photos((40, 32), (32, 50)))
        assert vectors.shape == (2, 16)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_the_family_is_read_from_the_folder(clip_folder: Path) -> None:
    scorer = load_scorer(str(clip_folder))
    assert isinstance(scorer, ClipScorer)
    assert isinstance(scorer, Scorer)


def test_a_missing_scorer_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="cannot read the scorer") as caught:
        load_scorer(str(tmp_path / "nowhere"))
    assert "safetensors" in caught.value.remedy


def test_a_pickled_scorer_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(CLIPModel.from_pretrained(clip_folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="cannot read the scorer"):
        ClipScorer(tmp_path)
