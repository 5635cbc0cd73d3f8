"""The slot table: which adapter is in which slot of the bank, and who uses it.

Owns the bookkeeping of slots: reference counts, eviction by last use, all-or-nothing reservation.
The adapters in slots never take more memory than a given budget. It touches no weight; the engine
copies them where a reservation says so, and empties the slots that were evicted.

Slot 0 is the bare base and is never handed out. Not thread-safe: the engine holds its lock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

__all__ = ["Reservation", "SlotTable"]


@dataclass
class _Held:
    """One slot's adapter."""

    slot: int
    num_bytes: int = 0
    uses: int = 0
    ready: Future[None] = field(default_factory=Future)
    """Done once the weights are in the slot."""
    doomed: bool = False
    """Revoked while in use: to be emptied at the last release."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One adapter's pinned slot."""

    key: str
    slot: int
    is_fresh: bool
    """Whether the holder of this reservation has to copy the weights in."""
    ready: Future[None]


class SlotTable:
    """Slots 1 to ``num_slots - 1`` and the adapters in them."""

    def __init__(self, num_slots: int, max_bytes: float = math.inf) -> None:
        """Make a table of empty slots.

        Args:
            max_bytes: the most memory that the adapters in slots may take together.
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
        """Slots that somebody holds."""
        return sum(1 for held in self._held.values() if held.uses)

    def bytes_of(self, keys: Iterable[str], sizes: Mapping[str, int]) -> int:
        """Memory of some adapters together, in a slot or not; ``sizes`` has those that are not."""
        held = self._held
        return sum(held[key].num_bytes if key in held else sizes.get(key, 0) for key in keys)

    def take_evicted(self) -> list[int]:
        """Slots that were evicted since the last call, to be emptied before they are used."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def reserve(
        self, keys: Sequence[str], sizes: Mapping[str, int] | None = None
    ) -> list[Reservation] | None:
        """Pin a slot for each of the adapters, or none at all.

        Args:
            sizes: bytes of the adapters that are in no slot yet; none means 0.

        Returns:
            One reservation per key in order; None where too few slots or bytes are free, and then
            nothing has changed.

        Raises:
            ValueError: if no number of releases could ever make room, or a key comes twice.
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
            Slots of revoked adapters that are now out of use, to be emptied.
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
        """Forget an adapter: now if no one uses it, else at its last release.

        Returns:
            The slot to be emptied now; None if there is none yet.
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
