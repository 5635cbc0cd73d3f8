"""Faster forward passes for the blocks of a diffusers UNet on a CPU.

Owns the fast forward passes of residual blocks, transformer blocks, attention and feed-forward
layers: the same sums in the same order, but added in place, without divisions by one, without
copies out of the channels-last layout, and without repeated look-ups of constants. On the embedded
base a pass takes 8 % less time (one core). Block types not listed here, passes with masks, and
passes that keep gradients run diffusers' own code.

A row's result does not depend on the number of rows; see ``row_linear.py``.

Written against diffusers 0.42: ``TimestepEmbedding``, ``ResnetBlock2D``, ``Transformer2DModel``,
``BasicTransformerBlock``, ``AttnProcessor2_0``, ``GEGLU``.

Legend: R rows, C channels, H W image, N positions, T tokens, D width, h heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from farm.base.device.quantized import is_quantized
from farm.base.row_linear import row_linear

__all__ = ["is_plain_attention", "restore", "use_fast_blocks"]

Forward = Callable[..., Any]


def use_fast_blocks(denoiser: nn.Module) -> int:
    """Switch a frozen denoiser, used for inference on a CPU, to the channels-last layout and the
    fast forward passes. Returns the number of blocks changed.

    Measured on the embedded base: a pass takes 12 % less time than in the default layout, and a
    further 8 % less with the fast blocks.

    The fast passes apply no dropout, like a denoiser in evaluation mode. A bank may wrap the layers
    before or after this call.
    """
    if is_quantized(denoiser):  # their passes read weights as plain tensors
        return 0
    denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_fast = 0
    for module in denoiser.modules():
        fast = None if "forward" in vars(module) else _fast_forward_of(module)
        if fast is not None:
            vars(fast)["is_fast"] = True
            module.forward = fast
            num_fast += 1
    return num_fast


def restore(denoiser: nn.Module) -> None:
    """Restore diffusers' own forward passes; methods replaced by other code are left alone."""
    for module in denoiser.modules():
        if getattr(vars(module).get("forward"), "is_fast", False):
            del module.forward


def _fast_forward_of(module: nn.Module) -> Forward | None:
    """The fast forward pass for exactly this type of block, or None."""
    for kind, fits, made in _KINDS:
        if type(module) is kind and fits(module):
            return made(module, module.forward)
    return None


def _plain(*values: Any) -> bool:
    """Whether a call uses no optional arguments and keeps no gradients."""
    return not torch.is_grad_enabled() and all(value is None for value in values)


def _row_layer(layer: Any, x_RD: Tensor) -> Any:
    """A layer on one vector per row; a wrapped layer computes it in the same way."""
    if type(layer) is nn.Linear:
        return row_linear(x_RD, layer.weight, layer.bias)
    return layer(x_RD)


# -- timesteps --------------------------------------------------------------------------------


def _timestep_fits(module: Any) -> bool:
    return (
        isinstance(module.act, nn.SiLU)
        and getattr(module, "cond_proj", None) is None
        and module.post_act is None
    )


def _timestep(module: Any, full: Forward) -> Forward:
    def forward(sample_RD: Tensor, condition: Tensor | None = None) -> Any:
        if sample_RD.ndim != 2 or not _plain(condition):
            return full(sample_RD, condition)
        hidden_RD = functional.silu(_row_layer(module.linear_1, sample_RD))
        return _row_layer(module.linear_2, hidden_RD)

    return forward


# -- residual blocks --------------------------------------------------------------------------


def _resnet_fits(block: Any) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_emb_proj is not None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.output_scale_factor == 1
    )


def _resnet(block: Any, full: Forward) -> Forward:
    def forward(x_RCHW: Tensor, temb_RD: Tensor, *more: Any, **named: Any) -> Any:
        if more or not _plain(*named.values()):
            return full(x_RCHW, temb_RD, *more, **named)
        hidden = functional.silu(block.norm1(x_RCHW), inplace=True)
        hidden = block.conv1(hidden)
        hidden += _row_layer(block.time_emb_proj, functional.silu(temb_RD))[:, :, None, None]
        hidden = functional.silu(block.norm2(hidden), inplace=True)
        hidden = block.conv2(hidden)
        shortcut = block.conv_shortcut
        hidden += x_RCHW if shortcut is None else shortcut(x_RCHW)
        return hidden

    return forward


# -- transformers -----------------------------------------------------------------------------


def _transformer_fits(model: Any) -> bool:
    return bool(model.is_input_continuous and not model.use_linear_projection)


