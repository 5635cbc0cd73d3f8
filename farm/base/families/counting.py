"""Counts of a denoiser on tensors without storage: FLOP, saved activations, layer widths.

Owns how the planner's facts of a base are counted. Nothing is computed: the denoiser is built from
its config on torch's meta device, and passes of one row run on shapes alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from farm.base.memory import DenoiserCounts
from farm.file_facts import cache_folder
from farm.keys import digest

__all__ = ["SIDES", "count_denoiser"]

SIDES = (32, 64, 128)
"""Sides in latent cells at which passes are counted; three of them give the three terms exactly."""
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")
"""Endings of the layers with adapters while saved values are counted."""


def count_denoiser(config: Any, cls: Any, run: Callable[[Any, int], Any]) -> DenoiserCounts:
    """Count a denoiser; the result is kept in the user's cache folder.

    Args:
        config: of the denoiser, ``cls`` its class.
        run: calls it for one row of a side in cells; inputs are on the meta device.
    """
    known = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    facts = [cls.__name__, json.dumps(known, sort_keys=True, default=str), diffusers.__version__]
    entry = cache_folder() / "counts" / f"{digest([*facts, torch.__version__, SIDES])[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return DenoiserCounts(**json.loads(entry.read_text()))
    counts = _counted(config, cls, run)
    with contextlib.suppress(OSError):  # without a writable cache, it is counted again
        entry.parent.mkdir(parents=True, exist_ok=True)
        aside = entry.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(counts)))
        aside.replace(entry)
    return counts


def _counted(config: Any, cls: Any, run: Callable[[Any, int], Any]) -> DenoiserCounts:
    with torch.device("meta"):
        denoiser = cls.from_config(config).requires_grad_(False).eval()
    flops = []
    with torch.no_grad():
        for side in SIDES:
            with FlopCounterMode(display=False) as counter:
                run(denoiser, side)
            flops.append(float(counter.get_total_flops()))
    per_row, per_cell, per_square = _fitted([side**2 for side in SIDES], flops)
    return DenoiserCounts(
        flops_per_cell=per_cell,
        flops_per_cell_squared=per_square,
        flops_per_row=per_row,
        saved_per_cell=_saved_values(denoiser, run, SIDES[1]) / SIDES[1] ** 2,
        layer_widths=layer_widths(denoiser),
    )


def layer_widths(denoiser: nn.Module) -> dict[str, int]:
    """Inputs plus outputs of every layer that can have an adapter, by path."""
    widths = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear):
            widths[path] = module.in_features + module.out_features
        elif isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            widths[path] = module.in_channels * area + module.out_channels
    return widths


def _fitted(cells: Sequence[int], flops: Sequence[float]) -> tuple[float, float, float]:
    """The terms constant, linear and quadratic in the cells."""
    powers = torch.tensor([[1.0, n, n**2] for n in cells], dtype=torch.float64)
    found = torch.linalg.solve(powers, torch.tensor(flops, dtype=torch.float64))
    constant, linear, square = found.tolist()
    return constant, linear, square


def _saved_values(denoiser: nn.Module, run: Callable[[Any, int], Any], side: int) -> int:
    """Values that one row's forward pass keeps for the backward pass of adapters."""
    own = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    kept: dict[int, Tensor] = {}  # references, so that no storage is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)
        return tensor

    _adapt(denoiser)
    attention = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _flash_attention
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
            output = run(denoiser, side)
    finally:
        functional.scaled_dot_product_attention = attention
    del output
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())


class _Flash(torch.autograd.Function):
    """Keeps what flash attention keeps; the meta device would keep whole attention matrices."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *_: Any) -> Any:
        raise NotImplementedError("only forward passes are counted")


def _flash_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]


def _adapt(denoiser: nn.Module) -> None:
    """Give the denoiser's attention layers adapters of rank 1."""
    for path, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(ADAPTED):
            module.forward = _adapted(module)  # type: ignore[assignment,method-assign]


def _adapted(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    down_1I = torch.empty(1, layer.in_features, device="meta", requires_grad=True)
    up_O1 = torch.empty(layer.out_features, 1, device="meta", requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        plain = functional.linear(x, layer.weight, layer.bias)
        return plain + functional.linear(functional.linear(x, down_1I), up_O1)

    return forward
