"""A measured card replaces the plan's constants; a card that was never measured does not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from farm.base.interface import Base
from farm.base.loading import load_base
from farm.base.memory import MemoryFacts
from farm.errors import UserError
from farm.recipe import Recipe
from farm.training.plan.calibration import (
    Calibration,
    Point,
    calibration_of,
    find_calibration,
    save_calibration,
)
from farm.training.plan.costs import row_flops, slot_bytes
from farm.training.plan.hardware import Hardware
from farm.training.plan.planner import make_plan
from farm.training.plan.shape import lane_shape, workload_of
from farm.training.slots.calibrate import calibrate

GIB = 2**30
SD15 = MemoryFacts(
    num_parameters=1_066_235_307,
    denoiser_parameters=859_520_964,
    weight_bytes=2 * 1_066_235_307,
    latent_channels=4,
    latent_factor=8,
    tokens=77,
)
RECIPE = Recipe(steps=800)
SHAPE = lane_shape(RECIPE, 512)
CARD = Hardware("NVIDIA H100 80GB HBM3", 80 * GIB, 1, 16)
ABOUT = {
    "hardware": "NVIDIA H100 80GB HBM3", "warm_up_s": 45.0, "how": "compiled", "base": "sd15",
    "torch": "2.11", "date": "2026-11-27",
}  # fmt: skip


def points(start_s: float, per_slot_s: float, slot: int, fixed: int) -> tuple[Point, Point]:
    few, many = (
        Point(slots, start_s + slots * per_slot_s, fixed + slots * slot) for slots in (1, 8)
    )
    return few, many


@pytest.fixture
def measured() -> Calibration:
    slot = slot_bytes(SD15, SHAPE, False) // 2
    few, many = points(0.004, 0.008, slot, SD15.weight_bytes + GIB)
    return calibration_of(few, many, SD15, SHAPE, **ABOUT)


def test_two_points_give_the_speed_and_memory_of_any_number_of_slots(measured: Calibration) -> None:
    work = row_flops(SD15, SHAPE, False)
    for slots in (1, 8, 27):
        expected_s = 0.004 + slots * 0.008
        assert slots * 2 / measured.rows_per_s(work, slots * 2) == pytest.approx(expected_s)
    assert measured.slot_bytes_ratio == pytest.approx(0.5, rel=1e-3)
    assert measured.fixed_bytes_more == pytest.approx(GIB, rel=1e-3)


def test_times_that_contradict_each_other_are_refused() -> None:
    few, many = Point(1, 0.1, 0), Point(8, 0.09, 0)
    with pytest.raises(UserError, match="8 slots took less time than 1"):
        calibration_of(few, many, SD15, SHAPE, **ABOUT)


def test_later_plans_use_the_file_of_their_card(measured: Calibration) -> None:
    assert find_calibration(CARD.gpu_name) is None
    path = save_calibration(measured)
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    assert find_calibration(CARD.gpu_name) == find_calibration("H100") == measured
    assert find_calibration("NVIDIA H10") is None
    assert find_calibration(None) is None
    work = workload_of([RECIPE] * 1000, 512)
    modelled = make_plan(SD15, work, CARD, fraction=1.0)
    planned = make_plan(SD15, work, replace(CARD, calibration=measured), fraction=1.0)
    step_s = 0.004 + planned.slots * 0.008
    assert planned.rows_per_s == pytest.approx(planned.slots * 2 / step_s)
    assert planned.slots > modelled.slots
    assert planned.estimate.compiles
    assert planned.estimate.start_s - modelled.estimate.start_s == pytest.approx(45.0 - 60.0)


def test_a_lane_with_little_to_train_does_not_compile() -> None:
    few = make_plan(SD15, workload_of([RECIPE], 512), CARD)
    many = make_plan(SD15, workload_of([RECIPE] * 1000, 512), CARD)
    assert (few.estimate.compiles, many.estimate.compiles) == (False, True)
    assert many.estimate.start_s - few.estimate.start_s >= 60


def test_a_damaged_file_is_named(measured: Calibration) -> None:
    path = save_calibration(measured)
    path.write_text("{}")
    with pytest.raises(UserError, match=path.name):
        find_calibration(CARD.gpu_name)


def test_evaluations_are_part_of_the_plan() -> None:
    plain = make_plan(SD15, workload_of([RECIPE] * 100, 512), CARD)
    kept = make_plan(SD15, workload_of([replace_keep_best(RECIPE)] * 100, 512), CARD)
    assert kept.estimate.training_s > plain.estimate.training_s


def replace_keep_best(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"keep_best": True})


@pytest.fixture
def base() -> Base:
    return load_base("tiny")


def test_a_calibration_measures_a_real_trainer(base: Base, tmp_path: Path) -> None:
    lines: list[str] = []
    found = None
    while found is None:  # it is refused where other programs disturb it, as other tests do
        lines.clear()
        with suppress(UserError):
            found = calibrate(base, timed_s=0.1, say=lines.append)
    assert found.flops_per_s > 0
    assert found.warm_up_s > 0
    assert found.how.startswith("eager")
    assert len(lines) == 2
    assert find_calibration(save_calibration(found).stem) == found
