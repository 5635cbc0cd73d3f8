"""Row weights: each row's own adapters, gathered once for as long as the rows stay together.

Owns a copy of the slots' weights in row order, kept up to date row by row. ``Bank.route`` gathers
in every layer of every pass, which is right where rows change each time; here a pass only reads
views. Between two denoising steps hardly any row changes, so hardly anything is copied.

The copies stay at one address, so a pass over them can be compiled or captured.

Legend: R rows, K adapters per row, P parameters per slot, L layers, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from farm.adapters.bank import Bank
from farm.adapters.layers import RowPart
from farm.base.transfer import sent

__all__ = ["RowWeights"]

_Held = tuple[int, int]
"""Slot and its version."""


class RowWeights:
    """The weights of the rows of one running batch."""

    def __init__(self, bank: Bank) -> None:
        """Hold no rows yet; memory grows with the largest batch."""
        self._bank = bank
        self._nobody = bank.num_slots  # the bank's last row, the zero adapter
        self._flat_KRP: list[Tensor] = []
        self._held_KR: list[list[_Held | None]] = []
        self._parts: list[RowPart] = []
        self._num_rows = 0

    @torch.no_grad()
    def assign(
        self, slots: Sequence[Sequence[int]], factors: Sequence[Sequence[float]] | None = None
    ) -> int:
        """Say which slots each row draws with; copies only what changed since the last time.

        Args:
            slots: for each row its slots, none to ``max_per_row`` of them.
            factors: on the adapters, the shape of ``slots``; None means 1.

        Returns:
            Rows that were copied.

        Raises:
            ValueError: if a row has more adapters than the bank allows.
        """
        width = max((len(row) for row in slots), default=0)
        if width > self._bank.max_per_row:
            raise ValueError(f"{width} adapters a row; at most {self._bank.max_per_row}")
        if len(slots) != self._num_rows or width != len(self._parts):
            self._resize(len(slots), width)
        # a new list tells the layers that what they remember may be of other weights
        self._parts = list(self._parts)
        num_copied = 0
        for k, part in enumerate(self._parts):
            chosen = [row[k] if k < len(row) else self._nobody for row in slots]
            num_copied += self._copy(k, chosen)
            given = [1.0] * len(slots) if factors is None else [_at(row, k) for row in factors]
            part.factor_LR11 = self._factors(chosen, given)
        return num_copied

    def _resize(self, rows: int, width: int) -> None:
        bank = self._bank
        capacity = self._flat_KRP[0].shape[0] if self._flat_KRP else 0
        if rows > capacity:
            self._flat_KRP.clear()
            self._held_KR.clear()
            capacity = max(rows, 2 * capacity)
        while len(self._flat_KRP) < width:
            self._flat_KRP.append(bank.compute_ZP.new_zeros(capacity, bank.num_parameters))
            self._held_KR.append([None] * capacity)
        self._num_rows = rows
        self._parts = [RowPart(bank.layer_views(flat[:rows])) for flat in self._flat_KRP[:width]]

    def _copy(self, k: int, slots: list[int]) -> int:
        held_R = self._held_KR[k]
        wanted = [(slot, self._bank.version(slot)) for slot in slots]
        changed = [i for i, want in enumerate(wanted) if held_R[i] != want]
        if not changed:
            return 0
        flat_RP, device = self._flat_KRP[k], self._bank.compute_ZP.device
        rows = sent(torch.tensor(changed), device)
        source = sent(torch.tensor([slots[i] for i in changed]), device)
        flat_RP.index_copy_(0, rows, self._bank.compute_ZP.index_select(0, source))
        for i in changed:
            held_R[i] = wanted[i]
        return len(changed)

    def _factors(self, slots: list[int], given: list[float]) -> Tensor | None:
        """alpha / rank times the given factors by layer and row; None if all of them are 1."""
        scale_LR = self._bank.host_scale_LZ[:, slots] * torch.tensor(given, dtype=torch.float64)
        # the zero adapter's scale is 0 and its weights are too: any factor will do
        scale_LR[:, [slot == self._nobody for slot in slots]] = 1.0
        if bool((scale_LR == 1).all()):
            return None
        bank = self._bank
        return sent(scale_LR.to(bank.compute_dtype), bank.compute_ZP.device)[:, :, None, None]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Passes inside have exactly the assigned rows, in their order."""
        with self._bank.route_parts(self._parts):
            yield


def _at(row: Sequence[float], k: int) -> float:
    return row[k] if k < len(row) else 1.0
