"""Random-weight pipelines of any size, built on demand: for tests, and for benchmarks.

``tiny`` and ``tiny-v`` run in milliseconds (epsilon and v-prediction). ``sd15`` has the real
Stable Diffusion v1-5 shape, so it costs exactly what the real weights cost; it generates noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from farm.base.names import BuiltName

__all__ = ["BUILDS", "build_pipeline"]


@dataclass(frozen=True)
class _Build:
    """The configs of one random-weight pipeline."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    scheduler: dict[str, Any] = field(default_factory=dict)


_TINY = _Build(
    unet={
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
    vae={
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
    text={
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
    tokens=32,
)

# runwayml/stable-diffusion-v1-5: unet/config.json, vae/config.json, text_encoder/config.json
_SD15 = _Build(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
    text={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
    },
    tokens=77,
)

BUILDS: dict[BuiltName, _Build] = {
    "tiny": _TINY,
    "tiny-v": _Build(
        _TINY.unet, _TINY.vae, _TINY.text, _TINY.tokens, {"prediction_type": "v_prediction"}
    ),
    "sd15": _SD15,
}
assert set(BUILDS) == set(get_args(BuiltName))


def build_pipeline(
    name: BuiltName,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableDiffusionPipeline:
    """Build a pipeline with random weights that depend only on the seed.

    The weights are sampled on the CPU in float32, so every device and dtype holds the same model.
    """
    shape = BUILDS[name]
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        tokenizer = _byte_tokenizer(shape.tokens)
        text = _text_encoder(tokenizer, shape)
        unet = UNet2DConditionModel(**shape.unet)
        vae = AutoencoderKL(**shape.vae)
    finally:
        torch.random.set_rng_state(state)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **shape.scheduler,
    )
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in (text, unet, vae):
        part.to(device=device, dtype=dtype)
    return pipeline


def _text_encoder(tokenizer: CLIPTokenizer, shape: _Build) -> CLIPTextModel:
    config = {"vocab_size": len(tokenizer), "projection_dim": 16, **shape.text}
    return CLIPTextModel(
        CLIPTextConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )


def _byte_tokenizer(tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are bytes (and ``sks``): it encodes any text, inefficiently."""
    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "sk", "sks</w>"]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("s", "k"), ("sk", "s</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)
