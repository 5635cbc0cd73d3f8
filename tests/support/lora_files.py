"""Small LoRA files, written tensor by tensor."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from farm.adapters.weights import AdapterWeights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def attention_of(known: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in known.items()
        if name.startswith("unet.") and name.endswith(ATTENTION)
    }


def kohya_name(name: str) -> str:
    """A layer of Stable Diffusion 1.x in kohya's files, whose text layers are below text_model."""
    component, path = name.split(".", 1)
    if component == "text_encoder":
        return f"lora_te_text_model_{path.removeprefix('text_model.')}".replace(".", "_")
    return f"lora_unet_{path}".replace(".", "_")


def pair(shape: tuple[int, ...], rank: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank)


def change(weights: AdapterWeights, name: str) -> Tensor:
    layer = weights.layers[name]
    return weights.scale(name) * (layer.up.flatten(1) @ layer.down.flatten(1))


def written(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, header)
    return path
