"""Stable Diffusion 3 and 3.5 as a base: two CLIP encoders and T5 side by side, pooled CLIP text.

T5 is optional, as in the pipeline: folders saved without it read prompts by CLIP alone.

Legend: R rows, C latent channels, H W latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional

from farm.base.conditioning import Conditioning, TokenIds
from farm.base.families.flow import FlowBase, shift_by_size
from farm.base.families.pipeline_base import padded_ids
from farm.base.interface import FamilyNames
from farm.base.schedules import NoiseSchedule
from farm.schedulers import SchedulerName

__all__ = ["StableDiffusion3Base"]

POOLED = "pooled"
"""Entry of ``Conditioning.extra``."""
CLIP_PARTS = ("text_encoder", "text_encoder_2")
T5_PART, T5_TOKENS = "text_encoder_3", 256


class StableDiffusion3Base(FlowBase):
    """A frozen ``StableDiffusion3Pipeline``; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    load_options: ClassVar[Mapping[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    text_parts: ClassVar[tuple[str, ...]] = (*CLIP_PARTS, T5_PART)
    adaptable_text: ClassVar[tuple[str, ...]] = CLIP_PARTS
    family = FamilyNames(
        "Stable Diffusion 3",
        "StableDiffusion3Pipeline",
        "stable-diffusion-v3",
        "sd3",
        tags=("stable-diffusion-3",),
    )

    def _training_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.of_flow(
            self._pipeline.scheduler, sampling="logit_normal", weighting="sigma_squared"
        )

    def _reading_tokenizer(self) -> Any:
        has_t5 = self._pipeline.text_encoder_3 is not None
        return self._pipeline.tokenizer_3 if has_t5 else self._pipeline.tokenizer

    @property
    def num_tokens(self) -> int:
        return T5_TOKENS if T5_PART in self._text else super().num_tokens

    @property
    def size_multiple(self) -> int:
        return self.latent_factor * int(self._denoiser.config.patch_size)

    # -- text ---------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        first, second = self._pipeline.tokenizer, self._pipeline.tokenizer_2
        ids = {
            CLIP_PARTS[0]: padded_ids(first, prompts),
            CLIP_PARTS[1]: padded_ids(second, prompts),
        }
        if T5_PART in self._text:
            tokens = self._pipeline.tokenizer_3(
                list(prompts),
                padding="max_length",
                max_length=T5_TOKENS,
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            )
            ids[T5_PART] = tokens.input_ids
        return TokenIds(ids)

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states, pooled = [], []
        for part in CLIP_PARTS:
            output = self._text[part](tokens.tensors[part], output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip_RTD = torch.cat(states, dim=-1)
        width = int(self._denoiser.config.joint_attention_dim)
        clip_RTD = functional.pad(clip_RTD, (0, width - clip_RTD.shape[-1]))
        if T5_PART in self._text:
            long_RTD = self._text[T5_PART](tokens.tensors[T5_PART])[0]
        else:
            long_RTD = clip_RTD.new_zeros(len(tokens), T5_TOKENS, width)
        hidden_RTD = torch.cat([clip_RTD, long_RTD], dim=-2)
        return Conditioning(hidden_RTD, {POOLED: torch.cat(pooled, dim=-1)})

    # -- denoising ----------------------------------------------------------------------------

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return cast(
            Tensor,
            self._denoiser(
                hidden_states=latents_RCHW,
                timestep=timesteps_R,
                encoder_hidden_states=conditioning.hidden_RTD,
                pooled_projections=conditioning.extra[POOLED],
                return_dict=False,
            )[0],
        )

    def start_scheduler(
        self,
        name: SchedulerName,
        steps: int,
        shape: tuple[int, int, int],
        device: torch.device | None = None,
    ) -> Any:
        scheduler = self.scheduler(name)
        shifts = scheduler.config.get("use_dynamic_shifting", False)
        mu = self._shift(steps, shape, scheduler.config) if shifts else None
        scheduler.set_timesteps(steps, device=device, mu=mu)  # the pipeline passes no sigmas
        return scheduler

    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        return shift_by_size(shape, int(self._denoiser.config.patch_size), config)

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        config = self._denoiser.config
        meta = torch.device("meta")
        tokens = T5_TOKENS + self._pipeline.tokenizer.model_max_length

        def run(transformer: Any, side: int) -> Any:
            return transformer(
                hidden_states=torch.empty(1, config.in_channels, side, side, device=meta),
                timestep=torch.empty(1, device=meta),
                encoder_hidden_states=torch.empty(
                    1, tokens, config.joint_attention_dim, device=meta
                ),
                pooled_projections=torch.empty(1, config.pooled_projection_dim, device=meta),
                return_dict=False,
            )

        return run
