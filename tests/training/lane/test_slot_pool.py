"""The slots of a lane: trainers of the right shape and width; changing them loses no job."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.assignments import assignment

from farm.base.interface import Base
from farm.recipe import Recipe
from farm.training.lane.encode import PreparedPhotos
from farm.training.lane.job_table import LaneJob
from farm.training.lane.slot_pool import SlotPool
from farm.training.plan.shape import lane_shape
from farm.training.slots.trainer import SlotTrainer

RECIPE = Recipe(steps=20, prior_rows=0)
SHAPE = lane_shape(RECIPE, 64)


def ready_job(base: Base, name: str, recipe: Recipe = RECIPE) -> LaneJob:
    side = base.latent_shape(64, 64)
    moments = torch.rand(2, 2, *side, generator=torch.Generator().manual_seed(len(name)))
    job = LaneJob(assignment(name, recipe))
    job.photos = PreparedPhotos(moments, (f"a photo of sks {name}",))
    return job


@pytest.fixture
def pool(base: Base) -> SlotPool:
    return SlotPool(base, checkpointing=False, compile=False)


def test_a_full_trainer_grows_for_ready_jobs_and_shrinks_when_half_empty(
    base: Base, pool: SlotPool
) -> None:
    assert pool.has_room(num_slots=4, num_ready=1)
    for name in ("a", "b"):
        assert pool.admit(ready_job(base, name), SHAPE, 2) == 0
    trainer = pool.trainer
    assert trainer is not None
    for _ in range(3):
        trainer.step()
    curves = {job.key: trainer.loss_curve(slot) for slot, job in pool.jobs.items()}
    assert not pool.has_room(num_slots=2, num_ready=5)
    assert pool.has_room(num_slots=4, num_ready=1)
    assert pool.trainer is not None
    assert pool.trainer.num_slots == 3
    assert {job.key: pool.trainer.loss_curve(slot) for slot, job in pool.jobs.items()} == curves
    released = pool.release(next(iter(pool.jobs)))
    assert released.key not in {job.key for job in pool.jobs.values()}
    pool.drop_empty_slots()
    assert pool.trainer.num_slots == 1
    ((slot, left),) = pool.jobs.items()
    assert pool.trainer.steps_done(slot) == 3
    assert pool.trainer.loss_curve(slot) == curves[left.key]
    pool.close()


def test_a_compiled_trainer_changes_only_among_the_widths_that_are_compiled(base: Base) -> None:
    pool = SlotPool(base, checkpointing=False, compile=True)
    pool.admit(ready_job(base, "a"), SHAPE, 1)
    assert not pool.has_room(num_slots=1, num_ready=3)
    assert pool.has_room(num_slots=16, num_ready=1)
    assert pool.trainer is not None
    assert pool.trainer.num_slots == 4
    pool.drop_empty_slots()
    assert pool.trainer.num_slots == 1
    assert pool.has_room(num_slots=3, num_ready=1)
    assert pool.trainer.num_slots == 3  # the lane's own width is compiled too
    pool.close()


def test_an_empty_trainer_is_replaced_for_jobs_of_another_shape(base: Base, pool: SlotPool) -> None:
    pool.admit(ready_job(base, "a"), SHAPE, 2)
    pool.release(0)
    wide = Recipe(steps=20, prior_rows=0, instance_rows=2)
    pool.admit(ready_job(base, "b", wide), lane_shape(wide, 64), 2)
    assert pool.trainer is not None
    assert pool.trainer.shape.instance_rows == 2
    pool.close()


def test_jobs_are_still_listed_after_memory_ran_out_while_the_trainer_grew(
    base: Base, pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ready_job(base, "a")
    pool.admit(job, SHAPE, 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("pretend")

    monkeypatch.setattr("farm.training.slots.trainer.TrainingPass._allocate", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        pool.has_room(num_slots=2, num_ready=1)
    monkeypatch.undo()
    assert list(pool.jobs.values()) == [job]
    pool.close()
    assert not pool.jobs
    trainer = SlotTrainer(base, SHAPE, num_slots=1)  # the base was restored
    trainer.close()


def test_the_inputs_of_a_job_are_freed_once_it_is_in_a_slot(base: Base, pool: SlotPool) -> None:
    job = ready_job(base, "a")
    pool.admit(job, SHAPE, 1)
    job.release_inputs(keep_photos=True)
    assert (job.photos, job.prior, job.state) == (None, None, None)
    pool.close()


def test_a_failure_that_was_not_read_yet_survives_a_wider_trainer_and_a_released_slot(
    base: Base, pool: SlotPool
) -> None:
    for name in ("a", "b", "c"):
        pool.admit(ready_job(base, name), SHAPE, 3)
    trainer = pool.trainer
    assert trainer is not None
    trainer._sync_every = 8  # as on a GPU
    slots = {job.spec.subject.id: slot for slot, job in pool.jobs.items()}
    trainer.bank.flat_ZP.data[slots["a"], 0] = float("nan")
    assert trainer.step().failed == ()
    assert not pool.has_room(num_slots=4, num_ready=1)  # it grows once the failure is reported
    pool.release(slots["c"])
    ((failed, key, reason),) = trainer.step().failed
    assert (failed, key) == (slots["a"], pool.jobs[slots["a"]].key)
    assert "not finite" in reason
    assert trainer.take_failures() == ()
    pool.close()
