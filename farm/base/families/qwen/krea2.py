"""Krea 2 as a base: many layers of Qwen3-VL as text, one stream, guidance beside the prompt's own.

Legend: R rows, G guided images, C latent channels, H W latent, N transformer tokens, T tokens,
L layers of the text encoder, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar

import torch
from diffusers import Krea2Pipeline
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from transformers import BatchEncoding

from farm.base.conditioning import MASK, Conditioning, TokenIds
from farm.base.families.flow import CHAT_TOKENS, PATCH, own_tokens
from farm.base.families.qwen.shared import COUNTED_TOKENS, PREFIX_TOKENS, QwenFamily
from farm.base.interface import FamilyNames

__all__ = ["Krea2Base"]

DISTILLED_SHIFT = 1.15
"""``mu`` of the distilled model's timesteps at every size."""


class Krea2Base(QwenFamily):
    """A frozen ``Krea2Pipeline``, raw or distilled; ``Base`` documents each method."""

    pipeline_class: ClassVar[Any] = Krea2Pipeline
    family = FamilyNames("Krea 2", "Krea2Pipeline", "Krea-2", "krea2", tags=("krea-2",))

    def __init__(self, pipeline: Krea2Pipeline, *, name: str, fingerprint: str) -> None:
        super().__init__(pipeline, name=name, fingerprint=fingerprint)
        # the distilled model is made for a guidance scale of 0
        self.guidance_kind = "none" if pipeline.config.is_distilled else "cfg"
        _keep_rows_first(self._denoiser.text_fusion)

    # -- text ---------------------------------------------------------------------------------

    def _room(self) -> int:
        return CHAT_TOKENS - len(self._suffix())

    def _suffix(self) -> list[int]:
        ids: list[int] = self._pipeline.tokenizer(
            self._pipeline.prompt_template_encode_suffix
        ).input_ids
        return ids

    def _in_chat(self, prompts: Sequence[str], **options: Any) -> BatchEncoding:
        """The pipeline pads before the end of the template and then numbers tokens as if it had
        not; the padding comes last here, which is the same to the language model."""
        tokenizer, suffix = self._pipeline.tokenizer, self._suffix()
        longest = PREFIX_TOKENS + CHAT_TOKENS
        texts = [self._pipeline.prompt_template_encode_prefix + prompt for prompt in prompts]
        begun = tokenizer(texts, max_length=longest - len(suffix), truncation=True).input_ids
        whole = {"input_ids": [[*ids, *suffix] for ids in begun]}
        padded: BatchEncoding = tokenizer.pad(whole, max_length=longest, **options)
        return padded

    def _encode_tokens(self, tokens: TokenIds) -> Conditioning:
        states = self._hidden_states(tokens)
        chosen_RTD = torch.cat([states[i] for i in self._pipeline.text_encoder_select_layers], -1)
        return own_tokens(chosen_RTD, tokens.tensors["text_encoder.mask"], skip=PREFIX_TOKENS)

    # -- denoising ----------------------------------------------------------------------------

    def _denoise_tokens(
        self,
        tokens_RND: Tensor,
        times_R: Tensor,
        conditioning: Conditioning,
        patches: tuple[int, int],
    ) -> Tensor:
        rows, tokens, _ = conditioning.hidden_RTD.shape
        layers = int(self._denoiser.config.num_text_layers)
        predicted_RND: Tensor = self._denoiser(
            hidden_states=tokens_RND,
            encoder_hidden_states=conditioning.hidden_RTD.reshape(rows, tokens, layers, -1),
            timestep=times_R,
            position_ids=self._pipeline.prepare_position_ids(tokens, *patches, tokens_RND.device),
            encoder_attention_mask=conditioning.extra[MASK],
            return_dict=False,
        )[0]
        return predicted_RND

    def needs_unprompted(self, guidance: float) -> bool:
        return self.guidance_kind == "cfg" and guidance > 0

    def guide(self, prompted_GCHW: Tensor, plain_GCHW: Tensor, guidance: float | Tensor) -> Tensor:
        return prompted_GCHW + guidance * (prompted_GCHW - plain_GCHW)

    def _shift(self, steps: int, shape: tuple[int, int, int], config: Mapping[str, Any]) -> float:
        if self._pipeline.config.is_distilled:
            return DISTILLED_SHIFT
        return super()._shift(steps, shape, config)

    def _run_on_shapes(self) -> Callable[[Any, int], Any]:
        config = self._denoiser.config
        meta = torch.device("meta")
        text_shape = (1, COUNTED_TOKENS, config.num_text_layers, config.text_hidden_dim)

        def run(transformer: Any, side: int) -> Any:
            patches = (side // PATCH) ** 2
            return transformer(
                hidden_states=torch.empty(1, patches, config.in_channels, device=meta),
                encoder_hidden_states=torch.empty(text_shape, device=meta),
                timestep=torch.empty(1, device=meta),
                position_ids=torch.empty(COUNTED_TOKENS + patches, 3, device=meta),
                return_dict=False,
            )

        return run


# -- text fusion -------------------------------------------------------------------------------


def _keep_rows_first(fusion: Any) -> None:
    """Let the layers of text fusion see rows first, as adapters need it.

    diffusers attends over the text encoder's layers with rows and tokens in one dimension.
    """
    for block in fusion.layerwise_blocks:
        block.attn.set_processor(_AcrossLayers())
    fusion.forward = MethodType(_fused, fusion)


def _fused(fusion: Any, encoder_hidden_states: Tensor, attention_mask: Any = None) -> Tensor:
    """``Krea2TextFusion.forward`` without the change of shape: [R, T, L, D] to [R, T, D]."""
    states_RTLD = encoder_hidden_states
    for block in fusion.layerwise_blocks:
        states_RTLD = block(states_RTLD)
    fused_RTD: Tensor = fusion.projector(states_RTLD.transpose(2, 3)).squeeze(-1)
    for block in fusion.refiner_blocks:
        fused_RTD = block(fused_RTD, attention_mask=attention_mask)
    return fused_RTD


class _AcrossLayers:
    """``Krea2AttnProcessor`` for [R, T, L, D]: attention over the layers L of each token."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        def heads(values: Tensor, count: int) -> Tensor:
            return values.reshape(-1, values.shape[-2], count, attn.head_dim)

        query = attn.norm_q(heads(attn.to_q(hidden_states), attn.num_heads))
        key = attn.norm_k(heads(attn.to_k(hidden_states), attn.num_kv_heads))
        value = heads(attn.to_v(hidden_states), attn.num_kv_heads)
        groups = attn.num_heads // attn.num_kv_heads
        if groups > 1:
            key, value = (one.repeat_interleave(groups, dim=2) for one in (key, value))
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        attended = attended.reshape(hidden_states.shape)
        gated: Tensor = attn.to_out[0](attended * torch.sigmoid(attn.to_gate(hidden_states)))
        return gated
