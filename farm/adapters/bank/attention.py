"""Attention whose query, key and value adapters read their input once.

Owns an attention processor for training. It replaces diffusers' own in the attentions whose
projections a bank adapts together, and passes other calls on to it.

Legend: R rows, N positions, T tokens, D width, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from farm.adapters.bank.grouped import grouped_linear
from farm.adapters.bank.layers import BankLinear
from farm.base.fast_blocks import is_plain_attention

__all__ = ["SharedInputAttention", "share_attention_inputs"]


class SharedInputAttention:
    """diffusers' ``AttnProcessor2_0`` with one product for the adapters of one input."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """[R, N, D] → [R, N, D]."""
        layers = (attn.to_q, attn.to_k, attn.to_v)
        if attention_mask is not None or hidden_states.ndim != 3 or not _is_grouped(layers):
            mixed: Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )
            return mixed
        query, key, value = _projected(layers, hidden_states, encoder_hidden_states)
        heads = attn.heads
        mixed_RhNd = functional.scaled_dot_product_attention(
            _by_head(query, heads), _by_head(key, heads), _by_head(value, heads)
        )
        output: Tensor = attn.to_out[0](mixed_RhNd.transpose(1, 2).flatten(2))
        return output


def _by_head(x_RND: Tensor, heads: int) -> Tensor:
    rows, positions, width = x_RND.shape
    return x_RND.view(rows, positions, heads, width // heads).transpose(1, 2)


def share_attention_inputs(denoiser: nn.Module) -> list[Any]:
    """Replace the processors of a wrapped denoiser's attentions in which the adapters of one input
    are stored together.

    Returns:
        These attentions; their own processors are ``attention.processor.original``.
    """
    attentions: list[Any] = [
        module
        for module in denoiser.modules()
        if hasattr(module, "processor")
        and is_plain_attention(module)
        and any(_together(layers) for layers in _inputs_of(module))
    ]
    for attention in attentions:
        attention.processor = SharedInputAttention(attention.processor)
    return attentions


def _inputs_of(attention: Any) -> Sequence[Sequence[Any]]:
    q, k, v = attention.to_q, attention.to_k, attention.to_v
    return ((k, v),) if attention.is_cross_attention else ((q, k, v),)


def _together(layers: Sequence[Any]) -> bool:
    """Whether all of these layers' down halves are one block of the bank."""
    if not all(isinstance(layer, BankLinear) for layer in layers):
        return False
    blocks = {id(layer.stacked.block) for layer in layers}
    return len(blocks) == 1 and layers[0].stacked.block.num_layers == len(layers)


def _is_grouped(layers: Sequence[Any]) -> bool:
    return any(isinstance(layer, BankLinear) and layer.route.mode == "grouped" for layer in layers)


def _projected(
    layers: Sequence[Any], x_RND: Tensor, context_RTD: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = layers
    if context_RTD is None and _together(layers):
        query, key, value = _shared(layers, x_RND)
        return query, key, value
    context_RTD = x_RND if context_RTD is None else context_RTD
    if _together((k, v)):
        key, value = _shared((k, v), context_RTD)
        return q(x_RND), key, value
    return q(x_RND), k(context_RTD), v(context_RTD)


def _shared(layers: Sequence[BankLinear], x: Tensor) -> tuple[Tensor, ...]:
    factors = [layer.grouped_factor for layer in layers if layer.grouped_factor is not None]
    rank = layers[0].stacked.up_SrO.shape[1]
    factor_S1k = torch.cat([one.expand(-1, 1, rank) for one in factors], 2) if factors else None
    parts = [layer.parts for layer in layers]
    return grouped_linear(x, parts, layers[0].stacked.block.down_SIk, factor_S1k, "products")
