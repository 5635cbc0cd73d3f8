"""Adapters of layers that other tools keep in one: query, key and value, or a whole block's input.

Owns the names of a transformer's layers in its authors' own code, which kohya's and ComfyUI's files
of FLUX and Z-Image use, and the algebra of fusing. A fused adapter is block-diagonal: the members'
down halves are stacked, each up half has columns of its own. diffusers' converters recognise that
form and give the members back unchanged; so does ``split_fused``. A fused adapter of another form
gives each member the whole down half.

Legend: r rank, R rank of the fused adapter, I inputs, O outputs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from farm.adapters.files.lycoris import lycoris_pair
from farm.adapters.weights import AdapterWeights, LayerWeights
from farm.errors import AdapterFileError

__all__ = ["fuse", "original_layers", "original_name", "split_fused"]

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_FLUX1 = {
    **{f"double_blocks.N.{ours}": theirs for ours, theirs in _DOUBLE.items()},
    "double_blocks.N.img_mlp.0": ("ff.net.0.proj",),
    "double_blocks.N.img_mlp.2": ("ff.net.2",),
    "double_blocks.N.txt_mlp.0": ("ff_context.net.0.proj",),
    "double_blocks.N.txt_mlp.2": ("ff_context.net.2",),
    "single_blocks.N.linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "single_blocks.N.linear2": ("proj_out",),
    "single_blocks.N.modulation.lin": ("norm.linear",),
}
_FLUX2 = {
    **{f"double_blocks.N.{ours}": theirs for ours, theirs in _DOUBLE.items() if "mod" not in ours},
    "double_blocks.N.img_mlp.0": ("ff.linear_in",),
    "double_blocks.N.img_mlp.2": ("ff.linear_out",),
    "double_blocks.N.txt_mlp.0": ("ff_context.linear_in",),
    "double_blocks.N.txt_mlp.2": ("ff_context.linear_out",),
    "single_blocks.N.linear1": ("attn.to_qkv_mlp_proj",),
    "single_blocks.N.linear2": ("attn.to_out",),
}
_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
_ATTENTION = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
_NUMBERED = re.compile(
    r"^(transformer_blocks|single_transformer_blocks|\w*refiner|layers)\.(\d+)\."
)
PREFIX = "transformer."
PREFIXES = ("lora_unet_", "lycoris_", "lycoris_unet_", "lycoris_transformer_")
"""Of kohya's scripts, and of LyCORIS wrapped around a bare denoiser or a whole pipeline."""
_XLABS = re.compile(r"^(double_blocks\.\d+)\.processor\.(qkv|proj)_lora([12])$")


