"""The planner's facts of the builds that have a real model's shape, counted once and kept.

Owns ``counted_bases.json``. The counts follow from the configs alone, so they are part of the
package; counting takes seconds for each build.

    python -m farm.training.plan.counted_bases

counts all of them again and rewrites the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from farm.base.memory import DenoiserCounts, MemoryFacts
from farm.base.names import BuiltName
from farm.recipe import Recipe

__all__ = ["CountedBuild", "count_build", "counted_builds"]

FILE = Path(__file__).parent / "counted_bases.json"


@dataclass(frozen=True)
class CountedBuild:
    """A build's facts in half precision, as it is loaded on a GPU."""

    title: str
    """Of its family."""
    resolution_px: int
    recipe: Recipe
    """The family's own."""
    memory: MemoryFacts


def counted_builds() -> dict[str, CountedBuild]:
    """The builds with a real model's shape, in their order of definition; see ``FILE``."""
    kept: Mapping[str, Any] = json.loads(FILE.read_text())
    names = [name for name in get_args(BuiltName) if not name.startswith("tiny")]
    return {name: _read(kept[name]) for name in names if name in kept}


def count_build(name: str) -> CountedBuild:
    """Count a build on tensors without storage."""
    from farm.base.loading import load_base  # imports torch; reading the file does not

    base = load_base(name, device="meta")
    recipe = Recipe.model_validate(base.recipe)
    counts = base.denoiser_counts()
    if counts is not None:  # layers outside the recipe would make the file large
        widths = {
            ending: counts.adapter_parameters([ending], 1) for ending in recipe.target_modules
        }
        counts = replace(counts, layer_widths=widths)
    memory = replace(base.memory, counts=counts).halved()
    return CountedBuild(base.family.title, base.resolution_px, recipe, memory)


def _read(value: Mapping[str, Any]) -> CountedBuild:
    memory = dict(value["memory"])
    if memory["counts"] is not None:
        memory["counts"] = DenoiserCounts(**memory["counts"])
    recipe = Recipe.model_validate_json(json.dumps(value["recipe"]))
    return CountedBuild(value["title"], value["resolution_px"], recipe, MemoryFacts(**memory))


def _written(build: CountedBuild) -> dict[str, Any]:
    recipe = build.recipe.model_dump(mode="json", exclude_defaults=True)
    return {
        "title": build.title,
        "resolution_px": build.resolution_px,
        "recipe": recipe,
        "memory": asdict(build.memory),
    }


if __name__ == "__main__":
    names = [name for name in get_args(BuiltName) if not name.startswith("tiny")]
    counted = {name: _written(count_build(name)) for name in names}
    FILE.write_text(json.dumps(counted, indent=2) + "\n")
