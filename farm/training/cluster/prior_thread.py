"""The driver's thread that generates missing prior sets through Ray Data.

Owns its start, its end, and what it reports to the dispatcher.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import ray.exceptions

from farm.errors import FarmError
from farm.store_trouble import StoreTrouble
from farm.training.cluster.start import keep_ray_stopped
from farm.training.cluster.watch import end_actors, has_started
from farm.training.plan.plan import Plan
from farm.training.priors.builder import PriorBuilder
from farm.training.priors.ray_data import (
    PRIOR_WORKER_CPUS,
    PriorWorker,
    PriorWorkerSettings,
    generate_with_ray,
)
from farm.training.run.request import PreparedRun

__all__ = ["PriorThread"]

END_S = 60.0
"""How long the part of a prior set in progress may take to finish."""
STOP_S = 6.0
"""The same after the user has stopped the run."""
KILL_S = 20.0
"""How long the thread may take to end while its actors are killed."""
LOOK_S = 0.5


class PriorThread:
    """Generates the missing sets; nothing starts before ``start``."""

    def __init__(
        self,
        prepared: PreparedRun,
        *,
        ready: Callable[[str], Any],
        failed: Callable[[str, str, str], Any],
    ) -> None:
        """``ready`` and ``failed`` are called from the thread, as ``PriorBuilder`` calls them."""
        assert prepared.plan is not None
        settings, store = _settings(prepared, prepared.plan), prepared.store
        self._builder = PriorBuilder(
            store,
            prepared.priors,
            lambda specs, attempt: generate_with_ray(settings, store, specs, attempt),
            ready=ready,
            failed=failed,
        )
        self._thread = threading.Thread(target=self._run, name="priors", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    @property
    def trouble(self) -> StoreTrouble | None:
        """Its trouble with the store."""
        return self._builder.trouble.current()

    def stop(self) -> None:
        """End it after the part that is being generated; does not wait."""
        self._builder.stopped.set()

    def end(self, stopped_at: float | None) -> None:
        """Stop, and wait until the current part is written. If that takes too long, kill the actors
        that generate it: the pipeline fails, and the thread ends before Ray does.

        Args:
            stopped_at: monotonic time at which the user stopped the run.
        """
        self.stop()
        patience_s = END_S
        if stopped_at is not None:
            patience_s = max(0.0, STOP_S - (time.monotonic() - stopped_at))
            if patience_s and not has_started(PriorWorker.__name__):
                patience_s = 0.0  # no part has begun
        self._thread.join(patience_s)
        deadline = time.monotonic() + KILL_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self.abandon()  # repeated, as is the kill: Ray Data may be about to start
            end_actors(PriorWorker.__name__)
            self._thread.join(LOOK_S)

    def abandon(self) -> None:
        """Stop without waiting. A call of Ray that fails from now on is not logged, and after
        Ray's end does not start Ray again."""
        self.stop()
        keep_ray_stopped()

    def _run(self) -> None:
        try:
            self._builder.run()
        except (ray.exceptions.RayError, FarmError):
            pass  # Ray ends with the driver; then there is no dispatcher left to report to
        except Exception:
            if not self._builder.stopped.is_set():
                raise  # otherwise a call of Ray that its end has interrupted


def _settings(prepared: PreparedRun, plan: Plan) -> PriorWorkerSettings:
    # class images that the user supplied are only encoded, on the cores that lanes leave
    on_gpu = plan.prior_fraction > 0
    per_node = plan.prior_workers_per_node
    return PriorWorkerSettings(
        base=prepared.base.name,
        revision=prepared.request.revision,
        quantization=prepared.request.quantization,
        device="cuda" if on_gpu else "cpu",
        gpu_fraction=plan.prior_fraction,
        memory_fraction=plan.prior_worker_memory_fraction,
        num_cpus=round(PRIOR_WORKER_CPUS / per_node, 3),
        threads=plan.threads,
        max_actors=plan.num_nodes * per_node,
    )
