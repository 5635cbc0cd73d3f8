"""A base over a diffusers pipeline: what all families do alike.

Owns freezing, loading, latent sizes, the VAE, facts for the planner, and the release of text
encoders. A family's module adds its text, its denoiser's call and its schedules.

Legend: R rows, B images, C latent channels, H W latent, P pixels, T tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from farm.base.conditioning import Conditioning, TokenIds
from farm.base.device.quantized import quantization_config
from farm.base.device.streaming import stream_weights
from farm.base.families.latent_vae import LatentVae
from farm.base.families.meta_parts import meta_parts
from farm.base.interface import Base
from farm.base.memory import MemoryFacts
from farm.base.tokens import PromptReader
from farm.errors import UserError
from farm.recipe import FAMILY_RECIPES, Quantization
from farm.schedulers import SCHEDULERS, SchedulerName

__all__ = ["HALF", "PipelineBase", "padded_ids"]

HALF = (torch.float16, torch.bfloat16)


class PipelineBase(Base):
    """A frozen diffusers pipeline; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any]
    """The diffusers class that loads the family's folders."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of its ``from_pretrained``."""
    half_dtype: ClassVar[torch.dtype] = torch.float16
    """Dtype on a GPU if none is asked for; flow transformers overflow in float16."""
    full_precision_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that are loaded in float32 where the base is in half precision."""
    denoiser_part: ClassVar[str] = "unet"
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The pipeline's text encoders, in the order in which they read a prompt."""
    adaptable_text: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """Those of them that can have adapters, which diffusers' loader of the family reads."""
    releases_text: ClassVar[bool] = False
    """Whether the weights of text encoders that cannot have adapters leave the device once they are
    released."""
    scheduler_classes: ClassVar[Mapping[str, Any]] = {}
    """diffusers' classes by ``SchedulerName``, without ``base``."""

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        """Freeze a loaded pipeline.

        Args:
            pipeline: on its device and in its dtype.
            name: as the user named it.
            fingerprint: the fingerprint of its folder.

        Raises:
            BaseModelError: if the pipeline's scheduler is not one of the family's.
        """
        self._pipeline = pipeline
        self.name, self.fingerprint = name, fingerprint
        self._denoiser: Any = getattr(pipeline, self.denoiser_part)
        self.device, self.dtype = self._denoiser.device, self._denoiser.dtype
        self._text: dict[str, Any] = {
            part: module
            for part in self.text_parts
            if (module := getattr(pipeline, part, None)) is not None
        }
        for module in (self._denoiser, pipeline.vae, *self._text.values()):
            module.requires_grad_(False).eval()
        self._is_released = False
        tokenizer = self._reading_tokenizer()
        self._reader = PromptReader(tokenizer.backend_tokenizer, self.num_tokens, name)
        self._vae = self._wrap_vae(pipeline.vae)
        self.schedule = self._training_schedule().to(self.device)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str,
        fingerprint: str,
        device: torch.device,
        dtype: torch.dtype | None,
        variant: str | None,
        quantization: Quantization | None = None,
    ) -> Self:
        """Load a folder; only safetensors are read, and nothing is fetched.

        On the device ``meta`` no weights are read: the parts have shapes alone.
        """
        parts = meta_parts(folder) if device.type == "meta" else {}
        dtype = dtype or (torch.float32 if device.type == "cpu" else cls.half_dtype)
        quantised: dict[str, Any] = {}
        if quantization is not None:
            config = quantization_config(quantization, cls.denoiser_part, dtype, device.type)
            quantised["quantization_config"] = config
        full = dict.fromkeys(cls.full_precision_parts, torch.float32)
        pipeline = cls.pipeline_class.from_pretrained(
            folder,
            dtype={"default": dtype, **full} if full and dtype in HALF else dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            **{**cls.load_options, **parts, **quantised},
        )
        cls._complete(pipeline, folder)
        pipeline.set_progress_bar_config(disable=True)
        placed = pipeline if parts else pipeline.to(device)
        return cls(placed, name=name, fingerprint=fingerprint)

    # -- what a family adds -------------------------------------------------------------------

    @classmethod
    def _complete(cls, pipeline: Any, folder: Path) -> None:  # noqa: B027 - most need nothing
        """Add to a loaded pipeline what its class does not load."""

    @abstractmethod
    def _training_schedule(self) -> Any:
        """The ``NoiseSchedule`` of training."""

    def _wrap_vae(self, vae: Any) -> LatentVae:
        """The VAE in the family's form."""
        config = vae.config
        shift = float(getattr(config, "shift_factor", None) or 0.0)
        return LatentVae(vae, scale=float(config.scaling_factor), shift=shift)

    def _reading_tokenizer(self) -> Any:
        """The tokenizer whose limit decides which part of a prompt is read."""
        return self._pipeline.tokenizer

    @property
    def num_tokens(self) -> int:
        """Tokens of a prompt that are read, start and end included."""
        return int(self._reading_tokenizer().model_max_length)

    @property
    def latent_channels(self) -> int:
        """C of the denoiser's latents."""
        return int(self._denoiser.config.in_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per cell of the denoiser's latents along one side."""
        factor: int = self._vae.factor
        return factor

    @property
    def size_multiple(self) -> int:
        """Pixels that sides must be multiples of."""
        return self.latent_factor

    @property
    def recipe(self) -> Mapping[str, object]:
        fields = dict(FAMILY_RECIPES.get(type(self._pipeline).__name__, {}))
        side_px = fields.get("resolution_px")
        if isinstance(side_px, int) and side_px > self.resolution_px:
            del fields["resolution_px"]  # a smaller base than the script is for
        return fields

    # -- modules ------------------------------------------------------------------------------

    @property
    def components(self) -> Mapping[str, nn.Module]:
        text = {name: self._text[name] for name in self.adaptable_text if name in self._text}
        return {self.denoiser_part: self._denoiser, **text}

    @property
    def denoiser_name(self) -> str:
        return self.denoiser_part

    def pipeline(self) -> Any:
        return self._pipeline

    # -- text ---------------------------------------------------------------------------------

    def num_windows(self, prompt: str) -> int:
        return self._reader.num_windows(prompt) if self.reads_windows else 1

    def unread(self, prompt: str, windows: int = 1) -> str:
        return self._reader.unread(prompt, windows if self.reads_windows else 1)

    def encode_tokens(self, tokens: TokenIds) -> Conditioning:
        return self._encode_tokens(tokens.to(self.device))

    @abstractmethod
    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        """Run the text encoders, which read and return tensors on the device."""

    def release_text_encoders(self) -> None:
        if self.device.type == "cuda" and not self._is_released:
            self._is_released = True
            for module in self._releasable():
                stream_weights(module, self.device)

    def _releasable(self) -> list[Any]:
        """The text encoders whose weights leave the device."""
        kept = self.adaptable_text if self.releases_text else self.text_parts
        return [module for name, module in self._text.items() if name not in kept]

    # -- images -------------------------------------------------------------------------------

    def latent_shape(self, width_px: int, height_px: int) -> tuple[int, int, int]:
        multiple = self.size_multiple
        if width_px % multiple or height_px % multiple or min(width_px, height_px) <= 0:
            raise UserError(
                f"size {width_px}x{height_px} px does not fit this base",
                f"use multiples of {multiple} px",
            )
        factor = self.latent_factor
        return self.latent_channels, height_px // factor, width_px // factor

    def encode_photos(self, pixels_B3PP: Tensor) -> Tensor:
        return self._vae.encode(pixels_B3PP)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return self._vae.decode(latents_BCHW, self.latent_factor)

    # -- denoising ----------------------------------------------------------------------------

    def scheduler(self, name: SchedulerName = "base") -> Any:
        own = self._pipeline.scheduler
        if name == "base":
            return type(own).from_config(own.config)
        if name not in self.scheduler_classes:
            known = [one for one in SCHEDULERS if one == "base" or one in self.scheduler_classes]
            raise UserError(
                f"{self.family.title} has no scheduler {name!r}"
                if name in SCHEDULERS
                else f"unknown scheduler {name!r}",
                f"use one of {', '.join(known)}",
            )
        return self.scheduler_classes[name].from_config(own.config)

    # -- facts --------------------------------------------------------------------------------

    @property
    def memory(self) -> MemoryFacts:
        released = [id(module) for module in self._releasable()]
        text = [module for module in self._text.values() if id(module) not in released]
        parts = (self._denoiser, *text, self._pipeline.vae)
        tensors = [tensor for part in parts for tensor in part.parameters()]
        return MemoryFacts(
            num_parameters=sum(tensor.numel() for tensor in tensors),
            denoiser_parameters=sum(t.numel() for t in self._denoiser.parameters()),
            weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            latent_channels=self.latent_channels,
            latent_factor=self.latent_factor,
            tokens=self.num_tokens,
            linear_parameters=sum(
                layer.in_features * layer.out_features
                for layer in self._denoiser.modules()
                if isinstance(layer, nn.Linear)
            ),
        )


def padded_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids as the CLIP pipelines make them: int64 [R, T] at the tokenizer's length."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return cast(Tensor, tokens.input_ids)
