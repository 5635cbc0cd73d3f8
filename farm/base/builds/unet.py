"""Random-weight pipelines of the UNet families: Stable Diffusion and Stable Diffusion XL."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from farm.base.builds.parts import CLIP_L, byte_tokenizer, clip_text

__all__ = ["SDXL_BUILDS", "SD_BUILDS", "SdBuild", "SdxlBuild"]


@dataclass(frozen=True)
class SdBuild:
    """The configs of one Stable Diffusion pipeline."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    scheduler: dict[str, Any] = field(default_factory=dict)

    def make(self) -> StableDiffusionPipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = byte_tokenizer(self.tokens)
        text = clip_text(tokenizer, self.text)
        unet = UNet2DConditionModel(**self.unet)
        vae = AutoencoderKL(**self.vae)
        return StableDiffusionPipeline(
            tokenizer=tokenizer,
            text_encoder=text,
            unet=unet,
            vae=vae,
            scheduler=_on_cpu(
                DDIMScheduler, clip_sample=False, set_alpha_to_one=False, **self.scheduler
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


@dataclass(frozen=True)
class SdxlBuild:
    """The configs of one Stable Diffusion XL pipeline."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    text_2: dict[str, Any]
    tokens: int

    def make(self) -> StableDiffusionXLPipeline:
        """Build it with torch's current random state, on the current device."""
        first, second = byte_tokenizer(self.tokens), byte_tokenizer(self.tokens)
        second.pad_token = "!"  # noqa: S105 - as in the real second tokenizer
        return StableDiffusionXLPipeline(
            tokenizer=first,
            tokenizer_2=second,
            text_encoder=clip_text(first, self.text),
            text_encoder_2=clip_text(second, self.text_2, projects=True),
            unet=UNet2DConditionModel(**self.unet),
            vae=AutoencoderKL(**self.vae),
            scheduler=_on_cpu(EulerDiscreteScheduler, timestep_spacing="leading"),
            add_watermarker=False,
        )


BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def _on_cpu(scheduler: Any, **config: Any) -> Any:
    """A scheduler, whose tables hold numbers even where the models have none."""
    with torch.device("cpu"):
        return scheduler(**BETAS, **config)


_TINY = SdBuild(
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
_SD15 = SdBuild(
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
    text=CLIP_L,
    tokens=77,
)

_TINY_XL = SdxlBuild(
    unet={
        **_TINY.unet,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
        "cross_attention_dim": 32,
    },
    vae={**_TINY.vae, "scaling_factor": 0.13025, "force_upcast": True},
    text=_TINY.text,
    text_2={**_TINY.text, "hidden_act": "gelu"},
    tokens=32,
)

# stabilityai/stable-diffusion-xl-base-1.0: the config.json of each part
_SDXL = SdxlBuild(
    unet={
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        "cross_attention_dim": 2048,
        "norm_num_groups": 32,
    },
    vae={**_SD15.vae, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text=_SD15.text,
    text_2={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    tokens=77,
)

SD_BUILDS = {
    "tiny": _TINY,
    "tiny-v": replace(_TINY, scheduler={"prediction_type": "v_prediction"}),
    "sd15": _SD15,
}
SDXL_BUILDS = {"tiny-sdxl": _TINY_XL, "sdxl": _SDXL}
