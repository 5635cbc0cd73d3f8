"""Adapters with random weights on any layers of a base, at any rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from farm.adapters.bank.mixed import MixedBank
from farm.adapters.weights import AdapterWeights, LayerWeights


def random_weights(
    bank: MixedBank,
    seed: int,
    *,
    targets: Sequence[str],
    rank: int = 2,
    alpha: float = 3.0,
    strength: float = 0.2,
    fill: float | None = None,
) -> AdapterWeights:
    """An adapter on the layers whose names end so; ``fill`` is the value of all its up halves."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in bank.layer_names:
        if not any(name.endswith(f".{target}") for target in targets):
            continue
        num_inputs, num_outputs, kernel = bank.size_of(name)
        area = kernel[0] * kernel[1] if kernel else 1
        down = torch.randn(rank, num_inputs // area, *kernel, generator=generator) / rank
        up = torch.randn(num_outputs, rank, *([1, 1] if kernel else []), generator=generator)
        up = up * strength / rank**0.5 if fill is None else torch.full_like(up, fill)
        layers[name] = LayerWeights(down / num_inputs**0.5 * 4, up)
    assert layers
    return AdapterWeights.with_alpha(layers, alpha)
