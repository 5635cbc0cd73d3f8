"""The small form of ``benchmarks/cluster/scale.py``, and work that does not grow with the run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.assignments import assignment

from farm.storage import Store
from farm.training.dispatch.dispatcher import Dispatcher
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import LaneReport
from farm.training.run.job_files import write_assignments

BENCHMARKS = Path(__file__).parents[3] / "benchmarks/cluster"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("scale")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_under_spot_losses_every_job_is_committed_exactly_once_and_replays(
    tmp_path: Path, scale: ModuleType
) -> None:
    write_assignments(Store(tmp_path), scale.RUN, scale.make_jobs(400))
    facts, out = scale.run_scale(tmp_path, 400, 10, exchanges=None, losses_per_hour=6.0)
    assert out.is_done
    assert out.losses > 0
    assert out.commits == 400
    assert out.steps_trained >= 400 * scale.STEPS
    lost = out.steps_trained - 400 * scale.STEPS
    # a lane loses at most what its slots trained since their checkpoints and its last report
    since_report = 20.0 / scale.JOB_S * scale.STEPS
    most = out.losses * scale.SLOTS * 2 * (scale.CHECKPOINT_STEPS + 1.1 * since_report)
    assert lost <= most
    assert facts["replay_s"] > 0


def calls_during(work: Callable[[], Any]) -> int:
    """Function calls, including C functions: unlike time, independent of a busy machine."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def beat(tmp_path: Path, num_jobs: int, num_lanes: int) -> tuple[int, int]:
    """Calls of one exchange and of one tick with its snapshot, in a run of this size."""
    jobs = [assignment(f"s{number}") for number in range(num_jobs)]
    ledger = Ledger(Store(tmp_path / f"{num_jobs}-{num_lanes}"), "r", epoch=1)
    dispatcher = Dispatcher(jobs, ledger, resolution_px=64)
    for _ in range(2):
        for lane in range(num_lanes):
            orders = dispatcher.exchange(LaneReport(str(lane), "x", 4, want=4))
    shape = orders.shape
    held = {lease.assignment.spec.key: 0 for lease in orders.leases[:4]}
    last = str(num_lanes - 1)
    dispatcher.exchange(LaneReport(last, "x", 4, held=held, shape=shape))
    dispatcher.tick()
    report = LaneReport(last, "x", 4, held=dict.fromkeys(held, 1), want=2, shape=shape)
    exchange = calls_during(lambda: dispatcher.exchange(report))

    def look() -> None:
        dispatcher.tick()
        dispatcher.snapshot()
        dispatcher.news()

    look()
    return exchange, calls_during(look)


def test_exchange_and_tick_cost_the_same_with_more_jobs_and_more_lanes(tmp_path: Path) -> None:
    exchange, look = beat(tmp_path, 100, 5)
    more_jobs = beat(tmp_path, 1000, 5)
    more_lanes = beat(tmp_path, 1000, 50)
    assert more_jobs[0] <= exchange * 1.2
    assert more_jobs[1] <= look * 1.2
    assert more_lanes[0] <= exchange * 1.2
    assert more_lanes[1] <= look * 1.2
