"""Lane shapes: which jobs train together, and the shape that holds them all."""

from __future__ import annotations

import pytest

from farm.recipe import Recipe
from farm.training.plan.shape import common_shape, lane_shape, run_shapes, workload_of

NARROW = Recipe(rank=4, prior_rows=0)
WIDE = Recipe(rank=9, instance_rows=3, prior_rows=2)


def test_jobs_that_differ_only_within_a_rank_bound_share_lanes_of_their_largest_rank() -> None:
    recipes = {"a": Recipe(rank=4), "b": Recipe(rank=9), "c": Recipe(rank=64)}
    shapes = run_shapes(recipes, 512)
    assert shapes["a"] == shapes["b"] != shapes["c"]
    assert (shapes["a"].max_rank, shapes["c"].max_rank) == (9, 64)


def test_a_common_shape_holds_every_recipe_and_no_more() -> None:
    shape = common_shape([NARROW, WIDE], 512)
    assert (shape.instance_rows, shape.prior_rows, shape.max_rank) == (3, 2, 9)
    assert common_shape([NARROW], 512).max_rank == 4
    assert common_shape([NARROW], 512).prior_rows == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Recipe(target_modules=("to_q",)), "different modules"),
        (Recipe(text_encoder_modules=("q_proj",)), "different modules"),
        (Recipe(resolution_px=256), "resolution"),
    ],
)
def test_recipes_that_cannot_train_side_by_side_have_no_common_shape(
    other: Recipe, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        common_shape([NARROW, other], 512)


def test_a_workload_is_planned_for_its_heaviest_shape_and_its_largest_rank() -> None:
    work = workload_of([NARROW, WIDE, Recipe(rank=20, prior_rows=0)], 512)
    assert (work.shape.rows, work.shape.max_rank) == (5, 20)
    steps = NARROW.steps
    assert work.row_steps == steps * (1 + 5 + 1)
    assert lane_shape(NARROW, 512).rows == 1
