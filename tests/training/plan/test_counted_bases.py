"""The planner uses what was counted on a base's own denoiser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.base.memory import DenoiserCounts, MemoryFacts
from farm.errors import PlanError
from farm.recipe import Recipe
from farm.training.plan.costs import fixed_bytes, row_flops, slot_bytes
from farm.training.plan.counted_bases import counted_builds
from farm.training.plan.hardware import Hardware
from farm.training.plan.planner import make_plan
from farm.training.plan.shape import lane_shape, workload_of

GIB = 2**30
SDXL = MemoryFacts(
    num_parameters=3_468_837_867,
    denoiser_parameters=2_567_463_684,
    weight_bytes=4 * 3_468_837_867,
    latent_channels=4,
    latent_factor=8,
    tokens=77,
    full_precision_bytes=334_615_452,
    # counted by farm.base.families.counting on the true shape
    counts=DenoiserCounts(
        flops_per_cell=363.59e6,
        flops_per_cell_squared=2800.0,
        flops_per_row=52.53e9,
        saved_per_cell=172_728,
        layer_widths={"a.attn1.to_q": 1_000_000, "a.attn1.to_k": 451_520, "a.conv1": 10**7},
    ),
)


def test_a_rows_cost_is_the_counted_one_at_every_size() -> None:
    """3.14 and 14.1 TFLOP for forward and backward of rank 4, counted with the bank itself."""
    for side_px, tflop in ((512, 3.14), (1024, 14.1)):
        shape = lane_shape(Recipe(rank=4), side_px)
        assert row_flops(SDXL, shape, False) == pytest.approx(tflop * 1e12, rel=0.1)


def test_a_slots_memory_is_that_of_its_own_layers() -> None:
    attention = lane_shape(Recipe(rank=4, target_modules=("to_q", "to_k")), 1024)
    wide = replace(attention, target_modules=("to_q", "to_k", "conv1"))
    facts = SDXL.halved()
    # rank bounds are padded to 16; weight, gradient and two moments in float32
    difference = slot_bytes(facts, wide, True) - slot_bytes(facts, attention, True)
    assert difference == 16 * 10**7 * 16
    assert fixed_bytes(facts) < 8 * GIB


def test_sdxl_fits_a_24_gib_card_at_1024_px_with_checkpointing() -> None:
    card = Hardware("NVIDIA GeForce RTX 4090", 24 * GIB, 1, 8)
    plan = make_plan(SDXL.halved(), workload_of([Recipe(steps=500)] * 20, 1024), card)
    assert plan.checkpointing
    assert plan.slots >= 1
    assert plan.lane_bytes <= 24 * GIB


def test_a_base_that_leaves_no_room_for_class_images_is_refused_with_the_reason() -> None:
    build = counted_builds()["qwen-image"]
    card = Hardware("H100", 80 * GIB, 1, 8)
    work = workload_of([build.recipe], 512, num_prior_images=200)
    with pytest.raises(PlanError, match="class images that are missing need 0.5 of the GPU") as no:
        make_plan(build.memory, work, card)
    assert "quantise the base" in no.value.remedy
    assert make_plan(build.memory.quantized("int8"), work, card).slots == 1
    assert make_plan(build.memory, workload_of([build.recipe], 512), card).slots == 1
