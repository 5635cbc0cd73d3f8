"""Memory that all threads of a check share, so that many large photos at once cannot exhaust it.

Owns the total memory of photos: their bytes while they are read, and their pixels while they are
decoded. Reservations are upper limits: a photo that could take more than a whole budget is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = [
    "DECODING",
    "MAX_COPIED_BYTES",
    "MAX_PHOTO_BYTES",
    "READING",
    "SMALL_BYTES",
    "MemoryBudget",
    "reading_bytes",
]

MAX_PHOTO_BYTES = 256 * 2**20
"""Maximum size of one photo; more is a mistake or an attack."""
MAX_COPIED_BYTES = 64 * 2**20
"""Maximum size of a photo of which a second copy is made, without its metadata for instance."""
TRIM_EVERY_BYTES = 64 * 2**20
"""Freed memory is returned to the system each time this much was released."""


def _give_back() -> None:
    # glibc keeps what a thread freed in that thread's own arena: gigabytes, over many threads
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryBudget:
    """A number of bytes that threads reserve and release, in the order of their requests.

    A thread that holds ``DECODING`` bytes never requests more, and one that holds ``READING`` bytes
    requests only ``DECODING``, so there is no deadlock.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._untrimmed = 0
        self._turn = Lock()
        self._freed = Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold some bytes, or all if the amount exceeds the capacity; waits until they are free."""
        amount = min(amount, self.capacity)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used + amount <= self.capacity)
            self._used += amount
        try:
            yield
        finally:
            if self._is_trim_due(amount):
                _give_back()
            with self._freed:
                self._used -= amount
                self._freed.notify_all()

    def _is_trim_due(self, amount: int) -> bool:
        with self._freed:
            self._untrimmed += amount
            is_due = self._untrimmed > TRIM_EVERY_BYTES
            if is_due:
                self._untrimmed = 0
            return is_due


READING = MemoryBudget(256 * 2**20)
"""For the bytes of photos."""
DECODING = MemoryBudget(640 * 2**20)
"""For the pixels of photos, as decoders hold them."""
SMALL_BYTES = 4 * 2**20
"""Files of unknown size are read up to this size without a reservation."""


def reading_bytes(size: int) -> int:
    """The memory for a photo's bytes and the copy of them that is made of smaller ones."""
    return size + (size if size <= MAX_COPIED_BYTES else 0)
