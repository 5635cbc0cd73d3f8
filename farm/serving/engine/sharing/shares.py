"""Each caller's use of the denoiser, and which callers have used less than their share.

Owns the record of use, which decays, as in the virtual token counter of "Fairness in Serving Large
Language Models" (Sheng et al. 2024). A caller below its share goes first at each stage; what that
means is decided there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from farm.serving.engine.row import Waiting

__all__ = ["Shares"]

HALF_LIFE_S = 30.0
"""Use this long ago counts half."""
BELOW = 0.75
"""Below this fraction of the mean use a caller is below its share. Callers with equal demand differ
by less, so their passes stay full."""
REBASE_AFTER = 2.0**20
NEGLIGIBLE = 1e-3


class Shares:
    """The use of each caller. Only the engine's loop calls it; any thread may read ``below``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # scaled up by the time instead of down, so that a pass updates only its own callers
        self._used: dict[str, float] = {}
        self._since_s = clock()
        self.below: frozenset[str] = frozenset()
        """Callers below their share at the last update."""

    def count(self, costs: Iterable[tuple[str, float]]) -> None:
        """Count the row-steps of a pass, by caller."""
        scale = self._scale()
        if scale > REBASE_AFTER:
            kept = ((name, used / scale) for name, used in self._used.items())
            self._used = {name: used for name, used in kept if used > NEGLIGIBLE}
            self._since_s, scale = self._clock(), 1.0
        for caller, cost in costs:
            self._used[caller] = self._used.get(caller, 0.0) + cost * scale

    def used(self, caller: str) -> float:
        """Row-steps of a caller; those of a half-life ago count half."""
        return self._used.get(caller, 0.0) / self._scale()

    def goes_first(self, waiting: Waiting) -> bool:
        """Whether a request is of a caller below its share."""
        return waiting.request.tenant in self.below

    def update(self, present: Collection[str]) -> frozenset[str]:
        """The callers below their share among those that have open requests.

        A single caller never is, nor are callers of equal use.
        """
        self.below = frozenset()
        if len(present) > 1:
            used = {caller: self._used.get(caller, 0.0) for caller in present}
            share = BELOW * sum(used.values()) / len(used)
            self.below = frozenset(caller for caller in used if used[caller] < share)
        return self.below

    def _scale(self) -> float:
        return float(2.0 ** ((self._clock() - self._since_s) / HALF_LIFE_S))
