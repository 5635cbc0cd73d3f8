"""Tiny random scorers, saved in the folder layout of real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.quality.scorers import save_clip
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first DINO: a plain ViT."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(8)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=2.0,  # so that pictures differ, as they do for a trained model
    )
    ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(9)
    config = Dinov2Config(
        hidden_size=16, mlp_ratio=2, num_hidden_layers=1, num_attention_heads=2, image_size=28,
        patch_size=14,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder
