"""FLUX.1 as a base: pooled CLIP text, T5 token states, guidance as an input of the transformer.

Legend: R rows, H W patches, N transformer tokens, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline
from torch import Tensor

from farm.base.conditioning import Conditioning, TokenIds
from farm.base.families.flow import (
    GUIDANCE,
    PATCH,
    TRAINING_GUIDANCE,
    GuidanceInput,
    PackedLatents,
    with_guidance,
)
from farm.base.families.pipeline_base import padded_ids
from farm.base.interface import FamilyNames

__all__ = ["Flux1Base"]

POOLED = "pooled"
"""Entry of ``Conditioning.extra``."""
T5_TOKENS = 512


class Flux1Base(PackedLatents, GuidanceInput):
    """A frozen ``FluxPipeline``, dev or schnell; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = FluxPipeline
    load_options: ClassVar[Mapping[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    adaptable_text: ClassVar[tuple[str, ...]] = ("text_encoder",)
    family = FamilyNames(
        "FLUX.1",
        "FluxPipeline",
        "flux-1-dev",
        "flux1",
        tags=("flux",),
        kohya_prefixes={"transformer": "lora_unet_", "text_encoder": "lora_te1_"},
        kohya_fuses=True,
    )

    def _reading_tokenizer(self) -> Any:
        return self._pipeline.tokenizer_2

    @property
    def num_tokens(self) -> int:
        return T5_TOKENS

    # -- text ---------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        long = self._pipeline.tokenizer_2(
            list(prompts),
            padding="max_length",
            max_length=T5_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        short = padded_ids(self._pipeline.tokenizer, prompts)
        return TokenIds({"text_encoder": short, "text_encoder_2": long.input_ids})

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        pooled_RD = self._text["text_encoder"](tokens.tensors["text_encoder"]).pooler_output
        hidden_RTD = self._text["text_encoder_2"](tokens.tensors["text_encoder_2"])[0]
        return with_guidance(Conditioning(hidden_RTD, {POOLED: pooled_RD}), TRAINING_GUIDANCE)

    # -- denoising ----------------------------------------------------------------------------

    def _denoise_tokens(
        self,
        tokens_RND: Tensor,
        times_R: Tensor,
        conditioning: Conditioning,
        patches: tuple[int, int],
    ) -> Tensor:
        hidden_RTD = conditioning.hidden_RTD
        is_guided = self.guidance_kind == "embedded"
        predicted_RND: Tensor = self._denoiser(
            hidden_states=tokens_RND,
            timestep=times_R,
            guidance=conditioning.extra[GUIDANCE].float() if is_guided else None,
            pooled_projections=conditioning.extra[POOLED],
            encoder_hidden_states=hidden_RTD,
            txt_ids=torch.zeros(hidden_RTD.shape[1], 3, device=hidden_RTD.device),
            img_ids=_image_places(*patches, tokens_RND.device),
            return_dict=False,
        )[0]
        return predicted_RND

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        config = self._denoiser.config
        meta = torch.device("meta")

        def run(transformer: Any, side: int) -> Any:
            cells = (side // PATCH) ** 2
            return transformer(
                hidden_states=torch.empty(1, cells, config.in_channels, device=meta),
                timestep=torch.empty(1, device=meta),
                guidance=torch.empty(1, device=meta) if config.guidance_embeds else None,
                pooled_projections=torch.empty(1, config.pooled_projection_dim, device=meta),
                encoder_hidden_states=torch.empty(
                    1, T5_TOKENS, config.joint_attention_dim, device=meta
                ),
                txt_ids=torch.empty(T5_TOKENS, 3, device=meta),
                img_ids=torch.empty(cells, 3, device=meta),
                return_dict=False,
            )

        return run


def _image_places(height: int, width: int, device: torch.device) -> Tensor:
    """Position ids (0, row, column) of transformer tokens, float [N, 3]."""
    places_HW3 = torch.zeros(height, width, 3, device=device)
    places_HW3[..., 1] = torch.arange(height, device=device)[:, None]
    places_HW3[..., 2] = torch.arange(width, device=device)
    return places_HW3.flatten(0, 1)
