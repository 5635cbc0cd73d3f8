"""The queues of a run: jobs that could start now, by lane shape, and jobs that wait for priors.

Owns order and fairness. Knows nothing of lanes' lives or of the ledger; whether a job is still to
be had is asked through a function.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from farm.training.plan.shape import LaneShape

__all__ = ["Group", "JobQueues"]


class Group(NamedTuple):
    """Jobs that one lane can train side by side, or one by one."""

    shape: LaneShape
    alone: bool = False
    """Whether its jobs are suspected of killing lanes and get a lane each to themselves."""


class JobQueues:
    """Keys by group; in a group higher priority first, then the manifest's order."""

    def __init__(self, is_wanted: Callable[[str], bool]) -> None:
        """``is_wanted`` says whether a key is still to be given out; stale ones are passed over."""
        self._is_wanted = is_wanted
        self._heaps: dict[Group, list[tuple[int, int, str]]] = {}
        self._waiting: dict[str, list[str]] = defaultdict(list)

    def push(self, group: Group, key: str, *, priority: int, order: int) -> None:
        """Add a job that could start now."""
        heapq.heappush(self._heaps.setdefault(group, []), (-priority, order, key))

    def pop(self, group: Group) -> str | None:
        """Take the next job of a group; None if there is none."""
        heap = self._heaps.get(group, [])
        while heap:
            key = heapq.heappop(heap)[2]
            if self._is_wanted(key):
                return key
        self._heaps.pop(group, None)
        return None

    def has(self, group: Group) -> bool:
        """Whether a group has a job that could start now."""
        self._drop_stale()
        return group in self._heaps

    def num_ready(self) -> int:
        """Jobs that could start now; a few stale ones may be counted in."""
        self._drop_stale()
        return sum(len(heap) for heap in self._heaps.values())

    def best(self, num_lanes: Mapping[Group, int]) -> Group | None:
        """The group that needs another lane most: highest priority, then most jobs per lane."""
        self._drop_stale()

        def need(group: Group) -> tuple[int, float]:
            heap = self._heaps[group]
            return -heap[0][0], len(heap) / (1 + num_lanes.get(group, 0))

        return max(self._heaps, key=need, default=None)

    def size(self, group: Group) -> int:
        """Jobs of a group that could start now; a few stale ones may be counted in."""
        return len(self._heaps.get(group, ()))

    def _drop_stale(self) -> None:
        for group, heap in list(self._heaps.items()):
            while heap and not self._is_wanted(heap[0][2]):
                heapq.heappop(heap)
            if not heap:
                del self._heaps[group]

    # -- jobs that wait for a prior set -------------------------------------------------------

    def hold(self, prior_key: str, key: str) -> None:
        """Keep a job back until its prior set is there."""
        self._waiting[prior_key].append(key)

    def waiting_for(self, prior_key: str) -> list[str]:
        """Take out the jobs that wait for a prior set."""
        return [key for key in self._waiting.pop(prior_key, []) if self._is_wanted(key)]

    def num_waiting(self) -> int:
        """Jobs that wait for any prior set."""
        return sum(self._is_wanted(key) for keys in self._waiting.values() for key in keys)
