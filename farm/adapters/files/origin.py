"""The model family that an adapter file belongs to, recognised by its layers.

Owns the recognition and its error. A family is only named in messages: whether an adapter fits is
decided by layers and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from farm.errors import AdapterFileError

__all__ = ["refuse_other_family"]

CROSS_ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_[kv](?:_lora)?$")
TEXT_WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
"""Families with a UNet, by the width of the text states that it attends to."""
ATTENTION = re.compile(r"(?<!single_)transformer_blocks\.(\d+)\.attn\.to_q$")
TRANSFORMERS = {
    (60, 3072): "Qwen-Image",
    (8, 6144): "FLUX.2-dev",
    (8, 4096): "FLUX.2-klein",
    (5, 3072): "FLUX.2-klein",
    (19, 3072): "FLUX.1",
    (24, 1536): "Stable Diffusion 3",
    (24, 2432): "Stable Diffusion 3",
    (38, 2432): "Stable Diffusion 3",
}
"""Families with a transformer, by the number and the width of the blocks in which text and image
attend to each other; these blocks have the same names in all of them."""
MARKS = (
    (re.compile(r"context_refiner|noise_refiner"), "Z-Image"),
    (re.compile(r"text_fusion|txtfusion|transformer_blocks\.\d+\.attn\.to_gate"), "Krea 2"),
    (re.compile(r"to_qkv_mlp_proj|\bff(_context)?[._]linear_(in|out)"), "FLUX.2"),
    (re.compile(r"motion_modules"), "AnimateDiff's motion modules"),
    (re.compile(r"joint_blocks"), "Stable Diffusion 3"),
    (re.compile(r"(?:^|[._])blocks[._]\d+[._](?:self|cross)_attn[._][qkvo]$"), "Wan"),
    (re.compile(r"double_blocks|single_blocks|single_transformer_blocks"), "FLUX"),
    (re.compile(r"txt_mlp|img_mlp"), "Qwen-Image"),
)
"""Families by names of layers, where no width decides."""
SECOND_TEXT = re.compile(r"^lora_te2_|^text_encoder_2\.")
SOME_TRANSFORMER = re.compile(r"^transformer\.")
UNNAMED = "another family"


def refuse_other_family(
    path: Path,
    inputs: Mapping[str, int],
    unknown: Sequence[str],
    known: Iterable[str],
) -> None:
    """Refuse a file whose layers are not the base's, with both families and what differs.

    Args:
        inputs: number of inputs of each of the file's layers.
        unknown: those of them that the base lacks.
        known: the base's layers, with the shapes of their weights if it is a mapping.

    Raises:
        AdapterFileError: if layers are unknown, or if the text states of a known family have
            another width.
    """
    shapes = known if isinstance(known, Mapping) else {}
    widths = {name: shape[1] for name, shape in shapes.items() if len(shape) > 1}
    layer, theirs = _text_layer(inputs)
    _, ours = _text_layer(widths)
    remedy = "use it with the family of base models that it was trained on"
    names = (_named(inputs), _named(widths))
    # where neither has a name, the layer and both shapes are reported by the reader
    if theirs and ours and theirs != ours and set(names) != {UNNAMED}:
        raise AdapterFileError(
            f"{path} is an adapter of {names[0]}, whose denoiser reads text states "
            f"of width {theirs}, as in {layer}; the base is {names[1]}, of width {ours}",
            remedy,
        )
    if unknown:
        whose = f"is an adapter of {names[0]} and " if names[0] != UNNAMED else ""
        which = f", of {names[1]}," if names[1] not in (UNNAMED, names[0]) else ""
        raise AdapterFileError(
            f"{path} {whose}has {len(unknown)} layer{'s' if len(unknown) > 1 else ''} that the "
            f"base{which} lacks, such as {unknown[0]}",
            remedy,
        )
    blocks = (_joint_blocks(inputs), _joint_blocks(widths))
    if all(blocks) and blocks[0][1:] != blocks[1][1:] and set(names) != {UNNAMED}:
        raise AdapterFileError(
            f"{path} is an adapter of {names[0]}, whose blocks have width {blocks[0][1]}; "
            f"the base is {names[1]}, of width {blocks[1][1]}",
            remedy,
        )


def _text_layer(inputs: Mapping[str, int]) -> tuple[str, int | None]:
    """One of the cross-attention's layers of keys and values, and its number of inputs."""
    found = (pair for pair in inputs.items() if CROSS_ATTENTION.search(pair[0]))
    return next(found, ("", None))


def _joint_blocks(inputs: Mapping[str, int]) -> tuple[int, ...]:
    """Number and width of the blocks in which text and image attend to each other, if any."""
    found = [
        (int(match[1]), width)
        for name, width in inputs.items()
        if (match := ATTENTION.search(name))
    ]
    return (max(number for number, _ in found) + 1, found[0][1]) if found else ()


def _named(inputs: Mapping[str, int]) -> str:
    """The family's name, or ``UNNAMED``.

    Args:
        inputs: number of inputs of each layer.
    """
    (_, width), blocks = _text_layer(inputs), _joint_blocks(inputs)
    if width in TEXT_WIDTHS:
        return TEXT_WIDTHS[width]
    for mark, family in MARKS:
        if any(mark.search(name) for name in inputs):
            return family
    if len(blocks) == 2 and blocks in TRANSFORMERS:
        return TRANSFORMERS[blocks]
    if any(SOME_TRANSFORMER.search(name) for name in inputs):
        return "a family with a transformer as its denoiser"
    if any(SECOND_TEXT.search(name) for name in inputs):
        return "Stable Diffusion XL"  # other families with a second text encoder have a transformer
    return UNNAMED
