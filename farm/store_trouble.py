"""A store that fails, as one process of a run sees it: since when, why, and for good or not.

Owns the values that travel from a lane through the dispatcher to the driver. ``run.patience``
decides how long a run waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from farm.errors import FarmError, StoreUnusable, explain

__all__ = ["StoreTrouble", "TroubleNote", "worst_of"]


@dataclass(frozen=True, slots=True)
class StoreTrouble:
    """A store that has not taken a write for a while."""

    reason: str
    remedy: str
    lasted_s: float
    is_permanent: bool
    """Full, read-only, missing or access denied: it stays so until someone changes that."""


class TroubleNote:
    """Notes failures and successes of one process's writes. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._error: FarmError | None = None
        self._since = self._last = 0.0

    def failed(self, error: FarmError) -> None:
        """A write failed."""
        with self._lock:
            self._last = self._clock()
            if self._error is None:
                self._since = self._last
            self._error = error

    def succeeded(self) -> None:
        """A write succeeded: the trouble is over."""
        with self._lock:
            self._error = None

    def failed_within(self, seconds: float) -> bool:
        """Whether the last write failed less than this long ago."""
        with self._lock:
            return self._error is not None and self._clock() - self._last < seconds

    def current(self) -> StoreTrouble | None:
        """The trouble at this moment; None where the last write succeeded."""
        with self._lock:
            if self._error is None:
                return None
            lasted_s = self._clock() - self._since
            is_permanent = isinstance(self._error, StoreUnusable)
            return StoreTrouble(*explain(self._error), lasted_s, is_permanent)


def worst_of(troubles: Iterable[StoreTrouble | None]) -> StoreTrouble | None:
    """A permanent one before others, then the longest."""
    found = [trouble for trouble in troubles if trouble is not None]
    return max(found, key=lambda one: (one.is_permanent, one.lasted_s), default=None)
