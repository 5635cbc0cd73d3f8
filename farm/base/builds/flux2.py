"""Random-weight pipelines of FLUX.2: klein and dev."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from farm.base.builds.parts import (
    LARGE_VAE,
    QWEN3_4B,
    TINY_TEXT,
    TINY_VAE,
    chat_tokenizer,
    language_form,
)

__all__ = ["FLUX2_DEV_BUILDS", "KLEIN_BUILDS", "Flux2DevBuild", "KleinBuild"]

MISTRAL_CHAT = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
)
"""The form of Mistral's own template for a system message and one message of the user."""


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
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**language_form(tokenizer, self.text))),
            **_image_parts(self.transformer, self.vae),
            is_distilled=self.is_distilled,
        )


@dataclass(frozen=True)
class Flux2DevBuild:
    """The configs of one FLUX.2-dev pipeline."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]

    def make(self) -> Flux2Pipeline:
        """Build it with torch's current random state, on the current device."""
        tokenizer = chat_tokenizer(MISTRAL_CHAT)
        config = Mistral3Config(
            text_config={"model_type": "mistral", **language_form(tokenizer, self.text)},
            vision_config={"model_type": "pixtral", **self.vision},
        )
        return Flux2Pipeline(
            tokenizer=tokenizer,
            text_encoder=Mistral3ForConditionalGeneration(config),
            **_image_parts(self.transformer, self.vae),
        )


def _image_parts(transformer: dict[str, Any], vae: dict[str, Any]) -> dict[str, Any]:
    """All parts but the text, by their names in the pipelines."""
    return {
        "transformer": Flux2Transformer2DModel(**transformer),
        "vae": _vae(vae),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, time_shift_type="exponential"
        ),
    }


def _vae(shape: dict[str, Any]) -> AutoencoderKLFlux2:
    """A VAE with batch statistics unlike the initial 0 and 1."""
    vae = AutoencoderKLFlux2(**shape)
    if vae.device.type != "meta":
        vae.bn.running_mean.normal_(std=0.1)
        vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


_TINY = {
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
_TINY_VAE = {**TINY_VAE, "latent_channels": 4}
_LARGE_VAE = {**LARGE_VAE, "latent_channels": 32}
_LONG_TEXT = {**TINY_TEXT, "num_hidden_layers": 28}

KLEIN_BUILDS = {
    "tiny-klein": KleinBuild(_TINY, _TINY_VAE, _LONG_TEXT),
    "tiny-klein-distilled": KleinBuild(_TINY, _TINY_VAE, _LONG_TEXT, is_distilled=True),
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
        vae=_LARGE_VAE,
        text=QWEN3_4B,
    ),
}

FLUX2_DEV_BUILDS = {
    "tiny-flux2-dev": Flux2DevBuild(
        transformer={**_TINY, "guidance_embeds": True},
        vae=_TINY_VAE,
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
        vae=_LARGE_VAE,
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
