"""The interface of a frozen base model, as trainer, engine and scores use it.

Owns what all families of text-to-image models have in common. A family (Stable Diffusion 1 and 2
in ``stable_diffusion.py``) implements it, and no code outside ``farm/base`` depends on the family.

Legend: R rows, B images, C latent channels, H W latent, P pixels, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from farm.base.device.transfer import sent
from farm.base.schedules import NoiseSchedule, PredictionType
from farm.schedulers import SchedulerName

__all__ = ["Base", "Conditioning", "MemoryFacts"]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts that condition the denoiser, one row per prompt.

    ``hidden_RTD`` holds the text encoder's token states. Families that need more (such as SDXL's
    pooled text and sizes) put it in ``extra``, each tensor with rows first.
    """

    hidden_RTD: Tensor
    extra: Mapping[str, Tensor]

    def __len__(self) -> int:
        return self.hidden_RTD.shape[0]

    def __getitem__(self, rows: slice | Tensor | list[int]) -> Conditioning:
        """The chosen rows."""
        return Conditioning(
            self.hidden_RTD[rows], {name: value[rows] for name, value in self.extra.items()}
        )

    def repeat(self, count: int) -> Conditioning:
        """Each row repeated ``count`` times, repeats adjacent."""
        return Conditioning(
            self.hidden_RTD.repeat_interleave(count, 0),
            {name: value.repeat_interleave(count, 0) for name, value in self.extra.items()},
        )

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Every tensor moved, as ``Tensor.to`` does."""
        return Conditioning(
            self.hidden_RTD.to(*args, **kwargs),
            {name: value.to(*args, **kwargs) for name, value in self.extra.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
        """All rows of all parts in order; the parts must come from one family."""
        return Conditioning(
            torch.cat([part.hidden_RTD for part in parts]),
            {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra},
        )


@dataclass(frozen=True)
class MemoryFacts:
    """Facts about a base that the planner needs; byte counts are for the dtype it is loaded in."""

    num_parameters: int
    denoiser_parameters: int
    weight_bytes: int
    """Size of all resident parts: text encoder, VAE and denoiser."""
    latent_channels: int
    latent_factor: int
    """Pixels per latent cell along one side; 8 for Stable Diffusion."""
    tokens: int
    """Length of a prompt in tokens, padding included."""

    def halved(self) -> MemoryFacts:
        """The facts for the same base in half precision, as it is loaded on GPUs."""
        return replace(self, weight_bytes=2 * self.num_parameters)


class Base(ABC):
    """One frozen text-to-image model. No method of it changes a weight or keeps gradients,
    except that ``denoise`` and ``encode_tokens`` let gradients through for adapters."""

    name: str
    """As the user named it: ``embedded``, a folder, a URL, a hub id."""
    fingerprint: str
    """64 hex digits over the weights and configs that matter."""
    device: torch.device
    dtype: torch.dtype
    """Dtype of the frozen weights."""
    resolution_px: int
    """Side of the images that the base was trained for."""
    schedule: NoiseSchedule

    @property
    def prediction_type(self) -> PredictionType:
        """What the denoiser predicts."""
        return self.schedule.prediction_type

    # -- modules that may carry adapters ------------------------------------------------------

    @property
    @abstractmethod
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that can be adapted, by their names in adapter files:
        ``unet`` (or ``transformer``) and ``text_encoder``."""

    @property
    @abstractmethod
    def denoiser_name(self) -> str:
        """The key of the denoiser among ``components``."""

    # -- text ---------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, int64 [R, T], padded and truncated as in the base's pipeline."""

    @abstractmethod
    def unread(self, prompt: str) -> str:
        """The end of a prompt that ``tokenize`` cuts off; empty if nothing is cut off."""

    @abstractmethod
    def encode_tokens(self, tokens_RT: Tensor) -> Conditioning:
        """Run the text encoder; gradients flow where adapters require them."""

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts without gradients, one row each."""
        return self.encode_tokens(sent(self.tokenize(prompts), self.device))

    # -- images -------------------------------------------------------------------------------

    @abstractmethod
    def latent_shape(self, width_px: int, height_px: int) -> tuple[int, int, int]:
        """(C, H, W) of one image's latent.

        Raises:
            UserError: if a side is not a multiple of the latent factor.
        """

    @abstractmethod
    def encode_photos(self, pixels_B3PP: Tensor) -> Tensor:
        """Latent moments of images in [-1, 1]: [B, 2, C, H, W], mean then standard deviation,
        both in the denoiser's latent space (scaled and shifted). A latent is sampled as
        ``mean + std · noise``."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images in [0, 1], float32 [B, 3, P, P], from latents in the denoiser's space."""

    # -- denoising ----------------------------------------------------------------------------

    @abstractmethod
    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The denoiser's prediction, each row at its own timestep. Gradients flow."""

    @abstractmethod
    def scheduler(self, name: SchedulerName = "base") -> Any:
        """A new diffusers scheduler object with this base's noise schedule.

        Raises:
            UserError: for a name that this family does not know.
        """

    # -- facts --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def memory(self) -> MemoryFacts:
        """The facts that the planner needs."""

    @abstractmethod
    def pipeline(self) -> Any:
        """The plain diffusers pipeline over the same modules (shared, not copied)."""
