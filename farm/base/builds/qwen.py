"""Random-weight pipelines of Qwen-Image and Krea 2, which share their VAE and prompt template."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from farm.base.builds.parts import chat_tokenizer, language_form

__all__ = ["KREA2_BUILDS", "QWEN_IMAGE_BUILDS", "Krea2Build", "QwenImageBuild"]

TEMPLATE_WORDS = (
    "system", "Describe", " the", " image", " by", " detailing", " color", " shape", " size",
    " texture", " quantity", " text", " spatial", " relationships", " of", " objects", " and",
    " background", "user", "assistant",
)  # fmt: skip
"""Words of the template that are tokens of Qwen's tokenizers. With them, the template has as many
tokens here as there, and the pipelines drop a fixed number of them."""


def template_tokenizer() -> Qwen2Tokenizer:
    """A chat tokenizer of bytes and the words of the template."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(list(TEMPLATE_WORDS))
    return tokenizer


@dataclass(frozen=True)
class QwenImageBuild:
    """The configs of one Qwen-Image pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    sample_cells: int = 128
    """Side of an image in latent cells, if the caller names no size."""
    scheduler: dict[str, Any] = field(
        default_factory=lambda: {
            "shift": 1.0,
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 0.9,
            "max_image_seq_len": 8192,
            "shift_terminal": 0.02,
            "time_shift_type": "exponential",
        }
    )

    def make(self) -> QwenImagePipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = template_tokenizer()
        text = language_form(tokenizer, self.text)
        config = Qwen2_5_VLConfig(text_config=text, vision_config=self.vision)
        pipeline = QwenImagePipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen2_5_VLForConditionalGeneration(config),
            transformer=QwenImageTransformer2DModel(**self.transformer),
            vae=AutoencoderKLQwenImage(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(**self.scheduler),
        )
        pipeline.default_sample_size = self.sample_cells
        return pipeline


@dataclass(frozen=True)
class Krea2Build:
    """The configs of one Krea 2 pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    text_layers: tuple[int, ...] | None = None
    """Hidden states that the transformer reads; None means the model's own."""
    sample_cells: int = 128
    is_distilled: bool = False

    def make(self) -> Krea2Pipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = template_tokenizer()
        text = language_form(tokenizer, self.text)
        transformer = Krea2Transformer2DModel(**self.transformer)
        with torch.no_grad():  # zeros in a new model
            for name, parameter in transformer.named_parameters():
                if name.endswith("scale_shift_table"):
                    parameter.normal_(std=0.5)
        pipeline = Krea2Pipeline(
            tokenizer=tokenizer,
            text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=self.vision)),
            transformer=transformer,
            vae=AutoencoderKLQwenImage(**self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=1.15,
                max_image_seq_len=6400,
                time_shift_type="exponential",
            ),
            text_encoder_select_layers=self.text_layers,
            is_distilled=self.is_distilled,
        )
        pipeline.default_sample_size = self.sample_cells
        return pipeline


_TINY_VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [-0.7, 0.3, 0.1, -0.2],
    "latents_std": [2.8, 1.4, 0.6, 1.2],
}

_TINY_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]},
}
_TINY_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
}

QWEN_IMAGE_BUILDS = {
    "tiny-qwen-image": QwenImageBuild(
        transformer={
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        vae=_TINY_VAE,
        text=_TINY_TEXT,
        vision=_TINY_VISION,
        sample_cells=8,
    ),
    # Qwen/Qwen-Image: the defaults of the classes of transformer and VAE are its shape; the text
    # encoder is Qwen2.5-VL-7B
    "qwen-image": QwenImageBuild(
        transformer={},
        vae={},
        text={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "vocab_size": 152064,
            "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]},
            "rope_theta": 1e6,
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
    ),
}

_TINY_KREA2 = Krea2Build(
    transformer={
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 16,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 1,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (8, 4, 4),
    },
    vae=_TINY_VAE,
    text={**_TINY_TEXT, "num_hidden_layers": 4, "head_dim": 8},
    vision={**_TINY_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    text_layers=(1, 2, 3),
    sample_cells=8,
)

KREA2_BUILDS = {
    "tiny-krea2": _TINY_KREA2,
    "tiny-krea2-distilled": replace(_TINY_KREA2, is_distilled=True),
    # krea/Krea-2: the defaults of the classes of transformer and VAE are its shape; the text
    # encoder is Qwen3-VL-4B
    "krea2": Krea2Build(
        transformer={},
        vae={},
        text={
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "vocab_size": 151936,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
            "rope_theta": 5e6,
        },
        vision={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
}
