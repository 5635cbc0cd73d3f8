"""Lane runs: each is restarted independently, with backoff, while there is work for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from farm.errors import LaneLost
from farm.training.cluster.lane_runs import MAX_BARREN_STARTS, LaneRuns
from farm.training.dispatch.messages import LaneView, Snapshot


class StartedRun:
    """A run that the test ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.is_alive = True

    def join(self, timeout_s: float) -> None:
        raise AssertionError("no test waits for a run")

    def end(self, error: BaseException | None = None) -> None:
        self.error, self.is_alive = error, False


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def snapshot(*, lanes: tuple[str, ...] = (), waiting: int = 0, **counts: int) -> Snapshot:
    tally = defaultdict(int, counts)
    return Snapshot(
        counts=tally,
        num_jobs=sum(counts.values()),
        done_share=0.0,
        lanes=tuple(LaneView(lane, 1, 2, 0.0, 0, 0.0) for lane in lanes),
        waiting_for_priors=waiting,
        is_done=False,
    )


class Watched:
    """Lane runs of two places, and their history."""

    def __init__(self, places: int = 2) -> None:
        self.clock, self.started, self.ended = Clock(), [], []
        self.runs = LaneRuns(
            self.make, prefix="r", num_places=places, ended=self.ended.append, clock=self.clock
        )

    started: list[StartedRun]
    ended: list[str]

    def make(self, name: str) -> Any:
        self.started.append(StartedRun(name))
        return self.started[-1]

    def keep(self, seconds: float = 0.0, **facts: Any) -> None:
        self.clock.now += seconds
        self.runs.keep(snapshot(**facts))


def test_a_run_that_fails_is_started_again_while_others_live() -> None:
    watched = Watched()
    first, second = watched.started
    first.end(RuntimeError("its controller was killed"))
    watched.keep(training=4)
    assert watched.ended == [first.name]
    assert len(watched.started) == 2  # after a pause
    watched.keep(1.5, training=4)
    assert len(watched.started) == 3
    assert second.is_alive
    assert watched.started[2].name not in (first.name, second.name)
    assert watched.ended == [first.name]


def test_pauses_grow_while_nothing_is_finished_and_shrink_when_something_is() -> None:
    watched = Watched()
    for pause_s in (1.0, 2.0):
        watched.started[-1].end(RuntimeError("again"))
        watched.keep(training=4)
        num = len(watched.started)
        watched.keep(pause_s - 0.1, training=4)
        assert len(watched.started) == num
        watched.keep(0.2, training=4)
        assert len(watched.started) == num + 1
    watched.started[-1].end(RuntimeError("again"))
    watched.keep(training=3, committed=1)
    watched.keep(1.1, training=3, committed=1)
    assert watched.started[-1].is_alive


def test_lanes_that_returned_are_called_back_only_for_jobs_that_are_ready() -> None:
    watched = Watched()
    watched.started[0].end()
    watched.keep(5, training=4)
    watched.keep(5, training=2, queued=2, waiting=2)
    assert len(watched.started) == 2
    watched.keep(5, training=2, queued=2)
    watched.keep(1.1, training=2, queued=2)
    assert len(watched.started) == 3


def test_runs_that_all_fail_without_finishing_a_job_end_it_with_their_reason() -> None:
    watched = Watched()

    def fail() -> None:
        for run in watched.started:
            run.end(RuntimeError("no CUDA"))
        watched.keep(0, queued=4)

    for _ in range(MAX_BARREN_STARTS - 1):
        fail()
        watched.keep(61, queued=4)
    assert len(watched.started) == 2 * MAX_BARREN_STARTS
    with pytest.raises(LaneLost, match="no CUDA"):
        fail()


def test_one_failing_run_does_not_end_those_that_work() -> None:
    watched = Watched()
    healthy = watched.started[1]
    for _ in range(MAX_BARREN_STARTS + 2):
        for run in watched.started:
            if run is not healthy and run.is_alive:
                run.end(RuntimeError("a bad node"))
        watched.keep(0, training=4)
        watched.keep(61, training=4)
    assert len(watched.started) == 1 + MAX_BARREN_STARTS


def test_a_run_whose_lanes_have_not_reported_is_missing() -> None:
    watched = Watched()
    first, second = watched.started
    assert watched.runs.names_without_lanes(snapshot(lanes=(f"{first.name}.0",))) == [second.name]
