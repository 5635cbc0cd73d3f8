"""Search for the number of rows in a pass: measured, not configured.

Owns the search for the knee of the throughput curve. A larger batch helps only until it saturates
the processor; beyond the knee it adds latency but no throughput.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BatchSizeCurve", "find_batch_size"]

WORTH_IT = 0.05
"""Minimum relative gain in throughput for doubling the batch. A small gain is enough: a batch is
only as full as there are requests, and when many wait, throughput shortens the wait."""


@dataclass(frozen=True, slots=True)
class BatchSizeCurve:
    """The measured curve and the batch size chosen from it."""

    rows: int
    """Rows of a full pass at the measured size."""
    seconds_by_rows: dict[int, float]
    """Seconds of a pass, by its rows."""

    @property
    def seconds_per_row(self) -> float:
        """Seconds per row in a full pass."""
        return self.seconds_by_rows[self.rows] / self.rows

    def seconds_of(self, rows: float) -> float:
        """Seconds of a pass between the measured ones, on straight lines; 0 for no rows."""
        below, below_s = 0.0, 0.0
        for count, seconds in sorted(self.seconds_by_rows.items()):
            if rows <= count:
                return below_s + (seconds - below_s) * (rows - below) / (count - below)
            below, below_s = count, seconds
        return below_s * rows / below

    @property
    def reason(self) -> str:
        """The curve in one line, for logs."""
        points = ", ".join(
            f"{rows}: {1000 * seconds:.1f} ms" for rows, seconds in self.seconds_by_rows.items()
        )
        return f"{self.rows} rows a pass ({points})"


def find_batch_size(
    pass_seconds: Callable[[int], float],
    *,
    max_rows: int,
    fits: Callable[[int], bool] = lambda rows: True,
    worth_it: float = WORTH_IT,
) -> BatchSizeCurve:
    """Double the rows while throughput improves and memory allows.

    Args:
        pass_seconds: measures a pass of that many rows; infinite if it ran out of memory.
        max_rows: the upper limit.
        fits: whether a pass of that many rows fits in memory, called before it runs.
        worth_it: the minimum gain in throughput that justifies doubling, as a fraction.
    """
    measured = {1: pass_seconds(1)}
    rows = 1
    while rows * 2 <= max_rows and fits(rows * 2):
        seconds = pass_seconds(rows * 2)
        if math.isinf(seconds):
            break
        measured[rows * 2] = seconds
        gain = 2 * measured[rows] / measured[rows * 2] - 1
        if gain < worth_it:  # perhaps noise of other programs, which only adds time: repeat
            measured[rows * 2] = min(measured[rows * 2], pass_seconds(rows * 2))
            gain = 2 * measured[rows] / measured[rows * 2] - 1
        # a guided image needs two rows, so two are always allowed
        if gain < worth_it and rows >= 2:
            break
        rows *= 2
    return BatchSizeCurve(rows, measured)
