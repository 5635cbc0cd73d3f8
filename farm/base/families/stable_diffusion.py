"""Stable Diffusion 1.x and 2.x as a base: CLIP text, UNet with cross-attention, factor-8 latents.

Owns what is specific to this family, and the noise schedules and schedulers of all epsilon and
velocity UNets.

Legend: R rows, C latent channels, H W latent, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.clip_windows import mask_of, window_ids, windows_of
from farm.base.families.pipeline_base import PipelineBase
from farm.base.interface import FamilyNames
from farm.base.schedules import NoiseSchedule, PredictionType
from farm.errors import BaseModelError

__all__ = ["DIFFUSION_SCHEDULERS", "StableDiffusionBase", "diffusion_schedule"]

DIFFUSION_SCHEDULERS: Mapping[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
VERSION_2_WIDTH = 1024
"""Width of the text states of Stable Diffusion 2.x; 768 in 1.x."""


class StableDiffusionBase(PipelineBase):
    """A frozen ``StableDiffusionPipeline``; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = StableDiffusionPipeline
    load_options: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    scheduler_classes: ClassVar[Mapping[str, Any]] = DIFFUSION_SCHEDULERS
    reads_windows = True

    def __init__(self, pipeline: StableDiffusionPipeline, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self.resolution_px = int(pipeline.unet.config.sample_size) * self.latent_factor
        self.family = _names_of(pipeline)

    def _training_schedule(self) -> NoiseSchedule:
        return diffusion_schedule(self._pipeline.scheduler)

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        return TokenIds({"text_encoder": window_ids(self._pipeline.tokenizer, prompts, windows)})

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        ids_RT = tokens.tensors["text_encoder"]
        states = [
            self._pipeline.text_encoder(window_RT)[0]
            for window_RT in windows_of(ids_RT, self.num_tokens)
        ]
        return Conditioning(torch.cat(states, dim=1), mask_of(ids_RT, self.num_tokens))

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return cast(
            Tensor,
            self._denoiser(
                latents_RCHW,
                timesteps_R,
                encoder_hidden_states=conditioning.hidden_RTD,
                encoder_attention_mask=conditioning.extra.get(MASK),
                return_dict=False,
            )[0],
        )


def _names_of(pipeline: StableDiffusionPipeline) -> FamilyNames:
    if pipeline.unet.config.cross_attention_dim != VERSION_2_WIDTH:
        architecture, kohya, title = "stable-diffusion-v1", "sd_v1", "Stable Diffusion 1.x"
    else:
        velocity = pipeline.scheduler.config.get("prediction_type") == "v_prediction"
        architecture = f"stable-diffusion-v2-{'768-v' if velocity else '512'}"
        kohya, title = "sd_v2_v" if velocity else "sd_v2", "Stable Diffusion 2.x"
    return FamilyNames(
        title,
        "StableDiffusionPipeline",
        architecture,
        kohya,
        tags=("stable-diffusion",),
        kohya_prefixes={"unet": "lora_unet_", "text_encoder": "lora_te_"},
    )


def diffusion_schedule(scheduler: Any) -> NoiseSchedule:
    """The training noise schedule of a DDPM-like diffusers scheduler.

    Raises:
        BaseModelError: if it predicts neither noise nor velocity.
    """
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"the base's scheduler predicts {prediction!r}",
            "use a base with epsilon or v_prediction",
        )
    # all DDPM-like schedulers compute the same alphas from one config; DDIM's are unmodified
    plain = DDIMScheduler.from_config(scheduler.config)
    return NoiseSchedule.from_alphas(plain.alphas_cumprod, cast(PredictionType, prediction))
