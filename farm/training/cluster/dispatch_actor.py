"""The dispatcher as a Ray actor beside the driver, and the calls that lanes and driver make.

Owns the actor, its name, and the translation of Ray's errors into the farm's. Which lane gets which
job is ``dispatch``'s decision.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from farm.adapters.registry import Registry
from farm.errors import FarmError, LaneLost, StoreError, StoreUnusable
from farm.keys import bytes_digest
from farm.retries import OUTAGE_BUDGET_S
from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Job, Ledger
from farm.training.dispatch.messages import (
    DispatchSettings,
    LaneOrders,
    LaneReport,
    Notice,
    Snapshot,
)
from farm.training.priors.storage import PriorArrays, is_ready, read_prior_set
from farm.training.run.job_files import read_run_jobs

__all__ = [
    "DispatchActor",
    "DispatchSpec",
    "RayLink",
    "ask",
    "dispatcher_name",
    "start_dispatcher",
]

NAMESPACE = "farm"
EXCHANGE_TIMEOUT_S = 120.0
LEDGER_PAUSE_S = 5.0
"""Seconds between two attempts to write the ledger while the store fails."""


@dataclass(frozen=True)
class DispatchSpec:
    """The actor's arguments; Ray passes them again when it restarts the actor."""

    store_url: str
    run_id: str
    epoch: int
    resolution_px: int
    settings: DispatchSettings


class DispatchActor:
    """The dispatcher in its own process, on the driver's node."""

    def __init__(self, spec: DispatchSpec) -> None:
        self._spec = spec
        self._store = Store(spec.store_url)
        self._priors: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        """Node by lane."""
        self._draining: set[str] = set()

    # built on first use: an error in a constructor would reach the driver as Ray's traceback

    @cached_property
    def _dispatcher(self) -> Dispatcher:
        spec = self._spec
        jobs = read_run_jobs(self._store, spec.run_id)
        return Dispatcher(
            jobs,
            Ledger(self._store, spec.run_id, epoch=spec.epoch),
            resolution_px=spec.resolution_px,
            ready_priors=[key for key in jobs.columns.priors if is_ready(self._store, key)],
            committed=Registry(self._store).committed_among(jobs),
            settings=spec.settings,
        )

    def exchange(self, report: LaneReport, node_id: str) -> LaneOrders:
        """See ``Dispatcher.exchange``. A lane on a draining node gets no new jobs: it saves its
        jobs, releases them and returns."""
        self._nodes[report.lane] = node_id
        if node_id not in self._draining:
            return self._dispatcher.exchange(report)
        return replace(self._dispatcher.exchange(replace(report, want=0)), stop=True)

    def nodes_lost(self, node_ids: list[str]) -> None:
        """Release the jobs of all lanes on nodes that are gone."""
        for lane in [lane for lane, node in self._nodes.items() if node in node_ids]:
            del self._nodes[lane]
            self._dispatcher.lane_died(lane)

    def nodes_draining(self, node_ids: list[str]) -> None:
        """Note nodes that will be removed soon; their lanes are stopped at their next report."""
        self._draining |= set(node_ids)

    def lanes_ended(self, run: str) -> None:
        """Release the jobs of all lanes of a Ray Train run that has ended."""
        for lane in [lane for lane in self._nodes if lane.startswith(f"{run}.")]:
            del self._nodes[lane]
            self._dispatcher.lane_died(lane)

    @ray.method(concurrency_group="priors")  # type: ignore[untyped-decorator]
    def prior(self, prior_key: str) -> list[Any]:
        """A reference to a prior set in the object store, in a list so that Ray does not resolve
        it. This process owns the set, and its node outlives the lanes' nodes."""
        if prior_key not in self._priors:
            self._priors[prior_key] = ray.put(read_prior_set(self._store, prior_key))
        return [self._priors[prior_key]]

    def look(self, since: int) -> tuple[Snapshot, list[Notice]]:
        """Tick, and report to the driver. The snapshot includes a failure to write the ledger."""
        dispatcher = self._dispatcher
        # while the store does not answer, each attempt blocks the lanes' calls
        if not dispatcher.trouble.failed_within(LEDGER_PAUSE_S):
            with suppress(StoreError, StoreUnusable):
                dispatcher.tick()
        self._forget_priors()
        return self._dispatcher.snapshot(), self._dispatcher.news(since)

    def _forget_priors(self) -> None:
        """Drop sets that no open job needs: the sets of thousands of classes would fill memory."""
        is_needed = self._dispatcher.is_prior_needed
        for key in [key for key in self._priors if not is_needed(key)]:
            del self._priors[key]

    def prior_is_ready(self, prior_key: str) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.prior_is_ready(prior_key)

    def prior_failed(self, prior_key: str, reason: str, remedy: str) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.prior_failed(prior_key, reason, remedy)

    def cancel(self, keys: list[str] | None) -> int:
        """See ``Dispatcher``."""
        return self._dispatcher.cancel(keys)

    def retry(self, keys: list[str] | None) -> int:
        """See ``Dispatcher``."""
        return self._dispatcher.retry(keys)

    def stop(self) -> None:
        """See ``Dispatcher``."""
        self._dispatcher.stop()

    def jobs(self) -> list[Job]:
        """All jobs; the ledger is written first unless the store is failing."""
        if self._dispatcher.trouble.current() is None:
            with suppress(StoreError, StoreUnusable):
                self._dispatcher.tick()
        return self._dispatcher.jobs()


