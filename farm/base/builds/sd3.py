"""Random-weight pipelines of Stable Diffusion 3.5."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from farm.base.builds.parts import (
    CLIP_L,
    LARGE_VAE,
    NO_QUANT_CONVS,
    T5_XXL,
    TINY_CLIP,
    TINY_VAE,
    byte_tokenizer,
    clip_text,
    letter_tokenizer,
    t5_text,
)

__all__ = ["SD3_BUILDS", "Sd3Build"]


@dataclass(frozen=True)
class Sd3Build:
    """The configs of one Stable Diffusion 3 pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    clip: dict[str, Any]
    clip_2: dict[str, Any]
    t5: dict[str, Any] | None
    clip_tokens: int

    def make(self) -> StableDiffusion3Pipeline:
        """Build it with torch's current random state, on the current device."""
        first, second = byte_tokenizer(self.clip_tokens), byte_tokenizer(self.clip_tokens)
        long = t5 = None
        if self.t5 is not None:
            long = letter_tokenizer()
            t5 = t5_text(long, self.t5)
        return StableDiffusion3Pipeline(
            tokenizer=first,
            tokenizer_2=second,
            tokenizer_3=long,
            text_encoder=clip_text(first, self.clip, projects=True),
            text_encoder_2=clip_text(second, self.clip_2, projects=True),
            text_encoder_3=t5,
            transformer=SD3Transformer2DModel(**self.transformer),
            vae=AutoencoderKL(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )


_LATENTS = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
_TINY = Sd3Build(
    transformer={
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": 40,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 64,
    },
    vae={**TINY_VAE, **_LATENTS, "latent_channels": 4},
    clip=TINY_CLIP,
    clip_2={**TINY_CLIP, "hidden_act": "gelu"},
    t5={"d_model": 40, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2},
    clip_tokens=32,
)

SD3_BUILDS = {
    "tiny-sd3": _TINY,
    "tiny-sd3-clip": replace(_TINY, t5=None),
    # stabilityai/stable-diffusion-3.5-medium: the config.json of each part
    "sd35-medium": Sd3Build(
        transformer={
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        vae={**LARGE_VAE, **NO_QUANT_CONVS, **_LATENTS, "latent_channels": 16},
        clip={**CLIP_L, "projection_dim": 768},
        clip_2={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "projection_dim": 1280,
            "hidden_act": "gelu",
        },
        t5=T5_XXL,
        clip_tokens=77,
    ),
}
