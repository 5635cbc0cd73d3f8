"""Which layers of a base have adapters, and where their weights are in a slot's flat row.

Owns the matching of target modules and the layout of the row. Holds no weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from farm.adapters.bank.layers import AdaptedLayer
from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.errors import AdapterFileError, UserError
from farm.intake.modules import BaseModules

__all__ = [
    "LayerPlace",
    "adaptable_layers",
    "base_modules",
    "check_fits",
    "component_columns",
    "cross_attentions",
    "denoiser_layers",
    "lay_out",
    "matching_layers",
    "shares_inputs",
    "text_layers",
]


@dataclass(frozen=True)
class LayerPlace:
    """The position of one layer's weights in a slot's flat row."""

    name: str
    kernel: tuple[int, ...]
    """() for a linear layer, (kh, kw) for a convolution."""
    num_inputs: int
    """Rows of the down half: inputs, times the kernel's area for a convolution."""
    num_outputs: int
    block_start: int
    """Start of the block [I, layers · r] with the down halves of the layers of one input."""
    block_layers: int
    block_place: int
    """The layer's place in the block."""
    up_start: int


def denoiser_layers(base: Base, endings: Sequence[str]) -> dict[str, nn.Module]:
    """The denoiser's layers with these name endings, in module order."""
    return matching_layers(base, base.denoiser_name, endings)


