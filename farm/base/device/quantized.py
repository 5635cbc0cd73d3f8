"""Denoisers whose frozen linear layers are kept in few bits.

Owns the kinds, how a pipeline is loaded in them (``quantization_config`` of diffusers), and how a
bank reads such a layer: the weight is unpacked for the product and dropped again, in the forward
pass and in the backward pass. Adapters stay in full precision. The libraries are extras.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from farm.errors import BaseModelError
from farm.recipe import Quantization

__all__ = [
    "Frozen",
    "PackedWeight",
    "is_quantized",
    "packed_weight",
    "quantization_config",
    "unpacked",
]

EXTRA = "pip install 'dreambooth-farm[quantize]'"


class PackedWeight:
    """The weight of a quantised linear layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """A new plain tensor [O, I]."""
        weight: Any = self._layer.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            plain: Tensor = weight.dequantize()
        else:
            from bitsandbytes.functional import dequantize_4bit

            plain = dequantize_4bit(weight.data, state)
        return plain.to(dtype)


Frozen: TypeAlias = Tensor | PackedWeight


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """How to unpack a layer's weight; None if it is a plain tensor."""
    if not isinstance(layer, nn.Linear):
        return None
    weight = layer.weight
    is_packed = type(weight).__module__.startswith("torchao") or hasattr(weight, "quant_state")
    return PackedWeight(layer) if is_packed else None


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer of the module is quantised."""
    return any(packed_weight(layer) is not None for layer in module.modules())


def unpacked(weight: Frozen, dtype: torch.dtype) -> Tensor:
    """A plain weight as it is, or a packed one as a new tensor."""
    return weight.unpacked(dtype) if isinstance(weight, PackedWeight) else weight


def quantization_config(kind: Quantization, part: str, dtype: torch.dtype, device: str) -> Any:
    """The config with which diffusers loads a pipeline whose part is quantised.

    Raises:
        BaseModelError: if the library is not installed, or the device cannot hold this kind.
    """
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

    if kind == "nf4" and device != "cuda":
        raise BaseModelError("nf4 weights need a GPU", "use int8, or no quantisation")
    try:
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            config: Any = TorchAoConfig(Int8WeightOnlyConfig())
        else:
            import bitsandbytes  # noqa: F401 - diffusers' own message does not name the extra

            config = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
            )
    except ImportError as error:
        raise BaseModelError(
            f"{kind} weights need a library that is not installed: {error}", EXTRA
        ) from error
    return PipelineQuantizationConfig(quant_mapping={part: config})
