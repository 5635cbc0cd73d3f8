"""Prompts longer than CLIP reads at once, in windows of 75 tokens, as ComfyUI and A1111 read them.

Owns the division of token ids into windows, each with its own start and end, and the mask over the
windows that a row lacks. A family encodes each window separately and joins the states along T.

Legend: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from farm.base.conditioning import ABSENT, MASK
from farm.base.families.pipeline_base import padded_ids

__all__ = ["mask_of", "window_ids", "windows_of"]


def window_ids(
    tokenizer: Any, prompts: Sequence[str], windows: Sequence[int] | None = None
) -> Tensor:
    """Token ids of each prompt in its windows, int64 [R, T].

    Args:
        windows: of each prompt; windows after its text are those of the empty prompt. None, or one
            for each, gives what the CLIP pipelines make.
    """
    if windows is None or max(windows) == 1:
        return padded_ids(tokenizer, prompts)
    length, longest = int(tokenizer.model_max_length), max(windows)
    rows = []
    for prompt, count in zip(prompts, windows, strict=True):
        text = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        room = length - 2
        row: list[int] = []
        for start in range(0, count * room, room):
            part = text[start : start + room]
            row += [tokenizer.bos_token_id, *part, tokenizer.eos_token_id]
            row += [tokenizer.pad_token_id] * (room - len(part))
        rows.append(row + [ABSENT] * length * (longest - count))
    return torch.tensor(rows)


def windows_of(ids_RT: Tensor, length: int) -> list[Tensor]:
    """The windows of token ids, each [R, length]; where a row has none, any valid ids."""
    if ids_RT.shape[1] == length:
        return [ids_RT]
    return list(torch.split(ids_RT.clamp(min=0), length, dim=1))


def mask_of(ids_RT: Tensor, length: int) -> dict[str, Tensor]:
    """The mask of the windows that rows have, as an entry of ``Conditioning.extra``; nothing for a
    single window, so that usual prompts need no masked attention."""
    return {} if ids_RT.shape[1] == length else {MASK: ids_RT != ABSENT}
