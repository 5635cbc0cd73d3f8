"""A run in this process: the dispatcher, one lane and the prior sets, without Ray.

Owns only the wiring. For tests, debuggers and machines without Ray; dispatcher and lane are the
same as on a cluster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace

from farm.base.device.heap import keep_freed_memory
from farm.base.interface import Base
from farm.base.loading import load_base, training_dtype
from farm.errors import FarmError, StoreError, StoreUnusable
from farm.intake.job import PriorSpec
from farm.storage import Store
from farm.store_trouble import worst_of
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Job
from farm.training.dispatch.messages import LaneOrders, LaneReport
from farm.training.lane.lane import Lane
from farm.training.priors.builder import PartFailure, PriorBuilder
from farm.training.priors.generate import generate_part
from farm.training.priors.storage import (
    PartRecord,
    PriorArrays,
    parts_of,
    read_prior_set,
    write_part,
    write_prompt,
)
from farm.training.run.driver import Driver
from farm.training.run.files import OpenRequest, close_requests, open_requests

__all__ = ["LocalLink", "generate_here", "run_in_process"]

LOOK_S = 0.5


class LocalLink:
    """A lane's connection to a dispatcher in the same process."""

    def __init__(self, dispatcher: Dispatcher, store: Store) -> None:
        self.dispatcher, self._store = dispatcher, store
        self.lock = threading.Lock()
        """Held around every call of the dispatcher."""

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Report; returns the dispatcher's orders."""
        with self.lock:
            return self.dispatcher.exchange(report)

    def prior(self, prior_key: str) -> PriorArrays:
        """The set, read from the store."""
        return read_prior_set(self._store, prior_key)


def generate_here(
    base: Base, store: Store, specs: Sequence[PriorSpec], attempt: str
) -> Generator[PartRecord | PartFailure]:
    """Generate prior sets with a loaded base; see ``PriorBuilder``."""
    for spec in specs:
        try:
            yield write_prompt(store, attempt, base, spec)
            for part in parts_of(spec):
                yield write_part(store, attempt, part, generate_part(base, spec, part))
        except FarmError as error:
            yield PartFailure.of_error(spec.key, error)


def run_in_process(driver: Driver, dispatcher: Dispatcher) -> list[Job]:
    """Generate missing prior sets, then train, in this thread; another thread writes the ledger."""
    prepared = driver.prepared
    request, store = prepared.request, prepared.store
    plan = prepared.plan
    assert plan is not None
    keep_freed_memory(plan.device)
    base = load_base(
        request.base,
        device=plan.device,
        dtype=training_dtype(plan.device),
        revision=request.revision,
        quantization=request.quantization,
    )
    base.release_text_encoders()
    link = LocalLink(dispatcher, store)
    keeper = _Keeper(driver, link)
    keeper.start()
    try:
        if prepared.priors:
            work = PriorBuilder(
                store,
                prepared.priors,
                lambda specs, attempt: generate_here(base, store, specs, attempt),
                ready=keeper.prior_is_ready,
                failed=keeper.prior_failed,
            )
            work.stopped = driver.stop
            keeper.priors = work
            work.run()
        judge = request.make_judge(request.scoring) if request.make_judge else None
        Lane("here.0", base, store, link, driver.lane_settings(), judge=judge).run()
    finally:
        keeper.end()
    if keeper.error is not None:
        raise keeper.error
    return dispatcher.jobs()


class _Keeper:
    """Ticks the dispatcher, renews the driver's lock and updates the view, beside the training."""

    def __init__(self, driver: Driver, link: LocalLink) -> None:
        self._driver, self._link = driver, link
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self.error: BaseException | None = None
        self.priors: PriorBuilder | None = None

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StoreError, StoreUnusable):
            self._look()

    def prior_is_ready(self, prior_key: str) -> None:
        with self._link.lock:
            self._link.dispatcher.prior_is_ready(prior_key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str) -> None:
        with self._link.lock:
            self._link.dispatcher.prior_failed(prior_key, reason, remedy)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self._look()
            except (StoreError, StoreUnusable):  # the events are kept for the next attempt
                time.sleep(LOOK_S)
            except BaseException as error:  # raised in the training thread, after a clean stop
                self.error = error
                with self._link.lock:
                    self._link.dispatcher.stop()
                return

    def _look(self) -> None:
        dispatcher = self._link.dispatcher
        requests = self._requests()
        with self._link.lock:
            for _, what, keys in requests:
                dispatcher.cancel(keys) if what == "cancel" else dispatcher.retry(keys)
            if self._driver.stop.is_set():
                dispatcher.stop()
        try:
            with self._link.lock:
                dispatcher.tick()
            with suppress(StoreError, StoreUnusable):  # carried out again, which does no harm
                close_requests(self._driver.prepared.store, requests)
        finally:
            with self._link.lock:
                snapshot, news = dispatcher.snapshot(), dispatcher.news(self._driver.heard)
            if self.priors is not None:
                worst = worst_of([snapshot.trouble, self.priors.trouble.current()])
                snapshot = replace(snapshot, trouble=worst)
            self._driver.show(snapshot, news)

    def _requests(self) -> list[OpenRequest]:
        if self._link.dispatcher.trouble.current() is not None:
            return []
        with suppress(StoreError, StoreUnusable):
            return open_requests(self._driver.prepared.store, self._driver.prepared.run_id)
        return []
