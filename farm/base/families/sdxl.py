"""Stable Diffusion XL as a base: two CLIP text encoders, pooled text, size and crop conditioning.

Owns what is specific to this family; schedules and schedulers are those of Stable Diffusion. Its
children (Pony, Illustrious and others) are folders of the same class.

Legend: R rows, C latent channels, H W latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.clip_windows import mask_of, window_ids, windows_of
from farm.base.families.counting import count_denoiser
from farm.base.families.latent_vae import LatentVae
from farm.base.families.pipeline_base import HALF, PipelineBase
from farm.base.families.stable_diffusion import DIFFUSION_SCHEDULERS, diffusion_schedule
from farm.base.interface import FamilyNames
from farm.base.memory import DenoiserCounts, MemoryFacts
from farm.base.schedules import NoiseSchedule
from farm.errors import BaseModelError

__all__ = ["StableDiffusionXLBase"]

POOLED, FRAMES = "pooled", "frames"
"""Entries of ``Conditioning.extra``."""
TEXT_PARTS = ("text_encoder", "text_encoder_2")


class StableDiffusionXLBase(PipelineBase):
    """A frozen ``StableDiffusionXLPipeline``; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    load_options: ClassVar[Mapping[str, Any]] = {
        "image_encoder": None,
        "feature_extractor": None,
        "add_watermarker": False,
    }
    full_precision_parts: ClassVar[tuple[str, ...]] = ("vae",)
    text_parts: ClassVar[tuple[str, ...]] = TEXT_PARTS
    adaptable_text: ClassVar[tuple[str, ...]] = TEXT_PARTS
    scheduler_classes: ClassVar[Mapping[str, Any]] = DIFFUSION_SCHEDULERS
    uses_frames = True
    reads_windows = True
    family = FamilyNames(
        "Stable Diffusion XL",
        "StableDiffusionXLPipeline",
        "stable-diffusion-xl-v1-base",
        "sdxl_base_v1-0",
        tags=("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
        kohya_prefixes={
            "unet": "lora_unet_",
            "text_encoder": "lora_te1_",
            "text_encoder_2": "lora_te2_",
        },
        kohya_uses_sgm=True,
    )

    def __init__(self, pipeline: StableDiffusionXLPipeline, *, name: str, fingerprint: str) -> None:
        if pipeline.text_encoder is None:
            raise BaseModelError(
                f"{name} is a refiner: it has no first text encoder", "use a base model of SDXL"
            )
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self.resolution_px = int(pipeline.unet.config.sample_size) * self.latent_factor

    def _training_schedule(self) -> NoiseSchedule:
        return diffusion_schedule(self._pipeline.scheduler)

    def _wrap_vae(self, vae: Any) -> LatentVae:
        # the original one's activations overflow in float16
        vae.to(torch.float32 if self._upcasts_vae else self.dtype)
        wrapped = super()._wrap_vae(vae)
        mean, std = (vae.config.get(f"latents_{kind}") for kind in ("mean", "std"))
        if mean is not None and std is not None:  # Playground and others normalise by channel
            std_C11 = torch.tensor(std, device=vae.device).view(-1, 1, 1)
            wrapped.shift = torch.tensor(mean, device=vae.device).view(-1, 1, 1)
            wrapped.scale = wrapped.scale / std_C11
        return wrapped

    @property
    def _upcasts_vae(self) -> bool:
        config = self._pipeline.vae.config
        return self.dtype in HALF and bool(config.force_upcast)

    # -- text ---------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        tokenizers = (self._pipeline.tokenizer, self._pipeline.tokenizer_2)
        ids = [window_ids(tokenizer, prompts, windows) for tokenizer in tokenizers]
        return TokenIds(dict(zip(TEXT_PARTS, ids, strict=True)))

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states, pooled_RD = [], None
        for part in TEXT_PARTS:
            outputs = [
                self._text[part](window_RT, output_hidden_states=True)
                for window_RT in windows_of(tokens.tensors[part], self.num_tokens)
            ]
            states.append(torch.cat([output.hidden_states[-2] for output in outputs], dim=1))
            pooled_RD = outputs[0][0]  # of the second encoder's first window, projected
        assert pooled_RD is not None
        mask = mask_of(tokens.tensors[TEXT_PARTS[0]], self.num_tokens)
        return Conditioning(torch.cat(states, dim=-1), {POOLED: pooled_RD, **mask})

    def encode_negative(
        self, prompts: Sequence[str], windows: Sequence[int] | None = None
    ) -> Conditioning:
        encoded = self.encode_prompts(prompts, windows)
        if not self._pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        kept_R1 = torch.tensor([[prompt != ""] for prompt in prompts], device=self.device)
        return Conditioning(
            torch.where(kept_R1[:, None], encoded.hidden_RTD, 0.0),
            {**encoded.extra, POOLED: torch.where(kept_R1, encoded.extra[POOLED], 0.0)},
        )

    def for_crops(self, conditioning: Conditioning, frames_R6: Tensor) -> Conditioning:
        return conditioning.with_extra(**{FRAMES: frames_R6})

    # -- denoising ----------------------------------------------------------------------------

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        added = {
            "text_embeds": conditioning.extra[POOLED],
            "time_ids": conditioning.extra[FRAMES],
        }
        return cast(
            Tensor,
            self._denoiser(
                latents_RCHW,
                timesteps_R,
                encoder_hidden_states=conditioning.hidden_RTD,
                encoder_attention_mask=conditioning.extra.get(MASK),
                added_cond_kwargs=added,
                return_dict=False,
            )[0],
        )

    # -- facts --------------------------------------------------------------------------------

    def denoiser_counts(self) -> DenoiserCounts:
        config = self._denoiser.config
        meta = torch.device("meta")
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

        def run(unet: Any, side: int) -> Any:
            return unet(
                torch.empty(1, config.in_channels, side, side, device=meta),
                torch.empty(1, dtype=torch.int64, device=meta),
                torch.empty(1, self.num_tokens, config.cross_attention_dim, device=meta),
                added_cond_kwargs={
                    "text_embeds": torch.empty(1, pooled, device=meta),
                    "time_ids": torch.empty(1, 6, device=meta),
                },
                return_dict=False,
            )

        return count_denoiser(config, type(self._denoiser), run)

    @property
    def memory(self) -> MemoryFacts:
        vae = self._pipeline.vae
        kept = 4 * sum(p.numel() for p in vae.parameters()) if vae.config.force_upcast else 0
        return replace(super().memory, full_precision_bytes=kept)