@lru_cache(maxsize=8)
def _layers(known: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    names = set(known)
    found: dict[str, tuple[str, ...]] = {}
    blocks = {
        (match[1], match[2])
        for name in known
        if name.startswith(PREFIX) and (match := _NUMBERED.match(name.removeprefix(PREFIX)))
    }
    table = _FLUX2 if any(name.endswith(".to_qkv_mlp_proj") for name in known) else _FLUX1
    for kind, number in blocks:
        if kind in _BLOCKS.values():
            for pattern, members in table.items():
                original, _, rest = pattern.partition(".N.")
                if _BLOCKS[original] == kind:
                    found[f"{original}.{number}.{rest}"] = tuple(
                        f"{PREFIX}{kind}.{number}.{member}" for member in members
                    )
        else:
            for rest, members in _ATTENTION.items():
                found[f"{kind}.{number}.{rest}"] = tuple(
                    f"{PREFIX}{kind}.{number}.{member}" for member in members
                )
    return {name: members for name, members in found.items() if names.issuperset(members)}


def original_layers(known: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The base's layers that each layer of the authors' own code stands for, in its order.

    Args:
        known: the base's ``layer_names``; empty for bases whose code has no other names.
    """
    return _layers(tuple(known))


def original_name(layer: str) -> str:
    """The layer in the authors' own code, of XLabs' files of FLUX, which name its processors."""
    if (match := _XLABS.match(layer)) is None:
        return layer
    block, kind, stream = match.groups()
    return f"{block}.{'img' if stream == '1' else 'txt'}_attn.{kind}"


def fuse(
    weights: AdapterWeights, members: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[LayerWeights, float]:
    """One adapter of several layers that read the same input, and its alpha.

    Args:
        members: in the order of the outputs; those without an adapter contribute zeros.
        shapes: of the layers' weights.
    """
    present = [name for name in members if name in weights.layers]
    if len(members) == 1:
        return weights.layers[members[0]], weights.alphas[members[0]]
    rank = max(weights.layers[name].rank for name in present)
    scales = {name: weights.scale(name) for name in present}
    shared = scales[present[0]] if len(set(scales.values())) == 1 else None
    outputs = [shapes[name][0] for name in members]
    first = weights.layers[present[0]]
    down_RI = first.down.new_zeros(len(members) * rank, first.down.shape[1])
    up_OR = first.up.new_zeros(sum(outputs), len(members) * rank)
    for place, (name, end) in enumerate(zip(members, accumulate(outputs), strict=True)):
        if name not in weights.layers:
            continue
        layer, start = weights.layers[name], place * rank
        factor = 1.0 if shared is not None else scales[name]
        down_RI[start : start + layer.rank] = layer.down
        up_OR[end - shapes[name][0] : end, start : start + layer.rank] = layer.up * factor
    alpha = (1.0 if shared is None else shared) * len(members) * rank
    return LayerWeights(down_RI, up_OR), alpha


def split_fused(
    parts: dict[str, dict[str, Tensor]],
    alphas: dict[str, Tensor],
    known: Collection[str],
    place: str,
) -> None:
    """Replace fused layers of a file by the base's own, in place.

    Args:
        parts: tensors of each layer of the file, by the file's names.
        alphas: of the file's layers that have one.
        known: the base's ``layer_names``.

    Raises:
        AdapterFileError: if a fused layer has no plain pair or does not fit the base.
    """
    originals = original_layers(known)
    spellings = {prefix + name.replace(".", "_"): name for name in originals for prefix in PREFIXES}
    for found in [*parts]:
        name = spellings.get(found, found)
        members = originals.get(name)
        if members is None or found in known:
            continue
        own, alpha = parts.pop(found), alphas.pop(found, None)
        if len(members) == 1:
            parts[members[0]] = own
            if alpha is not None:
                alphas[members[0]] = alpha
            continue
        if not own.keys() & {"down", "up"}:
            own, alpha = _plain_pair(own, alpha, f"{place}: {found}")
        if own.keys() != {"down", "up"} or own["down"].ndim != 2 or own["up"].ndim != 2:
            raise AdapterFileError(
                f"{place}: {found} is no plain pair, but stands for several layers of the base",
                "save or train it as a plain LoRA",
            )
        sizes = _sizes(members, known, own["up"].shape[0])
        if sum(sizes) != own["up"].shape[0]:
            raise AdapterFileError(
                f"{place}: {found} has {own['up'].shape[0]} outputs; the base's has {sum(sizes)}",
                "use it with the base model that it was trained on",
            )
        for member, down, up, share in _members(members, own["down"], own["up"], sizes):
            parts[member] = {"down": down, "up": up}
            if alpha is not None:
                alphas[member] = alpha / share


def _plain_pair(
    own: Mapping[str, Tensor], alpha: Tensor | None, place: str
) -> tuple[dict[str, Tensor], Tensor]:
    """A LoHa or LoKr layer as a plain pair, and its alpha by the rank of that pair."""
    try:
        pair = lycoris_pair(own)
    except AdapterFileError as error:
        raise AdapterFileError(f"{place}: {error.message}", error.remedy) from error
    rank = pair.down_rn.shape[0]
    scale = 1.0 if alpha is None or pair.dim is None else float(alpha) / pair.dim
    return {"down": pair.down_rn, "up": pair.up_or}, torch.tensor(scale * rank)


def _sizes(members: Sequence[str], known: Collection[str], outputs: int) -> list[int]:
    if isinstance(known, Mapping):
        return [known[name][0] for name in members]
    return [outputs // len(members)] * len(members)


def _members(
    members: Sequence[str], down_RI: Tensor, up_OR: Tensor, sizes: Sequence[int]
) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Each member's name, halves, and the factor by which its alpha is smaller."""
    count, rows = len(members), torch.split(up_OR, list(sizes))
    rank, rest = divmod(up_OR.shape[1], count)
    blocks = [torch.split(up, rank, 1) if rank and not rest else () for up in rows]
    is_diagonal = (
        bool(rank)
        and not rest
        and not any(
            bool(block.any())
            for j, row in enumerate(blocks)
            for k, block in enumerate(row)
            if j != k
        )
    )
    for place, name in enumerate(members):
        if not is_diagonal:
            yield name, down_RI, rows[place].contiguous(), 1
        elif bool(blocks[place][place].any()) or bool(down_RI[place * rank :][:rank].any()):
            down = down_RI[place * rank : (place + 1) * rank].contiguous()
            yield name, down, blocks[place][place].contiguous(), count
