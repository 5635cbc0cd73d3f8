"""The shape of a lane and the size of the work: what jobs must share to train side by side.

Owns the rule by which jobs are grouped. Pure, and knows neither memory nor hardware.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from farm.errors import PlanError
from farm.recipe import Recipe

__all__ = ["LaneShape", "Workload", "lane_shape", "run_shapes", "workload_of"]


@dataclass(frozen=True)
class LaneShape:
    """What the jobs of one lane must have in common: the shapes of its batch and its bank."""

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
"""Ranks within one bound share lanes; a single rank of 256 must not fatten all the others."""


def lane_shape(recipe: Recipe, resolution_px: int) -> LaneShape:
    """The shape of the lane that can train a recipe; equal shapes train side by side.

    Args:
        resolution_px: of the base, where the recipe leaves it open.
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


def run_shapes(recipes: Mapping[str, Recipe], resolution_px: int) -> dict[str, LaneShape]:
    """Each job's lane shape, its rank bound tightened to the largest rank that really occurs."""
    loose = {key: lane_shape(recipe, resolution_px) for key, recipe in recipes.items()}
    ranks: dict[LaneShape, int] = defaultdict(int)
    for key, shape in loose.items():
        ranks[shape] = max(ranks[shape], recipes[key].rank)
    return {key: replace(shape, max_rank=ranks[shape]) for key, shape in loose.items()}


@dataclass(frozen=True)
class Workload:
    """How much there is to train."""

    shape: LaneShape
    """The heaviest shape among the jobs."""
    num_jobs: int
    row_steps: int
    """Rows times steps over all jobs: passes of one row."""
    num_prior_images: int = 0
    """Class images that are missing and must be drawn first."""
    prior_steps: int = 25
    """Denoising steps of each, two rows a step with guidance."""
    num_crops: int = 0
    """Crops of the subjects' photos, which are encoded once."""
    picture_rows: int = 0
    """Forward rows of the sample pictures and of the quality cards' pictures."""
    num_pictures: int = 0
    """How many pictures these are."""
    uses_ray: bool = True
    """Whether lanes are processes of their own, which have to start."""
    max_rank: int = 4


def workload_of(
    recipes: Iterable[Recipe], resolution_px: int, *, num_prior_images: int = 0
) -> Workload:
    """The workload of the jobs that are still to be trained.

    Raises:
        PlanError: if there are none.
    """
    recipes = list(recipes)
    if not recipes:
        raise PlanError("there is nothing to train", "all jobs are committed already")
    shapes = {lane_shape(recipe, resolution_px) for recipe in recipes}
    heaviest = max(shapes, key=lambda shape: (shape.resolution_px**2 * shape.rows, shape.max_rank))
    return Workload(
        shape=heaviest,
        num_jobs=len(recipes),
        row_steps=sum(recipe.steps * lane_shape(recipe, resolution_px).rows for recipe in recipes),
        num_prior_images=num_prior_images,
        max_rank=max(recipe.rank for recipe in recipes),
    )
