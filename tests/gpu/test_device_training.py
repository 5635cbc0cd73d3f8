"""Training on a device: the CPU's adapters, whatever makes the pass fast; memory may run out."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from support.jobs import assert_close, build_job, open_trainer, train_all, train_alone

from farm.adapters.weights import AdapterWeights
from farm.base.device.queues import Queue, mark
from farm.base.interface import Base
from farm.base.loading import load_base
from farm.recipe import EarlyStop
from farm.training.slots.speed import Speed
from farm.training.slots.trainer import SlotTrainer

TOLERANCE = 2e-3
STEPS = 5
PLAIN = Speed(compile=False, capture=False)


@pytest.fixture
def base(device: torch.device) -> Base:
    return load_base("tiny", device=device, dtype=torch.float32)


def opened(
    base: Base, speed: Speed | None, *, alphas: tuple[float, ...] = (4.0, 4.0)
) -> SlotTrainer:
    trainer = open_trainer(base, num_slots=3, max_rank=4, speed=speed)
    for number, alpha in enumerate(alphas):
        trainer.admit(build_job(base, number, steps=50, rank=4, alpha=alpha, learning_rate=1e-3))
    return trainer


def trained(base: Base, speed: Speed | None, **options: Any) -> list[AdapterWeights]:
    trainer = opened(base, speed, **options)
    try:
        for _ in range(STEPS):
            trainer.step()
        return [trainer.weights(slot) for slot in range(2)]
    finally:
        trainer.close()


def assert_all_close(found: list[AdapterWeights], wanted: list[AdapterWeights]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, TOLERANCE)


def test_the_device_trains_the_adapters_that_the_cpu_trains(base: Base) -> None:
    assert_all_close(trained(base, PLAIN), trained(load_base("tiny"), PLAIN))


@pytest.mark.parametrize("alphas", [(4.0, 4.0), (4.0, 12.0)])
def test_a_captured_step_trains_the_same_adapters(base: Base, alphas: tuple[float, ...]) -> None:
    captured = trained(base, Speed(compile=False, capture=True), alphas=alphas)
    assert_all_close(captured, trained(base, PLAIN, alphas=alphas))


def test_a_captured_step_is_replayed_on_a_gpu_and_sees_jobs_come_and_go(base: Base) -> None:
    ends = []
    for speed in (PLAIN, Speed(compile=False, capture=True)):
        trainer = opened(base, speed)
        for _ in range(4):
            trainer.step()
        trainer.release(0)
        # another scale: the captured step is made again
        trainer.admit(build_job(base, 7, steps=50, rank=2, alpha=6.0))
        for _ in range(4):
            trainer.step()
        if speed.capture and base.device.type == "cuda":
            assert "captured" in trainer.speed_report
        ends.append([trainer.weights(slot) for slot in range(2)])
        trainer.close()
    assert_all_close(*ends)


def test_a_compiled_pass_trains_the_same_adapters_through_a_refill(base: Base) -> None:
    # on a CPU the ahead-of-time pass alone, which needs no compiler
    how = True if base.device.type == "cuda" else "aot_eager"
    jobs = [
        build_job(base, number, steps=3 + number, rank=4, alpha=4.0, learning_rate=1e-3)
        for number in range(3)
    ]
    alone = {job.key: train_alone(base, job, speed=PLAIN) for job in jobs}
    compiled = Speed(compile=how, capture=False)
    trainer = open_trainer(base, num_slots=2, max_rank=4, speed=compiled)
    together = train_all(trainer, jobs)
    assert "compiled" in trainer.speed_report
    trainer.close()
    assert together.keys() == alone.keys()
    for key, weights in together.items():
        assert_close(weights, alone[key], TOLERANCE)


def test_evaluations_beside_training_stop_a_job_where_waiting_for_them_does(base: Base) -> None:
    rule = EarlyStop(every_steps=3, patience=1, min_steps=3, min_delta=0.5)
    ends = []
    for beside in (False, True):
        speed = Speed(compile=False, capture=False, evaluate_beside=beside)
        trainer = opened(base, speed, alphas=())
        trainer.admit(build_job(base, 0, steps=30, rank=4, alpha=4.0, early_stop=rule))
        while trainer.active_slots:
            trainer.step()
        assert trainer.stopped_because(0) == "early_stop"
        ends.append((trainer.steps_done(0), len(trainer.loss_curve(0)), trainer.weights(0)))
        trainer.close()
    assert ends[0][:2] == ends[1][:2]
    assert_all_close([ends[1][2]], [ends[0][2]])


def test_images_generated_beside_training_are_those_generated_between_steps(base: Base) -> None:
    shape = {"num_slots": 2, "max_rank": 4, "speed": PLAIN, "num_kept": 1}
    trainer = open_trainer(base, **shape)
    for number in range(2):
        trainer.admit(build_job(base, number, steps=50, rank=4, alpha=4.0, learning_rate=0.05))
    prompts = ["a photo of sks thing"]
    with Queue(base.device, is_urgent=True).active(mark(base.device)):
        trainer.step()
        between = trainer.sample({0: prompts}, [1], steps=4)[0].int()
        row = trainer.keep(0)
        assert row is not None
        copied, queue, images = mark(base.device), Queue(base.device), []

        def generate() -> None:
            with queue.active(copied):
                images.append(trainer.sample({row: prompts}, [1], steps=4)[row].int())

        beside = Thread(target=generate)
        beside.start()
        while beside.is_alive():
            trainer.step()
    assert (images[0] - between).abs().max() <= 2
    trainer.close()


def test_bfloat16_trains_nearly_the_same_adapters(base: Base, device: torch.device) -> None:
    half = load_base("tiny", device=device, dtype=torch.bfloat16)
    wanted, found = trained(base, PLAIN), trained(half, PLAIN, alphas=(4.0, 4.0))
    for one, other in zip(found, wanted, strict=True):
        for name, layer in other.layers.items():
            difference = (one.layers[name].down - layer.down).norm() / layer.down.norm()
            assert difference < 0.02, name


def test_training_goes_on_after_memory_ran_out_in_a_pass(
    base: Base, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the failed step had not been tried."""
    wanted = trained(base, PLAIN)
    trainer = opened(base, PLAIN)
    trainer.step()
    denoise = trainer._pass._denoise

    def run_out(*args: Any) -> Any:
        denoise(*args)
        if device.type == "cuda":
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        raise torch.OutOfMemoryError("on a CPU, pretended")

    monkeypatch.setattr(trainer._pass, "_denoise", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step()
    monkeypatch.undo()
    for _ in range(STEPS - 1):
        trainer.step()
    found = [trainer.weights(slot) for slot in range(2)]
    trainer.close()
    assert_all_close(found, wanted)
