from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from farm.errors import Fault
from farm.intake.faults import expected, faults_of, nearest, slug, validated
from farm.intake.manifest import read_manifest
from farm.intake.rows import ManifestRow
from farm.intake.schema import Head, SubjectEntry
from farm.recipe import Recipe
from farm.text.safe_names import NAME_PATTERN


def told(model: type[BaseModel], value: dict[str, object]) -> list[Fault]:
    row = ManifestRow(value, "m.yaml", "/", 3, {(key,): 10 + n for n, key in enumerate(value)})
    with pytest.raises(ValidationError) as caught:
        model.model_validate(value)
    return faults_of(caught.value, row, model)


@pytest.mark.parametrize(
    ("value", "message", "remedy"),
    [
        ({"rnak": 4}, "unknown key `rnak`", "did you mean `rank`?"),
        ({"learning-rate": 1}, "unknown key `learning-rate`", "did you mean `learning_rate`?"),
        ({"rank": 0}, "0 is out of range", "give a whole number from 1 to 256"),
        ({"rank": "lots"}, "`lots` is not a whole number", "give a whole number from 1 to 256"),
        ({"learning_rate": 0}, "0 is out of range", "give a number above 0 and at most 1"),
        ({"flip": []}, "a list is not true or false", "give true or false"),
        (
            {"learning_rate_schedule": "cosin"},
            "`cosin` is none of the choices",
            "did you mean `cosine`?",
        ),
        (
            {"early_stop": {"pacience": 3}},
            "unknown key `pacience`",
            "did you mean `patience`?",
        ),
        ({"steps": 5, "warmup_steps": 9}, "warmup_steps must be smaller than steps", "change"),
    ],
)
def test_recipe_faults_say_what_to_write(value: dict[str, object], message: str, remedy: str):
    faults = told(Recipe, value)
    assert len(faults) == 1
    assert faults[0].message == message
    assert remedy in faults[0].remedy


def test_all_faults_of_a_row_are_told_with_their_lines():
    faults = told(SubjectEntry, {"id": "my cat", "clas_noun": "cat", "priority": "high"})
    assert {(fault.line, fault.field) for fault in faults} == {
        (10, "id"),
        (11, "clas_noun"),
        (12, "priority"),
    }
    by_field = {fault.field: fault for fault in faults}
    assert "`my-cat`" in by_field["id"].remedy
    assert "`class_noun`" in by_field["clas_noun"].remedy


def test_a_missing_field_says_what_belongs_there():
    assert told(SubjectEntry, {})[0].remedy.startswith("add `id`: a name of letters")


def test_a_far_off_key_is_answered_with_all_known_ones():
    assert nearest("zzz", ["rank", "steps"]) == "known here: rank, steps"
    assert nearest("zzz", []) == "remove it"


def test_a_refused_field_does_not_hide_the_others():
    value = {"defaults": {"identifer": "x", "namespace": "studio"}, "version": 1}
    head, faults = validated(Head, value, ManifestRow(value, "m", "/"))
    assert head is not None
    assert head.defaults.namespace == "studio"
    assert [fault.field for fault in faults] == ["defaults.identifer"]


def test_every_recipe_field_is_described():
    for field in Recipe.model_fields:
        assert expected(Recipe, (field,)) != "another value", field


@given(st.text(max_size=200))
def test_a_slug_is_always_a_name(text: str):
    made = slug(text)
    assert re.fullmatch(NAME_PATTERN, made)
    assert len(made) <= 128
    assert slug(made) == made


def test_a_folder_whose_name_is_no_id_can_keep_its_name(tmp_path: Path):
    table = tmp_path / "subjects.csv"
    table.write_text("subject,class\nкот,cat\n")
    (fault, *_) = [
        one for one in read_manifest(str(table), strict=False).faults if one.field == "id"
    ]
    assert "add `photos`: `кот`" in fault.remedy


def test_accents_are_dropped_and_names_of_other_scripts_stay_apart():
    assert slug("Käfer süß 🐞") == "Kafer-suss"
    assert slug(unicodedata.normalize("NFD", "café")) == slug("café") == "cafe"
    ids = [slug(name) for name in ("кот", "пёс", "猫 cat", "犬 cat", "1_猫 cat")]
    assert len(set(ids)) == len(ids)
    assert re.fullmatch(r"subject-[0-9a-f]{6}", ids[0])
