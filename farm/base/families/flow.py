"""Flow transformers as bases: what the families that are trained by flow matching do alike.

Owns their schedule, the timesteps of generation with a shift by image size, chat prompts, packing
of latents, guidance as an input, and counting. A family's module combines them, and adds its text,
its latents and its denoiser's call.

Legend: R rows, C latent channels, H W latent, N transformer tokens, T tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.counting import count_denoiser
from farm.base.families.pipeline_base import PipelineBase
from farm.base.memory import DenoiserCounts
from farm.base.schedules import NoiseSchedule
from farm.base.tokens import PromptReader
from farm.schedulers import SchedulerName

__all__ = [
    "CHAT_TOKENS",
    "GUIDANCE",
    "PATCH",
    "TRAINING_GUIDANCE",
    "ChatPrompts",
    "FlowBase",
    "GuidanceInput",
    "PackedLatents",
    "own_tokens",
    "shift_by_size",
    "with_guidance",
]

CHAT_TOKENS = 512
"""Tokens of a prompt in its chat template (``max_sequence_length`` of the pipelines)."""
PATCH = 2
"""Latent cells per transformer token along one side, in ``PackedLatents``."""
GUIDANCE = "guidance"
"""The entry of ``Conditioning.extra`` with each row's guidance scale, where the transformer reads
it."""
TRAINING_GUIDANCE = 3.5
"""``guidance_scale`` of the official training scripts of FLUX."""


class FlowBase(PipelineBase):
    """A frozen pipeline with a transformer trained by flow matching."""

    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    denoiser_part: ClassVar[str] = "transformer"
    adaptable_text: ClassVar[tuple[str, ...]] = ()
    releases_text: ClassVar[bool] = True

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self.resolution_px = self._trained_side(pipeline)

    @staticmethod
    def _trained_side(pipeline: Any) -> int:
        """``resolution_px``."""
        return int(pipeline.vae.config.sample_size)

    def _training_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.of_flow(self._pipeline.scheduler)

    def start_scheduler(
        self,
        name: SchedulerName,
        steps: int,
        shape: tuple[int, int, int],
        device: torch.device | None = None,
    ) -> Any:
        scheduler = self.scheduler(name)
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        mu = self._shift(steps, shape, scheduler.config)
        scheduler.set_timesteps(sigmas=sigmas, device=device, mu=mu)
        return scheduler

    @abstractmethod
    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        """``mu`` of the pipeline, for schedulers that shift timesteps by the image's size."""

    # -- facts --------------------------------------------------------------------------------

    def denoiser_counts(self) -> DenoiserCounts:
        return count_denoiser(self._denoiser.config, type(self._denoiser), self._run_on_shapes())

    @abstractmethod
    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        """Calls the denoiser for one row of a side in latent cells, on the meta device."""


class PackedLatents(FlowBase):
    """A transformer over ``PATCH`` by ``PATCH`` patches of latents, timesteps from 0 to 1."""

    @property
    def latent_channels(self) -> int:
        return int(self._denoiser.config.in_channels) // PATCH**2

    @property
    def size_multiple(self) -> int:
        return self.latent_factor * PATCH

    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        return shift_by_size(shape, PATCH, config)

    def denoise(
        self, latents_RCHW: Tensor, timesteps_R: Tensor, conditioning: Conditioning
    ) -> Tensor:
        height, width = latents_RCHW.shape[2] // PATCH, latents_RCHW.shape[3] // PATCH
        tokens_RND = functional.pixel_unshuffle(latents_RCHW, PATCH).flatten(2).mT
        times_R = timesteps_R.to(latents_RCHW.dtype) / 1000
        predicted_RND = self._denoise_tokens(tokens_RND, times_R, conditioning, (height, width))
        rows, _, channels = predicted_RND.shape
        predicted_RDHW = predicted_RND.mT.reshape(rows, channels, height, width)
        return functional.pixel_shuffle(predicted_RDHW, PATCH)

    @abstractmethod
    def _denoise_tokens(
        self,
        tokens_RND: Tensor,
        times_R: Tensor,
        conditioning: Conditioning,
        patches: tuple[int, int],
    ) -> Tensor:
        """The transformer's prediction [R, N, D] for height and width in patches."""


