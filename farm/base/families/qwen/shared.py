"""What Qwen-Image and Krea 2 have in common: a VAE of videos, and a template for prompts.

Legend: B images, R rows, C latent channels, H W latent, P pixels, T tokens.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor

from farm.base.families.flow import CHAT_TOKENS, ChatPrompts, PackedLatents
from farm.base.families.latent_vae import LatentVae

__all__ = ["COUNTED_TOKENS", "PREFIX_TOKENS", "QwenFamily"]

PREFIX_TOKENS = 34
"""Tokens of the template before the prompt, whose states the transformer does not read."""
COUNTED_TOKENS = 64
"""Tokens of the prompt that is counted; the transformers read a prompt's own tokens only."""
TRAINED_CELLS = 128
"""Side of the images that the models were trained for, in latent cells."""


class VideoVae(LatentVae):
    """A VAE of videos for single frames, with a mean and a deviation for each channel."""

    def __init__(self, vae: Any) -> None:
        mean_C11, std_C11 = (
            torch.tensor(values, device=vae.device).view(-1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        factor = 2 ** len(vae.config.temperal_downsample)
        super().__init__(vae, scale=1 / std_C11, shift=mean_C11, factor=factor)
        self._lock = Lock()  # the VAE keeps the frames of the call in progress

    def encode_moments(self, pixels_B3PP: Tensor) -> tuple[Tensor, Tensor]:
        with self._lock:
            distribution = self.vae.encode(pixels_B3PP.unsqueeze(2)).latent_dist
        return distribution.mean.squeeze(2).float(), distribution.std.squeeze(2).float()

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        with self._lock:
            frames_B3FPP = self.vae.decode(latents_BCHW.to(self.vae.dtype).unsqueeze(2)).sample
        images_B3PP: Tensor = frames_B3FPP[:, :, 0]
        return images_B3PP


class QwenFamily(ChatPrompts, PackedLatents):
    """A transformer over patches of ``VideoVae``'s latents."""

    @staticmethod
    def _trained_side(pipeline: Any) -> int:
        cells = getattr(pipeline, "default_sample_size", TRAINED_CELLS)
        return int(cells * pipeline.vae_scale_factor)

    def _wrap_vae(self, vae: Any) -> LatentVae:
        return VideoVae(vae)

    def _room(self) -> int:
        return CHAT_TOKENS
