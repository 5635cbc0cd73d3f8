from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from support.factories import Draw, Write

from farm.errors import Fault, ManifestError
from farm.intake.manifest import Manifest, read_manifest
from farm.recipe import PRESETS, EarlyStop

FaultsOf = Callable[..., list[Fault]]
ManifestOf = Callable[..., Manifest]

YAML = """
    version: 1
    defaults:
      class_noun: cat
      namespace: studio
      recipe: {steps: 300}
    subjects:
      - id: tom
        photos: tom
        recipe: {rank: 8}
      - id: rex
        photos: [rex/0.png, rex/1.png, rex/2.png]
        class_noun: dog
        priority: 5
"""


@pytest.fixture(autouse=True)
def _photos(draw_subject: Draw) -> None:
    for name in ("tom", "rex"):
        draw_subject(name)


def test_defaults_reach_every_subject_and_give_way_to_its_own(manifest_of: ManifestOf):
    tom, rex = manifest_of(YAML).subjects
    assert (tom.class_noun, rex.class_noun) == ("cat", "dog")
    assert tom.namespace == rex.namespace == "studio"
    assert (tom.recipe.steps, tom.recipe.rank) == (300, 8)
    assert (rex.recipe.steps, rex.recipe.rank, rex.priority) == (300, 4, 5)
    assert (len(tom.photos), len(rex.photos)) == (4, 3)
    assert tom.instance_prompt == "a photo of [V] cat"


def test_every_form_says_the_same(manifest_of: ManifestOf, tmp_path: Path):
    rows = [
        {"id": "tom", "class_noun": "cat", "photos": "tom", "recipe": {"steps": 9}},
        {"id": "rex", "class_noun": "dog", "photos": "rex", "priority": 2},
    ]
    csv = "id,class_noun,photos,recipe.steps,priority\ntom,cat,tom,9,\nrex,dog,rex,,2\n"
    expected = manifest_of(json.dumps({"version": 1, "subjects": rows}), "m.json").subjects
    assert (
        manifest_of("".join(json.dumps(row) + "\n" for row in rows), "m.jsonl").subjects == expected
    )
    assert manifest_of(json.dumps(rows), "list.json").subjects == expected
    assert manifest_of(json.dumps(rows), "m.yaml").subjects == expected
    assert manifest_of(csv, "m.csv").subjects == expected
    (tmp_path / "m.parquet").write_bytes(read_manifest(f"{tmp_path}/m.csv").to_parquet())
    assert read_manifest(f"{tmp_path}/m.parquet").subjects == expected


def test_a_manifest_survives_parquet_whole(manifest_of: ManifestOf, tmp_path: Path):
    manifest = manifest_of(
        """
        defaults: {class_noun: cat, preset: style, prior: {steps: 9}}
        subjects:
          - id: tom
            name: tommy
            identifier: zwx
            photos: {tom/0.png: "[V] asleep", tom/1.png: "[V] awake", tom/2.png: "zwx"}
            sample_prompts: ["[V] at sea", "a [V] {class_noun}"]
            class_images: rex
            recipe: {early_stop: {patience: 2}, prior_rows: 2, num_prior_images: 9, snr_gamma: null}
        """
    )
    data = manifest.to_parquet()
    (tmp_path / "run.parquet").write_bytes(data)
    again = read_manifest(f"{tmp_path}/run.parquet")
    assert again.subjects == manifest.subjects
    assert again.to_parquet() == data
    assert manifest.subjects[0].recipe.snr_gamma is None
    assert len(manifest.subjects[0].class_images) == 4


def test_captions_are_resolved_for_good(manifest_of: ManifestOf, write: Write, tmp_path: Path):
    write("tom/0.txt", "[V] asleep")
    manifest = manifest_of("subjects:\n- {id: tom, class_noun: cat}\n")
    (tmp_path / "run.parquet").write_bytes(manifest.to_parquet())
    write("tom/0.txt", "[V] awake")
    write("tom/1.txt", "[V] new")
    assert read_manifest(f"{tmp_path}/run.parquet").subjects == manifest.subjects


def test_an_empty_manifest_has_a_parquet_form_too(manifest_of: ManifestOf, tmp_path: Path):
    empty = Manifest("none", ())
    (tmp_path / "none.parquet").write_bytes(empty.to_parquet())
    with pytest.raises(ManifestError, match="no subjects"):
        read_manifest(f"{tmp_path}/none.parquet")