def start_dispatcher(spec: DispatchSpec) -> Any:
    """Start the actor on this node. If its process dies, Ray restarts it from the store's state."""
    node_id = ray.get_runtime_context().get_node_id()
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
        concurrency_groups={"priors": 1},
    )(DispatchActor)
    return actor.options(
        name=dispatcher_name(spec),
        namespace=NAMESPACE,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    ).remote(spec)


def ask(reference: Any, *, timeout_s: float | None = None) -> Any:
    """The result of a call to the dispatcher's actor; farm errors are raised without Ray's wrapper.

    Raises:
        FarmError: as the actor raised it.
        ray.exceptions.RayError: if the actor or the cluster failed, or did not answer in time.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FarmError):
            raise error.cause from None
        raise


def dispatcher_name(spec: DispatchSpec) -> str:
    """The actor's name in Ray. It includes the epoch, so that lanes of an older epoch do not find
    it, and the store, because the same manifest may run in two stores on one cluster."""
    store = bytes_digest(spec.store_url.encode())[:8]
    return f"dispatcher-{spec.run_id}-{store}-{spec.epoch}"


class RayLink:
    """A lane's connection to the dispatcher's actor."""

    def __init__(self, name: str, store: Store) -> None:
        self._actor = ray.get_actor(name, namespace=NAMESPACE)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._store = store

    def exchange(self, report: LaneReport) -> LaneOrders:
        """Report to the dispatcher; returns its orders.

        A restarted dispatcher first reads the store; while that fails, the call is retried.
        """
        until = time.monotonic() + OUTAGE_BUDGET_S
        while True:
            try:
                return self._exchange(report)
            except StoreError:
                if time.monotonic() > until:
                    raise
                time.sleep(2.0)

    def _exchange(self, report: LaneReport) -> LaneOrders:
        try:
            orders: LaneOrders = ray.get(
                self._actor.exchange.remote(report, self._node_id), timeout=EXCHANGE_TIMEOUT_S
            )
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise LaneLost(f"the dispatcher is gone: {error}", "run the same command again") from (
                error
            )
        return orders

    def prior(self, prior_key: str) -> PriorArrays:
        """The node's shared read-only copy; read from the store if the actor is gone."""
        try:
            (reference,) = ray.get(self._actor.prior.remote(prior_key), timeout=EXCHANGE_TIMEOUT_S)
            arrays: PriorArrays = ray.get(reference, timeout=EXCHANGE_TIMEOUT_S)
        except ray.exceptions.RayError:
            return read_prior_set(self._store, prior_key)
        return arrays
