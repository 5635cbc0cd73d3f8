"""A run on Ray: the dispatcher's actor, lanes on Ray Train, priors on Ray Data, and their watch.

Owns the driver's loop. It starts lane runs while there is work, and lets them end; whatever dies is
started again, and what cannot be kept alive ends the run with a reason and nothing lost.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions

from farm.errors import FarmError, LaneLost, StoreError
from farm.training.driver import Driver
from farm.training.lanes import (
    DispatchSpec,
    LaneRun,
    LaneSpec,
    dispatcher_name,
    start_dispatcher,
    start_ray,
)
from farm.training.ledger import Job
from farm.training.orders import News, Snapshot
from farm.training.prior_work import PriorWork
from farm.training.priors import DRAWING_CPUS, DrawerSettings, draw_with_ray
from farm.training.run_files import take_requests

__all__ = ["run_on_ray"]

LOOK_S = 0.5
STOP_PATIENCE_S = 120.0
"""How long lanes get to save their jobs after a stop."""
LANES_PATIENCE_S = 30.0
"""How long Ray Train may take to tidy up after lanes that have returned."""
PRIORS_PATIENCE_S = 60.0
"""How long the part of a prior set that is being drawn may take to its end."""
MAX_BARREN_STARTS = 3
"""Lane runs in a row that end in an error without having finished a job."""


def run_on_ray(driver: Driver) -> list[Job]:
    """Train everything that is not committed; returns all jobs as they ended.

    Raises:
        LaneLost: if lanes die again and again, or the dispatcher is gone.
    """
    with _connected(driver):
        return _RayRun(driver).drive()


@contextmanager
def _connected(driver: Driver) -> Iterator[None]:
    """Ray, started here or found; what this run started is gone afterwards."""
    if ray.is_initialized():  # somebody else's, such as a test's or a notebook's
        yield
        return
    address = driver.prepared.request.address
    options: dict[str, Any] = {"log_to_driver": bool(os.environ.get("FARM_DEBUG"))}
    if address is None:
        plan = driver.prepared.plan
        assert plan is not None
        options |= {"include_dashboard": False, "num_cpus": _num_cpus()}
    start_ray(address=address, **options)
    if driver.arm is not None:
        driver.arm()
    try:
        yield
    finally:
        ray.shutdown()


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _RayRun:
    """One driver's run: its actor, its lane runs, its prior drawing."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._prepared = driver, driver.prepared
        plan = self._prepared.plan
        assert plan is not None
        self._plan = plan
        spec = DispatchSpec(
            store_url=self._prepared.store.url,
            run_id=self._prepared.run_id,
            epoch=driver.claim.number,
            resolution_px=self._prepared.base.resolution_px,
            settings=replace(self._prepared.request.dispatch, expected_lanes=plan.num_lanes),
        )
        self._dispatcher = start_dispatcher(spec)
        self._lane_spec = self._make_lane_spec(dispatcher_name(spec))
        self._lane_runs: list[LaneRun] = []
        self._num_starts = self._num_barren = self._num_ended_before = 0
        self._priors: PriorWork | None = None
        self._priors_thread: threading.Thread | None = None

    def _make_lane_spec(self, dispatcher: str) -> LaneSpec:
        request, plan = self._prepared.request, self._plan
        return LaneSpec(
            dispatcher=dispatcher,
            store_url=self._prepared.store.url,
            base=self._prepared.base.name,
            revision=request.revision,
            device=plan.device,
            settings=self._driver.lane_settings(),
            threads=plan.threads,
            memory_fraction=plan.memory_fraction,
            make_judge=request.make_judge,
            scoring=request.scoring,
        )

    # -- the loop -----------------------------------------------------------------------------

    def drive(self) -> list[Job]:
        """Until every job has ended, or the user stops."""
        try:
            self._start_priors()
            self._start_lanes()
            stopped_at: float | None = None
            while True:
                snapshot, news = self._look()
                self._driver.show(snapshot, news)
                if snapshot.is_done:
                    break
                if self._driver.stop.is_set():
                    stopped_at = stopped_at or self._stop()
                    all_home = not any(run.is_alive for run in self._lane_runs)
                    if all_home or time.monotonic() - stopped_at > STOP_PATIENCE_S:
                        break
                else:
                    self._answer_requests()
                    self._keep_lanes(snapshot)
                time.sleep(LOOK_S)
            return self._end()
        except ray.exceptions.RayActorError as error:
            raise LaneLost(
                f"the dispatcher's process died: {error}", "run the same command again"
            ) from error
        finally:
            self._end_priors()

    def _look(self) -> tuple[Snapshot, list[News]]:
        """Ask the dispatcher; a store that fails now and then is asked again."""
        for _ in range(20):
            try:
                seen: tuple[Snapshot, list[News]] = ray.get(
                    self._dispatcher.look.remote(self._driver.heard)
                )
                return seen
            except StoreError:
                time.sleep(LOOK_S)
        raise StoreError("the ledger could not be written", "see whether the store answers")

    def _stop(self) -> float:
        if self._priors is not None:
            self._priors.stopped.set()
        ray.get(self._dispatcher.stop.remote())
        return time.monotonic()

    def _end(self) -> list[Job]:
        """Let the lanes go home, and read how the jobs ended."""
        deadline = time.monotonic() + LANES_PATIENCE_S
        for run in self._lane_runs:
            # also for Ray's own tidying up: the process dies where Ray ends under a thread's call
            run.join(max(0.0, deadline - time.monotonic()))
        snapshot, news = self._look()
        self._driver.show(snapshot, news)
        jobs: list[Job] = ray.get(self._dispatcher.jobs.remote())
        return jobs

    def _answer_requests(self) -> None:
        with suppress(StoreError):
            for what, keys in take_requests(self._prepared.store, self._prepared.run_id):
                method = self._dispatcher.cancel if what == "cancel" else self._dispatcher.retry
                ray.get(method.remote(keys))

    # -- lanes --------------------------------------------------------------------------------

    def _start_lanes(self) -> None:
        """One Ray Train run for each node that the plan wants."""
        plan = self._plan
        for node in range(plan.num_nodes):
            run = LaneRun(
                f"{self._prepared.run_id}-{self._driver.claim.number}-{self._num_starts}-{node}",
                self._lane_spec,
                num_lanes=plan.lanes_per_node,
                cpus=plan.cpus_per_lane,
                gpus=plan.gpu_fraction,
            )
            run.start()
            self._lane_runs.append(run)
        self._num_starts += 1

    def _keep_lanes(self, snapshot: Snapshot) -> None:
        """Start lanes anew where all have ended and jobs are left."""
        if any(run.is_alive for run in self._lane_runs):
            return
        ended = sum(snapshot.counts[status] for status in ("committed", "quarantined", "rejected"))
        self._num_barren = 0 if ended > self._num_ended_before else self._num_barren + 1
        self._num_ended_before = ended
        errors = [run.error for run in self._lane_runs if run.error is not None]
        if self._num_barren >= MAX_BARREN_STARTS and errors:
            raise LaneLost(
                f"the lanes ended {self._num_barren} times without finishing a job: {errors[-1]}",
                "see `farm logs`; nothing is lost, run the same command again to go on",
            )
        if snapshot.is_starved or not snapshot.waiting_for_priors:
            self._lane_runs.clear()
            self._start_lanes()

    # -- priors -------------------------------------------------------------------------------

    def _start_priors(self) -> None:
        if not self._prepared.priors:
            return
        request, plan = self._prepared.request, self._plan
        # class images that the user brought are only encoded, on the cores that lanes leave
        on_gpu = plan.prior_fraction > 0
        per_node = plan.drawers_per_node
        settings = DrawerSettings(
            base=self._prepared.base.name,
            revision=request.revision,
            device="cuda" if on_gpu else "cpu",
            gpu_fraction=plan.prior_fraction,
            memory_fraction=plan.drawer_memory_fraction,
            num_cpus=round(DRAWING_CPUS / per_node, 3),
            threads=plan.threads,
            max_actors=plan.num_nodes * per_node,
        )
        store = self._prepared.store
        self._priors = PriorWork(
            store,
            self._prepared.priors,
            lambda specs, attempt: draw_with_ray(settings, store, specs, attempt),
            ready=lambda key: ray.get(self._dispatcher.prior_is_ready.remote(key)),
            failed=lambda *why: ray.get(self._dispatcher.prior_failed.remote(*why)),
        )
        self._priors_thread = threading.Thread(target=self._draw_priors, name="priors", daemon=True)
        self._priors_thread.start()

    def _draw_priors(self) -> None:
        assert self._priors is not None
        # a driver that goes away takes Ray with it; then there is nobody to tell
        with suppress(ray.exceptions.RayError, FarmError):
            self._priors.run()

    def _end_priors(self) -> None:
        """Wait until the part that is being drawn is written; what uses Ray after its end would
        start it anew."""
        if self._priors is None or self._priors_thread is None:
            return
        self._priors.stopped.set()
        self._priors_thread.join(PRIORS_PATIENCE_S)
