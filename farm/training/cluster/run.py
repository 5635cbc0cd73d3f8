"""A run on Ray: the dispatcher's actor, lanes on Ray Train, prior sets on Ray Data.

Owns the driver's loop. It keeps lane runs alive while there is work (``lane_runs``). If they cannot
be kept alive, it ends the run with a reason and without losing anything. ``watch`` reports on nodes
and the head.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions

from farm.errors import HeadLost, LaneLost, StoreError, StoreUnusable
from farm.retries import OUTAGE_BUDGET_S
from farm.store_trouble import TroubleNote, worst_of
from farm.training.cluster.dispatch_actor import (
    DispatchSpec,
    ask,
    dispatcher_name,
    start_dispatcher,
)
from farm.training.cluster.lane_runs import LaneRuns
from farm.training.cluster.lanes.worker import LaneSpec
from farm.training.cluster.prior_thread import PriorThread
from farm.training.cluster.ray_threads import names_of_ray_threads
from farm.training.cluster.ray_train import LaneRun
from farm.training.cluster.start import is_connected, start_ray
from farm.training.cluster.watch import (
    SILENCE_S,
    ClusterWatch,
    end_controllers,
    free_places_of_dead_controllers,
    head_patience_s,
    is_autoscaling,
    missing_words,
)
from farm.training.dispatch.ledger import Job
from farm.training.dispatch.messages import Notice, Snapshot
from farm.training.run.driver import Driver, dispatcher_of
from farm.training.run.files import OpenRequest, close_requests, open_requests

__all__ = ["run_on_ray"]

LOOK_S = 0.5
STOP_PATIENCE_S = 120.0
"""How long lanes get to save their jobs after a stop."""
LANES_PATIENCE_S = 30.0
"""How long Ray Train may take to clean up after lanes that have returned."""
IDLE_STOP_S = 4.0
"""How long a stop waits if no lane is training."""
SLOW_STOP_S = 4.0
"""How long lanes may save their jobs before the user learns what they do."""
_SLOW_STOP = (
    "still stopping: lanes are saving their jobs; Ctrl-C again ends the run at once, and "
    "unfinished jobs resume from their last checkpoints"
)
STUCK_PATIENCE_S = 2.0
"""How long lane runs may take to end once their controllers are killed."""
ASK_S = 2.0
"""Seconds between two checks of the head while the dispatcher does not answer."""
REPORT_EVERY_S = 60.0
"""Seconds between two lines about missing nodes."""
NODE_TIMEOUT_S, AUTOSCALING_TIMEOUT_S = 60.0, 600.0
"""How long nodes may take to join before they are reported missing."""


def run_on_ray(driver: Driver) -> list[Job]:
    """Train everything that is not committed; returns all jobs as they ended.

    Raises:
        LaneLost: if lanes die repeatedly, or the dispatcher is gone.
        HeadLost: if the cluster's head does not answer for too long.
    """
    with _connected(driver):
        if driver.stop.is_set():  # while Ray started: nothing that could be lost has begun
            return dispatcher_of(driver).jobs()
        return _RayRun(driver).drive()


@contextmanager
def _connected(driver: Driver) -> Iterator[None]:
    """Connect to a cluster, or start Ray here and shut it down afterwards."""
    address = driver.prepared.request.address
    if is_connected(address):  # the caller's connection, such as a notebook's
        yield
        return
    options: dict[str, Any] = {"log_to_driver": bool(os.environ.get("FARM_DEBUG"))}
    if address is None:
        plan = driver.prepared.plan
        assert plan is not None
        options |= {"include_dashboard": False, "num_cpus": _num_cpus()}
    start_ray(address=address, **options)
    if address is not None:
        driver.cluster = str(ray.get_runtime_context().gcs_address)
    if driver.arm is not None:
        driver.arm()
    try:
        yield
    except (KeyboardInterrupt, HeadLost):
        # a clean shutdown would wait for processes that do not answer
        if address is None:
            _kill_own_ray()
        raise
    except BaseException:
        _end_ray(address)
        raise
    _end_ray(address)


def _end_ray(address: str | None) -> None:
    """Disconnect from Ray, and end the Ray that this driver started.

    A thread that is in a call of Ray meanwhile would end the process, with exit code 1 and no
    message. If there is one, the connection stays until the process ends.
    """
    if not names_of_ray_threads():
        ray.shutdown()
    elif address is None:
        _kill_own_ray()


def _kill_own_ray() -> None:
    """End the Ray processes that this driver started."""
    node = ray._private.worker._global_node
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _RayRun:
    """One driver's run: its actor, its lane runs, its prior sets."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._prepared = driver, driver.prepared
        plan = self._prepared.plan
        assert plan is not None
        self._plan = plan
        self._watch = ClusterWatch()
        spec = DispatchSpec(
            store_url=self._prepared.store.url,
            run_id=self._prepared.run_id,
            epoch=driver.lock.number,
            resolution_px=self._prepared.base.resolution_px,
            settings=replace(self._prepared.request.dispatch, expected_lanes=plan.num_lanes),
        )
        self._dispatcher = start_dispatcher(spec)
        self._lane_spec = self._make_lane_spec(dispatcher_name(spec))
        self._runs: LaneRuns | None = None
        self._priors: PriorThread | None = None
        self._began = time.monotonic()
        self._stopped_at: float | None = None
        self._carried_out: list[OpenRequest] = []
        self._is_slow_stop_reported = False
        self._missing_reported_at = self._silence_reported_at = 0.0
        request = self._prepared.request
        default = AUTOSCALING_TIMEOUT_S if is_autoscaling() else NODE_TIMEOUT_S
        self._node_timeout_s = request.node_timeout_s or default

    def _make_lane_spec(self, dispatcher: str) -> LaneSpec:
        request, plan = self._prepared.request, self._plan
        return LaneSpec(
            dispatcher=dispatcher,
            store_url=self._prepared.store.url,
            base=self._prepared.base.name,
            revision=request.revision,
            quantization=request.quantization,
            device=plan.device,
            settings=self._driver.lane_settings(),
            threads=plan.threads,
            memory_fraction=plan.memory_fraction,
            make_judge=request.make_judge,
            scoring=request.scoring,
        )

    # -- the loop -----------------------------------------------------------------------------

    def drive(self) -> list[Job]:
        """Loop until every job has ended or the user stops the run."""
        is_at_once = False
        try:
            self._start_priors()
            self._runs = self._start_lanes()
            while True:
                snapshot, news = self._look()
                self._driver.show(snapshot, news)
                self._heed_cluster(snapshot)
                if snapshot.is_done:
                    break
                if self._driver.stop.is_set():
                    self._stopped_at = self._stopped_at or self._stop()
                    if self._has_stopped(snapshot, time.monotonic() - self._stopped_at):
                        break
                else:
                    if snapshot.trouble is None:
                        self._answer_requests()
                    self._runs.keep(snapshot)
                    self._report_missing(snapshot)
                time.sleep(LOOK_S)
            return self._end()
        except (KeyboardInterrupt, HeadLost):
            is_at_once = True
            raise
        except ray.exceptions.RayError as error:
            if not self._watch.finds_head():
                is_at_once = True
                raise self._watch.head_lost() from error
            raise LaneLost(
                f"the dispatcher's process died: {error}", "run the same command again"
            ) from error
        finally:
            self._end_priors(is_at_once=is_at_once)
            self._watch.end()

    def _end_priors(self, *, is_at_once: bool) -> None:
        if self._priors is None:
            return
        if is_at_once:
            self._priors.abandon()
        else:
            self._priors.end(self._stopped_at)

    def _ask(self, reference: Any) -> Any:
        """The dispatcher's answer; see ``ask``. Raises when the head is lost."""
        while True:
            try:
                return ask(reference, timeout_s=ASK_S)
            except ray.exceptions.GetTimeoutError:
                self._watch.require_head()

    def _start_priors(self) -> None:
        if not self._prepared.priors:
            return
        self._priors = PriorThread(
            self._prepared,
            ready=lambda key: ask(self._dispatcher.prior_is_ready.remote(key)),
            failed=lambda *why: ask(self._dispatcher.prior_failed.remote(*why)),
        )
        self._priors.start()

    def _heed_cluster(self, snapshot: Snapshot) -> None:
        """Report lost and draining nodes to the dispatcher, and check that the head answers.

        Raises:
            HeadLost: if it has not answered for too long.
        """
        if lost := self._watch.take("lost"):
            self._ask(self._dispatcher.nodes_lost.remote(lost))
        if draining := self._watch.take("draining"):
            self._ask(self._dispatcher.nodes_draining.remote(draining))
            self._driver.show_line(
                snapshot, f"{len(draining)} node(s) are draining: their jobs move to other nodes"
            )
        if self._watch.silent_s < SILENCE_S:
            self._silence_reported_at = 0.0
        elif time.monotonic() - self._silence_reported_at > 10:
            self._silence_reported_at = time.monotonic()
            self._driver.show_line(
                snapshot,
                f"the cluster's head does not answer; waiting up to {head_patience_s():.0f} s",
            )
        self._watch.require_head()

    def _report_missing(self, snapshot: Snapshot) -> None:
        """Show, once a minute, how many nodes are missing, what the cluster has, and why."""
        assert self._runs is not None
        now = time.monotonic()
        missing = self._runs.names_without_lanes(snapshot)
        if not missing:
            self._began = now  # restart the wait
        due = max(self._began + self._node_timeout_s, self._missing_reported_at + REPORT_EVERY_S)
        if now < due:
            return
        self._missing_reported_at = now
        self._driver.show_line(snapshot, self._missing_words(len(missing), now - self._began))

    def _missing_words(self, num_missing: int, waited_s: float) -> str:
        if self._prepared.request.address is None:  # Ray runs here, so the node is there
            return f"no training process has started in {waited_s:.0f} s: this machine is busy"
        return missing_words(self._watch, self._plan, num_missing, waited_s)

    def _has_stopped(self, snapshot: Snapshot, waited_s: float) -> bool:
        """Whether the stop is complete: all lanes returned, or none holds a job."""
        assert self._runs is not None
        if not self._runs.alive or waited_s > STOP_PATIENCE_S:
            return True
        trains = snapshot.counts["training"] or any(lane.held for lane in snapshot.lanes)
        if trains and waited_s > SLOW_STOP_S and not self._is_slow_stop_reported:
            self._is_slow_stop_reported = True
            self._driver.show_line(snapshot, _SLOW_STOP)
        return not trains and waited_s > (IDLE_STOP_S if snapshot.lanes else 0.0)

    def _look(self) -> tuple[Snapshot, list[Notice]]:
        """The dispatcher's snapshot, with the prior thread's store trouble.

        Raises:
            StoreError: if a restarted dispatcher cannot read the store for too long.
        """
        note = TroubleNote()
        while True:
            try:
                snapshot, news = self._ask(self._dispatcher.look.remote(self._driver.heard))
                break
            except StoreError as error:
                note.failed(error)
                trouble = note.current()
                is_over = trouble is not None and trouble.lasted_s > OUTAGE_BUDGET_S
                if is_over or self._driver.stop.is_set():
                    raise
                time.sleep(LOOK_S)
        if self._priors is not None:
            worst = worst_of([snapshot.trouble, self._priors.trouble])
            snapshot = replace(snapshot, trouble=worst)
        return snapshot, news

    def _stop(self) -> float:
        if self._priors is not None:
            self._priors.stop()
        self._ask(self._dispatcher.stop.remote())
        return time.monotonic()

    def _end(self) -> list[Job]:
        """Wait until the lanes have returned, and read how the jobs ended."""
        assert self._runs is not None
        snapshot, _ = self._look()
        waiting = set(self._runs.names_without_lanes(snapshot))
        deadline = time.monotonic() + LANES_PATIENCE_S
        for run in self._runs.alive:
            # also for Ray Train's cleanup: a thread that calls Ray after shutdown kills the process
            if run.name not in waiting:
                run.join(max(0.0, deadline - time.monotonic()))
        if stuck := self._runs.alive:
            end_controllers()
            deadline = time.monotonic() + STUCK_PATIENCE_S
            for run in stuck:
                run.join(max(0.0, deadline - time.monotonic()))
        snapshot, news = self._look()
        self._driver.show(snapshot, news)
        jobs: list[Job] = self._ask(self._dispatcher.jobs.remote())
        return jobs

    def _answer_requests(self) -> None:
        """Carry out new requests, and close those of the last time: the dispatcher has written its
        ledger since."""
        store = self._prepared.store
        with suppress(StoreError, StoreUnusable):
            close_requests(store, self._carried_out)
            self._carried_out = []
            for request in open_requests(store, self._prepared.run_id):
                is_cancel = request.what == "cancel"
                method = self._dispatcher.cancel if is_cancel else self._dispatcher.retry
                self._ask(method.remote(request.keys))
                self._carried_out.append(request)

    # -- lanes --------------------------------------------------------------------------------

    def _start_lanes(self) -> LaneRuns:
        """One Ray Train run for each planned node."""
        plan = self._plan

        def make(name: str) -> LaneRun:
            run = LaneRun(
                name,
                self._lane_spec,
                num_lanes=plan.lanes_per_node,
                cpus=plan.cpus_per_lane,
                gpus=plan.gpu_fraction,
            )
            run.start()
            return run

        return LaneRuns(
            make,
            prefix=f"{self._prepared.run_id}-{self._driver.lock.number}",
            num_places=plan.num_nodes,
            ended=self._lanes_ended,
        )

    def _lanes_ended(self, name: str) -> None:
        """Release the jobs and the resources of lanes that are gone."""
        self._ask(self._dispatcher.lanes_ended.remote(name))
        free_places_of_dead_controllers()
