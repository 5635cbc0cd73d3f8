"""The shape of a lane, and the size of a workload.

Owns the properties that jobs must share to train side by side, and so the rule that groups them.
Pure functions, independent of memory and hardware.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from farm.errors import PlanError
from farm.recipe import EarlyStop, Recipe

__all__ = [
    "NUM_EVALUATION_ROWS",
    "LaneShape",
    "Workload",
    "common_shape",
    "evaluation_period",
    "lane_shape",
    "run_shapes",
    "workload_of",
]

NUM_EVALUATION_ROWS = 8
"""Photos × timesteps of one evaluation; eight forward rows cost about three of training."""


@dataclass(frozen=True)
class LaneShape:
    """The properties that the jobs of one lane share: the shapes of its batch and its bank."""

    resolution_px: int
    instance_rows: int
    prior_rows: int
    target_modules: tuple[str, ...]
    text_encoder_modules: tuple[str, ...]
    max_rank: int
    """Upper bound of the ranks; smaller ones are padded with zeros."""

    @property
    def rows(self) -> int:
        """Rows of one slot in a pass."""
        return self.instance_rows + self.prior_rows


RANK_BOUNDS = (16, 64, 256)
"""Ranks within one bound share lanes; a single rank of 256 must not widen every other slot."""


def lane_shape(recipe: Recipe, resolution_px: int) -> LaneShape:
    """The shape of the lane that can train a recipe; jobs of equal shape train side by side.

    Args:
        resolution_px: the base's own, used if the recipe sets none.
    """
    bound = next(bound for bound in RANK_BOUNDS if recipe.rank <= bound)
    return LaneShape(
        resolution_px=recipe.resolution_px or resolution_px,
        instance_rows=recipe.instance_rows,
        prior_rows=recipe.prior_rows if recipe.uses_prior else 0,
        target_modules=recipe.target_modules,
        text_encoder_modules=recipe.text_encoder_modules,
        max_rank=bound,
    )


def common_shape(recipes: Sequence[Recipe], resolution_px: int) -> LaneShape:
    """The smallest shape that holds all of the given recipes.

    Raises:
        ValueError: if they adapt different modules or differ in resolution.
    """
    shapes = [lane_shape(recipe, resolution_px) for recipe in recipes]
    common = replace(
        shapes[0],
        instance_rows=max(shape.instance_rows for shape in shapes),
        prior_rows=max(shape.prior_rows for shape in shapes),
        max_rank=max(recipe.rank for recipe in recipes),
    )
    for shape in shapes:
        modules = (shape.target_modules, shape.text_encoder_modules)
        if modules != (common.target_modules, common.text_encoder_modules):
            raise ValueError("the recipes adapt different modules")
        if shape.resolution_px != common.resolution_px:
            raise ValueError("the recipes differ in resolution")
    return common


def run_shapes(recipes: Mapping[str, Recipe], resolution_px: int) -> dict[str, LaneShape]:
    """Each job's lane shape, with the rank bound lowered to the largest rank of its group."""
    loose = {key: lane_shape(recipe, resolution_px) for key, recipe in recipes.items()}
    ranks: dict[LaneShape, int] = defaultdict(int)
    for key, shape in loose.items():
        ranks[shape] = max(ranks[shape], recipes[key].rank)
    return {key: replace(shape, max_rank=ranks[shape]) for key, shape in loose.items()}


@dataclass(frozen=True)
class Workload:
    """The amount of work in a run."""

    shape: LaneShape
    """The heaviest shape among the jobs, with the largest rank of all jobs."""
    num_jobs: int
    row_steps: int
    """Rows times steps over all jobs: passes of one row."""
    evaluation_rows: int = 0
    """Forward rows of the evaluations on fixed noise."""
    num_prior_images: int = 0
    """Class images that are missing and must be generated first."""
    prior_steps: int = 25
    """Denoising steps of each, with two rows a step for guidance."""
    num_crops: int = 0
    """Crops of the subjects' photos; each is encoded once."""
    picture_rows: int = 0
    """Forward rows of the sample images and of the images that quality cards score."""
    num_pictures: int = 0
    """The number of these images."""
    uses_ray: bool = True
    """Whether lanes run in processes of their own, which have to start."""


def workload_of(
    recipes: Iterable[Recipe], resolution_px: int, *, num_prior_images: int = 0
) -> Workload:
    """The workload of the jobs that still have to be trained.

    Raises:
        PlanError: if there are none.
    """
    recipes = list(recipes)
    if not recipes:
        raise PlanError("there is nothing to train", "all jobs are committed already")
    shapes = [lane_shape(recipe, resolution_px) for recipe in recipes]
    heaviest = max(shapes, key=lambda shape: (shape.resolution_px**2 * shape.rows, shape.max_rank))
    return Workload(
        shape=replace(heaviest, max_rank=max(recipe.rank for recipe in recipes)),
        num_jobs=len(recipes),
        row_steps=sum(
            recipe.steps * shape.rows for recipe, shape in zip(recipes, shapes, strict=True)
        ),
        evaluation_rows=sum(map(_evaluation_rows, recipes)),
        num_prior_images=num_prior_images,
    )


def evaluation_period(recipe: Recipe) -> int:
    """Steps between evaluations; 0 if the recipe asks for none."""
    if recipe.early_stop is not None:
        return recipe.early_stop.every_steps
    return EarlyStop().every_steps if recipe.keep_best else 0


def _evaluation_rows(recipe: Recipe) -> int:
    period = evaluation_period(recipe)
    return math.ceil(recipe.steps / period) * NUM_EVALUATION_ROWS if period else 0
