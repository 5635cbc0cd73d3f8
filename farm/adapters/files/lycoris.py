"""Converts LoHa, LoKr and LoRA with a core to equivalent plain low-rank pairs.

Owns the algebra. Every conversion is exact: a Hadamard product of matrices of ranks p and q has at
most rank p·q, and so has a Kronecker product; both factorise in closed form. Adapters that would
exceed the maximum rank of a slot are rejected, never approximated.

The formulas are those of LyCORIS and of PEFT's ``LoHaModel`` and ``LoKrModel``.

Legend: o outputs, n inputs times the kernel's cells, p q ranks of two factors, r their product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from farm.errors import AdapterFileError

__all__ = [
    "CORE",
    "LYCORIS_PARTS",
    "MAX_RANK",
    "LowRank",
    "bounded_pair",
    "core_pair",
    "lycoris_pair",
]

LYCORIS_PARTS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
CORE = "lora_mid"
"""A convolution's r x r core between the halves (LoCon's CP decomposition)."""
MAX_RANK = 256
"""The maximum rank of a recipe, and therefore of a slot."""
MAX_NUMBERS = 2**26
"""Maximum size of one layer's pair: rank 256 on the widest layers has a quarter of it."""


@dataclass(frozen=True)
class LowRank:
    """A weight update as a product of two matrices, without its scale."""

    up_or: Tensor
    down_rn: Tensor
    dim: int | None
    """The method's own rank, by which its alpha is divided; None if both factors are full
    matrices, in which case the scale is 1."""


def core_pair(down: Tensor, core: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) of a LoRA with its core multiplied into the down half; the rank is unchanged.

    Raises:
        AdapterFileError: if the parts multiply to far more than any layer's weights.
    """

    def multiply(core: Tensor, down: Tensor) -> Tensor:
        return torch.einsum("pqkl,qi->pikl", core, down.flatten(1))

    _refuse_large(multiply(core.to("meta"), down.to("meta")))
    merged = multiply(core, down)
    return merged, up.flatten(1)[:, :, None, None]


def bounded_pair(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) of a plain LoRA, with at most ``MAX_RANK`` rows; the same product.

    Raises:
        AdapterFileError: if a slot cannot hold it.
    """
    if down.shape[0] <= MAX_RANK:
        return down, up
    outputs, inputs = up.shape[0], down.flatten(1).shape[1]
    if min(outputs, inputs) > MAX_RANK:
        raise AdapterFileError(
            f"it has rank {down.shape[0]}; {MAX_RANK} is the largest",
            "train it with a smaller rank, or shrink it with kohya's `resize_lora.py`",
        )
    _refuse_large(down, up)
    whole_up, whole_down = _whole(up.flatten(1) @ down.flatten(1))
    return whole_down.reshape(-1, *down.shape[1:]), whole_up[(..., *[None] * (down.ndim - 2))]


def lycoris_pair(parts: Mapping[str, Tensor]) -> LowRank:
    """The low-rank pair of one LoHa or LoKr layer.

    Raises:
        AdapterFileError: if parts are missing or do not fit, the rank is above ``MAX_RANK``, or the
            parts multiply to far more than any layer's weights.
    """
    convert = _loha if any(name.startswith("hada") for name in parts) else _lokr
    try:
        # shapes first: small parts can multiply to more than fits in memory
        plan = convert({name: part.to("meta") for name, part in parts.items()})
        _refuse_large(plan.up_or, plan.down_rn)
        return convert(parts)
    except KeyError as error:
        raise AdapterFileError(f"the part {error} is missing", "fetch it again") from error
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise AdapterFileError(f"its parts do not fit: {shapes}", "fetch it again") from error


def _loha(parts: Mapping[str, Tensor]) -> LowRank:
    first = _factors(parts, "hada_w1", "hada_t1")
    second = _factors(parts, "hada_w2", "hada_t2")
    (up_op, down_pn), (up_oq, down_qn) = first, second
    if up_op.shape[0] != up_oq.shape[0] or down_pn.shape[1] != down_qn.shape[1]:
        raise ValueError("factors of unlike shapes")
    dim = parts["hada_w1_b"].shape[0]
    if up_op.shape[1] * up_oq.shape[1] <= MAX_RANK:
        up_or = (up_op[:, :, None] * up_oq[:, None, :]).flatten(1)
        down_rn = (down_pn[:, None, :] * down_qn[None, :, :]).flatten(0, 1)
        return LowRank(up_or, down_rn, dim)
    outputs, inputs = up_op.shape[0], down_pn.shape[1]
    _refuse_above(min(outputs, inputs), "LoHa")
    return LowRank(*_whole((up_op @ down_pn) * (up_oq @ down_qn)), dim)


def _lokr(parts: Mapping[str, Tensor]) -> LowRank:
    first = _whole(parts["lokr_w1"]) if "lokr_w1" in parts else _factors(parts, "lokr_w1", "")
    second = (
        _whole(parts["lokr_w2"].flatten(1))
        if "lokr_w2" in parts
        else _factors(parts, "lokr_w2", "lokr_t2")
    )
    (up_op, down_pn), (up_oq, down_qn) = first, second
    _refuse_above(up_op.shape[1] * up_oq.shape[1], "LoKr")
    dims = [parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    dim = dims[0] if dims else None
    return LowRank(torch.kron(up_op, up_oq), torch.kron(down_pn, down_qn), dim)


def _factors(parts: Mapping[str, Tensor], name: str, core: str) -> tuple[Tensor, Tensor]:
    """(up, down) of one factor, with its core multiplied into the down half."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return a.flatten(1), b.flatten(1)
    down = torch.einsum("pqkl,qi->pikl", parts[core], b)
    return a.T.contiguous(), down.flatten(1)


def _whole(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A full matrix as (up, down), one of which is the identity."""
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        return torch.eye(outputs, device=matrix.device), matrix
    return matrix, torch.eye(inputs, device=matrix.device)


def _refuse_large(*results: Tensor) -> None:
    num_numbers = sum(result.numel() for result in results)
    if num_numbers > MAX_NUMBERS:
        raise AdapterFileError(
            f"it unpacks to {num_numbers:,} numbers, more than any layer has", "fetch it again"
        )


def _refuse_above(rank: int, kind: str) -> None:
    if rank > MAX_RANK:
        raise AdapterFileError(
            f"as a plain LoRA this {kind} layer would have rank {rank}; {MAX_RANK} is the largest",
            f"train it with a smaller {'rank' if kind == 'LoHa' else 'factor'}",
        )