def test_manifests_and_photos_may_lie_in_a_store(write: Write, tmp_path: Path):
    store = fsspec.filesystem("memory")
    store.store.clear()
    write("manifest.yaml", YAML)
    store.put(f"{tmp_path}/", "/bucket/job/", recursive=True)
    tom, rex = read_manifest("memory://bucket/job/manifest.yaml").subjects
    assert tom.photos[0].uri == "memory://bucket/job/tom/0.png"
    assert [photo.uri for photo in rex.photos][-1] == "memory://bucket/job/rex/2.png"


def test_a_head_may_name_a_table(manifest_of: ManifestOf, write: Write):
    write("table/rows.csv", "id,photos\ntom,../tom\nrex,../rex\n")
    manifest = manifest_of("defaults: {class_noun: cat}\nsubjects: table/rows.csv\n")
    assert [subject.id for subject in manifest.subjects] == ["tom", "rex"]
    assert {subject.class_noun for subject in manifest.subjects} == {"cat"}


def test_a_head_may_name_the_folder_that_it_lies_in(manifest_of: ManifestOf):
    manifest = manifest_of("defaults: {class_noun: cat}\nsubjects: .\n")
    assert [subject.id for subject in manifest.subjects] == ["rex", "tom"]


def test_heads_that_name_each_other_are_told(faults_of: FaultsOf, write: Write):
    write("b.yaml", "defaults: {}\nsubjects: a.yaml\n")
    faults = faults_of("defaults: {}\nsubjects: b.yaml\n", "a.yaml")
    assert "head of its own" in faults[0].message


def test_the_callers_recipe_wins_over_everything(write: Write):
    path = write("manifest.yaml", YAML)
    manifest = read_manifest(str(path), recipe={"steps": 7})
    assert [subject.recipe.steps for subject in manifest.subjects] == [7, 7]
    assert manifest.subjects[0].recipe.rank == 8


def test_a_nested_field_of_the_callers_recipe_leaves_the_other_ones(
    manifest_of: ManifestOf, tmp_path: Path
):
    manifest_of(
        "subjects:\n- {id: tom, class_noun: cat, recipe: {early_stop: {min_steps: 7}}}\n", "m.yaml"
    )
    path = str(tmp_path / "m.yaml")
    (tom,) = read_manifest(path, recipe={"early_stop": {"patience": 9}}).subjects
    assert tom.recipe.early_stop == EarlyStop(min_steps=7, patience=9)
    (fault,) = read_manifest(path, strict=False, recipe={"early_stop.patience": 9}).errors
    assert fault.remedy == "nest it: `early_stop: {patience: …}`"


def test_ids_and_names_that_differ_only_in_case_are_refused(faults_of: FaultsOf):
    faults = faults_of(
        """
        defaults: {class_noun: cat}
        subjects:
          - {id: tom}
          - {id: Tom, photos: rex}
          - {id: rex, name: TOM}
        """
    )
    assert [fault.message.partition(";")[0] for fault in faults if fault.severity == "error"] == [
        "`Tom` differs only in case from `tom`",
        "`default/TOM` differs only in case from `default/tom`",
    ]


def test_a_wrong_field_of_the_caller_is_told_once(write: Write):
    path = write("manifest.yaml", YAML)
    manifest = read_manifest(str(path), strict=False, recipe={"stepps": 7, "rank": 2})
    (fault,) = manifest.faults
    assert (fault.file, fault.field) == ("the command line", "recipe.stepps")
    assert [subject.recipe.rank for subject in manifest.subjects] == [2, 2]


def test_the_callers_fields_are_judged_together_with_the_subjects(write: Write):
    path = write("manifest.yaml", YAML.replace("steps: 300", "steps: 3000"))
    manifest = read_manifest(str(path), recipe={"warmup_steps": 900})
    assert manifest.subjects[0].recipe.warmup_steps == 900
    faults = read_manifest(str(path), strict=False, recipe={"warmup_steps": 3000}).faults
    assert {fault.message for fault in faults} == {"warmup_steps must be smaller than steps"}


def test_class_images_are_given_per_class(manifest_of: ManifestOf):
    tom, rex = manifest_of(YAML.rstrip() + "\n    class_images: {dog: rex}\n").subjects
    assert tom.class_images == ()
    assert len(rex.class_images) == 4


def test_photos_default_to_the_folder_of_the_id(manifest_of: ManifestOf):
    manifest = manifest_of("subjects:\n- {id: tom, class_noun: cat}\n")
    assert len(manifest.subjects[0].photos) == 4


def test_numbers_are_good_ids(manifest_of: ManifestOf):
    manifest = manifest_of(
        "defaults: {class_noun: cat}\nsubjects:\n- {id: 7, photos: tom}\n- {id: 007, photos: tom}"
    )
    assert [subject.id for subject in manifest.subjects] == ["7", "007"]


