"""The base as a plain diffusers folder, in fp16 safetensors, and the scorer as a plain
transformers folder.
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
    """The scorer's text tower as the text encoder that Stable Diffusion's pipeline expects,
    frozen.
    """
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
    build_image_processor().save_pretrained(folder)
    _tidy(folder)


def _write_vocabulary(folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Write vocab.json and merges.txt, which readers other than transformers 5 look for."""
    tokenizer.backend_tokenizer.model.save(str(folder))


def _tidy(folder: Path) -> None:
    """Drop the writing machine's paths; let everyone read; load as float32 unless told otherwise.

    transformers loads a model in the dtype that its config names, diffusers in float32: with
    float16 named, a pipeline loaded plainly would hold both, and could not draw.
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
    """Load a base folder in float32, as plain diffusers does."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
