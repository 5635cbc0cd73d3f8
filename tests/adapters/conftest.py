"""A tiny real base, and peft's own LoRA on a copy of it, to compare the bank with."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from farm.adapters.files.layer_names import layer_names
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.base.interface import Base
from farm.base.loading import load_base

PeftTwin = Callable[..., tuple[nn.Module, AdapterWeights]]


@pytest.fixture
def base() -> Base:
    return load_base("tiny")


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[int, ...]]:
    return layer_names(load_base("tiny"))


@pytest.fixture
def peft_twin() -> PeftTwin:
    return make_peft_twin


def make_peft_twin(
    module: nn.Module,
    component: str,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    seed: int = 0,
) -> tuple[nn.Module, AdapterWeights]:
    """A copy of a module under peft with random A and B, and the same weights as plain tensors."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    twin = get_peft_model(copy.deepcopy(module), config)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in twin.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            width = down[0].numel()
            down.copy_(torch.randn(down.shape, generator=generator) / width**0.5)
            up.copy_(torch.randn(up.shape, generator=generator) / rank**0.5)
        layers[f"{component}.{name}"] = LayerWeights(down.detach().clone(), up.detach().clone())
    return twin, AdapterWeights.with_alpha(layers, alpha)
