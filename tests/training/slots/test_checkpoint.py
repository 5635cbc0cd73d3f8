"""Checkpoints: a resumed job yields the same adapter as an uninterrupted one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.assignments import assignment
from support.jobs import assert_close, assert_same_bits, open_trainer, train_alone

from farm.base.interface import Base
from farm.recipe import EarlyStop
from farm.training.lane.finalizer import Finalizer
from farm.training.lane.settings import SampleSettings
from farm.training.slots.checkpoint import SlotState
from farm.training.slots.job import TrainingJob
from farm.training.slots.trainer import SlotTrainer

MakeJob = Callable[..., TrainingJob]


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_job_resumed_from_its_checkpoint_ends_bit_equal_to_one_never_stopped(
    base: Base, make_job: MakeJob, tmp_path: Path, keep_best: bool
) -> None:
    options = {"keep_best": keep_best, "early_stop": EarlyStop(every_steps=3, patience=90)}
    job = make_job(base, 3, steps=12, alpha=2.0, learning_rate_schedule="cosine", **options)
    neighbours = [make_job(base, number, steps=40) for number in (5, 6)]

    def trainer_with(state: SlotState | None) -> SlotTrainer:
        trainer = open_trainer(base, num_slots=3, max_rank=4)
        trainer.admit(neighbours[0])
        assert trainer.admit(job, state) == 1
        trainer.admit(neighbours[1])
        return trainer

    whole = trainer_with(None)
    for step in range(12):
        if step == 5:
            whole.state(1).save(tmp_path)
        whole.step()
    expected, curve = whole.weights(1), whole.loss_curve(1)
    evaluations, trained = whole.evaluation_curve(1), whole.steps_trained(1)
    whole.close()

    resumed = trainer_with(SlotState.load(tmp_path))
    assert resumed.steps_done(1) == 5
    while 1 in resumed.active_slots:
        resumed.step()
    assert_same_bits(resumed.weights(1), expected)
    assert resumed.loss_curve(1) == curve
    assert resumed.evaluation_curve(1) == evaluations
    assert resumed.steps_trained(1) == trained
    resumed.close()


def test_a_state_restores_into_a_bank_of_another_rank_and_another_slot(
    base: Base, make_job: MakeJob
) -> None:
    job = make_job(base, 3, steps=10, rank=3)
    trainer = open_trainer(base, num_slots=2, max_rank=3)
    trainer.admit(job)
    for _ in range(4):
        trainer.step()
    state = SlotState.from_files(trainer.state(0).to_files())
    trainer.close()
    other = open_trainer(base, num_slots=4, max_rank=8, instance_rows=2)
    other.admit(job, state, slot=3)
    while other.active_slots:
        other.step()
    found = other.weights(3)
    other.close()
    assert_close(found, train_alone(base, job), 5e-3)


@pytest.mark.parametrize(
    ("keep_best", "patience", "why", "at"),
    [(False, 90, "steps", 6), (True, 90, "keep_best", 2), (True, 1, "early_stop", 2)],
)
def test_a_job_that_ended_without_its_images_is_finished_by_another_trainer(
    base: Base,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    keep_best: bool,
    patience: int,
    why: str,
    at: int,
) -> None:
    # the first evaluation is the best
    monkeypatch.setattr("farm.training.slots.trainer.is_best", lambda curve: len(curve) == 1)
    rule = EarlyStop(every_steps=2, patience=patience, min_steps=0, min_delta=0.9)
    job = make_job(base, 3, steps=6, keep_best=keep_best, early_stop=rule)
    given = assignment("cat")
    trainer = open_trainer(base, num_slots=1, max_rank=4)
    trainer.admit(job)
    while not trainer.step().finished:
        pass
    done = Finalizer(base, SampleSettings(), None).take(trainer, 0, 0, given, ())
    state = SlotState.from_files(replace(done.state, key=job.key).to_files())
    assert (state.ended, state.is_finite) == (why, True)
    trainer.close()
    other = open_trainer(base, num_slots=1, max_rank=4)
    other.admit(job, state)
    assert other.active_slots == ()
    assert other.has_news
    assert other.step().finished == ((0, job.key),)
    again = Finalizer(base, SampleSettings(), None).take(other, 0, 0, given, ())
    assert_same_bits(again.weights, done.weights)
    # they are of two moments
    assert again.record.model_copy(update={"created": done.record.created}) == done.record
    assert (again.record.steps_trained, again.steps) == (at, done.steps)
    other.close()


def test_a_finished_checkpoint_trains_no_further(base: Base, make_job: MakeJob) -> None:
    job = make_job(base, 3, steps=4)
    trainer = open_trainer(base, num_slots=1, max_rank=4)
    trainer.admit(job)
    for _ in range(4):
        trainer.step()
    state = trainer.state(0)
    trainer.release(0)
    trainer.admit(job, state)
    assert trainer.step().finished == ((0, job.key),)
    assert_same_bits(trainer.weights(0), state.weights)
