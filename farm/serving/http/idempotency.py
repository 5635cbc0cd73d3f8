"""Idempotent requests: responses cached by ``Idempotency-Key``.

Owns which responses are cached and for how long, and generates concurrent duplicates once. A caller
whose connection broke retries with the same key and gets the images of the first request, which
are neither generated nor counted twice. Only successes are cached: a failed request may be retried
with its key.

The cache is per process. With several ingresses another process may generate a repeated request
again; its seeds are derived from the key, so the images are the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from farm.errors import KeyReused

__all__ = ["KEY_PATTERN", "IdempotencyCache", "digest_of", "seed_of"]

KEY_PATTERN = r"^[!-~]{1,255}$"
"""Printable ASCII without spaces."""
MAX_ANSWERS = 10_000


@dataclass
class _Known:
    """A request with its key, and its response once generated."""

    digest: str
    work: asyncio.Task[bytes]
    begun_s: float
    num_bytes: int = 0


Work = Callable[[], Coroutine[None, None, bytes]]
"""Generates the body of a response."""


class IdempotencyCache:
    """Recent responses by caller and idempotency key. Not thread-safe: used by one event loop."""

    def __init__(
        self, *, window_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        window_s: how long after its request a response is repeated.
        max_bytes: of all responses together; the oldest is dropped first.
        """
        self._window_s = window_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        """Responses cached or being generated."""
        return len(self._known)

    @property
    def num_bytes(self) -> int:
        """Size of the cached responses."""
        return self._num_bytes

    async def answer(
        self, key_id: str, key: str, digest: str, generate: Work
    ) -> tuple[bytes, bool]:
        """The response to a request, generated if new, and whether it was repeated.

        Generation continues if this caller disconnects, since the caller may retry.

        Args:
            key_id: the caller's API key.
            digest: of the request.

        Raises:
            KeyReused: if this caller used the key for another request.
        """
        self._forget_old()
        place = (key_id, key)
        known = self._known.get(place)
        if known is None:
            return await asyncio.shield(self._begin(place, digest, generate)), False
        if known.digest != digest:
            raise KeyReused(
                "this idempotency key was used for another request",
                "use a new key for each request, and repeat a request unchanged with its key",
                "Idempotency-Key",
            )
        return await asyncio.shield(known.work), True

    def _begin(self, place: tuple[str, str], digest: str, generate: Work) -> asyncio.Task[bytes]:
        work = asyncio.create_task(generate())
        known = self._known[place] = _Known(digest, work, self._clock())
        work.add_done_callback(lambda _: self._ended(place, known))
        return work

    def _ended(self, place: tuple[str, str], known: _Known) -> None:
        if self._known.get(place) is not known:
            return
        failed = known.work.cancelled() or known.work.exception() is not None
        if failed or len(known.work.result()) > self._max_bytes:
            del self._known[place]
            return
        known.num_bytes = len(known.work.result())
        self._num_bytes += known.num_bytes
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop responses whose window is over, and the oldest ones over the size limit."""
        now_s = self._clock()
        for place, known in list(self._known.items()):
            is_over = now_s - known.begun_s >= self._window_s
            is_full = self._num_bytes > self._max_bytes or len(self._known) > MAX_ANSWERS
            if not (is_over or is_full):
                return  # ordered by start time
            if known.work.done():
                del self._known[place]
                self._num_bytes -= known.num_bytes

    async def close(self) -> None:
        """Cancel generation in progress."""
        under_way = [known.work for known in self._known.values() if not known.work.done()]
        for work in under_way:
            work.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def digest_of(asked: str) -> str:
    """A digest of a request's content."""
    return hashlib.sha256(asked.encode()).hexdigest()


def seed_of(key_id: str, key: str, digest: str) -> int:
    """The first seed (32 bits) of a request that names none; the same in every process."""
    named = "\0".join((key_id, key, digest)).encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:4], "big")
