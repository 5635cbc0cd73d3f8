"""Z-Image as a base: Qwen3 text of any length, one stream, negated output.

Legend: R rows, C latent channels, H W latent, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.flow import ChatPrompts, own_tokens, shift_by_size
from farm.base.interface import FamilyNames

__all__ = ["ZImageBase"]

PATCH = 2
"""Latent cells per transformer token along one side."""


class ZImageBase(ChatPrompts):
    """A frozen ``ZImagePipeline``; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = ZImagePipeline
    thinking: ClassVar[bool] = True
    family = FamilyNames(
        "Z-Image",
        "ZImagePipeline",
        "z-image",
        "zimage",
        tags=("z-image",),
        kohya_prefixes={"transformer": "lora_unet_"},
    )

    @property
    def size_multiple(self) -> int:
        return self.latent_factor * PATCH

    @property
    def latent_channels(self) -> int:
        return int(self._denoiser.config.in_channels)

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states_RTD = self._hidden_states(tokens)[-2]
        return own_tokens(states_RTD, tokens.tensors["text_encoder.mask"])

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        lengths = conditioning.extra[MASK].sum(1).tolist()
        texts = [
            hidden_TD[:length]
            for hidden_TD, length in zip(conditioning.hidden_RTD, lengths, strict=True)
        ]
        predictions = self._denoiser(
            list(latents_RCHW.unsqueeze(2).unbind(0)),
            (1000 - timesteps_R) / 1000,
            texts,
            return_dict=False,
        )[0]
        return -torch.stack(predictions).squeeze(2)

    def needs_unprompted(self, guidance: float) -> bool:
        return guidance > 0

    def guide(self, prompted_GCHW: Tensor, plain_GCHW: Tensor, guidance: float | Tensor) -> Tensor:
        return prompted_GCHW + guidance * (prompted_GCHW - plain_GCHW)

    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        return shift_by_size(shape, PATCH, config)

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        channels, width = self.latent_channels, int(self._denoiser.config.cap_feat_dim)

        def run(transformer: Any, side: int) -> Any:
            latent = torch.empty(channels, 1, side, side, device="meta")
            text = torch.empty(CHAT_ROOM, width, device="meta")
            return transformer([latent], torch.empty(1, device="meta"), [text], return_dict=False)

        return run


CHAT_ROOM = 64
"""Tokens of the prompt that is counted; Z-Image reads a prompt's own tokens only."""
