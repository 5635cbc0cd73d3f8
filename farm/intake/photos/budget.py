"""Memory that all threads of a check share, so that many large photos at once cannot exhaust it.

Owns the total memory of photos: their bytes while they are read, and their pixels while they are
decoded. A photo larger than a whole budget gets all of it exclusively.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = ["DECODING", "MAX_PHOTO_BYTES", "READING", "SMALL_BYTES", "MemoryBudget"]

MAX_PHOTO_BYTES = 256 * 2**20
"""Maximum size of one photo. A 100-megapixel raw TIFF fits; more is a mistake or an attack."""


TRIMMED_BYTES = 64 * 2**20
"""A reservation above this returns freed memory to the system when it ends."""


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
        self._capacity = capacity
        self._used = 0
        self._turn = Lock()
        self._freed = Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold some bytes, or all if the amount exceeds the capacity; waits until they are free."""
        amount = min(amount, self._capacity)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used + amount <= self._capacity)
            self._used += amount
        try:
            yield
        finally:
            if amount > TRIMMED_BYTES:
                _give_back()
            with self._freed:
                self._used -= amount
                self._freed.notify_all()


READING = MemoryBudget(256 * 2**20)
"""For the bytes of photos of more than ``SMALL_BYTES``."""
DECODING = MemoryBudget(640 * 2**20)
"""For the pixels of photos, as decoders hold them."""
SMALL_BYTES = 8 * 2**20
"""Photos up to this size are read without a reservation: each thread holds one at a time."""
