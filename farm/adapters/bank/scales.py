"""alpha / rank of every layer and slot of a bank, and where it is applied.

Where the layers read a copy of the master weights in another dtype, the factor is part of that
copy's down halves and costs nothing. Where they read the master weights themselves, it multiplies
the hidden values, unless it is 1 everywhere, as in every default recipe.

Legend: S slots, F kept rows, Z = S + 1 + F, P parameters per slot, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from farm.base.device.transfer import sent

__all__ = ["Scales"]

Down = Callable[[Tensor, int], Tensor]
"""The down half of a layer, by its index, in a flat tensor [rows, P]."""


class Scales:
    """The factors of all slots."""

    def __init__(
        self,
        num_slots: int,
        num_layers: int,
        *,
        down_size: int,
        like: Tensor,
        folds: bool,
        num_kept: int = 0,
    ) -> None:
        """Start with zero, the scale of an empty slot.

        Args:
            down_size: parameters of a slot's down halves, which come first.
            like: the weights that the layers read; gives dtype and device.
            folds: whether the factors become part of the down halves.
            num_kept: rows for copies of slots, after that of the zero adapter.
        """
        shape, device = (num_layers, num_slots + 1 + num_kept), like.device
        self.scale_LZ = torch.zeros(shape, dtype=like.dtype, device=device)
        self._folds, self._down_size = folds, down_size
        self._by_slot: list[tuple[float, ...]] = [()] * num_slots
        self._kept: list[tuple[float, ...]] = [()] * num_kept
        wide = torch.promote_types(like.dtype, torch.float32)
        self._fold_Z1 = torch.zeros(num_slots + 1, 1, dtype=wide, device=device)

    @property
    def applies_late(self) -> bool:
        """Whether hidden values must still be multiplied."""
        return not self._folds and _differ(self._by_slot)

    @property
    def kept_late(self) -> bool:
        """The same for rows that use the copies of slots."""
        return not self._folds and _differ(self._kept)

    @property
    def kinds(self) -> tuple[object, ...]:
        """Whether hidden values are multiplied, and the factors that a step reads as numbers."""
        return self.applies_late, *((slot, self._by_slot[slot]) for slot in self._uneven())

    def keep(self, slot: int, place: int) -> None:
        """Copy a slot's factors to a kept row."""
        self._kept[place] = self._by_slot[slot]
        self.scale_LZ[:, len(self._by_slot) + 1 + place].copy_(self.scale_LZ[:, slot])

    def set(self, slot: int, scales: Sequence[float]) -> None:
        """Set a slot's factors; 0 for layers without an adapter."""
        self._by_slot[slot] = tuple(scales)
        scale_L = torch.tensor(scales, dtype=torch.float64)
        self.scale_LZ[:, slot].copy_(sent(scale_L, self.scale_LZ.device))
        self._fold_Z1[slot] = max(scales, key=abs, default=0.0)

    def clear(self, slot: int) -> None:
        """Reset a slot's factors to zero."""
        self.set(slot, [0.0] * self.scale_LZ.shape[0])
        self._by_slot[slot] = ()

    def fold(self, target_ZP: Tensor, source_ZP: Tensor, down: Down) -> None:
        """Copy the master weights of all slots to the tensor that the layers read."""
        size, rows = self._down_size, self._fold_Z1.shape[0]  # kept rows are copied as they are
        torch.mul(source_ZP[:rows, :size], self._fold_Z1, out=target_ZP[:rows, :size])
        target_ZP[:rows, size:].copy_(source_ZP[:rows, size:])
        self._fold_each(target_ZP, source_ZP, down, self._uneven())

    def fold_slot(self, slot: int, target_ZP: Tensor, source_ZP: Tensor, down: Down) -> None:
        """The same for one slot."""
        size = self._down_size
        row = slice(slot, slot + 1)
        scaled = source_ZP[row, :size] * self._fold_Z1[row]
        target_ZP[row, :size].copy_(scaled)
        target_ZP[row, size:].copy_(source_ZP[row, size:])
        self._fold_each(target_ZP, source_ZP, down, [slot] if slot in self._uneven() else [])

    def unfold_gradients(self, grad_SP: Tensor, down: Down) -> None:
        """From gradients of the folded weights to those of the master weights, in place."""
        if not self._folds:
            return
        slots = grad_SP.shape[0]
        uneven = self._uneven()
        kept = {slot: grad_SP[slot].clone() for slot in uneven}
        grad_SP[:, : self._down_size].mul_(self._fold_Z1[:slots])
        for slot, row_P in kept.items():
            grad_SP[slot].copy_(row_P)
            for index, scale in enumerate(self._by_slot[slot]):
                down(grad_SP[slot : slot + 1], index).mul_(scale)

    def _uneven(self) -> list[int]:
        """Slots whose layers differ in their factor, such as imported adapters."""
        return [slot for slot, scales in enumerate(self._by_slot) if len(set(scales) - {0.0}) > 1]

    def _fold_each(
        self, target_ZP: Tensor, source_ZP: Tensor, down: Down, slots: Iterable[int]
    ) -> None:
        for slot in slots:
            row = slice(slot, slot + 1)
            for index, scale in enumerate(self._by_slot[slot]):
                down(target_ZP[row], index).copy_(down(source_ZP[row], index) * scale)


def _differ(by_slot: Iterable[Sequence[float]]) -> bool:
    """Whether any factor of an adapter is not 1."""
    return any(scale != 1 for scales in by_slot for scale in scales if scale)
