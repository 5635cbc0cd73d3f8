"""Evaluations while slots train: fixed noise, stopping early, keeping the best weights."""

from collections.abc import Callable
from typing import Any

import pytest
from support.jobs import assert_close, assert_same_bits, open_trainer

from farm.adapters.weights import AdapterWeights
from farm.base.interface import Base
from farm.recipe import EarlyStop
from farm.training.slots.evaluation import KEEP_TOLERANCE
from farm.training.slots.job import TrainingJob
from farm.training.slots.speed import Speed

MakeJob = Callable[..., TrainingJob]


def test_the_evaluation_loss_is_fixed_and_no_neighbour_moves_it(
    base: Base, make_job: MakeJob
) -> None:
    trainer = open_trainer(base, num_slots=6, max_rank=4)
    for number in range(5):
        trainer.admit(make_job(base, number, steps=50))
    for _ in range(3):
        trainer.step()
    together = trainer.evaluation_loss()
    assert trainer.evaluation_loss() == together
    for slot in range(5):
        alone = trainer.evaluation_loss([slot])
        assert alone[slot] == pytest.approx(together[slot], rel=1e-5)
    assert len(set(together.values())) == 5


def test_a_subject_that_no_longer_improves_stops_early_and_keeps_its_best_weights(
    base: Base, make_job: MakeJob
) -> None:
    rule = EarlyStop(every_steps=1, patience=8, min_steps=4, min_delta=0.3)
    job = make_job(base, 0, steps=100, early_stop=rule, keep_best=True, learning_rate=0.3)
    trainer = open_trainer(base, num_slots=2, max_rank=4)
    trainer.admit(job)
    best: dict[int, AdapterWeights] = {}
    finished = False
    while not finished:
        finished = bool(trainer.step().finished)
        if not finished:
            best[trainer.steps_done(0)] = trainer.weights(0)
    curve = trainer.evaluation_curve(0)
    assert trainer.stopped_because(0) == "early_stop"
    assert trainer.steps_done(0) < 100
    bound = min(loss for _, loss in curve) * (1 + KEEP_TOLERANCE)
    kept = max(step for step, loss in curve if loss <= bound)
    assert trainer.steps_trained(0) == kept
    assert kept < trainer.steps_done(0)
    assert_same_bits(trainer.weights(0), best[kept])


@pytest.mark.parametrize("sync_every", [1, 4])
def test_evaluations_beside_the_next_steps_end_every_job_as_those_that_are_waited_for(
    base: Base, make_job: MakeJob, sync_every: int
) -> None:
    """A job that stopped early has no trace of the steps that it trained meanwhile."""
    rule = EarlyStop(every_steps=3, patience=2, min_steps=4, min_delta=0.3)
    recipes: tuple[dict[str, Any], ...] = (
        {"early_stop": rule, "keep_best": True},
        {"early_stop": rule},
        {"keep_best": True, "checkpoint_every": 5},
        {"early_stop": rule, "steps": 7},
        {},
    )
    ends: list[list[Any]] = []
    late = 0
    for beside in (False, True):
        trainer = open_trainer(
            base, num_slots=5, max_rank=4, sync_every=sync_every,
            speed=Speed(evaluate_beside=beside),
        )  # fmt: skip
        for number, recipe in enumerate(recipes):
            trainer.admit(make_job(base, number, **{"steps": 20, "learning_rate": 0.1, **recipe}))
        reported: list[str] = []
        while trainer.active_slots or trainer.has_news:
            steps = {slot: trainer.steps_done(slot) for slot in trainer.active_slots}
            reported += [key for _, key in trainer.step().finished]
            late += sum(trainer.steps_done(slot) <= before for slot, before in steps.items())
        ends.append(
            [
                (
                    trainer.stopped_because(slot),
                    trainer.steps_done(slot),
                    trainer.steps_trained(slot),
                    trainer.loss_curve(slot),
                    trainer.evaluation_curve(slot),
                    trainer.weights(slot),
                )
                for slot in range(5)
            ]
        )
        assert sorted(reported) == [f"job-{number}" for number in range(5)]
        trainer.close()
    assert "early_stop" in {end[0] for end in ends[0]}
    assert late > 0
    for one, other in zip(*ends, strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], rel=1e-5)
        assert [step for step, _ in one[4]] == [step for step, _ in other[4]]
        assert_close(one[5], other[5], 1e-5)
