"""Which prior sets this driver draws, which it waits for, and when each is ready.

Owns the single flight: a set is drawn by whoever holds its claim, everybody else waits for its
marker, and takes over where the holder died. How parts are drawn comes in as a function: with Ray
Data (``priors``) or in this process (``local``).
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
from farm.training.priors.storage import PartRecord, commit_prior_set, is_ready, parts_of

__all__ = ["GenerateParts", "PartFailure", "PriorBuilder", "missing_priors"]

CLAIM_TTL_S = 120.0
WAIT_S = 2.0
"""Seconds between two looks at sets that somebody else draws."""
STORE_PAUSE_S = 5.0
"""Between two tries while the store fails."""


@dataclass(frozen=True, slots=True)
class PartFailure:
    """A part that cannot be made; its set fails, others go on."""

    prior_key: str
    reason: str
    remedy: str = ""
    store: Literal["", "silent", "unusable"] = ""
    """The store's fault and not the set's: the set is generated again once the store works."""

    @classmethod
    def of_error(cls, prior_key: str, error: Exception) -> Self:
        """What an error leads to."""
        is_unusable = isinstance(error, StoreUnusable)
        silent: Literal["", "silent"] = "silent" if isinstance(error, StoreError) else ""
        return cls(prior_key, *explain(error), "unusable" if is_unusable else silent)


GenerateParts = Callable[[Sequence[PriorSpec], str], Generator[PartRecord | PartFailure]]
"""Draws all parts of sets into the given attempt's folders, in any order."""


def missing_priors(store: Store, specs: Iterable[PriorSpec]) -> list[PriorSpec]:
    """The distinct sets that are not whole in the store, in the order of their first need."""
    distinct = {spec.key: spec for spec in reversed(list(specs))}
    ordered = [distinct[key] for key in reversed(distinct)]
    with ThreadPoolExecutor(16) as pool:
        ready = pool.map(lambda spec: is_ready(store, spec.key), ordered)
        return [spec for spec, there in zip(ordered, ready, strict=True) if not there]


class PriorBuilder:
    """Has every missing prior set drawn, once, and tells as each is ready."""

    def __init__(
        self,
        store: Store,
        specs: Sequence[PriorSpec],
        draw: GenerateParts,
        *,
        ready: Callable[[str], None],
        failed: Callable[[str, str, str], None],
    ) -> None:
        """``ready`` (with the key) and ``failed`` (with key, reason and remedy) are called from the
        thread that runs ``run``."""
        self._store, self._draw = store, draw
        self._pending = {spec.key: spec for spec in specs}
        self._ready, self._failed = ready, failed
        self._claims: dict[str, StoreLock] = {}
        self._claims_lock = threading.Lock()
        self.stopped = threading.Event()
        """Set it to give up between two parts."""
        self.trouble = TroubleNote()
        """What writes to the store come to; the run decides how long to wait."""

    def run(self) -> None:
        """Until every set is ready or has failed, or ``stopped`` is set."""
        renewing = threading.Thread(target=self._renew_forever, name="prior-claims", daemon=True)
        ended = self._ended = threading.Event()
        renewing.start()
        try:
            while self._pending and not self.stopped.is_set():
                try:
                    self._take_turn()
                except (StoreError, StoreUnusable) as error:
                    self.trouble.failed(error)
                    self.stopped.wait(STORE_PAUSE_S)
        except Exception as error:  # the cause concerns all that are left
            for key in list(self._pending):
                self._fail(PartFailure(key, *explain(error)))
        finally:
            ended.set()
            renewing.join()
            self._release_all()

    def _take_turn(self) -> None:
        """Generate what nobody else does; otherwise wait a moment for those who do."""
        self._note_ready()
        mine = [
            spec
            for spec in self._pending.values()
            if spec.key in self._claims or self._claim(spec.key)
        ]
        if mine:
            self._draw_all({spec.key: spec for spec in mine})
        elif self._pending:
            self.stopped.wait(WAIT_S)

    def _note_ready(self) -> None:
        for key in list(self._pending):
            if is_ready(self._store, key):
                del self._pending[key]
                self._ready(key)

    def _claim(self, key: str) -> bool:
        claim = StoreLock.take(self._store, f"priors/{key}/claims", ttl_s=CLAIM_TTL_S)
        if claim is None:
            return False
        if is_ready(self._store, key):  # drawn between the look and the claim
            claim.release()
            return False
        with self._claims_lock:
            self._claims[key] = claim
        return True

    def _draw_all(self, specs: Mapping[str, PriorSpec]) -> None:
        attempt = uuid.uuid4().hex[:12]
        receipts: dict[str, list[PartRecord]] = defaultdict(list)
        with closing(self._draw(list(specs.values()), attempt)) as outcomes:
            for outcome in outcomes:
                self._take(outcome, specs[outcome.prior_key], attempt, receipts)
                if self.stopped.is_set():
                    return

    def _take(
        self,
        outcome: PartRecord | PartFailure,
        spec: PriorSpec,
        attempt: str,
        receipts: dict[str, list[PartRecord]],
    ) -> None:
        """Note a part; commit its set with the last one."""
        key = spec.key
        if key not in self._pending:  # its set has failed already
            return
        if isinstance(outcome, PartFailure):
            if outcome.store:
                kind = StoreUnusable if outcome.store == "unusable" else StoreError
                raise kind(outcome.reason, outcome.remedy)
            self._fail(outcome)
            return
        self.trouble.succeeded()
        receipts[key].append(outcome)
        if len(receipts[key]) == len(parts_of(spec)) + 1:
            commit_prior_set(self._store, spec, attempt, receipts.pop(key))
            del self._pending[key]
            self._ready(key)
            self._release(key)

    def _fail(self, failure: PartFailure) -> None:
        key = failure.prior_key
        del self._pending[key]
        reason = f"its prior set could not be drawn: {failure.reason}"
        self._failed(key, reason, failure.remedy)
        self._release(key)

    def _release(self, key: str) -> None:
        with self._claims_lock:
            claim = self._claims.pop(key, None)
        if claim is not None:
            claim.release()

    def _release_all(self) -> None:
        with suppress(StoreError, StoreUnusable):  # the claims expire
            for key in list(self._claims):
                self._release(key)

    def _renew_forever(self) -> None:
        while not self._ended.wait(CLAIM_TTL_S / 4):
            with self._claims_lock, suppress(StoreError, StoreUnusable):
                for claim in self._claims.values():
                    claim.renew()
