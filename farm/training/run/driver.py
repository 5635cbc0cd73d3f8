"""The driver of a run: its lock, its files in the store, and its output.

Owns the driver's identity. ``in_process`` and ``cluster.run`` drive lanes with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from farm.adapters.registry import Registry
from farm.errors import LaneLost, StoreError, StoreUnusable, UserError
from farm.locks import StoreLock, holder
from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.job_blocks import batches
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import Assignment, Notice, Snapshot
from farm.training.lane.settings import LaneSettings
from farm.training.pace import Pace, Work
from farm.training.run.earlier import driven_elsewhere
from farm.training.run.files import read_settings, write_assignments, write_settings
from farm.training.run.patience import StorePatience
from farm.training.run.request import PreparedRun, ProgressView

__all__ = [
    "Driver",
    "dispatcher_of",
    "lock_run",
    "point_names",
    "record_seconds",
    "write_run_files",
]

DRIVER_TTL_S = 60.0
"""A driver on another machine that has not renewed its lock for this long counts as dead. On this
machine, a dead driver is detected at once."""


PARALLEL_NAMES = 16
"""Names pointed concurrently: on an object store each takes tens of milliseconds."""


@dataclass
class Driver:
    """One start of a run."""

    prepared: PreparedRun
    lock: StoreLock
    view: ProgressView | None
    stop: threading.Event
    arm: Callable[[], None] | None = None
    """Installs the signal handlers that set ``stop``."""
    patience: StorePatience = field(default_factory=StorePatience)
    cluster: str = ""
    """Address of the Ray cluster that it joined, to be shown with the first news."""
    _renewed: float = 0.0
    _heard: int = 0
    _work: Work = field(init=False)
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        plan = self.prepared.plan
        self._work = Work(plan.estimate if plan is not None else None)
        self._pace = self._work.pace()

    def show(self, snapshot: Snapshot, news: Sequence[Notice]) -> None:
        """Show news, renew the lock, and stop the run if the store fails for too long.

        Raises:
            LaneLost: if another driver has taken the run over.
        """
        if news:
            self._heard = news[-1].number + 1
        if self.cluster:
            joined = f"joined the cluster at {self.cluster}"
            news = [Notice(self._heard, time.time(), joined, is_bad=False), *news]
            self.cluster = ""
        snapshot = self._timed(snapshot)
        if self.view is not None:
            self.view.show(snapshot, news)
        if line := self.patience.heed(snapshot.trouble):
            self.show_line(snapshot, line)
        if self.patience.error is not None:
            self.stop.set()
        if time.monotonic() - self._renewed > DRIVER_TTL_S / 6:
            self._renewed = time.monotonic()
            with suppress(StoreError, StoreUnusable):
                left_s = snapshot.left_s
                news_of_it = {} if left_s is None else {"left_s": left_s, "at": time.time()}
                if not self.lock.renew(news_of_it):
                    raise LaneLost(
                        "another driver took this run over", "let that one finish the run"
                    )

    def _timed(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot with the share of the work that is done, and the remaining time."""
        share, dropped = self._work.done(snapshot)
        left_s = self._pace.note(time.monotonic(), share, dropped)
        return replace(snapshot, work_share=share, left_s=left_s)

    def show_line(self, snapshot: Snapshot, text: str) -> None:
        """Show a line from the driver itself."""
        if self.view is not None:
            snapshot = self._timed(snapshot)
            self.view.show(snapshot, [Notice(self._heard, time.time(), text, is_bad=True)])

    @property
    def heard(self) -> int:
        """Number of the next line of news."""
        return self._heard

    def lane_settings(self) -> LaneSettings:
        """The lanes' settings, from the plan and the request."""
        plan, request = self.prepared.plan, self.prepared.request
        assert plan is not None
        return LaneSettings(
            slots=plan.slots,
            checkpointing=plan.checkpointing,
            compile=plan.estimate.compiles if request.compile is None else request.compile,
            samples=request.samples,
            forms=request.forms,
            beat_s=request.beat_s,
            prepare_threads=max(1, int(plan.cpus_per_lane)),
        )

    @property
    def ready_priors(self) -> set[str]:
        """Keys of the prior sets that were complete in the store before this start."""
        missing = {spec.key for spec in self.prepared.priors}
        return set(self.prepared.jobs.columns.priors) - missing


