"""The ledger: the state machine's guarantees, and replay from the store."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import StoreError
from farm.storage import Store
from farm.training.dispatch.ledger import (
    FINAL,
    Event,
    EventKind,
    Job,
    Ledger,
    Status,
    advance,
    counts,
    read_events,
    replay,
)

events = st.builds(
    Event,
    kind=st.sampled_from(get_args(EventKind)),
    job=st.sampled_from(["a", "b"]),
    at=st.floats(1, 1e6),
    lane=st.sampled_from(["0#x", "1#y", ""]),
    step=st.integers(0, 9),
    reason=st.sampled_from(["", "because", "zwölf\u2028"]),
    expires=st.floats(0, 10),
    seconds=st.floats(0, 10),
    remedy=st.sampled_from(["", "restart it"]),
)


@given(st.lists(events, max_size=40))
def test_any_history_can_be_replayed_and_a_commit_is_never_forgotten(history: list[Event]) -> None:
    committed: set[str] = set()
    jobs: dict[str, Job] = {}
    for event in history:
        jobs[event.job] = advance(jobs.get(event.job), event)
        if event.kind in ("committed", "reused"):
            committed.add(event.job)
        if event.kind == "vanished":
            committed.discard(event.job)
        for key in committed:
            assert jobs[key].status is Status.COMMITTED
    assert replay(history) == jobs
    assert sum(counts(jobs.values()).values()) == len(jobs)


@given(st.lists(events, max_size=40))
def test_a_job_is_held_by_the_lane_that_was_given_it_and_by_no_other(history: list[Event]) -> None:
    job = Job("a")
    for event in history:
        before, job = job, advance(job, event)
        if before.is_held and job.is_held:
            assert job.lane == before.lane  # no other lane takes it from a live holder
        if event.kind in ("progress", "released", "lost", "failed") and event.lane != before.lane:
            assert job is before  # reports of an earlier lane are ignored


@given(st.lists(events, max_size=40), events)
def test_final_states_change_only_by_retry_commit_or_loss_in_the_store(
    history: list[Event], event: Event
) -> None:
    job = replay([*history, Event("queued", "a", 1.0)])["a"]
    after = advance(job, event)
    if job.status in FINAL and after.status is not job.status:
        assert event.kind in ("retry", "committed", "reused", "vanished")


@given(events)
def test_events_survive_the_trip_through_json(event: Event) -> None:
    assert Event.decode(event.encode()) == event


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert Event.decode('{"kind":"queued","job":"a","at":1.5,"colour":"red"}') == Event(
        "queued", "a", 1.5
    )


def test_losses_count_only_while_the_job_gets_no_further() -> None:
    job = Job("a")

    def lose(job: Job, step: int) -> Job:
        job = advance(job, Event("leased", "a", 1, lane="0#x"))
        job = advance(job, Event("progress", "a", 1, lane="0#x", step=step))
        return advance(job, Event("lost", "a", 1, lane="0#x", reason="died"))

    job = lose(job, 10)
    job = lose(job, 10)
    assert job.losses == 2
    job = lose(job, 25)  # a node was preempted again, but the job made progress in between
    assert job.losses == 1
    assert job.failures == 0


def test_a_new_writer_finds_what_the_old_one_flushed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = Ledger(store, "r", epoch=1)
    first.append("queued", "a")
    first.append("queued", "b")
    first.flush()
    # killed before the flush: committed in the store, not in the ledger
    first.append("committed", "a")
    second = Ledger(store, "r", epoch=2)
    assert {key: job.status for key, job in second.jobs.items()} == {
        "a": Status.QUEUED,
        "b": Status.QUEUED,
    }
    second.append("leased", "b", lane="0#x", expires=5.0)
    second.flush()
    assert replay(read_events(store, "r"))["b"].lane == "0#x"


def test_a_writer_restarted_in_the_same_epoch_overwrites_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in "ab":
        ledger = Ledger(store, "r", epoch=3)
        ledger.append("queued", key)
        ledger.flush()
    assert set(Ledger(store, "r", epoch=3).jobs) == {"a", "b"}


def test_flushing_often_makes_few_objects(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ledger = Ledger(store, "r", epoch=1)
    for number in range(200):
        ledger.append("queued", f"job-{number:04d}")
        ledger.flush()
    ledger.flush()
    assert len(store.list("runs/r/ledger")) == 1
    assert len(replay(read_events(store, "r"))) == 200


def test_a_long_ledger_goes_on_in_further_segments(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ledger = Ledger(store, "r", epoch=1)
    for number in range(3000):
        ledger.append("queued", f"job-{number:04d}", reason="x" * 40)
        if number % 100 == 99:
            ledger.flush()
    assert len(store.list("runs/r/ledger")) > 2
    assert list(replay(read_events(store, "r"))) == [f"job-{n:04d}" for n in range(3000)]


def test_a_damaged_segment_is_named_with_its_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(
        "runs/r/ledger/000001-000000.jsonl", b'{"kind":"queued","job":"a","at":1}\nrubbish\n'
    )
    with pytest.raises(StoreError, match=r"000001-000000\.jsonl:2 is not a ledger line"):
        list(read_events(store, "r"))


def test_reason_and_remedy_are_replayed_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ledger = Ledger(store, "r", epoch=1)
    ledger.append("queued", "j")
    ledger.append("leased", "j", lane="l")
    ledger.append("rejected", "j", lane="l", reason="no photo", remedy="add one")
    ledger.flush()
    job = Ledger(store, "r", epoch=2).jobs["j"]
    assert (job.reason, job.remedy) == ("no photo", "add one")
    retried = ledger.append("retry", "j")
    assert (retried.reason, retried.remedy) == ("", "")


def test_an_old_ledgers_remedy_inside_the_reason_is_found_again() -> None:
    line = '{"kind":"failed","job":"j","at":1.0,"reason":"it broke\\n  remedy: fix it"}'
    event = Event.decode(line)
    assert (event.reason, event.remedy) == ("it broke", "fix it")
    plain = Event.decode('{"kind":"failed","job":"j","at":1.0,"reason":"it broke"}')
    assert (plain.reason, plain.remedy) == ("it broke", "")
