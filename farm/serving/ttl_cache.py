"""A cache of values read from the store: names, keys and listings.

Owns the freshness of values: one read serves all waiting callers, and while the store does not
answer the last value is used up to a maximum age, beyond which the result is an error, never a
stale value. Independent of what is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from farm.errors import StoreError

__all__ = ["MAX_AGE_S", "NUM_STORE_THREADS", "TtlCache", "store_threads"]

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MAX_AGE_S = 15.0
"""Maximum age of a key, name or revocation while the store does not answer."""
PATIENCE_S = 3.0
"""How long a request waits for the store before it uses the cached value, or fails."""
NUM_STORE_THREADS = 16
"""Concurrent store reads; enough to hide an object store's latency behind a page of names."""


def store_threads() -> ThreadPoolExecutor:
    """A pool for store reads, so that the event loop never waits for the store."""
    return ThreadPoolExecutor(NUM_STORE_THREADS, thread_name_prefix="store")


@dataclass(frozen=True, slots=True)
class _Known(Generic[Value]):
    """The last result: a value, or that there is none."""

    value: Value | None
    missing: FileNotFoundError | None
    read_at_s: float


class TtlCache(Generic[Key, Value]):
    """A bounded table of values, each read again when older than ``ttl_s``.

    Missing values are not cached unless ``missing_ttl_s`` is set: a value just created must be
    visible to its creator.
    """

    def __init__(
        self,
        read: Callable[[Key], Value],
        *,
        ttl_s: float,
        executor: Executor,
        max_age_s: float = float("inf"),
        patience_s: float = PATIENCE_S,
        missing_ttl_s: float = 0.0,
        max_items: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        read: a blocking read; FileNotFoundError means that there is none.
        ttl_s: maximum age of a value; ``inf`` for values named by their content.
        max_age_s: maximum age while the store does not answer.
        patience_s: how long a caller waits for a read, which continues in the background.
        missing_ttl_s: how long a missing value is cached.
        max_items: results kept; the least recently used is dropped first.
        """
        self._read = read
        self._ttl_s = ttl_s
        self._max_age_s = max(max_age_s, ttl_s)
        self._patience_s = patience_s
        self._missing_ttl_s = missing_ttl_s
        self._executor = executor
        self._max_items = max_items
        self._clock = clock
        self._known: OrderedDict[Key, _Known[Value]] = OrderedDict()
        self._flights: dict[Key, asyncio.Task[_Known[Value]]] = {}

    async def get(self, key: Key, *, max_age_s: float | None = None) -> Value:
        """The value, no older than ``ttl_s`` (or ``max_age_s``, if less); while the store does not
        answer, no older than the cache's maximum age.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if the store does not answer, and there is no cached value or it is too old.
        """
        known = self._known.get(key)
        if known is None or self._is_stale(known, max_age_s):
            known = await self._flight(key)
        else:
            self._known.move_to_end(key)
        if known.missing is not None:
            raise FileNotFoundError(*known.missing.args)
        assert known.value is not None
        return known.value

    def peek(self, key: Key) -> Value | None:
        """The last value, of any age, without a read."""
        known = self._known.get(key)
        return known.value if known is not None else None

    def fresh(self, key: Key) -> Value | None:
        """The value, if it is no older than ``ttl_s``; without a read."""
        known = self._known.get(key)
        return None if known is None or self._is_stale(known, None) else known.value

    def put(self, key: Key, value: Value) -> None:
        """Note a value that the caller has just read."""
        self._keep(key, _Known(value, None, self._clock()))

    def forget(self, key: Key) -> None:
        """Drop a value, so that the next call reads it again."""
        self._known.pop(key, None)

    def _is_stale(self, known: _Known[Value], max_age_s: float | None) -> bool:
        ttl_s = self._ttl_s if known.missing is None else self._missing_ttl_s
        age_s = self._clock() - known.read_at_s
        return age_s >= ttl_s or (max_age_s is not None and age_s >= max_age_s)

    async def _flight(self, key: Key) -> _Known[Value]:
        task = self._flights.get(key)
        if task is None:
            task = asyncio.create_task(self._reread(key))
            self._flights[key] = task
            task.add_done_callback(lambda ended: self._landed(key, ended))
        # shielded: a caller that times out does not cancel the read for the others
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(task)
        except TimeoutError:
            return self._still_good(key, StoreError("the store does not answer", "try again"))
        except StoreError as error:
            return self._still_good(key, error)

    def _landed(self, key: Key, ended: asyncio.Task[_Known[Value]]) -> None:
        self._flights.pop(key, None)
        if not ended.cancelled():
            ended.exception()  # retrieved, even if no caller waits any longer

    def _still_good(self, key: Key, error: StoreError) -> _Known[Value]:
        """The cached value, while the store does not answer.

        Raises:
            StoreError: the given error, if the value is too old.
        """
        known = self._known.get(key)
        if known is None or self._clock() - known.read_at_s > self._max_age_s:
            raise StoreError(*error.args) from error  # a new one, without old tracebacks
        return known

    async def _reread(self, key: Key) -> _Known[Value]:
        started_s = self._clock()
        loop = asyncio.get_running_loop()
        try:
            value = await loop.run_in_executor(self._executor, self._read, key)
            known = _Known(value, None, started_s)
        except FileNotFoundError as error:
            known = _Known(None, error, started_s)
        except StoreError:
            raise
        except Exception as error:  # any error of a store's driver means that it did not answer
            logger.warning("reading %r failed: %s", key, error)
            raise StoreError(f"the store did not answer: {error}", "try again") from error
        self._keep(key, known)
        return known

    def _keep(self, key: Key, known: _Known[Value]) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > self._max_items:
            self._known.popitem(last=False)