def text_layers(base: Base, endings: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of all text encoders with these name endings, in module order.

    An ending that starts with the name of a text encoder, such as ``text_encoder_2.q_proj``, is
    meant for that one alone.
    """
    if not endings:
        return {}
    names = base.text_names
    if not names:
        raise UserError(f"the base {base.name} has no text encoder", "leave its modules out")
    found: dict[str, nn.Module] = {}
    for name in names:
        own = []
        for ending in endings:
            start, _, rest = ending.partition(".")
            if start == name:
                own.append(rest)
            elif start not in names:
                own.append(ending)
        found |= matching_layers(base, name, own)
    return found


def matching_layers(base: Base, component: str, endings: Sequence[str]) -> dict[str, nn.Module]:
    """The linear and convolution layers of a component with these name endings, in module order."""
    if not endings:
        return {}
    if component not in base.components:
        raise UserError(f"the base {base.name} has no {component}", "leave its target modules out")
    found: dict[str, nn.Module] = {}
    used = set()
    for path, module in base.components[component].named_modules():
        matching = [end for end in endings if path == end or path.endswith(f".{end}")]
        if not matching or not isinstance(module, nn.Linear | nn.Conv2d | AdaptedLayer):
            continue
        if isinstance(module, AdaptedLayer):
            raise ValueError("the base carries a bank already; close that one first")
        if not _can_carry(module):
            raise UserError(
                f"{component}.{path} is grouped or not zero-padded and cannot have an adapter",
                "leave it out of the target modules",
            )
        found[f"{component}.{path}"] = module
        used.update(matching)
    missing = sorted(set(endings) - used)
    if missing:
        raise UserError(
            f"no linear or convolution layer of {component} ends with {', '.join(missing)}",
            "name module endings of this base, such as to_q or to_out.0",
        )
    return found


def adaptable_layers(base: Base, component: str) -> dict[str, nn.Module]:
    """All layers of a component that can have an adapter, in module order."""
    modules = base.components[component].named_modules()
    if any(isinstance(module, AdaptedLayer) for module in base.components[component].modules()):
        raise ValueError("the base carries a bank already; close that one first")
    return {f"{component}.{path}": module for path, module in modules if _can_carry(module)}


def base_modules(base: Base) -> BaseModules:
    """The names of all modules of a base that can have adapters."""

    def paths(component: str) -> tuple[str, ...]:
        start = len(component) + 1
        return tuple(name[start:] for name in adaptable_layers(base, component))

    texts = tuple((name, paths(name)) for name in base.text_names)
    return BaseModules(base.name, paths(base.denoiser_name), texts)


def _can_carry(module: nn.Module) -> bool:
    """Whether it is a linear layer, or an ungrouped convolution with zero padding."""
    if isinstance(module, nn.Conv2d):
        is_plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module.groups == 1 and is_plain
    return isinstance(module, nn.Linear)


SHARING = ("to_q", "to_k", "to_v")
"""The projections of an attention, which read one input unless it attends to other tokens."""


def lay_out(
    layers: Mapping[str, nn.Module],
    max_rank: int,
    *,
    shares: bool = False,
    cross_attentions: Collection[str] = (),
) -> dict[str, LayerPlace]:
    """Assign each layer its position in a flat row: all down halves, then all up halves.

    Args:
        shares: whether the projections of one input share a block.
        cross_attentions: paths of the attentions whose keys and values read another input than
            their queries.
    """
    sizes = {name: _size(layer) for name, layer in layers.items()}
    blocks: dict[tuple[str, str, int], list[str]] = {}
    for name, (inputs, _, kernel) in sizes.items():
        parent, _, ending = name.rpartition(".")
        group = name
        if shares and ending in SHARING and not kernel:
            group = "q" if ending == "to_q" and parent in cross_attentions else "shared"
        blocks.setdefault((parent, group, inputs), []).append(name)
    up_start = max_rank * sum(inputs for inputs, _, _ in sizes.values())
    down_start, places = 0, {}
    for (_, _, inputs), names in blocks.items():
        for place, name in enumerate(names):
            _, outputs, kernel = sizes[name]
            places[name] = LayerPlace(
                name, kernel, inputs, outputs, down_start, len(names), place, up_start
            )
            up_start += max_rank * outputs
        down_start += max_rank * inputs * len(names)
    return {name: places[name] for name in layers}


def component_columns(
    places: Mapping[str, LayerPlace], denoiser: str, num_parameters: int
) -> list[tuple[slice, bool]]:
    """The columns of a flat row in order, and whether each part is of the text encoders."""
    edges: dict[tuple[int, bool], int] = {}
    for name, place in places.items():
        is_text = not name.startswith(f"{denoiser}.")
        for half, start in enumerate((place.block_start, place.up_start)):
            edges[half, is_text] = min(start, edges.get((half, is_text), start))
    if len(edges) == 2:  # of one kind only
        return [(slice(None), is_text) for _, is_text in list(edges)[:1]]
    # the denoiser's layers come first, in the down halves and in the up halves
    starts = sorted((start, is_text) for (_, is_text), start in edges.items())
    assert [is_text for _, is_text in starts] == [False, True] * 2
    ends = [start for start, _ in starts[1:]] + [num_parameters]
    return [(slice(start, end), text) for (start, text), end in zip(starts, ends, strict=True)]


def _size(layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """Rows of the down half, outputs, and the kernel's size."""
    if isinstance(layer, nn.Conv2d):
        high, wide = layer.kernel_size
        return layer.in_channels * high * wide, layer.out_channels, (high, wide)
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features, ()


def shares_inputs(device: torch.device) -> bool:
    """Whether one product for the adapters of one input pays: not on a CPU, where training steps
    take 1 to 3 % longer with it (measured)."""
    return device.type != "cpu"


def cross_attentions(base: Base) -> set[str]:
    """Paths of the denoiser's attentions to the prompt."""
    name = base.denoiser_name
    return {
        f"{name}.{path}"
        for path, module in base.components[name].named_modules()
        if getattr(module, "is_cross_attention", False)
    }


def check_fits(weights: AdapterWeights, places: Mapping[str, LayerPlace], max_rank: int) -> None:
    """Reject an adapter that does not fit into a bank of these layers.

    Raises:
        AdapterFileError: if it has layers that the bank lacks, other shapes, or a larger rank.
    """
    unknown = sorted(set(weights.layers) - set(places))
    if unknown:
        raise AdapterFileError(
            f"the adapter has {len(unknown)} layers that this bank lacks, such as {unknown[0]}",
            "use the base it was trained on, or open the bank with its target modules",
        )
    for name, layer in weights.layers.items():
        place = places[name]
        found = (layer.down.flatten(1).shape[1], layer.up.shape[0], tuple(layer.down.shape[2:]))
        wanted = (place.num_inputs, place.num_outputs, place.kernel)
        if found != wanted or layer.up.flatten(1).shape[1] != layer.rank:
            raise AdapterFileError(
                f"{name} has inputs, outputs and kernel {found}, the base has {wanted}",
                "use the base that the adapter was trained on",
            )
        if layer.rank > max_rank:
            raise AdapterFileError(
                f"the adapter's rank {layer.rank} is above the bank's {max_rank}",
                f"open the bank with a largest rank of {layer.rank} or more",
            )
