"""A UNet's layer names in Stability's own code (SGM), which kohya's SDXL files use.

Owns the mapping from diffusers' names. It follows from the names alone: the number of layers per
block is read from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["sgm_paths"]

BLOCK = re.compile(
    r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\."
)
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.")
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_paths(paths: Iterable[str]) -> dict[str, str]:
    """SGM's name of each of a UNet's layers, by diffusers' path; layers it lacks are left out."""
    paths = list(paths)
    blocks = [match for path in paths if (match := BLOCK.match(path))]
    first = [m for m in blocks if (m[1], m[2], m[3]) == ("down", "0", "resnets")]
    if not first:
        return {path: OUTSIDE[path] for path in paths if path in OUTSIDE}
    stride = max(int(match[4]) for match in first) + 2  # the block's layers and its sampler
    with_attention = {m[2] for m in blocks if (m[1], m[3]) == ("up", "attentions")}
    found = {path: _sgm_path(path, stride, with_attention) for path in paths}
    return {path: name for path, name in found.items() if name is not None}


def _sgm_path(path: str, stride: int, with_attention: set[str]) -> str | None:
    if path in OUTSIDE:
        return OUTSIDE[path]
    if (match := MIDDLE.match(path)) is not None:
        kind, number = match[1], int(match[2])
        place = 2 * number if kind == "resnets" else 2 * number + 1
        return f"middle_block.{place}.{_inner(kind, path[match.end() :])}"
    if (match := BLOCK.match(path)) is None:
        return None
    way, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
    rest = _inner(kind, path[match.end() :])
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * stride}.0.op"
    if kind == "upsamplers":
        after = 2 if match[2] in with_attention else 1
        return f"output_blocks.{block * stride + stride - 1}.{after}.{rest}"
    place = block * stride + number + (1 if way == "down" else 0)
    blocks = "input_blocks" if way == "down" else "output_blocks"
    return f"{blocks}.{place}.{0 if kind == 'resnets' else 1}.{rest}"


def _inner(kind: str, rest: str) -> str:
    return RESNET.get(rest, rest) if kind == "resnets" else rest
