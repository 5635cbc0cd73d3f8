"""The interface of a frozen base model, as trainer, engine and scores use it.

Owns what all families of text-to-image models have in common; the values that its methods exchange
are in ``conditioning``. Each family implements it in a module of its own, and no code outside
``farm/base`` depends on the family.

Legend: R rows, B images, C latent channels, H W latent, P pixels, T tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from farm.base.conditioning import Conditioning, TokenIds, whole_frames
from farm.base.memory import DenoiserCounts, MemoryFacts
from farm.base.schedules import NoiseSchedule, PredictionType
from farm.schedulers import SchedulerName

__all__ = ["Base", "Conditioning", "FamilyNames", "GuidanceKind"]

GuidanceKind = Literal["cfg", "embedded", "none"]
"""How a guidance scale takes effect: by a second row with the negative prompt (classifier-free
guidance), as an input of the denoiser, or not at all (models distilled for it)."""


@dataclass(frozen=True)
class FamilyNames:
    """What other tools call a base's family; for messages and adapter files."""

    title: str
    """In messages, such as ``Stable Diffusion 1.x``."""
    pipeline: str
    """The diffusers pipeline that loads the base and its adapters."""
    architecture: str
    """ModelSpec's identifier of the model, such as ``stable-diffusion-v1``."""
    kohya: str
    """kohya's ``ss_base_model_version``."""
    tags: tuple[str, ...] = ()
    """Tags of the model card for this family."""
    kohya_prefixes: Mapping[str, str] = field(default_factory=dict)
    """Each component's prefix in kohya's files; empty where the family has no such form."""
    kohya_uses_sgm: bool = False
    """Whether kohya names a UNet's layers as Stability's own code does (``input_blocks_4_1``)."""
    kohya_fuses: bool = False
    """Whether kohya names a transformer's layers as its authors' own code does, with one adapter
    for query, key and value."""


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
    family: FamilyNames
    guidance_kind: GuidanceKind = "cfg"
    uses_frames: bool = False
    """Whether the denoiser reads how an image was cropped; see ``whole_frames``."""

    reads_windows: bool = False
    """Whether a prompt longer than ``memory.tokens`` can be read in several windows."""

    @property
    def recipe(self) -> Mapping[str, object]:
        """Recipe fields of the family's official script; presets and manifests override them."""
        return {}

    @property
    def prediction_type(self) -> PredictionType:
        """What the denoiser predicts."""
        return self.schedule.prediction_type

    # -- modules that may carry adapters ------------------------------------------------------

    @property
    @abstractmethod
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that can be adapted, by their names in adapter files:
        ``unet`` (or ``transformer``) and the text encoders."""

    @property
    @abstractmethod
    def denoiser_name(self) -> str:
        """The key of the denoiser among ``components``."""

    @property
    def text_names(self) -> tuple[str, ...]:
        """The keys of the text encoders that can be adapted, among ``components``."""
        return tuple(name for name in self.components if name != self.denoiser_name)

    # -- text ---------------------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        """Token ids, padded and truncated as in the base's pipeline.

        Args:
            windows: into how many windows each prompt is divided, the last ones empty where the
                text is shorter; None, and a base that does not read windows, takes one.
        """

    def num_windows(self, prompt: str) -> int:
        """Windows that the whole prompt takes; 1 where the base does not read windows."""
        return 1

    @abstractmethod
    def unread(self, prompt: str, windows: int = 1) -> str:
        """The end of a prompt that ``tokenize`` cuts off; empty if nothing is cut off."""

    @abstractmethod
    def encode_tokens(self, tokens: TokenIds) -> Conditioning:
        """Run the text encoders; gradients flow where adapters require them."""

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], windows: Sequence[int] | None = None
    ) -> Conditioning:
        """Encode prompts without gradients, one row each; ``tokenize`` documents the windows."""
        return self.encode_tokens(self.tokenize(prompts, windows).sent(self.device))

    def encode_negative(
        self, prompts: Sequence[str], windows: Sequence[int] | None = None
    ) -> Conditioning:
        """Encode negative prompts; some families replace an empty one, as their pipelines do.

        An image's negative prompt takes as many windows as its prompt.
        """
        return self.encode_prompts(prompts, windows)

    def release_text_encoders(self) -> None:  # noqa: B027 - most families keep them
        """Free the device memory of text encoders that carry no adapter. Their weights are then
        copied to the device layer by layer while they encode, so callers should cache what they
        encode. A family whose text encoders are small beside its denoiser keeps them."""

    def for_crops(self, conditioning: Conditioning, frames_R6: Tensor) -> Conditioning:
        """The conditioning of training rows, each with the frame of its crop.

        Only called where ``uses_frames``; must not synchronise with the device.
        """
        return conditioning

    def for_images(
        self, conditioning: Conditioning, *, width_px: int, height_px: int, guidance: float
    ) -> Conditioning:
        """The conditioning for generating images of a size with a guidance scale."""
        if not self.uses_frames:
            return conditioning
        frames_R6 = whole_frames(len(conditioning), width_px, height_px)
        return self.for_crops(conditioning, frames_R6.to(conditioning.hidden_RTD.device))

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
        """The denoiser's prediction, each row at its own timestep. Gradients flow.

        Args:
            timesteps_R: in the units of the base's scheduler (0 to 1000), integral or not. A family
                converts them to what its denoiser reads, and the prediction's sign and packing to
                ``prediction_type``.
        """

    def needs_unprompted(self, guidance: float) -> bool:
        """Whether an image with this guidance scale needs a second row with the negative prompt."""
        return self.guidance_kind == "cfg" and guidance > 1

    def guide(self, prompted_GCHW: Tensor, plain_GCHW: Tensor, guidance: float | Tensor) -> Tensor:
        """The guided prediction of images that ``needs_unprompted``; the scale may be [G, 1, 1, 1].

        Classifier-free guidance (Ho & Salimans 2022) unless the family has a form of its own.
        """
        return plain_GCHW + guidance * (prompted_GCHW - plain_GCHW)

    @abstractmethod
    def scheduler(self, name: SchedulerName = "base") -> Any:
        """A new diffusers scheduler object with this base's noise schedule.

        Raises:
            UserError: for a name that this family does not know.
        """

    def start_scheduler(
        self,
        name: SchedulerName,
        steps: int,
        shape: tuple[int, int, int],
        device: torch.device | None = None,
    ) -> Any:
        """A scheduler object with its timesteps set for one image, as the base's pipeline sets
        them.

        Args:
            shape: (C, H, W) of the latent: some families shift the timesteps by its size.
            device: of the timesteps; None leaves them on the CPU.
        """
        scheduler = self.scheduler(name)
        scheduler.set_timesteps(steps, device=device)
        return scheduler

    # -- facts --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def memory(self) -> MemoryFacts:
        """The facts that the planner needs."""

    def denoiser_counts(self) -> DenoiserCounts | None:
        """Counts for the planner, which take seconds; None where its constants were counted on
        this family."""
        return None

    @abstractmethod
    def pipeline(self) -> Any:
        """The plain diffusers pipeline over the same modules (shared, not copied)."""
