"""The rows of a pass while images of callers below their share run beside those of others.

Owns the limit on what the others' rows may cost: they slow down an image of a caller below its
share to at most ``SLOWDOWN`` times what it would take without them. Each pass with such images
earns time, which the others' rows spend in the same pass or in passes of their own. As long as all
callers have equal use, none of this applies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from farm.serving.engine.row import Row, Size
from farm.serving.engine.sizing.capacity import Capacity

__all__ = ["PassBudget", "fitting", "num_rows"]

SLOWDOWN = 2.0
"""At 2, callers below their share get at least half of the time."""


def num_rows(rows: Iterable[Row]) -> int:
    """Rows that images take in a pass together."""
    return sum(row.num_rows for row in rows)


def fitting(rows: Sequence[Row], limit: int) -> list[Row]:
    """The first rows that fit in a pass; at least one."""
    chosen: list[Row] = []
    taken = 0
    for row in rows:
        if chosen and taken + row.num_rows > limit:
            break
        chosen.append(row)
        taken += row.num_rows
    return chosen


class PassBudget:
    """Chooses the rows of a pass; keeps the time that the others' rows may take."""

    def __init__(self) -> None:
        self._credit_s = 0.0
        self._turns: list[Size] = []
        """Sizes with rows of others, in the order in which they spend time."""

    def reset(self) -> None:
        """Forget the time that was earned."""
        self._credit_s = 0.0
        self._turns.clear()

    def choose(
        self, groups: Mapping[Size, Sequence[Row]], capacity: Capacity, below: Collection[str]
    ) -> list[Row]:
        """The rows of the next pass, in the order of their group.

        Args:
            groups: by image size, in the order of their turns; at least one row is of a caller in
                ``below``, and one of another.
            below: callers below their share.
        """
        first: dict[Size, list[Row]] = {}
        others: dict[Size, list[Row]] = {}
        for size, rows in groups.items():
            first[size] = [row for row in rows if row.request.tenant in below]
            others[size] = [row for row in rows if row.request.tenant not in below]
        self._turns = [size for size in self._turns if others.get(size)]
        self._turns += [size for size, rows in others.items() if rows and size not in self._turns]
        spending = self._turns[0]
        alone = self._alone(spending, first[spending], others[spending], capacity)
        if alone:
            return alone
        size = next(size for size, rows in first.items() if rows)
        chosen = fitting(first[size], capacity.rows_at(size))
        self._earn(capacity.seconds(size, num_rows(chosen)), groups, capacity)
        if size == spending:
            beside, cost_s = self._affordable(size, others[size], num_rows(chosen), capacity)
            chosen += beside
            self._spend(cost_s, bool(beside))
        members = set(chosen)
        return [row for row in groups[size] if row in members]

    def _alone(
        self, size: Size, first: Sequence[Row], others: Sequence[Row], capacity: Capacity
    ) -> list[Row]:
        """Rows of others for a pass of their own, if they cannot share one and can afford it."""
        limit = capacity.rows_at(size)
        if first and num_rows(fitting(first, limit)) + others[0].num_rows <= limit:
            return []
        chosen, cost_s = self._affordable(size, others, 0, capacity)
        # beside full passes, only a full one is worth its fixed costs
        if not chosen or (first and len(chosen) < len(fitting(others, limit))):
            return []
        self._spend(cost_s, True)
        return chosen

    def _earn(
        self, pass_s: float, groups: Mapping[Size, Sequence[Row]], capacity: Capacity
    ) -> None:
        """Add the time earned by a pass of callers below their share, up to one full pass."""
        most_s = max(capacity.seconds(size, capacity.rows_at(size)) for size in groups)
        self._credit_s = min(self._credit_s + (SLOWDOWN - 1) * pass_s, most_s)

    def _spend(self, cost_s: float, has_run: bool) -> None:
        self._credit_s -= cost_s
        if has_run:
            self._turns.append(self._turns.pop(0))

    def _affordable(
        self, size: Size, others: Sequence[Row], num_first: int, capacity: Capacity
    ) -> tuple[list[Row], float]:
        """The first of the others' rows that fit beside ``num_first`` rows and whose time is
        earned, and that time."""
        before_s = capacity.seconds(size, num_first)
        chosen: list[Row] = []
        taken, cost_s = num_first, 0.0
        for row in others:
            taken += row.num_rows
            more_s = capacity.seconds(size, taken) - before_s
            # credits are sums of floats
            if taken > capacity.rows_at(size) or more_s > self._credit_s * (1 + 1e-9):
                break
            chosen.append(row)
            cost_s = more_s
        return chosen, cost_s