def _transformer(model: Any, full: Forward) -> Forward:
    def forward(
        x_RCHW: Tensor, encoder_hidden_states: Tensor | None = None, *more: Any,
        return_dict: bool = True, **named: Any,
    ) -> Any:  # fmt: skip
        if more or return_dict or not _plain(*named.values()):
            return full(x_RCHW, encoder_hidden_states, *more, return_dict=return_dict, **named)
        hidden = model.proj_in(model.norm(x_RCHW))
        rows, channels, high, wide = hidden.shape
        hidden_RND = hidden.permute(0, 2, 3, 1).reshape(rows, high * wide, channels)
        for block in model.transformer_blocks:
            hidden_RND = block(hidden_RND, encoder_hidden_states=encoder_hidden_states)
        # a view in the channels-last layout: nothing is copied
        hidden = hidden_RND.view(rows, high, wide, channels).permute(0, 3, 1, 2)
        hidden = model.proj_out(hidden)
        hidden += x_RCHW
        return (hidden,)

    return forward


def _block_fits(block: Any) -> bool:
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
        and block._chunk_size is None
    )


def _block(block: Any, full: Forward) -> Forward:
    def forward(
        x_RND: Tensor, *more: Any, encoder_hidden_states: Tensor | None = None, **named: Any
    ) -> Any:
        if more or not _plain(*named.values()):
            return full(x_RND, *more, encoder_hidden_states=encoder_hidden_states, **named)
        x_RND = block.attn1(block.norm1(x_RND)).add_(x_RND)
        x_RND = block.attn2(block.norm2(x_RND), encoder_hidden_states).add_(x_RND)
        return block.ff(block.norm3(x_RND)).add_(x_RND)

    return forward


def is_plain_attention(attention: Any) -> bool:
    """Whether an attention computes only projections and one scaled dot product."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.spatial_norm is None
        and attention.group_norm is None
        and attention.norm_q is None
        and attention.norm_k is None
        and not attention.norm_cross
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
    )


def _attention(attention: Any, full: Forward) -> Forward:
    heads = attention.heads

    def forward(
        x_RND: Tensor, encoder_hidden_states: Tensor | None = None, *more: Any, **named: Any
    ) -> Any:
        if more or x_RND.ndim != 3 or not _plain(*named.values()):
            return full(x_RND, encoder_hidden_states, *more, **named)
        context_RTD = x_RND if encoder_hidden_states is None else encoder_hidden_states
        query = attention.to_q(x_RND).unflatten(2, (heads, -1)).transpose(1, 2)
        key = attention.to_k(context_RTD).unflatten(2, (heads, -1)).transpose(1, 2)
        value = attention.to_v(context_RTD).unflatten(2, (heads, -1)).transpose(1, 2)
        mixed_RhNd = functional.scaled_dot_product_attention(query, key, value)
        return attention.to_out[0](mixed_RhNd.transpose(1, 2).flatten(2))

    return forward


def _feed_forward_fits(layer: Any) -> bool:
    return (
        len(layer.net) == 3 and type(layer.net[0]) is GEGLU and layer.net[0].proj.bias is not None
    )


def _feed_forward(layer: Any, full: Forward) -> Forward:
    def forward(x_RND: Tensor, *more: Any, **named: Any) -> Any:
        proj = layer.net[0].proj  # which may have been wrapped since
        is_adapted = type(proj) is not nn.Linear and getattr(proj, "is_in_use", True)
        if more or is_adapted or not _plain(*named.values()):
            return full(x_RND, *more, **named)
        # halves of one weight: two products with dense results instead of one that has to be split
        value_weight, gate_weight = proj.weight.chunk(2)
        value_bias, gate_bias = proj.bias.chunk(2)
        gate = functional.gelu(functional.linear(x_RND, gate_weight, gate_bias))
        return layer.net[2](gate.mul_(functional.linear(x_RND, value_weight, value_bias)))

    return forward


_KINDS: tuple[tuple[type[nn.Module], Callable[[Any], bool], Callable[[Any, Forward], Forward]], ...]
_KINDS = (
    (TimestepEmbedding, _timestep_fits, _timestep),
    (ResnetBlock2D, _resnet_fits, _resnet),
    (Transformer2DModel, _transformer_fits, _transformer),
    (BasicTransformerBlock, _block_fits, _block),
    (Attention, is_plain_attention, _attention),
    (FeedForward, _feed_forward_fits, _feed_forward),
)
