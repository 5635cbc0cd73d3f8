"""An engine's counters: requests by outcome, passes, and open requests.

Owns the counters and their lock: the callers' threads, the denoising thread and the decoder all
count requests. The engine fills in current sizes.
"""

from __future__ import annotations

import threading
from collections import Counter

from farm.serving.config import EngineStats
from farm.serving.engine.row import Waiting

__all__ = ["Counts"]


class Counts:
    """The counters of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self.num_open = 0
        """Requests accepted and not yet ended."""

    @property
    def callers(self) -> list[str]:
        """Those with open requests."""
        with self._lock:
            return list(self._open)

    def add_submitted(self, waiting: Waiting) -> None:
        """Count a request about to be queued."""
        with self._lock:
            self._stats.submitted += 1
            self.num_open += 1
            self._open[waiting.request.tenant] += 1

    def remove_submitted(self, waiting: Waiting) -> None:
        """Uncount a request that admission refused."""
        with self._lock:
            self._stats.submitted -= 1
            self._close(waiting)

    def add_ended(self, waiting: Waiting, *, is_generated: bool = False) -> None:
        """Count a request that has ended."""
        with self._lock:
            self._close(waiting)
            if is_generated:
                self._stats.generated += 1
            elif waiting.ticket.cancelled:
                self._stats.cancelled += 1
            else:
                self._stats.failed += 1

    def _close(self, waiting: Waiting) -> None:
        self.num_open -= 1
        caller = waiting.request.tenant
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    def add_pass(self, num_rows: int, pass_s: float) -> None:
        """Count a pass of the denoiser; called by one thread."""
        self._stats.passes += 1
        self._stats.rows += num_rows
        self._stats.denoise_s += pass_s
        self._stats.last_rows = num_rows

    def add_out_of_memory(self) -> None:
        """Count a pass that did not fit in memory; called by one thread."""
        self._stats.out_of_memory += 1

    def snapshot(self) -> EngineStats:
        """A copy of the counters, with all sizes still 0."""
        return self._stats.copy()
