"""Measures a device for the plan: step time and memory with one slot and with eight.

Owns the measurement. ``farm.training.plan.calibration`` owns what the numbers mean and their file.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import Tensor

from farm.base.interface import Base
from farm.recipe import Recipe
from farm.training.plan.calibration import Calibration, Point, calibration_of
from farm.training.plan.shape import LaneShape, common_shape
from farm.training.slots.job import PriorSet, TrainingJob
from farm.training.slots.speed import Speed
from farm.training.slots.trainer import SlotTrainer

__all__ = ["CALIBRATED_SLOTS", "calibrate", "hardware_name"]

CALIBRATED_SLOTS = (1, 8)
WARM_UP_STEPS, GROUP_STEPS, MIN_GROUPS, TIMED_S = 4, 8, 3, 5.0


def calibrate(
    base: Base, *, speed: Speed | None = None, timed_s: float = TIMED_S,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:  # fmt: skip
    """Train random latents with few and with many slots, as a lane does; about a minute on a GPU.

    Args:
        speed: how passes run; None means as in a lane on this device.
        timed_s: seconds of timed steps for each number of slots.
        say: called with a line for each result.

    Raises:
        UserError: if the times contradict each other.
        torch.OutOfMemoryError: if the device has no room for eight slots.
    """
    shape = common_shape([_recipe(0)], base.resolution_px)
    points, warm_up_s, how = [], 0.0, ""
    for slots in CALIBRATED_SLOTS:
        point, warm_s, how = _measured(base, shape, slots, speed, timed_s)
        warm_up_s = max(warm_up_s, warm_s)
        points.append(point)
        say(f"{slots} slot(s): {1e3 * point.step_s:.1f} ms a step, {how}")
    return calibration_of(
        points[0], points[1], base.memory, shape,
        hardware=hardware_name(base.device), warm_up_s=warm_up_s, how=how, base=base.name,
        torch=torch.__version__, date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def hardware_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()} {torch.get_num_threads()} threads"


def _measured(
    base: Base, shape: LaneShape, slots: int, speed: Speed | None, timed_s: float
) -> tuple[Point, float, str]:
    """The point, the seconds until the first steps were done, and how steps ran."""
    device = base.device
    on_gpu = device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    trainer = SlotTrainer(base, shape, num_slots=slots, speed=speed)
    try:
        for number in range(slots):
            trainer.admit(_job(base, number))
        for _ in range(WARM_UP_STEPS):
            trainer.step()
        _wait(device)
        warm_s = time.perf_counter() - began
        step_s = _fastest_step_s(trainer, device, timed_s)
        how = trainer.speed_report
    finally:
        trainer.close()
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    return Point(slots, step_s, peak), warm_s, how


def _fastest_step_s(trainer: SlotTrainer, device: torch.device, timed_s: float) -> float:
    """Of several groups of steps the fastest: other programs only add time. On a GPU, a group hides
    the host's work for a step behind the previous step, as in a lane. On a CPU, CPU time counts,
    which other programs hardly change."""
    on_gpu = device.type == "cuda"
    group, now = (GROUP_STEPS, time.perf_counter) if on_gpu else (1, time.process_time)
    best, groups, began = float("inf"), 0, time.perf_counter()
    while groups < MIN_GROUPS or time.perf_counter() - began < timed_s:
        start = now()
        for _ in range(group):
            trainer.step()
        _wait(device)
        best = min(best, (now() - start) / group)
        groups += 1
    return best


def _recipe(seed: int) -> Recipe:
    return Recipe(seed=seed, steps=100_000)


def _job(base: Base, number: int) -> TrainingJob:
    """A job with random latents: time does not depend on the content of photos."""
    generator = torch.Generator().manual_seed(number)
    shape = base.latent_shape(base.resolution_px, base.resolution_px)

    def moments(count: int) -> Tensor:
        mean_NCHW = torch.randn(count, *shape, generator=generator)
        return torch.stack([mean_NCHW, torch.full_like(mean_NCHW, 0.1)], 1)

    return TrainingJob(
        key=f"calibration-{number}",
        recipe=_recipe(number),
        seed=number,
        instance_moments=moments(4),
        instance_conditioning=base.encode_prompts(["a photo of sks cat"]).to("cpu"),
        prior=PriorSet(moments(4), base.encode_prompts(["a photo of a cat"]).to("cpu")),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
