"""`farm status` of a large run: from the driver's tally, and equal to what the ledger says."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.assignments import PLAIN, assignment

from farm.cli.views.status import status_view
from farm.locks import StoreLock
from farm.storage import Store
from farm.training.dispatch import run_state
from farm.training.dispatch.ledger import Job, Ledger
from farm.training.dispatch.messages import DispatchSettings, JobResult
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.dispatch.run_state import RunState
from farm.training.execute import _left
from farm.training.run.files import write_assignments, write_settings
from farm.training.run.status import run_status

ASSIGNMENTS = [assignment(name, PLAIN) for name in ("a", "b", "c", "d")]
KEYS = [item.spec.key for item in ASSIGNMENTS]
TALLY = "runs/r/ledger/tally.json"
NOW = 1e9

ends = st.sampled_from(["committed", "reused", "released", "failed", "rejected", "cancelled"])
moves = st.tuples(st.sampled_from(["leased", "flush"]) | ends, st.sampled_from(KEYS))


def begin(store: Store, clock: list[float], epoch: int = 1) -> RunState:
    write_assignments(store, "r", ASSIGNMENTS)
    write_settings(store, "r", {"started": clock[0]})
    state = RunState(
        RunJobs.of(ASSIGNMENTS),
        Ledger(store, "r", epoch=epoch, clock=lambda: clock[0]),
        resolution_px=64,
        ready_priors=(),
        settings=DispatchSettings(max_failures=1),
        clock=lambda: clock[0],
    )
    state.take_over({key for key in KEYS if state.job(key).status == "committed"})
    return state


def from_the_ledger(store: Store) -> dict[str, Any]:
    store.delete(TALLY)
    return run_status(store, "r")


def play(state: RunState, clock: list[float], history: list[tuple[str, str]]) -> None:
    for what, key in history:
        clock[0] += 70.0
        if what == "flush":
            state.flush()
        elif what == "leased":
            state.record("leased", key, lane="0#x", expires=NOW)
        elif what == "cancelled":
            state.cancel([key], "cancelled")
        else:
            state.settle(JobResult(key, what, reason=what), "0#x")  # type: ignore[arg-type]
    clock[0] += 70.0
    state.flush()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(before=st.lists(moves, max_size=12), after=st.lists(moves, max_size=12))
def test_the_tally_says_what_the_ledger_says_after_any_events_and_a_restart(
    before: list[tuple[str, str]],
    after: list[tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store, clock = Store(tmp_path_factory.mktemp("s")), [NOW]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state, "TALLY_JOBS", 0)
        for epoch, history in enumerate((before, after), start=1):
            play(begin(store, clock, epoch), clock, history)
            told = run_status(store, "r")
            assert store.exists(TALLY) or epoch == 2
            assert told == from_the_ledger(store)


def test_a_tally_that_a_killed_driver_left_behind_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = Store(tmp_path), [NOW]
    monkeypatch.setattr(run_state, "TALLY_JOBS", 0)
    state = begin(store, clock)
    state.flush()
    clock[0] += 1.0  # too early for the next tally
    state.record("leased", KEYS[0], lane="0#x", expires=NOW)
    state.flush()
    assert run_status(store, "r")["counts"]["leased"] == 1
    lock = StoreLock.take(store, "runs/r/drivers", ttl_s=60.0)
    assert lock is not None
    assert run_status(store, "r")["counts"]["leased"] == 0  # a live driver will write the next one


def test_a_tally_goes_when_there_are_too_many_failures_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = Store(tmp_path), [NOW]
    monkeypatch.setattr(run_state, "TALLY_JOBS", 0)
    monkeypatch.setattr(run_state, "TALLY_FAILURES", 1)
    state = begin(store, clock)
    lock = StoreLock.take(store, "runs/r/drivers", ttl_s=60.0)
    assert lock is not None
    for number, key in enumerate(KEYS[:2]):
        state.cancel([key], "cancelled")
        clock[0] += 10.0
        state.flush()
        assert store.exists(TALLY) == (number == 0)
        assert run_status(store, "r")["counts"]["cancelled"] == number + 1


def test_small_runs_have_no_tally(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begin(store, [NOW]).flush()
    assert not store.exists(TALLY)


def test_the_rate_counts_what_the_last_start_committed_since_it_began(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), [NOW]
    state = begin(store, clock)
    clock[0] += 60.0  # Ray starts, class images are generated
    for key in KEYS[:2]:
        state.record("leased", key, lane="0#x", expires=NOW)
        clock[0] += 15.0
        state.settle(JobResult(key, "committed"), "0#x")
    state.flush()
    assert run_status(store, "r")["jobs_per_hour"] == 0.0  # jobs are left, and no driver runs
    lock = StoreLock.take(store, "runs/r/drivers", ttl_s=60.0)
    assert lock is not None
    for now in (clock[0], clock[0] + 5.0):
        facts = run_status(store, "r", now=now)
        assert facts["jobs_per_hour"] == pytest.approx(2 / 90 * 3600)
    assert facts["steps"] is not None
    later = [NOW + 300.0]
    assert begin(store, later, epoch=2)
    assert run_status(store, "r")["jobs_per_hour"] == 0.0


def test_a_stopped_run_shows_the_steps_that_its_checkpoints_keep(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = begin(store, [NOW])
    state.record("leased", KEYS[0], lane="0#x", expires=NOW)
    state.record("released", KEYS[0], lane="0#x", step=2)
    state.flush()
    facts = run_status(store, "r")
    total = ASSIGNMENTS[0].spec.subject.recipe.steps
    assert facts["driver"] is None
    assert facts["steps"] == {"done": 2, "total": 4 * total, "per_s": 0.0}
    assert _left([Job("a"), Job("b")]) == "2 jobs are left"
    assert _left([Job("a", step=2)]) == "1 job is left and keeps its last checkpoint"
    assert "1 of them keeps its last checkpoint" in _left([Job("a", step=2), Job("b")])


def test_steps_and_rate_are_known_before_the_first_adapter(tmp_path: Path) -> None:
    store, clock = Store(tmp_path), [NOW]
    state = begin(store, clock)
    lock = StoreLock.take(store, "runs/r/drivers", ttl_s=60.0)
    assert lock is not None
    total = ASSIGNMENTS[0].spec.subject.recipe.steps
    facts = run_status(store, "r")
    assert facts["steps"] == {"done": 0, "total": 4 * total, "per_s": 0.0}
    assert facts["eta_s"] is None
    for key in KEYS[:2]:
        state.record("leased", key, lane="0#x", expires=NOW)
    clock[0] += 10.0
    for key in KEYS[:2]:
        state.record("progress", key, lane="0#x", step=2, expires=NOW)
    state.flush()
    facts = run_status(store, "r")
    assert facts["steps"] == {"done": 4, "total": 4 * total, "per_s": pytest.approx(0.4)}
    state.cancel(KEYS[1:2], "cancelled")
    state.flush()
    facts = run_status(store, "r")
    assert facts["steps"] == {"done": 2, "total": 3 * total, "per_s": pytest.approx(0.4)}
    for key in KEYS[:1], KEYS[2:3], KEYS[3:]:
        state.record("leased", *key, lane="0#x", expires=NOW + 1e6)
        state.record("progress", *key, lane="0#x", step=total, expires=NOW + 1e6)
    for key in (KEYS[0], KEYS[2]):
        clock[0] += 20.0
        state.settle(JobResult(key, "committed"), "0#x")
    state.flush()
    facts = run_status(store, "r")
    assert facts["steps"]["done"] == facts["steps"]["total"]
    assert facts["left"] == 1
    # the time left is what the driver last said, less the time since then, but at least half
    assert lock.renew({"left_s": 20.0, "at": clock[0]})
    for age_s, left_s in ((0.0, 20.0), (5.0, 15.0), (30.0, 10.0)):
        facts = run_status(store, "r", now=clock[0] + age_s)
        assert facts["eta_s"] == pytest.approx(left_s)
    facts |= {"steps": {"done": 2, "total": 3 * total, "per_s": 0.4}}
    table = StringIO()
    console = Console(width=80, force_terminal=True, file=table)
    with status_view(json=False, refresh=True, console=console) as show:
        show(facts)
        show(facts)
    shown = table.getvalue()
    assert f"2 of {3 * total:,}" in shown
    assert "\x1b[1A" in shown  # the second is written over the first
