"""Admission: the queue of waiting requests, and the refusal of those that would wait too long.

Owns the backlog in seconds, the refusals based on it (before any work is done), and the order in
which waiting requests leave the queue. Thread-safe: any thread may call ``admit``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection

from farm.errors import TooBusy
from farm.serving.config import EngineConfig, EngineStats
from farm.serving.engine.row import Waiting
from farm.serving.engine.sharing.fair_queue import FairQueue
from farm.serving.engine.sizing.capacity import Capacity

__all__ = ["Admission"]

SMOOTHING = 0.05
"""Weight of the newest pass in the running mean of a row-step's seconds."""


class Admission:
    """The queue in front of the batch."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._queue: FairQueue[Waiting] = FairQueue(config.quantum)
        self._lock = threading.Lock()
        self._turns = 0
        self._begun_cost = 0.0
        self._seconds_per_cost: float | None = None
        self.num_refused = 0

    def __len__(self) -> int:
        return len(self._queue)

    # -- cost ---------------------------------------------------------------------------------

    def seconds_per_cost(self, capacity: Capacity) -> float:
        """Seconds of a row-step at the base's own size, from the latest passes."""
        return self._seconds_per_cost or capacity.seconds_per_cost

    def backlog_s(self, capacity: Capacity) -> float:
        """Seconds of work waiting or running."""
        return (self._queue.cost + self._begun_cost) * self.seconds_per_cost(capacity)

    def wait_s(self, capacity: Capacity) -> float:
        """Seconds before a request submitted now would start, behind the whole queue."""
        return self._queue.cost * self.seconds_per_cost(capacity)

    def add_stats(self, stats: EngineStats, capacity: Capacity) -> None:
        """Fill in the queue's part of an engine's statistics."""
        stats.waiting = len(self)
        stats.refused = self.num_refused
        stats.backlog_s = self.backlog_s(capacity)
        stats.wait_s = self.wait_s(capacity)
        stats.seconds_per_cost = self.seconds_per_cost(capacity)

    def count_pass(self, cost: float, pass_s: float) -> None:
        """Update the running mean of a row-step's seconds, and the remaining work."""
        before = self._seconds_per_cost or pass_s / cost
        self._seconds_per_cost = before + SMOOTHING * (pass_s / cost - before)
        self.give_up(cost)

    def give_up(self, cost: float) -> None:
        """Subtract work that is finished or cancelled."""
        self._begun_cost = max(0.0, self._begun_cost - cost)

    # -- the queue ----------------------------------------------------------------------------

    def admit(self, waiting: Waiting, capacity: Capacity) -> None:
        """Queue a request.

        Raises:
            TooBusy: if the queue is full, or the wait exceeds the limit or the request's deadline.
        """
        with self._lock:
            try:
                self._refuse_if_busy(waiting, capacity)
            except TooBusy:
                self.num_refused += 1
                raise
            self._queue.push(
                waiting,
                tenant=waiting.request.tenant,
                cost=waiting.cost,
                deadline=waiting.deadline,
            )

    def _refuse_if_busy(self, waiting: Waiting, capacity: Capacity) -> None:
        config, tenant = self._config, waiting.request.tenant
        wait_s = self._expected_wait_s(tenant, capacity)
        if self._is_full_for(tenant):
            raise _busy("too many requests are waiting", wait_s)
        if wait_s > config.max_wait_s:
            raise _busy(f"the expected wait is {wait_s:.0f} s", wait_s - config.max_wait_s)
        within_s = waiting.request.deadline_s
        needed_s = wait_s + waiting.request.steps * capacity.pass_s(waiting.size)
        if within_s is not None and needed_s > within_s:
            raise _busy(
                f"the image would take {needed_s:.1f} s, its deadline is {within_s:g} s",
                needed_s - within_s,
            )

    def _expected_wait_s(self, tenant: str, capacity: Capacity) -> float:
        """The whole backlog, or less for a tenant with little waiting, because shares are equal."""
        own = self._queue.cost_of(tenant) * self._queue.num_tenants(tenant)
        ahead = min(self._queue.cost, own) + self._begun_cost
        return ahead * self.seconds_per_cost(capacity)

    def _is_full_for(self, tenant: str) -> bool:
        """Whether the queue is full for a tenant; tenants below their share may use twice its
        length."""
        most = self._config.max_waiting
        if len(self._queue) < most:
            return False
        share = most / self._queue.num_tenants(tenant)
        return self._queue.length_of(tenant) >= share or len(self._queue) >= 2 * most

    def let_go(self, below: Collection[str] = (), *, only: bool = False) -> Waiting | None:
        """The next request to prepare; None if nothing waits.

        Args:
            below: callers below their share, whose requests go first.
            only: whether only theirs may go.
        """
        with self._lock:
            waiting = self._queue.pop(below, only=only)
        if waiting is None:
            return None
        waiting.turn, waiting.popped_s = self._turns, time.monotonic()
        self._turns += 1
        self._begun_cost += waiting.cost
        return waiting

    def drop_ended(self) -> list[Waiting]:
        """Remove and return requests that were cancelled or whose deadline has passed."""
        now = time.monotonic()
        with self._lock:
            return self._queue.remove(lambda item: item.ticket.ended or item.deadline < now)

    def drop_all(self) -> list[Waiting]:
        """Remove and return all requests."""
        with self._lock:
            return self._queue.remove(lambda _: True)


def _busy(message: str, retry_after_s: float) -> TooBusy:
    return TooBusy(message, "try again later", None, max(1.0, retry_after_s))
