"""Layer names in diffusers, PEFT, kohya and this farm.

Owns the mapping. The farm's name of a layer is ``component.module path`` in the loaded base. The
CLIP text encoder's modules were all below ``text_model`` until transformers 5 removed that level;
files always include it, and names are mapped to the base's own when read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from torch import nn

from farm.adapters.bank.layers import AdaptedLayer
from farm.adapters.files.fused_layers import original_layers
from farm.adapters.files.sgm_names import sgm_paths
from farm.base.interface import Base
from farm.errors import AdapterFileError

__all__ = [
    "canonical_name",
    "endings_of",
    "has_kohya_names",
    "kohya_names",
    "layer_names",
    "located",
]

TEXT_LEVEL = "text_model."
KOHYA_PREFIXES = {
    "unet": ("lora_unet_", "lycoris_", "lycoris_unet_"),
    "transformer": (
        *("lora_unet_", "lora_transformer_"),
        *("lycoris_", "lycoris_unet_", "lycoris_transformer_"),
    ),
    "text_encoder": (
        *("lora_te_", "lora_te1_"),
        *("lycoris_te_", "lycoris_te1_", "lycoris_text_encoder_"),
    ),
    "text_encoder_2": ("lora_te2_", "lycoris_te2_", "lycoris_text_encoder_2_"),
}
"""Component prefixes that are read, of kohya's scripts and of LyCORIS wrapped around a bare
denoiser or a whole pipeline; ``FamilyNames`` has those that are written."""
CLIP_LAYERS = "encoder.layers."
_CLIP = re.compile(r"^(?:text_encoders\.)?(clip_[lgh])\.(?:transformer\.)?")
"""The beginning of a text layer's name in ComfyUI's and OneTrainer's files."""
_CLIP_COMPONENTS = {"l": "text_encoder", "h": "text_encoder", "g": "text_encoder_2"}


def layer_names(base: Base) -> dict[str, tuple[int, ...]]:
    """Every layer of a base that can have an adapter, with or without a bank, and the shape of its
    weight."""
    return {
        f"{component}.{path}": _shape(layer)
        for component, module in base.components.items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | AdaptedLayer)
        and not path.endswith(".base_layer")
    }


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, also where the weight itself is packed."""
    layer = layer.base_layer if isinstance(layer, AdaptedLayer) else layer
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.Conv2d)
    return tuple(layer.weight.shape)


def canonical_name(name: str) -> str:
    """The name used in files, with the text encoder's ``text_model`` level."""
    component, path = name.split(".", 1)
    if not component.startswith("text_encoder") or not path.startswith(CLIP_LAYERS):
        return name
    return f"{component}.{TEXT_LEVEL}{path}"


def kohya_names(names: Iterable[str], base: Base) -> dict[str, str]:
    """The layers' names in kohya's scripts, A1111 and ComfyUI.

    Raises:
        AdapterFileError: if a layer has none.
    """
    names = list(names)
    found = _kohya_names(names, base)
    for name in names:
        if name not in found:
            raise AdapterFileError(
                f"{name} has no name in kohya's files of {base.family.title}",
                "leave the kohya form out",
            )
    return found


def has_kohya_names(names: Iterable[str], base: Base) -> bool:
    """Whether kohya's files of the base's family have names for all these layers."""
    names = list(names)
    return len(_kohya_names(names, base)) == len(names)


def _kohya_names(names: Sequence[str], base: Base) -> dict[str, str]:
    """Those of the layers that have a name; layers that share an adapter have the same."""
    family = base.family
    sgm = _sgm_names(layer_names(base)) if family.kohya_uses_sgm else {}
    originals: dict[str, str] = {}
    if family.kohya_fuses:
        layers = original_layers(layer_names(base))
        originals = {name: original for original, members in layers.items() for name in members}
    found = {}
    for name in names:
        component, path = sgm.get(name, canonical_name(name)).split(".", 1)
        if family.kohya_fuses and component == base.denoiser_name:
            if name not in originals:
                continue
            path = originals[name]
        prefix = family.kohya_prefixes.get(component)
        if prefix is not None:
            found[name] = prefix + path.replace(".", "_")
    return found


