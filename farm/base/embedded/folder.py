"""Writes the base as a diffusers folder and the scorer as a transformers folder, both in fp16
safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from farm.base.embedded.denoiser import build_schedule
from farm.base.embedded.scorer import build_image_processor


def text_tower(scorer: CLIPModel) -> CLIPTextModel:
    """The scorer's text tower as a frozen text encoder for Stable Diffusion's pipeline."""
    encoder = CLIPTextModel(scorer.config.text_config)
    wanted = encoder.state_dict()
    held = scorer.text_model.state_dict()
    encoder.load_state_dict({name: held[name.removeprefix("text_model.")] for name in wanted})
    return encoder.eval().requires_grad_(False)


def write_base(
    folder: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    denoiser: UNet2DConditionModel,
) -> None:
    """Write the folder that `StableDiffusionPipeline.from_pretrained` reads."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=denoiser.half(),
        scheduler=build_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _write_vocabulary(folder / "tokenizer", tokenizer)
    _tidy(folder)


def write_scorer(folder: Path, scorer: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write the folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`
    read.
    """
    scorer.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    _write_vocabulary(folder, tokenizer)
    build_image_processor(scorer.config.vision_config.image_size).save_pretrained(folder)
    _tidy(folder)


def _write_vocabulary(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write vocab.json and merges.txt, which readers other than transformers 5 need."""
    tokenizer.backend_tokenizer.model.save(str(folder))


def _tidy(folder: Path) -> None:
    """Remove local paths, make the files readable for all users, and set float32 as the dtype.

    transformers loads a model in the dtype that its config names, diffusers in float32. With
    float16 in the config, a pipeline loaded with defaults would mix both dtypes and fail.
    """
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            continue
        tidied = {key: value for key, value in content.items() if key != "_name_or_path"}
        if "dtype" in tidied:
            tidied["dtype"] = "float32"
        if tidied != content:
            path.write_text(json.dumps(tidied, indent=2) + "\n", encoding="utf-8")


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load a base folder in float32 with plain diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
