"""Memory that all threads of a check share, so that many large photos at once cannot exhaust it.

Owns how much photos may take together: their bytes while they are read, and their pixels while they
are decoded. A photo that is larger than a whole budget has it to itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = ["DECODING", "MAX_PHOTO_BYTES", "READING", "SMALL_BYTES", "MemoryBudget"]

MAX_PHOTO_BYTES = 256 * 2**20
"""Of one photo. A 100-megapixel raw TIFF fits; more is a mistake or an attack."""


TRIMMED_BYTES = 64 * 2**20
"""A reservation above this gives freed memory back to the system when it ends."""


def _give_back() -> None:
    # glibc keeps what a thread freed in that thread's own arena: gigabytes, over many threads
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryBudget:
    """A number of bytes that threads reserve and give back, in the order in which they ask.

    A thread that holds bytes of ``DECODING`` never asks for others, and one that holds bytes of
    ``READING`` asks for ``DECODING`` at most; so none waits for itself.
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
