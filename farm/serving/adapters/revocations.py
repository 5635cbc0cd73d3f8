"""Which adapters were withdrawn: one listing of the store, read again every few seconds.

Owns the freshness of that list and the telling of news. What a revocation purges is the
business of those who listen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from farm.errors import AdapterNotFound, StoreError
from farm.serving.ttl_cache import MAX_AGE_S

__all__ = ["Revocations"]

LOG = logging.getLogger(__name__)

INTERVAL_S = 2.0


class Revocations:
    """What was revoked, kept fresh by a thread of its own: job keys, for everyone, and
    ``key@namespace``, for one namespace."""

    def __init__(
        self,
        read: Callable[[], Collection[str]],
        *,
        interval_s: float = INTERVAL_S,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to watch; ``start`` begins.

        Args:
            read: lists all revoked keys; may raise StoreError.
            interval_s: seconds between two readings.
            max_age_s: how old the list may become while the store does not answer.
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
        """Call back with keys that are newly revoked, in the watching thread."""
        self._listeners.append(callback)

    def start(self) -> None:
        """Read once, then continue in a thread."""
        self.refresh()
        self._thread = threading.Thread(target=self._watch, name="revocations", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def age_s(self) -> float:
        """Seconds since the list was last read; infinite before the first time."""
        return float("inf") if self._read_at_s is None else self._clock() - self._read_at_s

    def check(self, key: str, label: str, namespace: str = "") -> None:
        """Refuse a revoked adapter, by the last list read; this never waits for the store.
        A store that has not answered for ``max_age_s`` may hide a revocation, so all are refused.

        Raises:
            AdapterNotFound: if it is revoked; the caller learns no more than for an unknown one.
            StoreError: if the list is too old to tell.
        """
        if self.age_s > self._max_age_s:
            raise StoreError(
                "the store has not answered for too long to tell which adapters are withdrawn",
                "try again; the base model is served meanwhile",
            )
        if key in self._keys or f"{key}@{namespace}" in self._keys:
            raise AdapterNotFound(
                f"no adapter {label}", "list the adapters with GET /v1/models", "model"
            )

    def refresh(self) -> bool:
        """Read the list now; say whether the store answered."""
        with self._reading:
            started_s = self._clock()
            try:
                keys = frozenset(self._read())
            except Exception as error:  # of whatever kind a store's driver raises
                LOG.warning("cannot read the revocations: %s", error)
                return False
            if self._keys and not keys:  # tombstones stay, so the store is not what it was
                LOG.warning("the store lists no revocations any more; is it mounted?")
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
            except Exception:  # the watch must outlive any fault of a store or a listener
                LOG.exception("reading the revocations failed")
