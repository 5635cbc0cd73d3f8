"""Row weights: each row's adapters, gathered once and kept while the rows are batched together.

Owns which rows of a pass share products, and a copy of their adapters in row order, updated row by
row. Between two denoising steps few rows change, so little is copied.

Adjacent rows whose adapters have one shape form a part, with one product per layer. A copy has the
row's factor and alpha / rank in its down halves, so passes multiply by neither. If the copies
would use too much memory, the rows read the slots directly, one adapter at a time: that is no
slower for large adapters, whose products use the whole processor.

Legend: R rows, K adapters per row, P parameters of a shape, L layers, G groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from farm.adapters.bank.mixed import Held, MixedBank, Shape
from farm.adapters.bank.mixed_layers import RowPart
from farm.base.device.transfer import sent

__all__ = ["RowWeights"]

MAX_COPIED_BYTES = 256 << 20
"""Rows of one shape are copied up to this total size."""


@dataclass(frozen=True)
class _Use:
    """One row's adapter and its factor."""

    row: int
    held: Held
    factor: float


@dataclass(eq=False)
class _Copies:
    """Copies of adapters of one shape, in row order."""

    flat_RP: Tensor
    held: list[tuple[int, float] | None]
    """Serial and factor of the adapter in each place."""
    num_used: int = 0
    views: dict[tuple[int, int], dict[str, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def layers(self, shape: Shape, start: int, stop: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Views of a range of places."""
        if (start, stop) not in self.views:
            self.views[start, stop] = shape.views(self.flat_RP[start:stop])
        return self.views[start, stop]


class RowWeights:
    """The weights of the rows of one running batch."""

    def __init__(self, bank: MixedBank) -> None:
        """Start without rows; memory grows with the largest batch."""
        self._bank = bank
        self._copies: dict[tuple[int, Shape], _Copies] = {}
        self._parts: list[RowPart] = []
        self._num_copied = 0

    @torch.no_grad()
    def assign(
        self, slots: Sequence[Sequence[int]], factors: Sequence[Sequence[float]] | None = None
    ) -> int:
        """Set which slots each row uses; copies only what changed since the last time.

        Adjacent rows with the same ``MixedBank.group_of`` share products.

        Args:
            slots: the slots of each row, at most ``max_per_row``.
            factors: on the adapters, the shape of ``slots``; None means 1.

        Returns:
            The number of rows copied.

        Raises:
            ValueError: if a row has more adapters than the bank allows.
        """
        width = max((len(row) for row in slots), default=0)
        if width > self._bank.max_per_row:
            raise ValueError(f"{width} adapters a row; at most {self._bank.max_per_row}")
        before, self._copies = self._copies, {}
        self._num_copied = 0
        # a new list invalidates the outputs that layers cache
        self._parts = []
        for k in range(width):
            uses = [
                _Use(i, held, 1.0 if factors is None else factors[i][k])
                for i, row in enumerate(slots)
                if k < len(row) and (held := self._bank.held(row[k])) is not None
            ]
            self._add_parts(k, uses, before)
        self._keep_unused(before)
        for part in self._parts:
            self._bank.open_layers(part.layers)
        return self._num_copied

    def _keep_unused(self, before: dict[tuple[int, Shape], _Copies]) -> None:
        """Keep the copies that these rows do not use while they are small: captured passes read
        them, and rows that come back need no new copy."""
        room = MAX_COPIED_BYTES
        for key, copies in before.items():
            room -= copies.flat_RP.nbytes if key not in self._copies else 0
            if key not in self._copies and room >= 0:
                self._copies[key] = copies
                copies.num_used = 0

    def fixed_parts(self) -> tuple[object, ...] | None:
        """What a captured pass of these rows reads; equal by identity while the pass is valid.

        None if a slot is read directly, because slots move in memory.
        """
        if any(part.is_direct for part in self._parts):
            return None
        return tuple(part.layers for part in self._parts)

    def _add_parts(
        self, k: int, uses: Sequence[_Use], before: dict[tuple[int, Shape], _Copies]
    ) -> None:
        """The parts of each row's adapter number ``k``."""
        totals = Counter(use.held.shape for use in uses)
        itemsize = self._bank.dtype.itemsize
        for _, run in groupby(enumerate(uses), lambda at: (at[1].held.shape, at[1].row - at[0])):
            members = [use for _, use in run]
            shape = members[0].held.shape
            if totals[shape] * shape.num_parameters * itemsize > MAX_COPIED_BYTES:
                self._add_direct(members)
                continue
            if (k, shape) not in self._copies:
                copies = self._room(before.get((k, shape)), shape, totals[shape])
                self._copies[k, shape] = copies
            self._add_copied(self._copies[k, shape], members)

    def _room(self, known: _Copies | None, shape: Shape, rows: int) -> _Copies:
        """Copies with room for ``rows``; the existing ones if they are large enough."""
        if known is not None and len(known.held) >= rows:
            known.num_used = 0
            return known
        capacity = rows if known is None else max(rows, 2 * len(known.held))
        del known
        bank = self._bank
        flat = torch.empty(capacity, shape.num_parameters, dtype=bank.dtype, device=bank.device)
        return _Copies(flat, [None] * capacity)

    def _add_copied(self, copies: _Copies, members: Sequence[_Use]) -> None:
        start = copies.num_used
        copies.num_used += len(members)
        for place, use in enumerate(members, start):
            wanted = (use.held.serial, use.factor)
            if copies.held[place] != wanted:
                use.held.copy_scaled(use.factor, copies.flat_RP[place])
                copies.held[place] = wanted
                self._num_copied += 1
        layers = copies.layers(members[0].held.shape, start, copies.num_used)
        self._parts.append(RowPart(members[0].row, members[-1].row + 1, layers))

    def _add_direct(self, members: Sequence[_Use]) -> None:
        """Rows that read the slot directly, one group for each run of equal adapters."""
        for _, run in groupby(members, lambda use: (use.held.serial, use.factor)):
            rows = list(run)
            held = rows[0].held
            views = held.shape.views(held.flat_P.unsqueeze(0))
            factors = self._factors(rows[0])
            self._parts.append(
                RowPart(rows[0].row, rows[-1].row + 1, views, factors, is_direct=True)
            )

    def _factors(self, use: _Use) -> dict[str, Tensor] | None:
        """alpha / rank times the given factor, by layer; None if all of them are 1."""
        scales_L = torch.tensor(use.held.scales, dtype=torch.float64) * use.factor
        if bool((scales_L == 1).all()):
            return None
        bank = self._bank
        sent_L111 = sent(scales_L.to(bank.dtype), bank.device)[:, None, None, None]
        names = [place.name for place in use.held.shape.places]
        return dict(zip(names, sent_L111, strict=True))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the context, passes have exactly the assigned rows, in this order."""
        with self._bank.route_parts(self._parts):
            yield
