"""Random-weight pipelines of FLUX.2-dev."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from farm.base.builds.flow import (
    FLUX2_SCHEDULER,
    LARGE_VAE,
    TINY_KLEIN,
    TINY_KLEIN_VAE,
    TINY_TEXT,
    chat_tokenizer,
    flux2_vae,
)

__all__ = ["FLUX2_DEV_BUILDS", "Flux2DevBuild"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
)
"""The form of Mistral's own template for a system message and one message of the user."""


@dataclass(frozen=True)
class Flux2DevBuild:
    """The configs of one FLUX.2-dev pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]

    def make(self) -> Flux2Pipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = chat_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        special = {
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        text = {"model_type": "mistral", "vocab_size": len(tokenizer), **special, **self.text}
        config = Mistral3Config(
            text_config=text, vision_config={"model_type": "pixtral", **self.vision}
        )
        return Flux2Pipeline(
            tokenizer=tokenizer,
            text_encoder=Mistral3ForConditionalGeneration(config),
            transformer=Flux2Transformer2DModel(**self.transformer),
            vae=flux2_vae(self.vae),
            scheduler=FlowMatchEulerDiscreteScheduler(**FLUX2_SCHEDULER),
        )


FLUX2_DEV_BUILDS = {
    "tiny-flux2-dev": Flux2DevBuild(
        transformer={**TINY_KLEIN, "guidance_embeds": True},
        vae=TINY_KLEIN_VAE,
        text={**TINY_TEXT, "num_hidden_layers": 31, "sliding_window": None},
        vision={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    # black-forest-labs/FLUX.2-dev: the defaults of the transformer's class are its shape; the text
    # encoder is Mistral Small 3.2
    "flux2-dev": Flux2DevBuild(
        transformer={},
        vae={**LARGE_VAE, "latent_channels": 32},
        text={
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "vocab_size": 131072,
            "sliding_window": None,
        },
        vision={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "image_size": 1540,
            "patch_size": 14,
        },
    ),
}
