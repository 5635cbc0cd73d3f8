"""Random-weight pipelines of the flow-transformer families: Z-Image and FLUX.2-klein."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

__all__ = [
    "FLUX2_SCHEDULER",
    "KLEIN_BUILDS",
    "LARGE_VAE",
    "LONG_TEXT",
    "TINY_KLEIN",
    "TINY_KLEIN_VAE",
    "TINY_TEXT",
    "TINY_VAE",
    "Z_IMAGE_BUILDS",
    "KleinBuild",
    "ZImageBuild",
    "chat_tokenizer",
    "flux2_vae",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The form of Qwen3's own template for one message of the user."""


def chat_tokenizer() -> Qwen2Tokenizer:
    """A chat tokenizer whose tokens are bytes: it encodes any text, inefficiently."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


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
            text_encoder=Qwen3Model(_language(tokenizer, self.text)),
            transformer=transformer,
            vae=AutoencoderKL(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(**self.scheduler),
        )


@dataclass(frozen=True)
class KleinBuild:
    """The configs of one FLUX.2-klein pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    is_distilled: bool = False

    def make(self) -> Flux2KleinPipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = chat_tokenizer()
        return Flux2KleinPipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3ForCausalLM(_language(tokenizer, self.text)),
            transformer=Flux2Transformer2DModel(**self.transformer),
            vae=flux2_vae(self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(**FLUX2_SCHEDULER),
            is_distilled=self.is_distilled,
        )


def flux2_vae(shape: dict[str, Any]) -> AutoencoderKLFlux2:
    """A VAE of FLUX.2 with batch statistics unlike the initial 0 and 1."""
    vae = AutoencoderKLFlux2(**shape)
    if vae.device.type != "meta":
        vae.bn.running_mean.normal_(std=0.1)
        vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


FLUX2_SCHEDULER = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
}


def _language(tokenizer: Qwen2Tokenizer, shape: dict[str, Any]) -> Qwen3Config:
    special = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen3Config(**{"vocab_size": len(tokenizer), **special, **shape})


TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
TINY_VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
LARGE_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 1024,
}
_QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
}

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
        vae={**TINY_VAE, "latent_channels": 4, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        text=TINY_TEXT,
    ),
    # Tongyi-MAI/Z-Image: the defaults of the transformer's class are its shape
    "z-image": ZImageBuild(
        transformer={},
        vae={
            **LARGE_VAE,
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        text=_QWEN3_4B,
    ),
}

TINY_KLEIN = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 3 * 16,
    "timestep_guidance_channels": 256,
    "axes_dims_rope": [4, 4, 4, 4],
    "guidance_embeds": False,
}
TINY_KLEIN_VAE = {**TINY_VAE, "latent_channels": 4}
LONG_TEXT = {**TINY_TEXT, "num_hidden_layers": 28}

KLEIN_BUILDS = {
    "tiny-klein": KleinBuild(TINY_KLEIN, TINY_KLEIN_VAE, LONG_TEXT),
    "tiny-klein-distilled": KleinBuild(TINY_KLEIN, TINY_KLEIN_VAE, LONG_TEXT, is_distilled=True),
    # black-forest-labs/FLUX.2-klein-base-4B: 3.9 billion parameters
    "klein-4b": KleinBuild(
        transformer={
            "in_channels": 128,
            "num_layers": 5,
            "num_single_layers": 20,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3 * 2560,
            "guidance_embeds": False,
        },
        vae={**LARGE_VAE, "latent_channels": 32},
        text=_QWEN3_4B,
    ),
}
