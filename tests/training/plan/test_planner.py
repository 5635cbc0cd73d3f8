"""The plan: it uses what fits, refuses what does not with numbers, and gives its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.base.memory import MemoryFacts
from farm.cli.views.plan import _hardware_lines
from farm.errors import PlanError
from farm.recipe import Recipe
from farm.training.plan.costs import CONTEXT_BYTES, beside_bytes, lane_bytes, row_flops
from farm.training.plan.gpu_lanes import prior_worker_fraction
from farm.training.plan.hardware import Hardware
from farm.training.plan.planner import _checkpoint_notes, make_plan
from farm.training.plan.shape import lane_shape, workload_of

GIB = 2**30
SD15 = MemoryFacts(
    num_parameters=1_066_235_307,
    denoiser_parameters=859_520_964,
    weight_bytes=2 * 1_066_235_307,
    latent_channels=4,
    latent_factor=8,
    tokens=77,
)
A100 = Hardware("NVIDIA A100-SXM4-80GB", 80 * GIB, 1, 12)
LAPTOP = Hardware(None, 0, 0, 2)
RECIPE = Recipe(steps=800)


def test_a_thousand_subjects_on_an_a100_take_the_whole_gpu_and_the_plan_says_why() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 1000, 512), A100)
    assert plan.gpu_fraction == 1.0
    assert plan.slots > 8
    assert "as fast as 1/8" in plan.reason
    assert plan.lane_bytes <= plan.share_bytes
    # the physical floor is 22 s a subject at 40 % of an A100's peak (1.71 TFLOP a row)
    assert 22 <= plan.hours * 3600 / 1000 <= 40
    assert plan.dollars == pytest.approx(plan.gpu_hours * 1.8)


def test_the_yardstick_is_an_eighth_of_a_gpu() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 1000, 512), A100, fraction=0.125)
    assert plan.lanes_per_node == 8
    assert plan.slots >= 1
    assert plan.lane_bytes <= 10 * GIB
    fraction = plan.memory_fraction
    assert fraction is not None
    assert fraction * 80 * GIB + CONTEXT_BYTES == pytest.approx(10 * GIB)


def test_a_small_card_gets_a_whole_lane_or_a_refusal_with_numbers() -> None:
    small = Hardware("Tesla T4", 15 * GIB, 1, 4)
    plan = make_plan(SD15, workload_of([RECIPE] * 100, 512), small)
    assert plan.gpu_fraction >= 0.25
    tiny = Hardware("GT 1030", 2 * GIB, 1, 4)
    with pytest.raises(PlanError, match=r"needs \d+\.\d GiB and its share of GT 1030 is 2\.0 GiB"):
        make_plan(SD15, workload_of([RECIPE], 512), tiny)


def test_what_the_user_fixed_is_used_or_refused() -> None:
    work = workload_of([RECIPE] * 1000, 512)
    plan = make_plan(SD15, work, A100, slots=3, fraction=0.25, checkpointing=True)
    assert (plan.slots, plan.gpu_fraction, plan.checkpointing) == (3, 0.25, True)
    with pytest.raises(PlanError, match=r"a lane with 60 slot\(s\) needs"):
        make_plan(SD15, work, A100, slots=60, fraction=0.125)


def test_few_subjects_do_not_get_empty_slots() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 3, 512), A100)
    assert plan.num_lanes * plan.slots <= 4


def test_without_a_gpu_one_lane_uses_the_cores_and_leaves_a_part() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 100, 64), LAPTOP)
    assert (plan.device, plan.num_lanes) == ("cpu", 1)
    assert 1 <= plan.cpus_per_lane < 2
    assert plan.slots > 1
    assert plan.memory_fraction is None
    assert plan.dollars == 0


def test_a_small_base_gets_a_lane_on_each_core_if_there_are_subjects_for_them() -> None:
    small = replace(SD15, weight_bytes=20 * 2**20)
    many = make_plan(small, workload_of([RECIPE] * 100, 64), LAPTOP)
    assert many.num_lanes == LAPTOP.cpus_per_node
    assert many.cpus_per_lane <= 1
    few = make_plan(small, workload_of([RECIPE] * 5, 64), LAPTOP)
    assert (few.num_lanes, few.slots) == (1, 5)
    # waiting threads cost more than they gain
    assert {many.threads, few.threads} == {1}


def test_the_expected_time_counts_start_class_images_photos_samples_and_cards() -> None:
    small = replace(SD15, weight_bytes=20 * 2**20)
    bare = workload_of([RECIPE] * 6, 64)
    whole = replace(bare, num_prior_images=288, num_crops=240, picture_rows=5000, num_pictures=200)
    plan = make_plan(small, whole, LAPTOP)
    parts = plan.estimate
    assert plan.hours * 3600 == pytest.approx(parts.total_s)
    assert min(parts.start_s, parts.class_images_s, parts.photos_s, parts.pictures_s) > 0
    assert make_plan(small, bare, LAPTOP).estimate.class_images_s == 0
    assert plan.prior_workers_per_node == min(4, LAPTOP.cpus_per_node)
    here = make_plan(small, replace(whole, uses_ray=False), LAPTOP, lanes=1)
    assert here.estimate.start_s < parts.start_s


def test_a_lane_has_memory_for_the_images_that_it_generates_beside_training() -> None:
    bare = workload_of([RECIPE] * 100, 512)
    pictured = replace(bare, picture_rows=20_000, num_pictures=400)
    without, with_pictures = (
        make_plan(SD15, work, A100, fraction=0.125, slots=1) for work in (bare, pictured)
    )
    more = with_pictures.lane_bytes - without.lane_bytes
    assert more == beside_bytes(SD15, bare.shape)
    assert 0.5 * GIB < more < 2 * GIB
    assert beside_bytes(SD15, replace(bare.shape, resolution_px=1024)) == pytest.approx(4 * more)


def test_checkpointing_is_chosen_by_speed_and_the_plan_says_whether_it_pays() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 1000, 512), A100)
    assert not plan.checkpointing  # 80 GB saturate the GPU without it
    assert "does not pay" in plan.notes[0]
    narrow = replace(A100, gpu_bytes=8 * GIB)
    work = workload_of([RECIPE.model_copy(update={"instance_rows": 4, "prior_rows": 4})], 512)
    assert make_plan(SD15, work, narrow).checkpointing
    with pytest.raises(PlanError, match="switch gradient checkpointing on"):
        make_plan(SD15, work, narrow, checkpointing=False)


def test_a_plan_claims_no_more_lanes_and_subjects_at_a_time_than_there_are_subjects() -> None:
    plan = make_plan(SD15, workload_of([RECIPE] * 3, 64), replace(A100, num_nodes=4), lanes=3)
    shown = dict(_hardware_lines(plan, 3))
    assert shown["lanes"].startswith("3 of 12 on 4 nodes")
    assert shown["slots"].endswith(": 3 subjects at a time")
    twin = replace(plan, checkpointing=not plan.checkpointing)
    assert _checkpoint_notes([plan, twin], plan) == []  # both are equal
    (note,) = _checkpoint_notes([plan, replace(twin, slots=2)], plan)
    assert f"{plan.slots} slot at" in note


def test_generating_missing_priors_costs_time_and_reserves_a_share_of_the_gpu() -> None:
    without = make_plan(SD15, workload_of([RECIPE], 512), A100)
    generating = make_plan(SD15, workload_of([RECIPE], 512, num_prior_images=200), A100)
    # 200 class images at 50 steps cost six times one training; at 25 steps three times
    assert generating.hours / without.hours == pytest.approx(4, rel=0.5)
    assert generating.prior_fraction > 0 == without.prior_fraction
    whole = make_plan(SD15, workload_of([RECIPE] * 1000, 512, num_prior_images=200), A100)
    assert whole.gpu_fraction == 0.875
    eighths = make_plan(
        SD15, workload_of([RECIPE] * 1000, 512, num_prior_images=200), A100, fraction=0.125
    )
    assert eighths.lanes_per_node == 7


def test_a_prior_worker_gets_the_memory_the_base_needs_and_lanes_make_room_for_it() -> None:
    work = workload_of([RECIPE] * 1000, 512, num_prior_images=200)
    small = Hardware("NVIDIA A10G", round(22.5 * GIB), 1, 8)
    assert prior_worker_fraction(SD15, A100) == 0.125
    assert prior_worker_fraction(SD15, small) == 0.25
    plan = make_plan(SD15, work, small)
    assert plan.gpu_fraction + plan.prior_fraction <= 1
    assert plan.prior_fraction * small.gpu_bytes > SD15.weight_bytes + CONTEXT_BYTES
    quarters = make_plan(SD15, work, small, fraction=0.25, checkpointing=True)
    assert quarters.lanes_per_node == 3


@pytest.mark.parametrize(("lanes", "fraction"), [(8, 0.125), (None, 0.9), (2, 0.5)])
def test_lanes_that_leave_no_room_for_missing_priors_are_refused(
    lanes: int | None, fraction: float
) -> None:
    jobs = [RECIPE] * 100
    with pytest.raises(PlanError, match="free for generating the class images"):
        make_plan(
            SD15, workload_of(jobs, 512, num_prior_images=9), A100, lanes=lanes, fraction=fraction
        )
    make_plan(SD15, workload_of(jobs, 512), A100, lanes=lanes, fraction=fraction)
    two = replace(A100, gpus_per_node=2)
    make_plan(SD15, workload_of(jobs, 512, num_prior_images=9), two, lanes=lanes, fraction=fraction)


def test_a_base_takes_half_of_its_bytes_in_half_precision() -> None:
    assert replace(SD15, weight_bytes=2 * SD15.weight_bytes).halved() == SD15


def test_an_empty_workload_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing to train"):
        workload_of([], 512)


def test_the_models_match_what_was_counted() -> None:
    shape = lane_shape(Recipe(prior_rows=0), 512)
    assert row_flops(SD15, shape, False) == pytest.approx(1.714e12, rel=0.02)
    # 985 MiB saved by hooks at batch 1, before the margin for transients
    one = lane_bytes(SD15, shape, 1, checkpointing=False)
    two = lane_bytes(SD15, shape, 2, checkpointing=False)
    assert 985 * 2**20 < two - one < 1.6 * 985 * 2**20


@given(
    memory=st.integers(4, 200),
    gpus=st.integers(1, 8),
    jobs=st.integers(1, 5000),
    rows=st.integers(1, 4),
    rank=st.sampled_from([4, 16, 128]),
)
def test_every_plan_fits_its_share(memory: int, gpus: int, jobs: int, rows: int, rank: int) -> None:
    hardware = Hardware("NVIDIA H100", memory * GIB, gpus, 16.0 * gpus, num_nodes=2)
    recipe = Recipe(instance_rows=rows, prior_rows=rows, rank=rank)
    try:
        plan = make_plan(SD15, workload_of([recipe] * jobs, 512), hardware)
    except PlanError:
        assert lane_bytes(SD15, lane_shape(recipe, 512), 1, checkpointing=True) > 0.8 * memory * GIB
        return
    assert plan.lane_bytes <= plan.share_bytes
    assert plan.lanes_per_node * plan.gpu_fraction <= gpus
    assert plan.hours > 0
    assert plan.reason


def test_a_plan_of_lanes_that_share_a_gpu_mentions_mps() -> None:
    work = workload_of([RECIPE] * 1000, 512)
    for uses_mps, word in ((True, "MPS runs"), (False, "does not run"), (None, "not looked for")):
        plan = make_plan(SD15, work, replace(A100, uses_mps=uses_mps), fraction=0.125)
        assert any(word in note for note in plan.notes)
    whole = make_plan(SD15, work, A100, fraction=1.0)
    assert not any("MPS" in note for note in whole.notes)
