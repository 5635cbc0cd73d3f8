"""Training checkpoints without pickle: weights, their average, and AdamW's moments in safetensors.

Owns atomic writes (a temporary file, then a rename), so that a killed training never leaves a
partial checkpoint. The step is stored in the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> None:
    """Write the state after `step` steps."""
    tensors = {f"weights/{name}": tensor for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{kind}/{name}"] = torch.as_tensor(value)
    for name, tensor in (average or {}).items():
        tensors[f"average/{name}"] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    contiguous = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    save_file(contiguous, aside, metadata={"step": str(step)})
    os.replace(aside, path)


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None = None,
) -> int:
    """Load a checkpoint in place; returns its step, or 0 if there is no file."""
    if not path.exists():
        return 0
    parameters = dict(module.named_parameters())
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        weights = {
            n.removeprefix("weights/"): file.get_tensor(n)
            for n in names
            if n.startswith("weights/")
        }
        module.load_state_dict(weights)
        for name in names:
            if name.startswith("optimizer/"):
                _, kind, parameter_name = name.split("/", 2)
                parameter = parameters[parameter_name]
                value = file.get_tensor(name)
                device = value.device if kind == "step" else parameter.device
                optimizer.state[parameter][kind] = value.to(device)
            elif name.startswith("average/") and average is not None:
                average[name.removeprefix("average/")].copy_(file.get_tensor(name))
        return int(file.metadata()["step"])
