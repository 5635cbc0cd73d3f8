"""Reads adapter files of any supported format: detects the format and returns the weights.

Owns format detection, alphas and validation. PEFT settings are in ``lora_settings``, the algebra of
LoHa and LoKr in ``lycoris``. Only safetensors files are read: loading a pickled file runs any code
in it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from farm.adapters.file_names import PEFT_CONFIG, PEFT_WEIGHTS
from farm.adapters.files.fused_layers import original_name, split_fused
from farm.adapters.files.layer_names import located
from farm.adapters.files.lora_settings import LoraSettings, settings_beside, settings_in_header
from farm.adapters.files.lycoris import CORE, LYCORIS_PARTS, bounded_pair, core_pair, lycoris_pair
from farm.adapters.files.origin import refuse_other_family
from farm.adapters.files.unsupported import is_foreign, unknown_tensor, unreadable_file
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.errors import AdapterFileError

__all__ = ["describe_file", "read_adapter_file", "states_alpha"]

_LORA = r"(?:\.lora|\.lora_linear_layer)?"
_NAMED = r"(?:\.(?P<adapter>[^.]+))?"
_PARTS = (
    (re.compile(rf"^(?P<layer>.+?){_LORA}\.(?:lora_A{_NAMED}|lora_down|down)\.weight$"), "down"),
    (re.compile(rf"^(?P<layer>.+?){_LORA}\.(?:lora_B{_NAMED}|lora_up|up)\.weight$"), "up"),
    (re.compile(rf"^(?P<layer>.+?){_LORA}\.alpha$"), "alpha"),
    (re.compile(rf"^(?P<layer>.+)\.{CORE}\.weight$"), CORE),
    (re.compile(rf"^(?P<layer>.+)\.(?P<part>{'|'.join(LYCORIS_PARTS)}){_NAMED}$"), ""),
)
"""Splits a tensor's key into its layer and its part of that layer."""
WRAPPERS = ("base_model.model.", "_orig_mod.", "model.diffusion_model.", "diffusion_model.")
"""Levels that PEFT, torch.compile and ComfyUI add to module names."""
_PARALLEL = re.compile(r"(?:^|(?<=\.))(?:module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Levels that torch's data parallelism, FSDP and checkpointing add."""


@dataclass
class _Contents:
    """What a file holds, by its own layer names."""

    parts: dict[str, dict[str, Tensor]] = field(default_factory=lambda: defaultdict(dict))
    alphas: dict[str, Tensor] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
    """Adapter names in the keys; "" for keys without one."""


def read_adapter_file(path: Path, known: Collection[str]) -> AdapterWeights:
    """Read one safetensors file in the diffusers, PEFT, kohya or LyCORIS format.

    Args:
        known: the base's ``layer_names``, whose shapes the layers must have. A collection of names
            without shapes skips that check.

    Raises:
        AdapterFileError: if it is missing, corrupt, unsupported or not finite, has layers that
            the base lacks or with other shapes, or alphas that belong to no layer.
    """
    tensors, header = _read(path)
    contents = _contents(tensors, path)
    split_fused(contents.parts, contents.alphas, known, str(path))
    names, unknown = located([*contents.parts, *contents.alphas], known)
    inputs = {
        layer: parts["down"].flatten(1).shape[1]
        for layer, parts in contents.parts.items()
        if "down" in parts and parts["down"].ndim > 1
    }
    refuse_other_family(path, inputs, [one for one in unknown if one in contents.parts], known)
    if alone := [name for name in unknown if name in contents.alphas]:
        raise _orphan_alpha(alone[0], path)
    settings = _settings(path, header, tensors)
    alphas = _alphas_by_layer(contents, names, path)
    shapes: Mapping[str, tuple[int, ...]] = known if isinstance(known, Mapping) else {}
    layers: dict[str, LayerWeights] = {}
    scales: dict[str, float] = {}
    for found, parts in contents.parts.items():
        name = names[found]
        if name in layers:
            raise AdapterFileError(f"{path} holds the layer {name} twice", "fetch it again")
        component, module = name.split(".", 1)
        own = settings.get(component, settings.get(""))
        layers[name], scales[name] = _layer(
            parts, alphas.get(name), own, module, shapes.get(name), f"{path}: {found}"
        )
    weights = AdapterWeights(layers, scales)
    if not weights.is_finite or not all(math.isfinite(alpha) for alpha in scales.values()):
        raise AdapterFileError(f"{path} holds numbers that are not finite", "train it again")
    return weights


def describe_file(path: Path) -> tuple[str, dict[str, str]]:
    """An adapter file's format, as its tools name it, and the text fields of its header.

    Raises:
        AdapterFileError: if it is missing, corrupt, or not a safetensors file.
    """
    with _opened(path) as file:
        keys, header = list(file.keys()), dict(file.metadata() or {})
    marks = (("hada_", "LoHa"), ("lokr_", "LoKr"), ("lora_unet_", "kohya"), ("lora_te", "kohya"))
    for mark, form in marks:
        if any(mark in key for key in keys):
            return form, header
    is_peft = all(key.startswith(WRAPPERS[0]) for key in keys)
    return "peft" if is_peft else "diffusers", header


def states_alpha(path: Path, header: Mapping[str, str]) -> bool:
    """Whether a PEFT file comes with the strength of its layers: a config, or alphas of its own."""
    if path.with_name(PEFT_CONFIG).is_file() or settings_in_header(header, str(path)):
        return True
    with _opened(path) as file:
        return any(key.endswith(".alpha") for key in list(file.keys()))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened(path) as file:
        keys = list(file.keys())
        _refuse_unknown(keys, path)
        tensors = {key: file.get_tensor(key) for key in keys}
        return tensors, dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; problems are raised as ``AdapterFileError``."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        remedy = "name an adapter file on this machine; download one of the web or the Hub first"
        raise AdapterFileError(f"{path} does not exist", remedy) from error
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        # an AttributeError for numbers of a type that older versions of torch lack
        raise unreadable_file(path, error) from error


def _refuse_unknown(keys: Sequence[str], path: Path) -> None:
    """Refuse a file with a tensor that no LoRA has, before any tensor is read."""
    unknown = [key for key in keys if _part_of(key)[0] is None]
    if unknown:
        raise unknown_tensor(unknown[0], keys, path, is_lora=len(unknown) < len(keys))


def _contents(tensors: Mapping[str, Tensor], path: Path) -> _Contents:
    """Sort a file's tensors by layer and part, weights in float32."""
    contents = _Contents()
    for key, tensor in tensors.items():
        match, part = _part_of(key)
        assert match is not None  # others were refused
        layer = _bare(match["layer"])
        if part == "alpha":
            contents.alphas[layer] = tensor
            continue
        contents.adapters.add(match.groupdict().get("adapter") or "")
        contents.parts[layer][part] = _as_float(tensor, f"{path}: {key}")
    if len(contents.adapters) > 1:
        several = ", ".join(name or "one without a name" for name in sorted(contents.adapters))
        raise AdapterFileError(
            f"{path} holds several adapters: {several}", "save one adapter to a file"
        )
    if not contents.parts:
        raise AdapterFileError(f"{path}: it holds no LoRA layer", "fetch it again")
    return contents


def _as_float(tensor: Tensor, place: str) -> Tensor:
    if tensor.is_floating_point():
        with suppress(RuntimeError):  # packed types have no conversion
            return tensor.float()
    kind = str(tensor.dtype).removeprefix("torch.")
    raise AdapterFileError(f"{place} holds numbers of type {kind}", "save it as float16 or float32")


def _part_of(key: str) -> tuple[re.Match[str] | None, str]:
    if is_foreign(key):
        return None, ""
    for pattern, part in _PARTS:
        if (match := pattern.match(key)) is not None:
            return match, part or match["part"]
    return None, ""


def _bare(layer: str) -> str:
    for wrapper in WRAPPERS:
        layer = layer.replace(wrapper, "")
    return original_name(_PARALLEL.sub("", layer))


def _alphas_by_layer(contents: _Contents, names: Mapping[str, str], path: Path) -> dict[str, float]:
    """Each alpha by the base's name of its layer, in any spelling."""
    held = {names[layer] for layer in contents.parts}
    alphas: dict[str, float] = {}
    for found, tensor in contents.alphas.items():
        name = names[found]
        if name not in held:
            raise _orphan_alpha(found, path)
        if tensor.numel() != 1 or tensor.is_complex():
            raise AdapterFileError(
                f"{path}: {found}.alpha has shape {tuple(tensor.shape)}, not one number",
                "fetch it again",
            )
        alpha = float(tensor)
        if not math.isfinite(alpha):
            raise AdapterFileError(f"{path}: {found}.alpha is not finite", "train it again")
        if alphas.setdefault(name, alpha) != alpha:
            raise AdapterFileError(f"{path} has two alphas of {name}", "fetch it again")
    return alphas


def _orphan_alpha(found: str, path: Path) -> AdapterFileError:
    return AdapterFileError(
        f"{path}: {found}.alpha belongs to no layer of the file, so that layer's strength is "
        "unknown",
        "save the adapter again with the tool that trained it",
    )


def _settings(
    path: Path, header: Mapping[str, str], tensors: Iterable[str]
) -> dict[str, LoraSettings]:
    """PEFT settings by component; "" means all components."""
    is_peft = path.name == PEFT_WEIGHTS or all(key.startswith(WRAPPERS[0]) for key in tensors)
    beside = settings_beside(path) if is_peft else None
    return {"": beside} if beside is not None else settings_in_header(header, str(path))


def _layer(
    parts: Mapping[str, Tensor],
    own_alpha: float | None,
    settings: LoraSettings | None,
    module: str,
    shape: tuple[int, ...] | None,
    place: str,
) -> tuple[LayerWeights, float]:
    """One layer's plain low-rank pair, and its alpha.

    The alpha is read from the layer's own tensor, else from the PEFT settings; the default is the
    rank, as in diffusers.
    """
    down, up, dim = _low_rank(parts, shape, place)
    layer = _fitted(down, up, shape, place)
    configured = settings.rank_of(module) if settings is not None and dim is None else None
    rank = dim or configured
    if rank is None:  # full matrices have no separate scale
        return layer, float(layer.rank)
    alpha = own_alpha
    if alpha is None and settings is not None:
        alpha = settings.alpha_of(module, rank)
    if alpha is None:
        alpha = float(rank)
    return layer, alpha if rank == layer.rank else alpha * layer.rank / rank


def _low_rank(
    parts: Mapping[str, Tensor], shape: tuple[int, ...] | None, place: str
) -> tuple[Tensor, Tensor, int | None]:
    """(down, up, the method's own rank) of one layer."""
    if parts.keys() <= {"down", "up", CORE}:
        if not {"down", "up"} <= parts.keys():
            raise AdapterFileError(f"{place} has one half only", "fetch it again")
        down, up = parts["down"], parts["up"]
        _check_halves(down, up, place)
        if CORE in parts:
            core = parts[CORE]
            if core.ndim != 4 or core.shape[:2] != (down.shape[0], down.shape[0]):
                raise AdapterFileError(
                    f"{place}: {CORE} has shape {tuple(core.shape)}", "fetch it again"
                )
            with _at(place):
                down, up = core_pair(down, core, up)
        with _at(place):
            return *bounded_pair(down, up), down.shape[0]
    if "down" in parts or "up" in parts:
        raise AdapterFileError(
            f"{place} is not a plain LoRA: it has LyCORIS parts beside its halves",
            "save or train it as a plain LoRA",
        )
    with _at(place):
        pair = lycoris_pair(parts)
    down, up = pair.down_rn, pair.up_or
    if shape is not None and len(shape) == 4 and down.shape[1] == math.prod(shape[1:]):
        down, up = down.reshape(-1, *shape[1:]), up[:, :, None, None]
    return down, up, pair.dim


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Put a layer's place before errors of its parts."""
    try:
        yield
    except AdapterFileError as error:
        raise AdapterFileError(f"{place}: {error.message}", error.remedy) from error


def _check_halves(down: Tensor, up: Tensor, place: str) -> None:
    fits = down.ndim in (2, 4) and up.ndim in (2, 4) and up.shape[1] == down.shape[0]
    if not fits or not down.numel() or not up.numel() or up.flatten(1).shape[1] != up.shape[1]:
        raise AdapterFileError(
            f"{place} has halves of shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "fetch it again",
        )


def _fitted(down: Tensor, up: Tensor, shape: tuple[int, ...] | None, place: str) -> LayerWeights:
    """The pair in the shape of the base's layer; files write a 1 x 1 kernel with or without it."""
    wanted = shape or (up.shape[0], *down.shape[1:])
    if down.ndim == 2 and wanted[2:] == (1, 1):
        down = down[:, :, None, None]
    elif down.shape[2:] == (1, 1) and len(wanted) == 2:
        down = down.flatten(1)
    found = (up.shape[0], *down.shape[1:])
    if found != wanted:
        raise AdapterFileError(
            f"{place} changes a weight of shape {_shown(found)}; the base's has {_shown(wanted)}",
            "use it with the base model that it was trained on",
        )
    return LayerWeights(down, up.flatten(1)[(..., *[None] * (down.ndim - 2))])


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
