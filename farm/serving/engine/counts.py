"""An engine's counters: requests by outcome, passes, and open requests.

Owns the counters and their lock: the callers' threads, the denoising thread and the decoder all
count requests. The engine fills in current sizes.
"""

from __future__ import annotations

import threading
from typing import Literal

from farm.serving.config import EngineStats

__all__ = ["Counts", "Outcome"]

Outcome = Literal["generated", "failed", "cancelled"]


class Counts:
    """The counters of one engine. Thread-safe."""

    def __init__(self) -> None:
        self._stats = EngineStats()
        self._lock = threading.Lock()
        self.num_open = 0
        """Requests accepted and not yet ended."""

    def add_submitted(self) -> None:
        """Count a request about to be queued."""
        with self._lock:
            self.num_open += 1
            self._stats.submitted += 1

    def remove_submitted(self) -> None:
        """Uncount a request that admission refused."""
        with self._lock:
            self.num_open -= 1
            self._stats.submitted -= 1

    def add_ended(self, outcome: Outcome) -> None:
        """Count a request that has ended."""
        with self._lock:
            self.num_open -= 1
            setattr(self._stats, outcome, getattr(self._stats, outcome) + 1)

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
