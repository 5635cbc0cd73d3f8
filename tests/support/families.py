"""What tests of model families share: an adapter called tom, and images of the plain pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.adapters.files.folder import FORMS, Form, save_adapter
from farm.adapters.record import AdapterRecord
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.recipe import Recipe

FLOW_FAMILIES = (
    "tiny-z-image",
    "tiny-klein",
    "tiny-flux",
    "tiny-sd3",
    "tiny-flux2-dev",
    "tiny-qwen-image",
    "tiny-krea2",
)
PROMPTS = ["a photo of sks cat", "a small mushroom in the rain"]
"""Of different lengths; the first is what tom was trained on."""


def save_tom(
    folder: Path,
    base: Base,
    weights: AdapterWeights,
    *,
    base_id: str | None = None,
    forms: Sequence[Form] = FORMS,
) -> Path:
    """Save the adapter of a cat, called tom; returns its folder."""
    record = AdapterRecord(
        job_key="k" * 32,
        subject_id="tom",
        name="tom",
        class_noun="cat",
        instance_prompt=PROMPTS[0],
        base_id=base_id or base.name,
        base_fingerprint=base.fingerprint,
        recipe=Recipe(),
    )
    save_adapter(folder, weights, record, base, forms=forms)
    return folder


def plain_image(pipeline: Any, prompt: str, seed: int, **options: Any) -> np.ndarray:
    """The image of diffusers' own pipeline, float [64, 64, 3] in levels of 0 to 255."""
    image = pipeline(
        prompt=prompt,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **options,
    ).images[0]
    return np.asarray(image * 255)
