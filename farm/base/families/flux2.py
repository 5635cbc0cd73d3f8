"""FLUX.2 as a base: three layers of a language model as text, packed latents with batch statistics.

klein reads Qwen3 and is guided by a second row, unless it is distilled; dev reads Mistral and takes
the guidance scale as an input.

Legend: R rows, B images, C latent channels, H W latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor
from transformers import AutoTokenizer

from farm.base.conditioning import Conditioning, TokenIds
from farm.base.families.flow import (
    CHAT_TOKENS,
    GUIDANCE,
    TRAINING_GUIDANCE,
    ChatPrompts,
    GuidanceInput,
    with_guidance,
)
from farm.base.families.latent_vae import LatentVae
from farm.base.interface import FamilyNames

__all__ = ["Flux2DevBase", "Flux2KleinBase"]

PATCH = 2


class PackedVae(LatentVae):
    """Latents of 2 x 2 cells packed into channels, normalised by the VAE's batch statistics."""

    def __init__(self, vae: Any) -> None:
        mean_C11, variance_C11 = (
            statistic.float().view(-1, 1, 1)
            for statistic in (vae.bn.running_mean, vae.bn.running_var)
        )
        std_C11 = torch.sqrt(variance_C11 + vae.config.batch_norm_eps)
        # the official script trains on the mode of each photo's latent
        super().__init__(vae, scale=1 / std_C11, shift=mean_C11, samples=False)

    def to_denoiser(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return super().to_denoiser(_packed(mean_BCHW), _packed(std_BCHW))

    def to_vae(self, latents_BCHW: Tensor) -> Tensor:
        return _unpacked(super().to_vae(latents_BCHW))


class Flux2Base(ChatPrompts):
    """What klein and dev do alike; ``Base`` documents each method."""

    text_layers: ClassVar[tuple[int, int, int]]
    """Hidden states of the language model that the transformer reads side by side."""

    def _wrap_vae(self, vae: Any) -> LatentVae:
        return PackedVae(vae)

    @property
    def latent_factor(self) -> int:
        factor: int = self._vae.factor * PATCH
        return factor

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states = self._hidden_states(tokens)
        return Conditioning(torch.cat([states[layer] for layer in self.text_layers], dim=-1), {})

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        rows, channels, height, width = latents_RCHW.shape
        hidden_RTD, guidance_R = conditioning.hidden_RTD, conditioning.extra.get(GUIDANCE)
        predicted_RNC = self._denoiser(
            hidden_states=latents_RCHW.flatten(2).transpose(1, 2),
            timestep=timesteps_R.to(latents_RCHW.dtype) / 1000,
            guidance=None if guidance_R is None else guidance_R.float(),
            encoder_hidden_states=hidden_RTD,
            txt_ids=_text_places(rows, hidden_RTD.shape[1], hidden_RTD.device),
            img_ids=_image_places(rows, height, width, latents_RCHW.device),
            return_dict=False,
        )[0]
        predicted_RCHW: Tensor = predicted_RNC.transpose(1, 2).reshape(
            rows, channels, height, width
        )
        return predicted_RCHW

    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        return _empirical_mu(shape[1] * shape[2], steps)

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        channels = self.latent_channels
        width = int(self._denoiser.config.joint_attention_dim)
        is_guided = self.guidance_kind == "embedded"
        meta = torch.device("meta")

        def run(transformer: Any, side: int) -> Any:
            return transformer(
                hidden_states=torch.empty(1, side * side, channels, device=meta),
                timestep=torch.empty(1, device=meta),
                guidance=torch.empty(1, device=meta) if is_guided else None,
                encoder_hidden_states=torch.empty(1, CHAT_TOKENS, width, device=meta),
                txt_ids=torch.empty(1, CHAT_TOKENS, 4, device=meta),
                img_ids=torch.empty(1, side * side, 4, device=meta),
                return_dict=False,
            )

        return run


class Flux2KleinBase(Flux2Base):
    """A frozen ``Flux2KleinPipeline``, base or distilled."""

    pipeline_class: ClassVar[Any] = Flux2KleinPipeline
    text_layers: ClassVar[tuple[int, int, int]] = (9, 18, 27)
    family = FamilyNames(
        "FLUX.2-klein",
        "Flux2KleinPipeline",
        "flux-2-klein",
        "flux2_klein",
        tags=("flux2-klein",),
        kohya_prefixes={"transformer": "lora_unet_"},
        kohya_fuses=True,
    )

    def __init__(self, pipeline: Flux2KleinPipeline, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self.guidance_kind = "none" if pipeline.config.is_distilled else "cfg"


class Flux2DevBase(GuidanceInput, Flux2Base):
    """A frozen ``Flux2Pipeline``.

    Its folders name a processor of images and text as their tokenizer, which needs torchvision;
    the tokenizer inside it is all that prompts need.
    """

    pipeline_class: ClassVar[Any] = Flux2Pipeline
    load_options: ClassVar[Mapping[str, Any]] = {"tokenizer": None}
    text_layers: ClassVar[tuple[int, int, int]] = (10, 20, 30)
    family = FamilyNames(
        "FLUX.2-dev",
        "Flux2Pipeline",
        "Flux.2-dev",
        "flux_2_dev",
        tags=("flux2", "flux2-dev"),
        kohya_prefixes={"transformer": "lora_unet_"},
        kohya_fuses=True,
    )

    @classmethod
    def _complete(cls, pipeline: Any, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        if not tokenizer.chat_template:
            raise ValueError("its tokenizer has no chat template")
        pipeline.register_modules(tokenizer=tokenizer)

    def _in_chat(self, prompts: Sequence[str], **options: Any) -> Any:
        return self._pipeline.tokenizer.apply_chat_template(
            format_input(list(prompts), self._pipeline.system_message),
            add_generation_prompt=False,
            tokenize=True,
            return_dict=True,
            max_length=CHAT_TOKENS,
            truncation=True,
            **options,
        )

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        return with_guidance(super()._encode_tokens(tokens), TRAINING_GUIDANCE)


def _packed(latents_BCHW: Tensor) -> Tensor:
    """[B, C, H, W] to [B, 4C, H/2, W/2]."""
    return torch.nn.functional.pixel_unshuffle(latents_BCHW, PATCH)


def _unpacked(latents_BCHW: Tensor) -> Tensor:
    """[B, 4C, H/2, W/2] to [B, C, H, W]."""
    return torch.nn.functional.pixel_shuffle(latents_BCHW, PATCH)


def _text_places(rows: int, tokens: int, device: torch.device) -> Tensor:
    """Position ids (time, row, column, token), int64 [R, T, 4]."""
    places_T4 = torch.zeros(tokens, 4, dtype=torch.int64, device=device)
    places_T4[:, 3] = torch.arange(tokens, device=device)
    return places_T4.expand(rows, -1, -1)


def _image_places(rows: int, height: int, width: int, device: torch.device) -> Tensor:
    """Position ids (time, row, column, token), int64 [R, H·W, 4]."""
    places_HW4 = torch.zeros(height, width, 4, dtype=torch.int64, device=device)
    places_HW4[..., 1] = torch.arange(height, device=device)[:, None]
    places_HW4[..., 2] = torch.arange(width, device=device)
    return places_HW4.flatten(0, 1).expand(rows, -1, -1)


def _empirical_mu(cells: int, steps: int) -> float:
    """``compute_empirical_mu`` of the FLUX.2 pipelines: fitted to image size and steps."""
    at_200 = 0.00016927 * cells + 0.45666666
    if cells > 4300:
        return at_200
    at_10 = 8.73809524e-05 * cells + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * steps + at_200 - 200.0 * slope
