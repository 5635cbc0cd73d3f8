"""Random-weight pipelines of Z-Image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model

from farm.base.builds.parts import (
    FLUX1_LATENTS,
    LARGE_VAE,
    NO_QUANT_CONVS,
    QWEN3_4B,
    TINY_TEXT,
    TINY_VAE,
    chat_tokenizer,
    language_form,
)

__all__ = ["Z_IMAGE_BUILDS", "ZImageBuild"]


@dataclass(frozen=True)
class ZImageBuild:
    """The configs of one Z-Image pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=lambda: {"shift": 3.0})

    def make(self) -> ZImagePipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = chat_tokenizer()
        transformer = ZImageTransformer2DModel(**self.transformer)
        with torch.no_grad():  # diffusers leaves these uninitialised
            for token in (transformer.x_pad_token, transformer.cap_pad_token):
                token.normal_(std=0.02)
        return ZImagePipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3Model(Qwen3Config(**language_form(tokenizer, self.text))),
            transformer=transformer,
            vae=AutoencoderKL(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(**self.scheduler),
        )


Z_IMAGE_BUILDS = {
    "tiny-z-image": ZImageBuild(
        transformer={
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [1024, 64, 64],
        },
        vae={**TINY_VAE, **FLUX1_LATENTS, "latent_channels": 4},
        text=TINY_TEXT,
    ),
    # Tongyi-MAI/Z-Image: the defaults of the transformer's class are its shape
    "z-image": ZImageBuild(
        transformer={},
        vae={**LARGE_VAE, **NO_QUANT_CONVS, **FLUX1_LATENTS, "latent_channels": 16},
        text=QWEN3_4B,
    ),
}
