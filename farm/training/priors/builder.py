"""Which prior sets this driver generates, which it waits for, and when each is ready.

Owns the single flight: the driver that holds a set's lock generates it. Other drivers wait for its
marker, and take over if the holder dies. How parts are generated is a function argument: with Ray
Data (``ray_data``) or in this process (``run.in_process``).
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Literal, Self

from farm.errors import StoreError, StoreUnusable, explain
from farm.intake.job import PriorSpec
from farm.locks import StoreLock
from farm.storage import Store
from farm.store_trouble import TroubleNote
from farm.training.priors.storage import (
    CLAIMS,
    PartRecord,
    commit_prior_set,
    is_ready,
    parts_of,
)

__all__ = ["GenerateParts", "PartFailure", "PriorBuilder", "missing_priors"]

LOCK_TTL_S = 120.0
STORE_PAUSE_S = 5.0
"""Seconds between two attempts while the store fails."""
WAIT_S = 2.0
"""Seconds between two checks of sets that another driver generates."""


@dataclass(frozen=True, slots=True)
class PartFailure:
    """A part that could not be generated; its set fails, others continue."""

    prior_key: str
    reason: str
    remedy: str = ""
    store: Literal["", "silent", "unusable"] = ""
    """Set if the store caused the failure: the set is generated again once the store works."""

    @classmethod
    def of_error(cls, prior_key: str, error: Exception) -> Self:
        """The failure that an error leads to."""
        is_unusable = isinstance(error, StoreUnusable)
        silent: Literal["", "silent"] = "silent" if isinstance(error, StoreError) else ""
        return cls(prior_key, *explain(error), "unusable" if is_unusable else silent)


GenerateParts = Callable[[Sequence[PriorSpec], str], Generator[PartRecord | PartFailure]]
"""Generates all parts of sets into the given attempt's folders, in any order."""


def missing_priors(store: Store, specs: Iterable[PriorSpec]) -> list[PriorSpec]:
    """The distinct sets missing from the store, in the order in which jobs need them."""
    distinct = {spec.key: spec for spec in reversed(list(specs))}
    ordered = [distinct[key] for key in reversed(distinct)]
    with ThreadPoolExecutor(16) as pool:
        ready = pool.map(lambda spec: is_ready(store, spec.key), ordered)
        return [spec for spec, found in zip(ordered, ready, strict=True) if not found]


class PriorBuilder:
    """Generates every missing prior set once, and reports each as it becomes ready."""

    def __init__(
        self,
        store: Store,
        specs: Sequence[PriorSpec],
        generate: GenerateParts,
        *,
        ready: Callable[[str], None],
        failed: Callable[[str, str, str], None],
    ) -> None:
        """``ready`` (with the key) and ``failed`` (with key, reason and remedy) are called from the
        thread that runs ``run``."""
        self._store, self._generate = store, generate
        self._pending = {spec.key: spec for spec in specs}
        self._ready, self._failed = ready, failed
        self._locks: dict[str, StoreLock] = {}
        self._locks_mutex = threading.Lock()
        self._ended = threading.Event()
        self.stopped = threading.Event()
        """Set it to stop after the current part."""
        self.trouble = TroubleNote()
        """Trouble with writes to the store; the run decides how long to wait."""

    def run(self) -> None:
        """Return when every set is ready or has failed, or ``stopped`` is set."""
        renewing = threading.Thread(target=self._renew_forever, name="prior-locks", daemon=True)
        renewing.start()
        try:
            while self._pending and not self.stopped.is_set():
                try:
                    self._take_turn()
                except (StoreError, StoreUnusable) as error:
                    self.trouble.failed(error)
                    self.stopped.wait(STORE_PAUSE_S)
        except Exception as error:  # the cause affects every remaining set
            if self.stopped.is_set():  # the run's end interrupted them: no set has failed
                return
            for key in list(self._pending):
                self._fail(PartFailure(key, *explain(error)))
        finally:
            self._ended.set()
            renewing.join()
            with suppress(StoreError, StoreUnusable):  # the locks expire
                for key in list(self._locks):
                    self._unlock(key)

    def _take_turn(self) -> None:
        """Generate the sets that no other driver is generating; if there are none, wait briefly."""
        self._report_ready()
        mine = [
            spec
            for spec in self._pending.values()
            if spec.key in self._locks or self._lock(spec.key)
        ]
        if mine:
            self._generate_all({spec.key: spec for spec in mine})
        elif self._pending:
            self.stopped.wait(WAIT_S)

    def _report_ready(self) -> None:
        for key in list(self._pending):
            if is_ready(self._store, key):
                del self._pending[key]
                self._ready(key)

    def _lock(self, key: str) -> bool:
        lock = StoreLock.take(self._store, f"priors/{key}/{CLAIMS}", ttl_s=LOCK_TTL_S)
        if lock is None:
            return False
        if is_ready(self._store, key):  # committed between the check and the lock
            lock.release()
            return False
        with self._locks_mutex:
            self._locks[key] = lock
        return True

    def _generate_all(self, specs: Mapping[str, PriorSpec]) -> None:
        attempt = uuid.uuid4().hex[:12]
        parts: dict[str, list[PartRecord]] = defaultdict(list)
        with closing(self._generate(list(specs.values()), attempt)) as outcomes:
            for outcome in outcomes:
                self._add_part(outcome, specs[outcome.prior_key], attempt, parts)
                if self.stopped.is_set():
                    return

    def _add_part(
        self,
        outcome: PartRecord | PartFailure,
        spec: PriorSpec,
        attempt: str,
        parts: dict[str, list[PartRecord]],
    ) -> None:
        """Record a part; the last one commits its set."""
        key = spec.key
        if key not in self._pending:  # another part of its set has failed
            return
        if isinstance(outcome, PartFailure):
            if outcome.store:
                kind = StoreUnusable if outcome.store == "unusable" else StoreError
                raise kind(outcome.reason, outcome.remedy)
            self._fail(outcome)
            return
        self.trouble.succeeded()
        parts[key].append(outcome)
        if len(parts[key]) == len(parts_of(spec)) + 1:
            commit_prior_set(self._store, spec, attempt, parts.pop(key))
            del self._pending[key]
            self._ready(key)
            self._unlock(key)

    def _fail(self, failure: PartFailure) -> None:
        key = failure.prior_key
        del self._pending[key]
        reason = f"its prior set could not be generated: {failure.reason}"
        self._failed(key, reason, failure.remedy)
        self._unlock(key)

    def _unlock(self, key: str) -> None:
        with self._locks_mutex:
            lock = self._locks.pop(key, None)
        if lock is not None:
            lock.release()

    def _renew_forever(self) -> None:
        while not self._ended.wait(LOCK_TTL_S / 4):
            with self._locks_mutex, suppress(StoreError, StoreUnusable):
                for lock in self._locks.values():
                    lock.renew()