def dispatcher_of(driver: Driver) -> Dispatcher:
    """A dispatcher in this process; nothing is written before its first tick."""
    prepared = driver.prepared
    return Dispatcher(
        prepared.jobs,
        Ledger(prepared.store, prepared.run_id, epoch=driver.lock.number),
        resolution_px=prepared.base.resolution_px,
        ready_priors=driver.ready_priors,
        committed=prepared.committed,
        settings=prepared.request.dispatch,
    )


def lock_run(prepared: PreparedRun) -> StoreLock:
    """Become the one driver of the run.

    Raises:
        UserError: if another driver owns it.
    """
    folder = f"runs/{prepared.run_id}/drivers"
    take_over = prepared.request.take_over
    lock = StoreLock.take(prepared.store, folder, ttl_s=DRIVER_TTL_S, force=take_over)
    if lock is None:
        raise driven_elsewhere(prepared.run_id, holder(prepared.store, folder))
    return lock


def write_run_files(prepared: PreparedRun, lock: StoreLock) -> None:
    """Write the run's jobs, manifest and settings to the store."""
    store, run_id, request = prepared.store, prepared.run_id, prepared.request
    write_assignments(store, run_id, prepared.jobs)
    if prepared.manifest_parquet is not None:
        store.write(f"runs/{run_id}/manifest.parquet", prepared.manifest_parquet)
    plan = asdict(prepared.plan) if prepared.plan is not None else None
    asked = asdict(replace(request, make_judge=None))
    del asked["make_judge"]  # code, not a setting
    asked["cards"] = request.make_judge is not None
    before = _starts_before(store, run_id)
    if plan is not None:
        used = {name: plan[name] for name in ("gpu_fraction", "num_nodes")}
        before["starts"] = before["starts"] | {str(lock.number): used}
    write_settings(
        store,
        run_id,
        {"request": asked, "base": asdict(prepared.base), "plan": plan}
        | {"epoch": lock.number, "started": time.time()}
        | before,
    )
    fingerprint = prepared.base.fingerprint
    if not store.exists(f"bases/{fingerprint}.json"):
        store.write_json(f"bases/{fingerprint}.json", asdict(prepared.base))


def _starts_before(store: Store, run_id: str) -> dict[str, Any]:
    """What earlier starts of the run took and used. A damaged file is about to be replaced."""
    settings: dict[str, Any] = {}
    with suppress(UserError):
        settings = read_settings(store, run_id)
    return {
        "seconds": float(settings.get("seconds") or 0.0),
        "starts": settings.get("starts") or {},
    }


def record_seconds(prepared: PreparedRun, lock: StoreLock, seconds: float) -> None:
    """Add what a start took to the run's settings, from which the report takes its duration."""
    settings = read_settings(prepared.store, prepared.run_id)
    if settings.get("epoch") == lock.number:
        total = float(settings.get("seconds") or 0.0) + seconds
        starts = settings.get("starts") or {}
        own = (starts.get(str(lock.number)) or {}) | {"seconds": seconds}
        recorded = {"seconds": total, "starts": starts | {str(lock.number): own}}
        write_settings(prepared.store, prepared.run_id, settings | recorded)


def point_names(prepared: PreparedRun) -> None:
    """Point the names of committed jobs to their adapters, including those of other runs."""
    registry = Registry(prepared.store)

    def point(item: Assignment) -> None:
        record = registry.record(item.spec.key)
        for (namespace, name), prompts in item.views:
            registry.point(namespace, name, record, prompts=prompts)

    if not prepared.committed:
        return
    done = (item for item in prepared.jobs.assignments() if item.spec.key in prepared.committed)
    with ThreadPoolExecutor(PARALLEL_NAMES) as pool:
        for batch in batches(done):
            for _ in pool.map(point, batch):
                pass  # raises the first error