def test_all_faults_are_told_at_once_with_their_lines(faults_of: FaultsOf):
    faults = faults_of(
        """
        verson: 1
        defaults:
          recipe: {rank: 0}
          identifer: zwx
        subjects:
          - id: tom
            class_noun: cat
            photos: tomm
          - id: tom
            photos: rex
            recipe: {steps: lots, rnak: 4}
          - id: a/b
            class_noun: dog
            photos: []
          - class_noun: dog
            photos: rex
            instance_prompt: a photo of a dog
        """
    )
    errors = {(fault.line, fault.field) for fault in faults if fault.severity == "error"}
    assert errors == {
        (1, "verson"),
        (3, "defaults.recipe.rank"),
        (4, "defaults.identifer"),
        (8, "subjects[0].photos"),
        (9, "subjects[1].id"),
        (9, "subjects[1].class_noun"),
        (11, "subjects[1].recipe.steps"),
        (11, "subjects[1].recipe.rnak"),
        (12, "subjects[2].id"),
        (14, "subjects[2].photos"),
        (15, "subjects[3].id"),
        (17, "subjects[3].instance_prompt"),
    }
    assert all(fault.remedy and fault.file for fault in faults)


def test_an_error_carries_every_fault(write: Write):
    path = write("manifest.yaml", "subjects:\n- {id: a b}\n- {id: c}\n")
    with pytest.raises(ManifestError) as told:
        read_manifest(str(path))
    assert told.value.exit_code == 3
    assert len(told.value.faults) >= 4
    assert f"{path}:2" in str(told.value)


def test_two_subjects_of_one_name_are_told(faults_of: FaultsOf):
    faults = faults_of(
        """
        defaults: {class_noun: cat}
        subjects:
          - {id: a, name: x, photos: tom}
          - {id: b, name: x, photos: tom}
          - {id: c, name: x, photos: tom, namespace: other}
        """
    )
    assert [(fault.line, fault.field) for fault in faults] == [(4, "subjects[1].name")]
    assert "manifest.yaml:3" in faults[0].message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.yaml", "", "empty"),
        ("m.yaml", "subjects: []\n", "no subjects"),
        ("m.json", "{}", "no subjects"),
        ("m.jsonl", "", "no subjects"),
        ("m.csv", "id,photos\n", "no subjects"),
        ("m.yaml", "subjects: nowhere.csv\n", "there is no"),
        ("m.yaml", "subjects: 3\n", "no subjects"),
        ("m.yaml", "version: 2\nsubjects: []\n", "2 is not `1`"),
    ],
)
def test_manifests_of_nothing_are_told(faults_of: FaultsOf, name: str, text: str, words: str):
    faults = faults_of(text, name)
    assert any(words in fault.message for fault in faults), faults


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.yaml", None, "there is no"),
        ("none", None, "there is no"),
        ("m.txt", b"x", "unknown manifest extension"),
        ("m.yaml", b"id: \xff\xfe\n", "cannot be read"),
        ("empty", "folder", "neither a manifest nor folders"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, name: str, data: object, words: str):
    path = tmp_path / "other" / name
    path.parent.mkdir()
    if data == "folder":
        path.mkdir()
    elif isinstance(data, bytes):
        path.write_bytes(data)
    with pytest.raises(ManifestError, match=words) as told:
        read_manifest(str(path))
    assert told.value.remedy


def test_presets_start_the_recipe(manifest_of: ManifestOf):
    manifest = manifest_of(
        "defaults: {preset: object, class_noun: cat}\nsubjects:\n- {id: rex}\n"
        "- {id: tom, preset: live}\n"
    )
    assert [subject.recipe.steps for subject in manifest.subjects] == [
        PRESETS["object"]["steps"],
        PRESETS["live"]["steps"],
    ]


def test_a_manifest_of_faults_alone_reports_their_number_and_keeps_few(faults_of: FaultsOf):
    faults = faults_of("x\n" * 11_000, "m.jsonl")
    assert len(faults) == 10_001
    assert sum(fault.count for fault in faults) == 11_000
    faults = faults_of("id,class_noun\n" + "a,b,c\n" * 1_500, "m.csv")
    assert "500 more rows above have too many cells" in faults[-1].message


def test_a_subject_with_an_error_beyond_its_kept_warnings_is_not_trained(
    draw_subject: Draw, write: Write
):
    draw_subject("cat")
    photos = ["cat/0.png"] * 1_200 + ["missing.png"]
    subject = {"id": "cat", "class_noun": "cat", "photos": photos}
    manifest = read_manifest(str(write("m.json", json.dumps([subject]))), strict=False)
    assert not manifest.subjects
    assert len(manifest.faults) < 1_100
    assert any("missing.png" in fault.message for fault in manifest.errors)