class GuidanceInput(FlowBase):
    """A transformer that reads the guidance scale, unless its config says that it does not."""

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        has_guidance = bool(pipeline.transformer.config.guidance_embeds)
        self.guidance_kind = "embedded" if has_guidance else "none"

    def for_images(
        self, conditioning: Conditioning, *, width_px: int, height_px: int, guidance: float
    ) -> Conditioning:
        return with_guidance(conditioning, guidance)


class ChatPrompts(FlowBase):
    """Prompts that a language model reads in its chat template."""

    thinking: ClassVar[bool] = False
    """``enable_thinking`` of the template."""

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self._reader = PromptReader(pipeline.tokenizer.backend_tokenizer, self._room(), name)

    @property
    def num_tokens(self) -> int:
        return CHAT_TOKENS

    def _room(self) -> int:
        """Tokens of a prompt that are read beside the template."""
        return CHAT_TOKENS - len(self._in_chat([""], padding=False).input_ids[0])

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        tokens = self._in_chat(prompts, padding="max_length", return_tensors="pt")
        return TokenIds(
            {"text_encoder": tokens.input_ids, "text_encoder.mask": tokens.attention_mask}
        )

    def _in_chat(self, prompts: Sequence[str], **options: Any) -> Any:
        """The tokenizer's output for prompts in their template, cut at ``CHAT_TOKENS``."""
        return self._pipeline.tokenizer(
            [self._in_template(prompt) for prompt in prompts],
            max_length=CHAT_TOKENS,
            truncation=True,
            **options,
        )

    def _in_template(self, prompt: str) -> str:
        text: str = self._pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return text

    def _hidden_states(self, tokens: TokenIds) -> tuple[Tensor, ...]:
        """Of all layers of the language model, each [R, T, D]."""
        model = self._text["text_encoder"]
        output = getattr(model, "model", model)(
            input_ids=tokens.tensors["text_encoder"],
            attention_mask=tokens.tensors["text_encoder.mask"].bool(),
            output_hidden_states=True,
            use_cache=False,
        )
        states: tuple[Tensor, ...] = output.hidden_states
        return states


def shift_by_size(shape: tuple[int, int, int], patch: int, config: Mapping[str, Any]) -> float:
    """``calculate_shift`` of the pipelines: ``mu`` for a latent of [C, H, W].

    Args:
        patch: latent cells per transformer token along one side.
    """
    cells = (shape[1] // patch) * (shape[2] // patch)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - least) / (high - low)
    return float(cells * slope + least - slope * low)


def own_tokens(states_RTD: Tensor, mask_RT: Tensor, *, skip: int = 0) -> Conditioning:
    """Prompts of different lengths: each one's own tokens first, whichever side was padded.

    Args:
        mask_RT: marks the prompts' own tokens, template included.
        skip: own tokens at the start that are dropped.
    """
    mask_RT = mask_RT.bool()
    order_RT = torch.argsort(~mask_RT, dim=1, stable=True)
    states_RTD = states_RTD.gather(1, order_RT[..., None].expand_as(states_RTD))
    longest = int(mask_RT.sum(1).max())
    mask_RT = mask_RT.gather(1, order_RT)
    return Conditioning(states_RTD[:, skip:longest], {MASK: mask_RT[:, skip:longest]})


def with_guidance(conditioning: Conditioning, guidance: float) -> Conditioning:
    """The conditioning with a guidance scale [R], for transformers that read it."""
    guidance_R = conditioning.hidden_RTD.new_full((len(conditioning),), guidance)
    return conditioning.with_extra(**{GUIDANCE: guidance_R})
