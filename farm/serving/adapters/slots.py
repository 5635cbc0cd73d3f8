"""The slot table: which adapter is in which slot of the bank, and how many rows use it.

Owns the bookkeeping of slots: reference counts, eviction of the least recently used, all-or-nothing
reservation, and a budget of memory for the adapters in slots. It does not touch weights: the engine
copies them for fresh reservations and empties evicted slots.

Slot 0 is the bare base and is never reserved. Not thread-safe: the engine holds its lock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from farm.errors import RequestRefused

__all__ = ["Reservation", "SlotTable"]


@dataclass
class _Held:
    """The adapter in one slot."""

    slot: int
    num_bytes: int = 0
    uses: int = 0
    ready: Future[None] = field(default_factory=Future)
    """Done once the weights are in the slot."""
    doomed: bool = False
    """Revoked while in use; emptied at the last release."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One adapter's pinned slot."""

    key: str
    slot: int
    is_fresh: bool
    """Whether the holder of this reservation must copy the weights into the slot."""
    ready: Future[None]


class SlotTable:
    """Slots 1 to ``num_slots - 1`` and the adapters in them."""

    def __init__(self, num_slots: int, max_bytes: float = math.inf) -> None:
        """Create a table of empty slots.

        Args:
            max_bytes: memory budget of all adapters in slots together.
        """
        if num_slots < 1:
            raise ValueError(f"{num_slots} slots; there is at least slot 0, the bare base")
        self._held: OrderedDict[str, _Held] = OrderedDict()  # least recently used first
        self._free = list(range(num_slots - 1, 0, -1))
        self._evicted: list[int] = []
        self.capacity = num_slots - 1
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Memory of all adapters in slots."""

    def __contains__(self, key: str) -> bool:
        held = self._held.get(key)
        return held is not None and not held.doomed

    @property
    def keys(self) -> list[str]:
        """The adapters in slots."""
        return list(self._held)

    @property
    def num_in_use(self) -> int:
        """Slots in use."""
        return sum(1 for held in self._held.values() if held.uses)

    def bytes_of(self, keys: Iterable[str], sizes: Mapping[str, int]) -> int:
        """Total memory of some adapters; ``sizes`` has those that are not in a slot."""
        held = self._held
        return sum(held[key].num_bytes if key in held else sizes.get(key, 0) for key in keys)

    def refusal(self, keys: Sequence[str], sizes: Mapping[str, int]) -> RequestRefused | None:
        """The error if these adapters could never be in the model together, or None."""
        if len(keys) > self.capacity:
            return RequestRefused(
                f"{len(keys)} adapters on one image, where this endpoint has room for "
                f"{self.capacity}",
                "use fewer",
                "adapters",
            )
        num_bytes = self.bytes_of(keys, sizes)
        if num_bytes > self.max_bytes:
            return RequestRefused(
                f"the adapters of this image take {_mib(num_bytes)} MiB together, and this "
                f"endpoint has room for {_mib(self.max_bytes)} MiB",
                "use fewer, or raise engine.adapter_mib in the endpoint's config",
                "adapters",
            )
        return None

    def take_evicted(self) -> list[int]:
        """Slots evicted since the last call, to be emptied before they are used."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def reserve(
        self, keys: Sequence[str], sizes: Mapping[str, int] | None = None
    ) -> list[Reservation] | None:
        """Pin a slot for each of the adapters, or for none of them.

        Args:
            sizes: bytes of the adapters that are not in a slot yet; 0 if missing.

        Returns:
            One reservation per key, in order; None, with nothing changed, if too few slots or bytes
            are free.

        Raises:
            ValueError: if no number of releases could make room, or a key is repeated.
        """
        if len(set(keys)) != len(keys):
            raise ValueError(f"an adapter twice: {keys}")
        if len(keys) > self.capacity:
            raise ValueError(f"{len(keys)} adapters for {self.capacity} slots")
        sizes = sizes or {}
        if self.bytes_of(keys, sizes) > self.max_bytes:
            raise ValueError(f"{self.bytes_of(keys, sizes)} bytes for {self.max_bytes}")
        if any(key in self._held and self._held[key].doomed for key in keys):
            return None
        missing = [key for key in keys if key not in self._held]
        idle = [key for key, held in self._held.items() if not held.uses and key not in keys]
        wanted_bytes = self.num_bytes + sum(sizes.get(key, 0) for key in missing)
        least_bytes = wanted_bytes - sum(self._held[key].num_bytes for key in idle)
        if len(missing) > len(self._free) + len(idle) or least_bytes > self.max_bytes:
            return None
        while len(self._free) < len(missing) or wanted_bytes > self.max_bytes:
            key = idle.pop(0)
            wanted_bytes -= self._held[key].num_bytes
            self._evicted.append(self._remove(key))
        return [self._pin(key, sizes.get(key, 0)) for key in keys]

    def _pin(self, key: str, num_bytes: int) -> Reservation:
        held = self._held.get(key)
        fresh = held is None
        if held is None:
            held = self._held[key] = _Held(self._free.pop(), num_bytes)
            self.num_bytes += num_bytes
        held.uses += 1
        self._held.move_to_end(key)
        return Reservation(key, held.slot, fresh, held.ready)

    def release(self, reservations: Iterable[Reservation]) -> list[int]:
        """Unpin; the adapters stay until their slots are needed.

        Returns:
            Slots of revoked adapters that are no longer in use, to be emptied.
        """
        emptied = []
        for reservation in reservations:
            held = self._held[reservation.key]
            assert held.uses > 0, reservation
            assert held.slot == reservation.slot, reservation
            held.uses -= 1
            if held.uses == 0 and (held.doomed or _failed(held.ready)):
                emptied.append(self._remove(reservation.key))
        return emptied

    def drop(self, key: str) -> int | None:
        """Forget an adapter: now if it is unused, else at its last release.

        Returns:
            The slot to empty now, or None.
        """
        held = self._held.get(key)
        if held is None:
            return None
        held.doomed = True
        return None if held.uses else self._remove(key)

    def _remove(self, key: str) -> int:
        held = self._held.pop(key)
        self.num_bytes -= held.num_bytes
        self._free.append(held.slot)
        return held.slot


def _failed(ready: Future[None]) -> bool:
    return not ready.done() or ready.exception() is not None


def _mib(num_bytes: float) -> int:
    return math.ceil(num_bytes / 2**20)
