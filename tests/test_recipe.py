"""Recipes are frozen, validated, and documented field by field."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from farm.recipe import PRESETS, EarlyStop, Recipe


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_recipe(name: str) -> None:
    assert Recipe(**PRESETS[name]).steps > 0  # type: ignore[index, arg-type]


@pytest.mark.parametrize("model", [Recipe, EarlyStop])
def test_every_field_says_what_it_is_and_why(model: type[Recipe]) -> None:
    for name, field in model.model_fields.items():
        assert field.description or name == "early_stop", name


def test_alpha_defaults_to_rank_and_scales_the_update() -> None:
    assert Recipe(rank=8).scale == 1.0
    assert Recipe(rank=4, alpha=16).scale == 4.0


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"steps": 0},
        {"learning_rate": float("nan")},
        {"unknown": 1},
        {"prior_rows": 1, "num_prior_images": 0},
        {"steps": 10, "warmup_steps": 10},
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**fields)  # type: ignore[arg-type]
