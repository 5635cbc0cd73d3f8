"""The queues of a run: jobs that could start now, by lane shape, and jobs that wait for priors.

Owns order and fairness, independent of lanes and ledger. The owner removes a job with ``discard``
as soon as it is no longer queued, so that sizes are exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import NamedTuple

from farm.training.plan.shape import LaneShape

__all__ = ["Group", "JobQueues"]


class Group(NamedTuple):
    """Jobs that one lane can train together, or one at a time."""

    shape: LaneShape
    alone: bool = False
    """Whether its jobs are suspected of killing lanes, so that each gets its own lane."""


class JobQueues:
    """Keys by group; within a group by priority, then in the manifest's order."""

    def __init__(self) -> None:
        self._heaps: dict[Group, list[tuple[int, int, str]]] = {}
        """May contain entries of jobs that are no longer queued; those are not in ``_ready``."""
        self._sizes: dict[Group, int] = {}
        self._ready: dict[str, Group] = {}
        self._waiting: dict[str, dict[str, None]] = {}
        """Keys by prior set."""
        self._waits_for: dict[str, str] = {}

    def push(self, group: Group, key: str, *, priority: int, order: int) -> None:
        """Add a job that could start now."""
        self.discard(key)
        heapq.heappush(self._heaps.setdefault(group, []), (-priority, order, key))
        self._sizes[group] = self._sizes.get(group, 0) + 1
        self._ready[key] = group

    def discard(self, key: str) -> None:
        """Remove a job from any queue; a job that is not queued is ignored."""
        group = self._ready.pop(key, None)
        if group is not None:
            self._shrink(group)
        prior_key = self._waits_for.pop(key, None)
        if prior_key is not None:
            waiting = self._waiting[prior_key]
            del waiting[key]
            if not waiting:
                del self._waiting[prior_key]

    def _shrink(self, group: Group) -> None:
        self._sizes[group] -= 1
        if not self._sizes[group]:
            del self._sizes[group], self._heaps[group]

    def pop(self, group: Group) -> str | None:
        """Take the next job of a group; None if there is none."""
        if group not in self._sizes:
            return None
        self._drop_stale(group)
        key = heapq.heappop(self._heaps[group])[2]
        self.discard(key)
        return key

    def has(self, group: Group) -> bool:
        """Whether a group has a job that could start now."""
        return group in self._sizes

    def size(self, group: Group) -> int:
        """Jobs of a group that could start now."""
        return self._sizes.get(group, 0)

    def num_ready(self) -> int:
        """Jobs that could start now."""
        return len(self._ready)

    def best(self, num_lanes: Mapping[Group, int]) -> Group | None:
        """The group that needs another lane most: highest priority, then most jobs per lane."""

        def need(group: Group) -> tuple[int, float]:
            self._drop_stale(group)
            return -self._heaps[group][0][0], self._sizes[group] / (1 + num_lanes.get(group, 0))

        return max(self._sizes, key=need, default=None)

    def _drop_stale(self, group: Group) -> None:
        """Remove entries of jobs that are no longer queued from the front of a group's heap."""
        heap = self._heaps[group]
        while self._ready.get(heap[0][2]) != group:
            heapq.heappop(heap)

    # -- jobs that wait for a prior set -------------------------------------------------------

    def hold(self, prior_key: str, key: str) -> None:
        """Keep a job back until its prior set is complete."""
        self.discard(key)
        self._waiting.setdefault(prior_key, {})[key] = None
        self._waits_for[key] = prior_key

    def waiting_for(self, prior_key: str) -> list[str]:
        """The jobs that wait for a prior set."""
        return list(self._waiting.get(prior_key, ()))

    def num_waiting(self) -> int:
        """Jobs that wait for any prior set."""
        return len(self._waits_for)
