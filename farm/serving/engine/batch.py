"""The running batch: the images in it, by size, and the choice of the next pass.

Owns joining within the limits, the turns of sizes, and the turns of rows when there are too many
for one pass. Callers below their share join at once, and ``PassBudget`` limits the rows of others
while they run. Does not denoise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

from farm.serving.engine.row import Row, Size
from farm.serving.engine.sharing.pass_budget import PassBudget, fitting, num_rows
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
        self._budget = PassBudget()

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

    def join(self, capacity: Capacity, below: Collection[str] = ()) -> list[Row]:
        """Let ready rows join, in the order of their turns, while they fit; returns them.

        No row overtakes another of its size; otherwise a guided image could wait forever for two
        free places while unguided ones take each place as it becomes free. But rows of callers
        below their share go first, and need no place that a row of another caller has.
        """
        joined: list[Row] = []
        full: set[tuple[Size, bool]] = set()
        total = sum(num_rows(rows) for rows in self._groups.values())
        for row in sorted(self._ready, key=lambda row: (not _is_of(row, below), row.waiting.turn)):
            size, is_first = row.waiting.size, _is_of(row, below)
            if (size, is_first) in full:
                continue
            group = self._groups.get(size, [])
            rivals = [other for other in group if _is_of(other, below)] if is_first else group
            if rivals and num_rows(rivals) + row.num_rows > capacity.rows_at(size):
                full.add((size, is_first))
                continue
            most = (self._max_sizes + is_first) * capacity.rows
            if total and (total + row.num_rows > most or not capacity.has_memory()):
                break
            self._ready.remove(row)
            self._groups.setdefault(size, []).append(row)
            total += row.num_rows
            joined.append(row)
        return joined

    def choose(self, capacity: Capacity, below: Collection[str] = ()) -> list[Row]:
        """The rows of the next pass; empty if nothing is running.

        Sizes alternate by pass, so rows advance at the same pace whatever their size.

        Args:
            below: callers below their share.
        """
        for size in [size for size, rows in self._groups.items() if not rows]:
            del self._groups[size]
        if not self._groups:
            return []
        running = [row for rows in self._groups.values() for row in rows]
        is_limited = len({_is_of(row, below) for row in running}) > 1
        if is_limited:
            chosen = self._budget.choose(self._groups, capacity, below)
        else:
            self._budget.reset()
            size, rows = next(iter(self._groups.items()))
            chosen = fitting(rows, capacity.rows_at(size))
        self._take_turns(chosen, below if is_limited else None)
        return chosen

    def _take_turns(self, chosen: list[Row], below: Collection[str] | None) -> None:
        """Move a pass's size behind the other sizes, and its rows behind those that did not fit.

        Args:
            below: the callers whose rows take turns, while others' rows wait; None for all.
        """
        size, members = chosen[0].waiting.size, set(chosen)
        rows = self._groups[size]
        self._groups.move_to_end(size)
        entitled = {row for row in rows if below is None or _is_of(row, below)}
        if members & entitled and not entitled <= members:
            rows[:] = [row for row in rows if row not in members] + chosen

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


def _is_of(row: Row, callers: Collection[str]) -> bool:
    return row.request.tenant in callers
