"""The list of revoked adapters: one listing of the store, refreshed every few seconds.

Owns the list's freshness and notifies listeners, which purge what a revocation affects.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from farm.adapters.registry import is_revoked_among
from farm.errors import AdapterNotFound, StoreError
from farm.serving.ttl_cache import MAX_AGE_S

__all__ = ["Revocations"]

LOG = logging.getLogger(__name__)

INTERVAL_S = 2.0


class Revocations:
    """Revocations, refreshed by their own thread: a job key applies to all namespaces,
    ``key@namespace`` to one."""

    def __init__(
        self,
        read: Callable[[], Collection[str]],
        *,
        interval_s: float = INTERVAL_S,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the list; ``start`` begins to read.

        Args:
            read: lists all revoked keys; may raise StoreError.
            interval_s: seconds between two reads.
            max_age_s: maximum age of the list while the store does not answer.
        """
        self._read = read
        self._interval_s = interval_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._keys: frozenset[str] = frozenset()
        self._read_at_s: float | None = None
        self._listeners: list[Callable[[frozenset[str]], None]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._reading = threading.Lock()

    def listen(self, callback: Callable[[frozenset[str]], None]) -> None:
        """Call back with newly revoked keys, in the watching thread."""
        self._listeners.append(callback)

    def start(self) -> None:
        """Read once, then continue in a thread."""
        self.refresh()
        self._thread = threading.Thread(target=self._watch, name="revocations", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def age_s(self) -> float:
        """Seconds since the list was last read; infinite before the first read."""
        return float("inf") if self._read_at_s is None else self._clock() - self._read_at_s

    def check(self, key: str, label: str, namespace: str = "") -> None:
        """Refuse a revoked adapter, by the last list read; never waits for the store. If the store
        has not answered for ``max_age_s``, revocations may be missing, so all are refused.

        Raises:
            AdapterNotFound: if it is revoked; the same error as for an unknown adapter.
            StoreError: if the list is too old.
        """
        if self.age_s > self._max_age_s:
            raise StoreError(
                "the store has not answered for too long, so revoked adapters are not known",
                "try again; the base model is still served",
            )
        if is_revoked_among(self._keys, key, namespace):
            raise AdapterNotFound(
                f"no adapter {label}", "list the adapters with GET /v1/models", "model"
            )

    def refresh(self) -> bool:
        """Read the list now; returns whether the store answered."""
        with self._reading:
            started_s = self._clock()
            try:
                keys = frozenset(self._read())
            except Exception as error:  # any error of a store's driver
                LOG.warning("cannot read the revocations: %s", error)
                return False
            if self._keys and not keys:  # tombstones stay, so this is not the same store
                LOG.warning("the store no longer lists revocations; is it mounted?")
                return False
            news = keys - self._keys
            self._keys = keys
            self._read_at_s = started_s
        if news:
            for listener in self._listeners:
                listener(news)
        return True

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.refresh()
            except Exception:  # the thread must survive any error of a store or a listener
                LOG.exception("reading the revocations failed")
