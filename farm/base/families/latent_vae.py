"""A pipeline's VAE between images and the denoiser's latents.

Owns the forms in which families scale latents, the VAE's precision, and how many images it
processes at once.

Legend: B images, C latent channels, H W latent, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["VAE_PIXELS", "LatentVae"]

PIXEL_VALUES = 3 * 256
"""Values per pixel that the decoder's last block keeps."""
VAE_PIXELS = 512 * 512
"""Pixels that a GPU encodes or decodes at once; more if memory is free. The decoder's last block
keeps three tensors of 256 channels at full size: 384 MiB for 512 x 512 px in half precision."""


class LatentVae:
    """Encodes to and decodes from ``(z - shift) · scale``.

    A family with another form (packed channels, batch statistics, a time axis) overrides
    ``to_denoiser`` and ``to_vae``, or ``encode_moments`` and ``decode_latents``.
    """

    def __init__(
        self,
        vae: Any,
        *,
        scale: float | Tensor,
        shift: float | Tensor = 0.0,
        samples: bool = True,
        factor: int | None = None,
    ) -> None:
        """Wrap a loaded VAE, on its device and in its dtype.

        Args:
            scale, shift: numbers, or tensors [C, 1, 1] of each channel's.
            samples: whether training samples latents, as most official scripts do, or takes their
                mode.
            factor: pixels per latent cell along one side, before any packing; None counts the
                blocks in the VAE's config.
        """
        self.vae, self.scale, self.shift, self.samples = vae, scale, shift, samples
        self.factor: int = factor or 2 ** (len(vae.config.block_out_channels) - 1)
        self.max_pixels = VAE_PIXELS if vae.device.type == "cuda" else None

    @torch.no_grad()
    def encode(self, pixels_B3PP: Tensor) -> Tensor:
        """Latent moments [B, 2, C, H, W]; see ``Base.encode_photos``."""
        return self._in_batches(self._encode, pixels_B3PP, pixels_B3PP.shape[-2:].numel())

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor, factor: int) -> Tensor:
        """Images in [0, 1], float32 [B, 3, P, P].

        Args:
            factor: pixels per cell of these latents along one side.
        """
        pixels = latents_BCHW.shape[-2:].numel() * factor**2
        return self._in_batches(self._decode, latents_BCHW, pixels)

    # -- the form of latents ------------------------------------------------------------------

    def encode_moments(self, pixels_B3PP: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation as the VAE gives them, float32."""
        distribution = self.vae.encode(pixels_B3PP).latent_dist
        return distribution.mean.float(), distribution.std.float()

    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] from latents as the VAE gives them."""
        return cast(Tensor, self.vae.decode(latents_BCHW.to(self.vae.dtype)).sample)

    def to_denoiser(self, mean_BCHW: Tensor, std_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Moments in the denoiser's latent space."""
        return (mean_BCHW - self.shift) * self.scale, std_BCHW * self.scale

    def to_vae(self, latents_BCHW: Tensor) -> Tensor:
        """Latents as the VAE gives them."""
        return latents_BCHW / self.scale + self.shift

    # -- batches ------------------------------------------------------------------------------

    def _encode(self, pixels_B3PP: Tensor) -> Tensor:
        moments = self.encode_moments(pixels_B3PP.to(self.vae.device, self.vae.dtype))
        mean_BCHW, std_BCHW = self.to_denoiser(*moments)
        if not self.samples:
            std_BCHW = torch.zeros_like(std_BCHW)
        return torch.stack([mean_BCHW, std_BCHW], dim=1)

    def _decode(self, latents_BCHW: Tensor) -> Tensor:
        pixels_B3PP = self.decode_latents(self.to_vae(latents_BCHW.to(self.vae.device)))
        return (pixels_B3PP.float() / 2 + 0.5).clamp(0, 1)

    def _affordable_pixels(self) -> int:
        """Pixels that fit into a quarter of the memory that is free now, within the process's
        share; 0 where nothing limits them."""
        device = self.vae.device
        if device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - used
        get_share = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # torch 2.8
        share = 1.0 if get_share is None else get_share(device)
        free = min(free, int(share * total) - used)
        num_bytes: int = PIXEL_VALUES * self.vae.dtype.itemsize
        return max(0, free) // 4 // num_bytes

    def _in_batches(self, run: Callable[[Tensor], Tensor], rows: Tensor, pixels: int) -> Tensor:
        """Process few images at once on a GPU: the VAE needs far more memory than the denoiser."""
        if self.max_pixels is None:
            return run(rows)
        most = max(1, max(self.max_pixels, self._affordable_pixels()) // pixels)
        return torch.cat([run(part) for part in torch.split(rows, most)])
