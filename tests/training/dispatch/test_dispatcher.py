"""The dispatcher: every job ends, no job is leased twice, and a faulty job affects no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.assignments import assignment
from support.training.dispatch_world import World, keys, names

from farm.recipe import Recipe
from farm.training.dispatch.ledger import Status
from farm.training.dispatch.messages import (
    DispatchSettings,
    JobResult,
)


def test_jobs_are_leased_by_priority_then_in_the_manifests_order(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b"), assignment("c", priority=5)])
    assert names(world.say(want=3)) == ["c", "a", "b"]


def test_a_lane_gets_only_jobs_of_its_shape_and_changes_shape_when_it_is_empty(
    tmp_path: Path,
) -> None:
    wide = Recipe(steps=10, prior_rows=0, instance_rows=2)
    world = World(tmp_path, [assignment("a"), assignment("b"), assignment("wide", wide)])
    first = world.say(want=4)
    assert names(first) == ["a", "b"]
    assert first.shape is not None
    held = dict.fromkeys(keys(first), 0)
    assert world.say(want=2, held=held, shape=first.shape).leases == ()
    done = tuple(JobResult(key, "committed") for key in held)
    second = world.say(want=4, results=done, shape=first.shape)
    assert names(second) == ["wide"]
    assert second.shape != first.shape


def test_ranks_are_padded_only_to_the_largest_that_occurs(tmp_path: Path) -> None:
    world = World(
        tmp_path, [assignment("a"), assignment("b", Recipe(steps=10, prior_rows=0, rank=8))]
    )
    orders = world.say(want=4)
    assert len(orders.leases) == 2
    assert orders.shape is not None
    assert orders.shape.max_rank == 8


def test_no_lane_hoards_what_others_could_train(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment(f"s{n}") for n in range(8)])
    world.say("0")
    world.say("1")
    assert len(world.say("0", want=8).leases) == 4


def test_a_lane_that_asks_again_and_again_leaves_the_others_their_share(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment(f"s{n}") for n in range(8)])
    world.say("0")
    world.say("1")
    first = world.say("0", want=8)
    held = dict.fromkeys(keys(first), 1)
    assert world.say("0", want=8, held=held, shape=first.shape).leases == ()
    assert len(world.say("1", want=8).leases) == 4


def test_jobs_are_kept_for_planned_lanes_until_these_are_overdue(tmp_path: Path) -> None:
    settings = DispatchSettings(expected_lanes=2, expect_s=60)
    world = World(tmp_path, [assignment(f"s{n}") for n in range(8)], settings=settings)
    first = world.say("0", want=8)
    assert len(first.leases) == 4
    held = dict.fromkeys(keys(first), 1)
    assert world.say("0", want=8, held=held, shape=first.shape).leases == ()
    world.now += 61
    assert len(world.say("0", want=8, held=held, shape=first.shape).leases) == 4


def test_jobs_wait_for_their_prior_and_others_do_not(tmp_path: Path) -> None:
    with_prior = Recipe(steps=10)
    cat, dog = assignment("cat", with_prior), assignment("dog", with_prior, noun="dog")
    world = World(tmp_path, [cat, dog, assignment("plain")])
    first = world.say(want=4)
    assert names(first) == ["plain"]
    assert world.dispatcher.snapshot().waiting_for_priors == 2
    assert cat.spec.prior_key is not None
    world.dispatcher.prior_is_ready(cat.spec.prior_key)
    done = tuple(JobResult(key, "committed") for key in keys(first))
    assert names(world.say(want=4, results=done)) == ["cat"]
    assert dog.spec.prior_key is not None
    world.dispatcher.prior_failed(dog.spec.prior_key, "the disk is full")
    assert world.status("dog") is Status.QUARANTINED


def test_a_failing_job_is_tried_thrice_then_quarantined_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, [assignment("bad"), assignment("good")])
    orders = world.say(want=2)
    bad, good = keys(orders)
    for attempt in range(3):
        assert world.job("bad").failures == attempt
        failed = (JobResult(bad, "failed", "loss is not finite", remedy="train slower"),)
        orders = world.say(want=1, held={good: attempt}, results=failed, shape=orders.shape)
    assert world.status("bad") is Status.QUARANTINED
    assert world.job("bad").reason == "loss is not finite"
    assert world.job("bad").remedy == "train slower"
    world.say(results=(JobResult(good, "committed"),))
    assert world.dispatcher.is_done


def test_the_users_fault_is_never_retried(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a")])
    (key,) = keys(world.say(want=1))
    orders = world.say(want=1, results=(JobResult(key, "rejected", "photo is gone"),))
    assert orders.leases == ()
    assert orders.leave
    assert world.status("a") is Status.REJECTED


def test_a_replaced_lane_frees_the_jobs_of_its_forerunner_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b")])
    held = dict.fromkeys(keys(world.say(want=2)), 3)
    world.say(held=held)
    orders = world.say(incarnation="y", want=2)
    assert set(keys(orders)) == set(held)
    assert all(lease.may_resume for lease in orders.leases)
    assert world.job("a").losses == 1
    assert world.job("a").failures == 0


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_clock_that_jumps_takes_no_job_from_a_lane_that_reports(
    tmp_path: Path, jump: float
) -> None:
    world = World(tmp_path, [assignment("a")])
    (held,) = keys(world.say(want=1))
    world.jump, world.now = jump, world.now + 1
    world.dispatcher.tick()
    assert world.say(held={held: 3}).drop == ()
    world.now += 59
    world.dispatcher.tick()
    assert world.status("a") is Status.TRAINING
    world.now += 2
    world.dispatcher.tick()
    assert world.status("a") is Status.QUEUED


def test_a_silent_lane_loses_its_jobs_and_its_late_words_count_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a")])
    (key,) = keys(world.say(want=1))
    world.say(held={key: 5})
    world.now += 61
    world.dispatcher.tick()
    assert world.status("a") is Status.QUEUED
    assert keys(world.say("1", want=1)) == [key]
    late = world.say("0", held={key: 6})
    assert late.drop == (key,)
    assert world.job("a").lane.startswith("1#")


def test_a_late_commit_is_still_a_commit(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a")])
    (key,) = keys(world.say(want=1))
    world.now += 61
    world.dispatcher.tick()
    assert keys(world.say("1", want=1)) == [key]
    world.say("0", results=(JobResult(key, "committed", step=10),))
    assert world.status("a") is Status.COMMITTED
    assert world.say("1", held={key: 2}).drop == (key,)


def test_a_lost_answer_gives_its_leases_back(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b")])
    lost = world.say(want=1)
    again = world.say(want=1)  # the lane never received the response and holds no job
    assert keys(lost) == keys(again)
    assert world.job("a").losses == 0


def test_what_kills_lanes_ends_up_alone_and_then_in_quarantine(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("killer"), assignment("b"), assignment("c")])
    killer = world.assignments[0].spec.key
    committed: set[str] = set()
    for life in range(40):
        orders = world.say(incarnation=f"i{life}", want=4)
        if orders.leave:
            break
        held = dict.fromkeys(keys(orders), 0)
        world.say(incarnation=f"i{life}", held=held, shape=orders.shape, alone=orders.alone)
        if killer in held:
            continue  # the lane dies at the job's first step, with any other jobs
        done = tuple(JobResult(key, "committed") for key in held)
        world.say(incarnation=f"i{life}", results=done)
        committed.update(held)
    assert world.status("killer") is Status.QUARANTINED
    assert world.status("b") is world.status("c") is Status.COMMITTED


def test_fewer_slots_after_running_out_of_memory_outlive_the_lane(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a")])
    assert world.say(slots=8).slots is None
    assert world.say(slots=4).slots == 4
    assert world.say(incarnation="y", slots=0).slots == 4


def test_cancelled_jobs_are_dropped_by_the_lane_that_holds_them(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b")])
    (a, b) = keys(world.say(want=2))
    assert world.dispatcher.cancel([a]) == 1
    orders = world.say(held={a: 1, b: 1})
    assert orders.drop == (a,)
    assert world.status("a") is Status.CANCELLED
    assert world.dispatcher.retry([a]) == 1
    assert world.status("a") is Status.QUEUED


def test_stop_sends_every_lane_home_and_keeps_every_job(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b")])
    held = dict.fromkeys(keys(world.say(want=1)), 5)
    world.dispatcher.stop()
    assert world.say(held=held, want=1).stop
    released = tuple(JobResult(key, "released", step=5) for key in held)
    orders = world.say(results=released, leaving=True)
    assert orders.leave
    assert world.status("a") is world.status("b") is Status.QUEUED
    assert world.job("a").step == 5


def test_an_idle_lane_goes_home_and_a_busy_run_keeps_it(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a")], settings=DispatchSettings(idle_s=5))
    (key,) = keys(world.say("0", want=1))
    assert not world.say("1", want=1).leave
    world.now += 6
    assert world.say("1", want=1).leave
    assert not world.say("0", held={key: 1}).leave


def test_a_new_driver_voids_leases_and_believes_the_store(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment("a"), assignment("b"), assignment("c")])
    (a, b, c) = keys(world.say(want=3))
    world.say(held={a: 4, b: 4}, results=(JobResult(c, "committed", step=10),))
    world.dispatcher.tick()  # then the driver is killed
    # b was committed just before the kill; someone removed c's adapter
    world.restart(committed=[b])
    assert world.status("a") is Status.QUEUED
    assert world.status("b") is Status.COMMITTED
    assert world.status("c") is Status.QUEUED
    orders = world.say(want=3, incarnation="z")
    assert set(keys(orders)) == {a, c}
    assert world.job("a").losses == 0


def test_quarantine_outlives_the_driver_and_a_mended_photo_is_tried_again(tmp_path: Path) -> None:
    world = World(
        tmp_path,
        [assignment("a"), assignment("b")],
        settings=DispatchSettings(max_failures=1),
    )
    (a, b) = keys(world.say(want=2))
    world.say(results=(JobResult(a, "failed", "diverged"), JobResult(b, "rejected", "gone")))
    world.dispatcher.tick()
    world.restart()
    assert world.status("a") is Status.QUARANTINED
    assert world.status("b") is Status.QUEUED


def test_settings_are_plain_values() -> None:
    assert replace(DispatchSettings(), lease_s=5).lease_s == 5


def test_a_lane_without_work_gets_what_only_waits_in_a_full_one(tmp_path: Path) -> None:
    world = World(tmp_path, [assignment(f"s{n}") for n in range(4)])
    first = world.say("0", slots=2, want=4)
    trained, waiting = keys(first)[:2], keys(first)[2:]
    held = dict.fromkeys(trained, 7) | dict.fromkeys(waiting, -1)
    world.say("0", slots=2, held=held, shape=first.shape)
    second = world.say("1", slots=2, want=4)
    assert keys(second) == waiting
    # the first lane drops them without reporting, and gets no other jobs for them
    orders = world.say("0", slots=2, held=held, want=2, shape=first.shape)
    assert sorted(orders.drop) == sorted(waiting)
    assert orders.leases == ()
