"""An adapter's weights as plain tensors, the common form of bank slots and adapter files.

Owns the in-memory form and its arithmetic. Independent of file formats and of the bank.

Legend: r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdapterWeights", "LayerWeights"]


@dataclass(frozen=True)
class LayerWeights:
    """One layer's low-rank pair, which adds ``alpha / r · up(down(x))`` to the layer's output."""

    down: Tensor
    """[r, in] of a linear layer, [r, in, kh, kw] of a convolution (LoRA's A)."""
    up: Tensor
    """[out, r] of a linear layer, [out, r, 1, 1] of a convolution (LoRA's B)."""

    @property
    def rank(self) -> int:
        """The rank r, from the shape of ``down``."""
        return self.down.shape[0]


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter: its layers by component and module name, and each layer's alpha.

    Names look like ``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`` and
    ``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``.
    """

    layers: Mapping[str, LayerWeights]
    alphas: Mapping[str, float]
    """LoRA's scale numerator of each layer; the factor on the output is ``alpha / rank``."""

    def __post_init__(self) -> None:
        if self.layers.keys() != self.alphas.keys():
            raise ValueError("every layer needs exactly one alpha")

    @classmethod
    def with_alpha(cls, layers: Mapping[str, LayerWeights], alpha: float) -> AdapterWeights:
        """The same alpha for all layers."""
        return cls(layers, dict.fromkeys(layers, float(alpha)))

    @property
    def rank(self) -> int:
        """The largest rank of any layer; 0 without layers."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    @property
    def components(self) -> tuple[str, ...]:
        """The components with adapted layers, sorted, such as ``("text_encoder", "unet")``."""
        return tuple(sorted({name.split(".", 1)[0] for name in self.layers}))

    @property
    def num_parameters(self) -> int:
        """Number of parameters in all layers."""
        return sum(layer.down.numel() + layer.up.numel() for layer in self.layers.values())

    @property
    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(
            bool(torch.isfinite(tensor).all())
            for layer in self.layers.values()
            for tensor in (layer.down, layer.up)
        )

    def scale(self, name: str) -> float:
        """The factor on one layer's output, alpha over rank."""
        return self.alphas[name] / self.layers[name].rank

    def of_component(self, component: str) -> AdapterWeights:
        """The layers of one component, with their full names."""
        names = [name for name in self.layers if name.split(".", 1)[0] == component]
        return AdapterWeights(
            {name: self.layers[name] for name in names},
            {name: self.alphas[name] for name in names},
        )

    def to(self, *args: Any, **kwargs: Any) -> AdapterWeights:
        """Every tensor moved or cast, as ``Tensor.to`` does."""
        return AdapterWeights(
            {
                name: LayerWeights(layer.down.to(*args, **kwargs), layer.up.to(*args, **kwargs))
                for name, layer in self.layers.items()
            },
            dict(self.alphas),
        )
