"""Samples and cards beside training: the same results, no slot waits, and memory may run out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.assignments import assignment
from support.jobs import assert_close, build_job, open_trainer
from support.training.streams import RecordedStreams

from farm.adapters.weights import AdapterWeights
from farm.base.device.queues import Queue
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.recipe import Recipe
from farm.training.lane.finalizer import Finalizer
from farm.training.lane.finishing import Finishing
from farm.training.lane.publisher import FinishedJob
from farm.training.lane.settings import Judged, SampleSettings
from farm.training.slots.trainer import SlotTrainer

SAMPLES = SampleSettings(steps=2, guidance=3.0)
STEPS = 6


class Rater:
    """A judge whose card is a number of the pictures that it generates from the bank."""

    def judge(
        self, base: Base, bank: Any, specs: Mapping[int, Any], photos: Any, curves: Any
    ) -> dict[int, Judged]:
        from farm.adapters.generate import generate_adapted

        rows = list(specs)
        images = generate_adapted(base, bank, ["a sks cat"] * len(rows), [1] * len(rows), rows,
                                  steps=2)  # fmt: skip
        return {row: Judged({"mean": float(one.float().mean())}) for row, one in
                zip(rows, images, strict=True)}  # fmt: skip

    def pictures(self, base_name: str, kinds: Sequence[Any]) -> Any:
        raise NotImplementedError


@pytest.fixture
def base() -> Base:
    return load_base("tiny")


def finish_two(base: Base, *, beside: bool) -> tuple[list[FinishedJob], list[AdapterWeights]]:
    """Two jobs of different scale end while a third trains on; a fourth takes a slot at once."""
    done: list[FinishedJob] = []
    trainer = open_trainer(base, num_slots=3, max_rank=4, num_kept=3)
    finalizer = Finalizer(base, SAMPLES, Rater())
    finishing = Finishing(base, finalizer, done.append, pytest.fail, beside=beside)
    for number, steps in enumerate((STEPS, STEPS, 3 * STEPS)):
        alpha = 8.0 if number == 1 else 4.0
        trainer.admit(build_job(base, number, steps=steps, rank=4, alpha=alpha))
    while not (ended := trainer.step().finished):
        pass
    slots = [slot for slot, _ in ended]
    finishing.sample(trainer, {2: assignment("cat-2").spec})
    given = {slot: assignment(f"cat-{slot}", Recipe(steps=STEPS)) for slot in slots}
    finishing.finish(trainer, given, dict.fromkeys(slots, ()), trainer.release)
    assert trainer.free_slots == (0, 1)
    trainer.admit(build_job(base, 5, steps=STEPS, rank=4, alpha=4.0))
    while trainer.active_slots:
        report = trainer.step()
        for slot, _ in report.finished:
            if slot == 2:
                last = {2: assignment("cat-2")}
                finishing.finish(trainer, last, {2: ()}, lambda slot: None)
    finishing.close()
    weights = [trainer.weights(slot) for slot in (0, 2)]
    assert sorted(trainer._free_kept) == [0, 1, 2]
    trainer.close()
    return sorted(done, key=lambda job: job.key), weights


def test_jobs_finished_beside_training_are_those_finished_at_once(base: Base) -> None:
    (at_once, trained), (beside, also) = (
        finish_two(base, beside=False), finish_two(base, beside=True)
    )  # fmt: skip
    assert len(at_once) == len(beside) == 3
    for one, other in zip(at_once, beside, strict=True):
        assert one.key == other.key
        assert one.record.loss_curve == other.record.loss_curve
        assert one.record.quality is not None
        assert one.record.quality == other.record.quality
        assert len(one.samples) == len(other.samples)
        for image, same in zip(one.samples, other.samples, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(same))
            assert image.info == same.info
    assert max(len(one.samples) for one in beside) == 2 * min(len(one.samples) for one in beside)
    for mine, others in zip(trained, also, strict=True):
        assert_close(mine, others, 0.0)


class Crowded(Finalizer):
    """Its images do not fit the first times."""

    def __init__(self, base: Base, failures: int) -> None:
        super().__init__(base, SAMPLES, None)
        self.left = failures

    def complete(self, trainer: SlotTrainer, trained: Any) -> list[FinishedJob]:
        if self.left:
            self.left -= 1
            raise torch.OutOfMemoryError("pretended")
        return super().complete(trainer, trained)


@pytest.mark.parametrize("failures", [1, 2])
def test_images_that_do_not_fit_beside_training_are_generated_alone(
    base: Base, failures: int
) -> None:
    """If they do not fit alone either, the job ends as too large, and the error is raised."""
    done: list[FinishedJob] = []
    lost: list[str] = []
    trainer = open_trainer(base, num_slots=1, max_rank=4, num_kept=1)
    finishing = Finishing(base, Crowded(base, failures), done.append, lost.append, beside=True)
    trainer.admit(build_job(base, 0, steps=1, rank=4, alpha=4.0))
    trainer.step()
    given = assignment("cat")
    finishing.finish(trainer, {0: given}, {0: ()}, trainer.release)
    if failures == 1:
        finishing.collect(wait=True)
    else:
        with pytest.raises(torch.OutOfMemoryError):
            finishing.collect(wait=True)
    assert [job.key for job in done] == [given.key] * (failures == 1)
    assert lost == [given.key] * (failures == 2)
    assert not finishing.is_busy
    assert trainer._free_kept == [0]
    finishing.close()
    trainer.close()


def test_on_a_device_images_have_a_queue_of_low_priority_that_starts_after_the_copy(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = RecordedStreams()
    streams.install(monkeypatch)
    copied: list[Any] = []
    passes: list[tuple[int, bool]] = []
    denoise = base.denoise

    def denoised(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            passes.append((streams.current_stream().priority, streams.is_after(copied[-1])))
        return denoise(*args)

    with Queue(base.device, is_urgent=True).active():
        trainer = open_trainer(base, num_slots=1, max_rank=4, num_kept=1)
        keep = trainer.bank.keep

        def kept(slot: int, place: int) -> int:
            copied.append(streams.work())
            return keep(slot, place)

        monkeypatch.setattr(trainer.bank, "keep", kept)
        monkeypatch.setattr(base, "denoise", denoised)
        finishing = Finishing(
            base, Finalizer(base, SAMPLES, None), lambda job: None, pytest.fail, beside=True
        )
        trainer.admit(build_job(base, 0, steps=1, rank=4, alpha=4.0))
        trainer.step()
        finishing.finish(trainer, {0: assignment("cat")}, {0: ()}, trainer.release)
        finishing.close()
        trainer.close()
    assert passes == [(0, True)] * SAMPLES.steps
