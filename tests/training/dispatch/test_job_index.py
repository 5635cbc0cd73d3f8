"""The indexes always equal a count over all jobs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.assignments import PLAIN, assignment

from farm.recipe import Recipe
from farm.storage import Store
from farm.training.dispatch.job_index import JobIndex
from farm.training.dispatch.job_state import FINAL, HELD, Event, Job, advance, counts
from farm.training.dispatch.ledger import Ledger
from farm.training.dispatch.messages import DispatchSettings, JobResult
from farm.training.dispatch.run_jobs import RunJobs
from farm.training.dispatch.run_state import RunState

WITH_PRIOR = Recipe(steps=20)
ASSIGNMENTS = [
    assignment("a"),
    assignment("b", PLAIN.model_copy(update={"steps": 5, "instance_rows": 2}), priority=3),
    assignment("cat", WITH_PRIOR),
    assignment("dog", WITH_PRIOR, noun="dog"),
    assignment("dog2", WITH_PRIOR.model_copy(update={"seed": 1}), noun="dog"),
]
KEYS = [item.spec.key for item in ASSIGNMENTS]
PRIORS = [item.spec.prior_key for item in ASSIGNMENTS if item.spec.prior_key is not None]
LANES = ["0#x", "1#y"]

events = st.builds(
    Event,
    kind=st.sampled_from(
        ["queued", "reused", "vanished", "leased", "leased", "progress", "released", "lost"]
        + ["committed", "failed", "retry", "quarantined", "rejected", "cancelled"]
    ),
    job=st.sampled_from(KEYS),
    at=st.floats(1, 1e6),
    lane=st.sampled_from(LANES),
    step=st.integers(0, 30),
    reason=st.sampled_from(["", "because"]),
    expires=st.floats(0, 10),
    seconds=st.floats(0, 10),
    remedy=st.just(""),
)


def assert_equals_a_count(index: JobIndex, jobs: dict[str, Job], live: dict[str, int]) -> None:
    """``live``: steps that lanes have reported of jobs unchanged since."""
    everything = list(jobs.values())
    steps_of = {a.spec.key: a.spec.subject.recipe.steps for a in ASSIGNMENTS}
    assert index.counts == counts(everything)
    assert index.num_open == sum(job.status not in FINAL for job in everything)
    for lane in LANES:
        held = {job.key for job in everything if job.status in HELD and job.lane == lane}
        assert set(index.held_by(lane)) == held
    for prior_key in PRIORS:
        needed = any(
            item.spec.prior_key == prior_key and jobs[item.spec.key].status not in FINAL
            for item in ASSIGNMENTS
        )
        assert index.is_prior_needed(prior_key) == needed
    done = sum(
        steps_of[job.key]
        if job.is_final
        else min(steps_of[job.key], max(job.step, live.get(job.key, 0)))
        for job in everything
    )
    assert index.done_share == pytest.approx(done / sum(steps_of.values()))
    dropped = sum(
        max(0, steps_of[job.key] - job.step)
        for job in everything
        if job.is_final and (job.status != "committed" or job.reused)
    )
    assert index.dropped_share == pytest.approx(dropped / sum(steps_of.values()))


@given(st.lists(st.tuples(events, st.integers(-1, 30)), max_size=60))
def test_the_indexes_equal_a_count_over_all_jobs_after_any_events(
    history: list[tuple[Event, int]],
) -> None:
    jobs = {key: Job(key, changed=1.0) for key in KEYS}
    run, live = RunJobs.of(ASSIGNMENTS), dict[str, int]()
    index = JobIndex(run, jobs)
    for event, step in history:
        before = jobs[event.job]
        after = jobs[event.job] = advance(before, event)
        if after is not before:
            index.move(before, after)
            live.pop(event.job, None)
        if step >= 0 and after.is_held:
            index.note_live(after, step)
            live[event.job] = step
        assert_equals_a_count(index, jobs, live)
    assert_equals_a_count(JobIndex(run, jobs), jobs, {})


moves = st.one_of(
    st.tuples(st.just("take"), st.sampled_from(LANES), st.just("")),
    st.tuples(
        st.sampled_from(["committed", "reused", "released", "failed", "rejected"]),
        st.sampled_from(LANES),
        st.sampled_from(KEYS),
    ),
    st.tuples(st.sampled_from(["lost", "cancel", "retry"]), st.sampled_from(LANES), st.just("")),
    st.tuples(st.just("prior"), st.just(""), st.sampled_from(PRIORS)),
    st.tuples(st.just("no prior"), st.just(""), st.sampled_from(PRIORS)),
    st.tuples(st.just("restart"), st.just(""), st.just("")),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(moves, max_size=40))
def test_the_queues_hold_exactly_the_queued_jobs_whatever_happens(
    history: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(tmp_path_factory.mktemp("s"))
    epoch, ready = 1, set[str]()

    def start() -> RunState:
        ledger = Ledger(store, "r", epoch=epoch, compact_events=5)
        state = RunState(
            RunJobs.of(ASSIGNMENTS),
            ledger,
            resolution_px=64,
            ready_priors=ready,
            settings=DispatchSettings(max_failures=2, lone_after_losses=1, max_losses=3),
            clock=lambda: 1.0,
        )
        committed = {key for key, job in ledger.jobs.items() if job.status == "committed"}
        state.take_over(committed)
        return state

    state = start()
    for what, lane, key in history:
        if what == "restart":
            state.flush()
            epoch += 1
            state = start()
        else:
            act(state, ready, what, lane, key)
        assert_queues_are_whole(state, ready)


def act(state: RunState, ready: set[str], what: str, lane: str, key: str) -> None:
    if what == "take":
        group = state.queues.best({})
        taken = None if group is None else state.queues.pop(group)
        if taken is not None:
            assert state.job(taken).status == "queued"
            state.record("leased", taken, lane=lane, expires=9.0)
    elif what == "lost":
        state.lane_lost(lane, "died")
    elif what == "cancel":
        state.cancel(KEYS[::2], "cancelled")
    elif what == "retry":
        state.retry(None)
    elif what == "prior":
        ready.add(key)
        state.prior_is_ready(key)
    elif what == "no prior":
        state.prior_failed(key, "no space", "")
    else:
        state.settle(JobResult(key, what), lane)  # type: ignore[arg-type]


def assert_queues_are_whole(state: RunState, ready: set[str]) -> None:
    queued = {key for key in KEYS if state.job(key).status == "queued"}
    priors = {item.spec.key: item.spec.prior_key for item in ASSIGNMENTS}
    waiting = {key for key in queued if priors[key] is not None and priors[key] not in ready}
    assert state.queues.num_waiting() == len(waiting)
    assert {key for prior in PRIORS for key in state.queues.waiting_for(prior)} == waiting
    assert state.queues.num_ready() == len(queued - waiting)
    jobs = {key: state.job(key) for key in KEYS}
    assert state.index.counts == counts(jobs.values())
