"""What a check may take: memory that its threads share, and names that its manifest looks at.

Owns the total memory of photos: their bytes while they are read, and their pixels while they are
decoded. Reservations are upper limits: a photo that could take more than a whole budget is refused.
Owns also the number of names in folders, archives and stores that one manifest makes a check list.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

from farm.errors import PhotoFault

__all__ = [
    "DECODING",
    "MAX_COPIED_BYTES",
    "MAX_PHOTO_BYTES",
    "READING",
    "SMALL_BYTES",
    "LookBudget",
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


# -- names ----------------------------------------------------------------------------------------

MAX_LOOKS = 1_000_000
"""Names that one manifest may make a check look at, besides those of each subject."""
LOOKS_PER_SUBJECT = 200
LOOKS_TOGETHER = 20
"""Names counted at once; also what a reference counts that looks at fewer."""
MAX_SUGGESTIONS = 50
"""Missing names of one manifest for which a similar one is searched."""


class LookBudget:
    """What all references of one manifest may look at. Safe in several threads."""

    def __init__(self) -> None:
        self._left = MAX_LOOKS
        self._suggestions_left = MAX_SUGGESTIONS
        self._lock = Lock()

    def add_subject(self) -> None:
        """Add what one subject may look at."""
        with self._lock:
            self._left += LOOKS_PER_SUBJECT

    def take(self, count: int) -> None:
        """Count names.

        Raises:
            PhotoFault: if the manifest is over the limit.
        """
        with self._lock:
            self._left -= min(count, max(self._left, 0) + 1)
            if self._left < 0:
                raise PhotoFault(
                    "the manifest's folders, patterns and archives cover too many names in all",
                    f"give each subject a folder of its own; {MAX_LOOKS:,} names, and "
                    f"{LOOKS_PER_SUBJECT} for each subject, are looked at",
                )

    def take_suggestion(self) -> bool:
        """Whether a similar name may still be searched; counts it."""
        with self._lock:
            self._suggestions_left -= 1
            return self._suggestions_left >= 0
