"""Adapter files of other tools, read back: which form a file has, and the weights in it.

Owns recognition, alphas and checks. Only safetensors are read: a pickled file runs whatever code
it holds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from farm.adapters.files import PEFT_CONFIG, PEFT_WEIGHTS
from farm.adapters.names import located
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.errors import AdapterFileError

__all__ = ["read_adapter_file"]

HALVES = re.compile(
    r"^(?P<layer>.+?)(?:\.lora|\.lora_linear_layer)?"
    r"\.(?:(?P<down>lora_A(?:\.default)?|lora_down|down)|(?P<up>lora_B(?:\.default)?|lora_up|up))"
    r"\.weight$"
)
FOREIGN = ("dora_scale", "magnitude_vector", "hada_", "lokr_", "lora_mid", "oft_", "boft_", "diff")
"""Marks of adapters that are not plain LoRA."""
PEFT_PREFIX = "base_model.model."


def read_adapter_file(path: Path, known: Collection[str]) -> AdapterWeights:
    """Read one safetensors file in the diffusers, PEFT or kohya form.

    Args:
        known: the base's ``layer_names``.

    Raises:
        AdapterFileError: if it is missing, corrupt, of another kind, not finite, or has layers
            that the base lacks.
    """
    tensors, header = _read(path)
    config = _config_beside(path)
    halves = _halves(tensors, path)
    names, unknown = located(list(halves), known)
    if unknown:
        raise AdapterFileError(
            f"{path} has {len(unknown)} layers that the base lacks, such as {unknown[0]}",
            "use it with the family of base models that it was trained on",
        )
    layers = {names[found]: layer for found, layer in halves.items()}
    alphas = {
        names[found]: _alpha(found, names[found], layer.rank, tensors, header, config)
        for found, layer in halves.items()
    }
    weights = AdapterWeights(layers, alphas)
    if not weights.is_finite or not all(math.isfinite(alpha) for alpha in alphas.values()):
        raise AdapterFileError(f"{path} holds numbers that are not finite", "train it again")
    return weights


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        raise AdapterFileError(
            f"{path} is not a safetensors file", "convert it; pickled files are never read"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            # the handle has no iterator of its own
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise AdapterFileError(f"{path} does not exist", "name an adapter file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(f"{path} cannot be read: {error}", "fetch it again") from error
    return tensors, header


def _config_beside(path: Path) -> dict[str, Any]:
    """PEFT's config of the file; empty where there is none."""
    config_path = path.with_name(PEFT_CONFIG)
    if path.name != PEFT_WEIGHTS or not config_path.is_file():
        return {}
    try:
        config = json.loads(config_path.read_bytes())
    except ValueError as error:
        raise AdapterFileError(f"{config_path} is not JSON: {error}", "fetch it again") from error
    if not isinstance(config, dict) or config.get("peft_type", "LORA") != "LORA":
        raise AdapterFileError(f"{config_path} is not of a LoRA adapter", "train a plain LoRA")
    _refuse_dora(config, path)
    return config


def _refuse_dora(config: Mapping[str, Any], path: Path) -> None:
    if any(config.get(key) for key in config if key.rsplit(".", 1)[-1] == "use_dora"):
        raise AdapterFileError(f"{path} is a DoRA adapter", "train a plain LoRA")


def _halves(tensors: Mapping[str, Tensor], path: Path) -> dict[str, LayerWeights]:
    """The pairs of a file by its own layer names, in float32."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = HALVES.match(key)
        if match is None:
            if key.endswith(".alpha"):
                continue
            kind = "is not a plain LoRA" if any(mark in key for mark in FOREIGN) else "is unknown"
            raise AdapterFileError(f"{path}: the tensor {key} {kind}", "train a plain LoRA")
        layer = match["layer"].replace(PEFT_PREFIX, "")
        (downs if match["down"] else ups)[layer] = tensor.float()
    lone = downs.keys() ^ ups.keys()
    if lone or not downs:
        what = f"{sorted(lone)[0]} has one half only" if lone else "it holds no LoRA layer"
        raise AdapterFileError(f"{path}: {what}", "fetch it again")
    return {name: _paired(name, down, ups[name], path) for name, down in downs.items()}


def _paired(name: str, down: Tensor, up: Tensor, path: Path) -> LayerWeights:
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        raise AdapterFileError(
            f"{path}: {name} has halves of shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "fetch it again",
        )
    if down.ndim == 4 and down.shape[2:] == (1, 1) and up.ndim == 2:
        up = up[:, :, None, None]
    return LayerWeights(down, up)


def _alpha(
    found: str,
    name: str,
    rank: int,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, str],
    config: Mapping[str, Any],
) -> float:
    """A layer's alpha: from its own tensor, PEFT's config, diffusers' header, else its rank."""
    own = tensors.get(f"{found}.alpha")
    if own is not None:
        return float(own)
    component, path = name.split(".", 1)
    settings = dict(config)
    if not settings and "lora_adapter_metadata" in header:
        try:
            whole = json.loads(header["lora_adapter_metadata"])
        except ValueError as error:
            raise AdapterFileError(f"the header's LoRA metadata is not JSON: {error}") from error
        start = f"{component}."
        settings = {k.removeprefix(start): v for k, v in whole.items() if k.startswith(start)}
        _refuse_dora(settings, Path(found))
    if "lora_alpha" not in settings:
        return float(rank)
    alpha = float(settings["lora_alpha"])
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # as peft matches: a regular expression at the end of the module's path
        if re.search(rf"(^|.*\.){pattern}$", path):
            alpha = float(value)
            break
    # rank-stabilised LoRA scales by alpha / sqrt(rank)
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha
