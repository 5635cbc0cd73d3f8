"""Flow transformers as bases: what the families that are trained by flow matching do alike.

Owns their schedule, the timesteps of generation with a shift by image size, chat prompts, and
counting. A family's module adds its text, its latents and its denoiser's call.

Legend: R rows, C latent channels, H W latent, T tokens, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from farm.base.conditioning import TokenIds
from farm.base.families.counting import count_denoiser
from farm.base.families.pipeline_base import PipelineBase
from farm.base.interface import DenoiserCounts
from farm.base.schedules import NoiseSchedule
from farm.base.tokens import PromptReader
from farm.schedulers import SchedulerName

__all__ = ["CHAT_TOKENS", "ChatPrompts", "FlowBase", "shift_by_size"]

CHAT_TOKENS = 512
"""Tokens of a prompt in its chat template (``max_sequence_length`` of the pipelines)."""


class FlowBase(PipelineBase):
    """A frozen pipeline with a transformer trained by flow matching."""

    half_dtype: ClassVar[torch.dtype] = torch.bfloat16
    denoiser_part: ClassVar[str] = "transformer"
    adaptable_text: ClassVar[tuple[str, ...]] = ()
    releases_text: ClassVar[bool] = True

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        self.resolution_px = int(pipeline.vae.config.sample_size)

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


class ChatPrompts(FlowBase):
    """Prompts that a language model reads in its chat template."""

    thinking: ClassVar[bool]
    """``enable_thinking`` of the template."""

    def __init__(self, pipeline: Any, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        template = len(pipeline.tokenizer(self._in_template("")).input_ids)
        self._reader = PromptReader(
            pipeline.tokenizer.backend_tokenizer, CHAT_TOKENS - template, name
        )

    @property
    def num_tokens(self) -> int:
        return CHAT_TOKENS

    def tokenize(self, prompts: Sequence[str], windows: Sequence[int] | None = None) -> TokenIds:
        tokens = self._pipeline.tokenizer(
            [self._in_template(prompt) for prompt in prompts],
            padding="max_length",
            max_length=CHAT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        return TokenIds(
            {"text_encoder": tokens.input_ids, "text_encoder.mask": tokens.attention_mask}
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
