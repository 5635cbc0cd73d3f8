"""How long a run waits for a failing store, and what it reports meanwhile.

Owns the run's one budget for store failures: ``OUTAGE_BUDGET_S`` for a store that does not answer,
``UNUSABLE_S`` for one that is full, read-only, missing or denies access.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from farm.errors import FarmError, StoreError, StoreUnusable
from farm.retries import OUTAGE_BUDGET_S
from farm.store_trouble import StoreTrouble
from farm.text.durations import duration

__all__ = ["StorePatience"]

QUIET_S = 5.0
"""A shorter failure of the store is not reported."""
UNUSABLE_S = 20.0
"""How long jobs keep training so that someone can free space or correct permissions."""
REPEAT_S = 30.0


class StorePatience:
    """Watches the store's trouble in snapshots."""

    def __init__(
        self, *, outage_s: float = OUTAGE_BUDGET_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._outage_s, self._clock = outage_s, clock
        self._shown_at: float | None = None
        self.error: FarmError | None = None
        """Set once the budget is spent: the run must stop and raise it."""

    def heed(self, trouble: StoreTrouble | None) -> str | None:
        """Note the latest trouble; returns a line for the user if one is due."""
        if self.error is not None:
            return None
        if trouble is None:
            return self._over()
        budget_s = UNUSABLE_S if trouble.is_permanent else self._outage_s
        if trouble.lasted_s >= budget_s:
            kind = StoreUnusable if trouble.is_permanent else StoreError
            self.error = kind(
                f"the store has failed for {duration(trouble.lasted_s)}: {trouble.reason}",
                f"{trouble.remedy}; then run the same command again, which resumes from the last "
                "checkpoints",
            )
            return f"{self.error.message}; the run stops"
        now = self._clock()
        is_due = self._shown_at is None or now - self._shown_at >= REPEAT_S
        if not is_due or (trouble.lasted_s < QUIET_S and not trouble.is_permanent):
            return None
        self._shown_at = now
        left = duration(budget_s - trouble.lasted_s)
        if trouble.is_permanent:
            return f"{trouble.reason}; {trouble.remedy}: the run stops in {left}"
        return f"the store does not answer, retrying for {left}: {trouble.reason}"

    def _over(self) -> str | None:
        was_shown, self._shown_at = self._shown_at is not None, None
        return "the store answers again" if was_shown else None
