"""Stable Diffusion 1.x and 2.x as a base: CLIP text, UNet with cross-attention, factor-8 latents.

Owns what is specific to this family. All other code uses ``farm.base.interface.Base``.

Legend: R rows, B images, C latent channels, H W latent, P pixels, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from farm.base.interface import Base, Conditioning, MemoryFacts
from farm.base.schedules import NoiseSchedule, PredictionType
from farm.base.tokens import PromptReader
from farm.errors import BaseModelError, UserError
from farm.schedulers import SCHEDULERS, SchedulerName

__all__ = ["StableDiffusionBase"]

SCHEDULER_CLASSES: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
VAE_PIXELS = 512 * 512
"""Pixels that a GPU encodes or decodes at once. The decoder's last block keeps three tensors of
256 channels at full size: 384 MiB for 512 x 512 px in half precision."""


class StableDiffusionBase(Base):
    """A frozen ``StableDiffusionPipeline``; ``Base`` documents each method."""

    def __init__(self, pipeline: StableDiffusionPipeline, *, name: str, fingerprint: str) -> None:
        """Freeze a loaded pipeline.

        Args:
            pipeline: of Stable Diffusion 1.x or 2.x, already on its device and in its dtype.
            name: as the user named it.
            fingerprint: the fingerprint of its folder.

        Raises:
            BaseModelError: if the pipeline's scheduler has no alphas or an unknown target.
        """
        self._pipeline = pipeline
        self.name = name
        self.fingerprint = fingerprint
        self.device = pipeline.unet.device
        self.dtype = pipeline.unet.dtype
        for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
            module.requires_grad_(False).eval()
        tokenizer = pipeline.tokenizer
        self._reader = PromptReader(
            tokenizer.backend_tokenizer, int(tokenizer.model_max_length), name
        )
        self._factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.resolution_px = int(pipeline.unet.config.sample_size) * self._factor
        self._scaling = float(pipeline.vae.config.scaling_factor)
        self._shift = float(getattr(pipeline.vae.config, "shift_factor", None) or 0.0)
        self.schedule = _schedule_of(pipeline.scheduler).to(self.device)
        self._vae_pixels = VAE_PIXELS if self.device.type == "cuda" else None

    @property
    def components(self) -> Mapping[str, nn.Module]:
        return {"unet": self._pipeline.unet, "text_encoder": self._pipeline.text_encoder}

    @property
    def denoiser_name(self) -> str:
        return "unet"

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        tokens = self._pipeline.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return cast(Tensor, tokens.input_ids)

    def unread(self, prompt: str) -> str:
        return self._reader.unread(prompt)

    def encode_tokens(self, tokens_RT: Tensor) -> Conditioning:
        hidden_RTD = self._pipeline.text_encoder(tokens_RT.to(self.device))[0]
        return Conditioning(hidden_RTD, {})

    def latent_shape(self, width_px: int, height_px: int) -> tuple[int, int, int]:
        if width_px % self._factor or height_px % self._factor or min(width_px, height_px) <= 0:
            raise UserError(
                f"size {width_px}x{height_px} px does not fit this base",
                f"use multiples of {self._factor} px",
            )
        channels = int(self._pipeline.unet.config.in_channels)
        return channels, height_px // self._factor, width_px // self._factor

    @torch.no_grad()
    def encode_photos(self, pixels_B3PP: Tensor) -> Tensor:
        return self._in_vae_batches(self._encode, pixels_B3PP, pixels_B3PP.shape[-2:].numel())

    def _encode(self, pixels_B3PP: Tensor) -> Tensor:
        pixels_B3PP = pixels_B3PP.to(self.device, self._pipeline.vae.dtype)
        distribution = self._pipeline.vae.encode(pixels_B3PP).latent_dist
        mean_BCHW = (distribution.mean.float() - self._shift) * self._scaling
        std_BCHW = distribution.std.float() * self._scaling
        return torch.stack([mean_BCHW, std_BCHW], dim=1)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        pixels = latents_BCHW.shape[-2:].numel() * self._factor**2
        return self._in_vae_batches(self._decode, latents_BCHW, pixels)

    def _in_vae_batches(self, run: Callable[[Tensor], Tensor], rows: Tensor, pixels: int) -> Tensor:
        """Process few images at once on a GPU: the VAE needs far more memory than the UNet."""
        if self._vae_pixels is None:
            return run(rows)
        most = max(1, self._vae_pixels // pixels)
        return torch.cat([run(part) for part in torch.split(rows, most)])

    def _decode(self, latents_BCHW: Tensor) -> Tensor:
        latents_BCHW = latents_BCHW.to(self.device) / self._scaling + self._shift
        pixels_B3PP = self._pipeline.vae.decode(latents_BCHW.to(self._pipeline.vae.dtype)).sample
        return cast(Tensor, (pixels_B3PP.float() / 2 + 0.5).clamp(0, 1))

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return cast(
            Tensor,
            self._pipeline.unet(
                latents_RCHW,
                timesteps_R,
                encoder_hidden_states=conditioning.hidden_RTD,
                return_dict=False,
            )[0],
        )

    def scheduler(self, name: SchedulerName = "base") -> Any:
        own = self._pipeline.scheduler
        if name == "base":
            return type(own).from_config(own.config)
        if name not in SCHEDULER_CLASSES:
            raise UserError(f"unknown scheduler {name!r}", f"use one of {', '.join(SCHEDULERS)}")
        return SCHEDULER_CLASSES[name].from_config(own.config)

    @property
    def memory(self) -> MemoryFacts:
        parts = (self._pipeline.unet, self._pipeline.text_encoder, self._pipeline.vae)
        tensors = [tensor for part in parts for tensor in part.parameters()]
        return MemoryFacts(
            num_parameters=sum(tensor.numel() for tensor in tensors),
            denoiser_parameters=sum(t.numel() for t in self._pipeline.unet.parameters()),
            weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            latent_channels=int(self._pipeline.unet.config.in_channels),
            latent_factor=self._factor,
            tokens=int(self._pipeline.tokenizer.model_max_length),
        )

    def pipeline(self) -> StableDiffusionPipeline:
        return self._pipeline


def _schedule_of(scheduler: Any) -> NoiseSchedule:
    """The training noise schedule of a DDPM-like diffusers scheduler."""
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise BaseModelError(
            f"the base's scheduler predicts {prediction!r}",
            "use a Stable Diffusion base with epsilon or v_prediction",
        )
    # all DDPM-like schedulers compute the same alphas from one config; DDIM's are unmodified
    plain = DDIMScheduler.from_config(scheduler.config)
    return NoiseSchedule.from_alphas(plain.alphas_cumprod, cast(PredictionType, prediction))
