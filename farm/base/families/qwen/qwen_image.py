"""Qwen-Image as a base: Qwen2.5-VL text of any length, guidance that keeps each token's norm.

Legend: R rows, G guided images, C latent channels, H W latent, N transformer tokens, T tokens,
D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from torch.nn import functional

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.flow import CHAT_TOKENS, PATCH, own_tokens
from farm.base.families.qwen.shared import COUNTED_TOKENS, PREFIX_TOKENS, QwenFamily
from farm.base.interface import FamilyNames

__all__ = ["QwenImageBase"]


class QwenImageBase(QwenFamily):
    """A frozen ``QwenImagePipeline``; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = QwenImagePipeline
    family = FamilyNames(
        "Qwen-Image",
        "QwenImagePipeline",
        "Qwen-Image",
        "qwen_image",
        tags=("qwen-image",),
        kohya_prefixes={"transformer": "lora_unet_"},
    )

    # -- text ---------------------------------------------------------------------------------

    def _in_chat(self, prompts: Sequence[str], **options: Any) -> Any:
        template = self._pipeline.prompt_template_encode
        return self._pipeline.tokenizer(
            [template.format(prompt) for prompt in prompts],
            max_length=PREFIX_TOKENS + CHAT_TOKENS,
            truncation=True,
            **options,
        )

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states_RTD = self._hidden_states(tokens)[-1]
        return own_tokens(states_RTD, tokens.tensors["text_encoder.mask"], skip=PREFIX_TOKENS)

    # -- denoising ----------------------------------------------------------------------------

    def _denoise_tokens(
        self,
        tokens_RND: Tensor,
        times_R: Tensor,
        conditioning: Conditioning,
        patches: tuple[int, int],
    ) -> Tensor:
        predicted_RND: Tensor = self._denoiser(
            hidden_states=tokens_RND,
            timestep=times_R,
            encoder_hidden_states=conditioning.hidden_RTD,
            encoder_hidden_states_mask=conditioning.extra[MASK],
            img_shapes=[[(1, *patches)]] * len(tokens_RND),
            return_dict=False,
        )[0]
        return predicted_RND

    def guide(self, prompted_GCHW: Tensor, plain_GCHW: Tensor, guidance: float | Tensor) -> Tensor:
        guided_GCHW = super().guide(prompted_GCHW, plain_GCHW, guidance)
        return guided_GCHW * (_token_norms(prompted_GCHW) / _token_norms(guided_GCHW))

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        config = self._denoiser.config
        meta = torch.device("meta")

        def run(transformer: Any, side: int) -> Any:
            patches = side // PATCH
            return transformer(
                hidden_states=torch.empty(1, patches**2, config.in_channels, device=meta),
                timestep=torch.empty(1, device=meta),
                encoder_hidden_states=torch.empty(
                    1, COUNTED_TOKENS, config.joint_attention_dim, device=meta
                ),
                img_shapes=[[(1, patches, patches)]],
                return_dict=False,
            )

        return run


def _token_norms(prediction_GCHW: Tensor) -> Tensor:
    """The norm of each cell's transformer token, [G, 1, H, W]."""
    tokens_GDHW = functional.pixel_unshuffle(prediction_GCHW, PATCH)
    norms_G1HW: Tensor = torch.linalg.vector_norm(tokens_GDHW, dim=1, keepdim=True)
    return norms_G1HW.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