def _sgm_names(known: Iterable[str]) -> dict[str, str]:
    """SGM's spelling of a UNet's layers, with their component."""
    paths = [name.removeprefix("unet.") for name in known if name.startswith("unet.")]
    return {f"unet.{path}": f"unet.{sgm}" for path, sgm in sgm_paths(paths).items()}


def located(found: Iterable[str], known: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Map names from any tool's file to the base's own.

    Args:
        found: names from a file: kohya's, or ``component.path``, or a bare ``path``.
        known: the base's ``layer_names``.

    Returns:
        The base's name of each name found in the base, and the names that were not found.
    """
    index = _spellings(tuple(known))
    modern = {name: name if name in index else _modern(name) for name in found}
    names = {name: index[spelling] for name, spelling in modern.items() if spelling in index}
    return names, [name for name, spelling in modern.items() if spelling not in index]


@lru_cache(maxsize=8)
def _spellings(known: tuple[str, ...]) -> dict[str, str]:
    """The base's name of each layer by every spelling of it; cached for all its adapters."""
    index: dict[str, str] = {}
    sgm = _sgm_names(known)
    for name in sorted(known, reverse=True):  # "unet" comes first: bare paths are the denoiser's
        component, path = name.split(".", 1)
        canonical_path = canonical_name(name).split(".", 1)[1]
        other_path = sgm.get(name, name).split(".", 1)[1]
        for spelling in {path, canonical_path, other_path}:
            index.setdefault(f"{component}.{spelling}", name)
            index.setdefault(spelling, name)
            for prefix in KOHYA_PREFIXES.get(component, ()):
                index[prefix + spelling.replace(".", "_")] = name
    # older transformers have the text encoder's `text_model` level in the base itself; last, as
    # its bare path may be another text encoder's
    for name in known:
        component, path = name.split(".", 1)
        if path.startswith(TEXT_LEVEL):
            bare = path.removeprefix(TEXT_LEVEL)
            index.setdefault(f"{component}.{bare}", name)
            index.setdefault(bare, name)
            for prefix in KOHYA_PREFIXES.get(component, ()):
                index.setdefault(prefix + bare.replace(".", "_"), name)
    return index


def _modern(name: str) -> str:
    """Undo diffusers' older spelling, in which ``attn1.processor.to_q_lora`` is ``attn1.to_q``, and
    ComfyUI's names of the text encoders."""
    if (match := _CLIP.match(name)) is not None:
        name = f"{_CLIP_COMPONENTS[match[1][-1]]}.{name[match.end() :]}"
    name = re.sub(r"\.self_attn\.to_(q|k|v|out)_lora$", r".self_attn.\1_proj", name)
    name = re.sub(r"\.processor\.(to_q|to_k|to_v)_lora$", r".\1", name)
    name = re.sub(r"\.processor\.to_out_lora$", ".to_out.0", name)
    name = re.sub(r"\.(to_q|to_k|to_v|to_out)_lora$", r".\1", name)
    return re.sub(r"\.to_out$", ".to_out.0", name)


def endings_of(names: Collection[str], known: Collection[str]) -> list[str]:
    """Module endings that match exactly these layers of one component, as short as possible.

    Short endings (``to_q``) stay valid if the upper levels of the module tree change. Full paths
    are used if a layer with the same ending has no adapter, or if a container has that ending, as
    ``to_out`` has in transformers with two kinds of blocks.
    """
    component = next(iter(names)).split(".", 1)[0]
    endings = sorted({_ending(name) for name in names})
    modules = {
        ".".join(parts[:length])
        for name in known
        if name.startswith(f"{component}.")
        for parts in [name.split(".")]
        for length in range(2, len(parts) + 1)
    }
    meant = {name for name in modules if any(name.endswith(f".{end}") for end in endings)}
    return endings if meant == set(names) else sorted(name.split(".", 1)[1] for name in names)


def _ending(name: str) -> str:
    """The last part of a name, or the last two if the last is a number (``to_out.0``)."""
    match = re.search(r"[^.]*[^.\d][^.]*(?:\.\d+)*$", name)
    assert match is not None
    return match.group()
