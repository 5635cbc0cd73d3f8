"""The fair queue: earliest deadline first, within each tenant's share.

Owns the order of waiting requests. Deficit round robin (Shreedhar & Varghese 1995) gives every
tenant with waiting work the same share of cost. Among tenants with share left, and within a tenant,
the earliest deadline goes first, so short deadlines never give a tenant more than its share.

Not thread-safe: the engine holds its lock around every call.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

Item = TypeVar("Item")


@dataclass(order=True)
class _Waiting(Generic[Item]):
    """One waiting item; ordered by deadline, then by arrival."""

    deadline: float
    arrival: int
    cost: float = field(compare=False)
    item: Item = field(compare=False)


@dataclass
class _Tenant(Generic[Item]):
    """A tenant's waiting items and the rest of its share."""

    heap: list[_Waiting[Item]] = field(default_factory=list)
    deficit: float = 0.0


class FairQueue(Generic[Item]):
    """Waiting items of many tenants, removed in fair order."""

    def __init__(self, quantum: float) -> None:
        """Create an empty queue.

        Args:
            quantum: cost that each tenant may spend per round; about the cost of one item
                interleaves tenants most evenly.
        """
        if quantum <= 0:
            raise ValueError(f"quantum is {quantum}")
        self._quantum = quantum
        self._tenants: OrderedDict[str, _Tenant[Item]] = OrderedDict()
        self._arrivals = itertools.count()
        self._length = 0
        self._cost = 0.0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        """All waiting items, in no particular order."""
        return (entry.item for tenant in self._tenants.values() for entry in tenant.heap)

    @property
    def cost(self) -> float:
        """Cost of all waiting items."""
        return self._cost if self._length else 0.0

    def length_of(self, tenant: str) -> int:
        """Number of a tenant's waiting items."""
        return len(self._tenants[tenant].heap) if tenant in self._tenants else 0

    def cost_of(self, tenant: str) -> float:
        """Cost of a tenant's waiting items."""
        if tenant not in self._tenants:
            return 0.0
        return sum(entry.cost for entry in self._tenants[tenant].heap)

    def num_tenants(self, besides: str) -> int:
        """Number of tenants with waiting items, always counting this one."""
        return len(self._tenants) + (besides not in self._tenants)

    def push(self, item: Item, *, tenant: str, cost: float, deadline: float = math.inf) -> None:
        """Add an item.

        Args:
            cost: of generating it, in the queue's unit; above 0.
            deadline: on one clock for all items; ``inf`` for none.
        """
        entry = _Waiting(deadline, next(self._arrivals), cost, item)
        heapq.heappush(self._tenants.setdefault(tenant, _Tenant()).heap, entry)
        self._length += 1
        self._cost += cost

    def pop(self, first: Collection[str] = (), *, only: bool = False) -> Item | None:
        """Remove and return the next item; None if nothing waits.

        Args:
            first: tenants whose items precede all others.
            only: whether to leave the items of others where they are.
        """
        names = [name for name in self._tenants if name in first] if first else []
        if not names and not only:
            names = list(self._tenants)
        if not names:
            return None
        self._top_up(names)
        name = self._most_urgent(names)
        tenant = self._tenants[name]
        entry = heapq.heappop(tenant.heap)
        tenant.deficit -= entry.cost
        self._length -= 1
        self._cost -= entry.cost
        if not tenant.heap:
            del self._tenants[name]  # an idle tenant accumulates no share
        elif tenant.deficit < tenant.heap[0].cost:
            self._tenants.move_to_end(name)
        return entry.item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and return all items that match a predicate."""
        removed = []
        for name, tenant in list(self._tenants.items()):
            kept = []
            for entry in tenant.heap:
                if unwanted(entry.item):
                    removed.append(entry.item)
                    self._length -= 1
                    self._cost -= entry.cost
                else:
                    kept.append(entry)
            if not kept:
                del self._tenants[name]
            elif len(kept) < len(tenant.heap):
                heapq.heapify(kept)
                tenant.heap = kept
        return removed

    def _top_up(self, names: Sequence[str]) -> None:
        """Give these tenants quanta until at least one can afford its first item."""
        tenants = [self._tenants[name] for name in names]
        short = [tenant.heap[0].cost - tenant.deficit for tenant in tenants]
        rounds = max(0, math.ceil(min(short) / self._quantum))
        for tenant in tenants:
            tenant.deficit += rounds * self._quantum

    def _most_urgent(self, names: Sequence[str]) -> str:
        """The tenant with the earliest deadline among those that can afford their first item; the
        first in turn if several have it."""
        slack = self._quantum * 1e-9  # deficits are sums of floats
        tenants = [(name, self._tenants[name]) for name in names]
        affordable = [
            (tenant.heap[0].deadline, turn, name)
            for turn, (name, tenant) in enumerate(tenants)
            if tenant.deficit + slack >= tenant.heap[0].cost
        ]
        return min(affordable)[2]
