"""The running batch: the images in it, by size, and the choice of the next pass.

Owns joining within the limits, the turns of sizes, and the turns of rows when there are too many
for one pass. Does not denoise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from farm.serving.engine.row import Row, Size
from farm.serving.engine.sizing.capacity import Capacity

__all__ = ["Batch"]


class Batch:
    """Rows being generated, and rows ready to join them. Not thread-safe: used by one thread."""

    def __init__(self, max_sizes: int) -> None:
        """Create an empty batch.

        Args:
            max_sizes: full batches of different image sizes that may run at once.
        """
        self._max_sizes = max_sizes
        self._groups: OrderedDict[Size, list[Row]] = OrderedDict()
        self._ready: list[Row] = []

    def __iter__(self) -> Iterator[Row]:
        """All rows, running and ready."""
        for rows in [self._ready, *self._groups.values()]:
            yield from list(rows)

    def __len__(self) -> int:
        """Running images."""
        return sum(len(rows) for rows in list(self._groups.values()))

    @property
    def num_ready(self) -> int:
        """Images ready to join."""
        return len(self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to generate."""
        return not self._ready and not any(self._groups.values())

    def has(self, size: Size) -> bool:
        """Whether any images of a size are running."""
        return bool(self._groups.get(size))

    def add_ready(self, row: Row) -> None:
        """Add a row that joins when there is room."""
        self._ready.append(row)

    def join(self, capacity: Capacity) -> list[Row]:
        """Let ready rows join, in the order of their turns, while they fit; returns them.

        No row overtakes another of its size; otherwise a guided image could wait forever for two
        free places while unguided ones take each place as it becomes free.
        """
        joined: list[Row] = []
        full: set[Size] = set()
        total = sum(row.num_rows for rows in self._groups.values() for row in rows)
        for row in sorted(self._ready, key=lambda row: row.waiting.turn):
            group = self._groups.get(row.waiting.size, [])
            taken = sum(other.num_rows for other in group)
            if row.waiting.size in full:
                continue
            if group and taken + row.num_rows > capacity.rows_at(row.waiting.size):
                full.add(row.waiting.size)
                continue
            if total and total + row.num_rows > self._max_sizes * capacity.rows:
                break
            if total and not capacity.has_memory():
                break
            self._ready.remove(row)
            self._groups.setdefault(row.waiting.size, []).append(row)
            total += row.num_rows
            joined.append(row)
        return joined

    def choose(self, capacity: Capacity) -> list[Row]:
        """The rows of the next pass; empty if nothing is running.

        Sizes alternate by pass, so rows advance at the same pace whatever their size.
        """
        for size in list(self._groups):
            rows = self._groups[size]
            if not rows:
                del self._groups[size]
                continue
            self._groups.move_to_end(size)
            return self._fitting(rows, capacity.rows_at(size))
        return []

    def _fitting(self, rows: list[Row], limit: int) -> list[Row]:
        chosen: list[Row] = []
        taken = 0
        for row in rows:
            if chosen and taken + row.num_rows > limit:
                break
            chosen.append(row)
            taken += row.num_rows
        if len(chosen) < len(rows):  # only if the limit was lowered during a batch
            rows[:] = rows[len(chosen) :] + chosen
        return chosen

    def leave(self, row: Row) -> None:
        """Remove a row, running or ready."""
        if row in self._ready:
            self._ready.remove(row)
        else:
            self._groups[row.waiting.size].remove(row)

    def leave_where(self, unwanted: Callable[[Row], bool]) -> list[Row]:
        """Remove all rows that match a predicate; returns them."""
        gone = [row for row in self if unwanted(row)]
        for row in gone:
            self.leave(row)
        return gone
