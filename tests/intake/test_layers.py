from __future__ import annotations

from farm.errors import Fault
from farm.intake.layers import Layers
from farm.intake.rows import ManifestRow
from farm.recipe import PRESETS, EarlyStop

HEAD = ManifestRow(
    {}, "m.yaml", "/", 1, {("defaults", "recipe"): 2, ("defaults", "recipe", "rank"): 3}
)
ROW = ManifestRow({"id": "tom"}, "m.yaml", "/", 9, {("recipe", "steps"): 10})


def layers(preset=None, recipe=None, prior=None, base=None) -> Layers:
    return Layers(HEAD, preset, recipe, prior, base)


def test_the_subject_wins_over_the_defaults_and_they_over_the_preset():
    made = layers("live", {"steps": 300, "rank": 16}).recipe(ROW, None, {"steps": 50}, [])
    assert made is not None
    assert (made.steps, made.rank) == (50, 16)
    assert made.prior_weight == PRESETS["live"]["prior_weight"]


def test_a_subjects_preset_replaces_the_defaults_preset():
    made = layers("live", {"steps": 300}).recipe(ROW, "style", None, [])
    assert made is not None
    assert made.rank == PRESETS["style"]["rank"]
    assert made.steps == 300


def test_what_a_base_needs_wins_over_presets_and_yields_to_the_manifest():
    made = layers("object", {"rank": 3}, base={"learning_rate": 0.002, "rank": 8})
    recipe = made.recipe(ROW, "live", {"steps": 7}, [])
    assert (recipe.learning_rate, recipe.rank, recipe.steps) == (0.002, 3, 7)
    assert recipe.prior_weight == PRESETS["live"]["prior_weight"]


def test_mappings_inside_merge_and_null_wipes():
    below = layers(recipe={"early_stop": {"every_steps": 10, "patience": 2}})
    merged = below.recipe(ROW, None, {"early_stop": {"patience": 9}}, [])
    assert merged is not None
    assert merged.early_stop == EarlyStop(every_steps=10, patience=9)
    wiped = below.recipe(ROW, None, {"early_stop": None}, [])
    assert wiped is not None
    assert wiped.early_stop is None


def test_equal_recipes_are_one_object():
    below = layers(recipe={"steps": 9})
    assert below.recipe(ROW, None, None, []) is below.recipe(ROW, None, {"steps": 9}, [])


def test_a_wrong_default_is_told_once_and_not_of_every_subject():
    below = layers(recipe={"rank": 0, "steps": 7})
    assert [(fault.line, fault.field) for fault in below.faults] == [(3, "defaults.recipe.rank")]
    faults: list[Fault] = []
    made = below.recipe(ROW, None, None, faults)
    assert made is not None
    assert made.steps == 7
    assert not faults


def test_a_wrong_field_of_a_subject_is_told_at_its_line():
    faults: list[Fault] = []
    assert layers().recipe(ROW, None, {"steps": True}, faults) is None
    assert [(fault.line, fault.field) for fault in faults] == [(10, "recipe.steps")]


def test_fields_that_do_not_fit_together_are_told_where_they_meet():
    faults: list[Fault] = []
    assert layers("style").recipe(ROW, None, {"prior_rows": 1}, faults) is None
    assert "num_prior_images must be positive" in faults[0].message
    assert "set prior_rows to 0" in faults[0].remedy


def test_the_prior_has_layers_too():
    below = layers(prior={"steps": 9})
    made = below.prior(ROW, {"guidance": 2.0}, [])
    assert made is not None
    assert (made.steps, made.guidance) == (9, 2.0)
    faults: list[Fault] = []
    assert below.prior(ROW, {"scheduler": "eulr"}, faults) is None
    assert "`euler`" in faults[0].remedy


def test_whole_numbers_are_integers_in_whatever_form_they_were_written():
    made = layers(recipe={"steps": 1e3, "early_stop": {"every_steps": 10.0}}).recipe(
        ROW, None, {"rank": 4.0, "prior_weight": 1}, faults := []
    )
    assert not faults
    assert (made.steps, made.rank, made.prior_weight) == (1000, 4, 1.0)
    assert made.early_stop.every_steps == 10
    layers().recipe(ROW, None, {"steps": 1.5}, faults)
    assert "1.5 is not a whole number" in faults[0].message
