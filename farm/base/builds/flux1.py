"""Random-weight pipelines of FLUX.1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from farm.base.builds.parts import (
    CLIP_L,
    FLUX1_LATENTS,
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

__all__ = ["FLUX1_BUILDS", "FluxBuild"]


@dataclass(frozen=True)
class FluxBuild:
    """The configs of one FLUX.1 pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    clip: dict[str, Any]
    t5: dict[str, Any]
    clip_tokens: int

    def make(self) -> FluxPipeline:
        """Build it with torch's current random state, on the current device."""
        short, long = byte_tokenizer(self.clip_tokens), letter_tokenizer()
        return FluxPipeline(
            tokenizer=short,
            tokenizer_2=long,
            text_encoder=clip_text(short, self.clip),
            text_encoder_2=t5_text(long, self.t5),
            transformer=FluxTransformer2DModel(**self.transformer),
            vae=AutoencoderKL(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )


_TINY = FluxBuild(
    transformer={
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    },
    vae={**TINY_VAE, **FLUX1_LATENTS, "latent_channels": 4},
    clip=TINY_CLIP,
    t5={"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2},
    clip_tokens=32,
)

FLUX1_BUILDS = {
    "tiny-flux": _TINY,
    "tiny-flux-schnell": replace(
        _TINY, transformer={**_TINY.transformer, "guidance_embeds": False}
    ),
    # black-forest-labs/FLUX.1-dev: the config.json of each part
    "flux1-dev": FluxBuild(
        transformer={"guidance_embeds": True},
        vae={**LARGE_VAE, **NO_QUANT_CONVS, **FLUX1_LATENTS, "latent_channels": 16},
        clip=CLIP_L,
        t5=T5_XXL,
        clip_tokens=77,
    ),
}
