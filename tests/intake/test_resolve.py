"""Prompts, captions and photo lists, through the manifest that a user writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.factories import Draw, Write

from farm.errors import Fault
from farm.intake.manifest import Manifest

FaultsOf = Callable[..., list[Fault]]
ManifestOf = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def _photos(draw_subject: Draw) -> None:
    draw_subject("tom")


def subject(fields: str) -> str:
    return f"subjects:\n- id: tom\n  class_noun: cat\n  {fields}\n"


# -- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ("instance_prompt: a photo of a cat", "instance_prompt", "does not name the subject"),
        ("class_prompt: 'a photo of a [V] cat'", "class_prompt", "names the subject"),
        ("class_prompt: a photo of an sks cat", "class_prompt", "names the subject"),
        ("identifier: cat", "identifier", "a word of the class noun"),
        (
            "instance_prompt: 'a [V] {class}'",
            "instance_prompt",
            "{class} is not a known placeholder",
        ),
        ("photos: {tom/0.png: a cat}", "photos.tom/0.png", "caption of 0.png"),
        ("photos: [{uri: tom/0.png, caption: a cat}]", "photos[0]", "caption of 0.png"),
        ("captions: {0.png: a cat}", "captions.0.png", "caption of 0.png"),
        ("captions: {7.png: '[V] cat'}", "captions.7.png", "captions no photo"),
    ],
)
def test_prompts_that_cannot_teach_are_errors(
    faults_of: FaultsOf, fields: str, field: str, words: str
):
    errors = [fault for fault in faults_of(subject(fields)) if fault.severity == "error"]
    assert [(fault.line, fault.field) for fault in errors] == [(4, f"subjects[0].{field}")]
    assert words in errors[0].message
    assert errors[0].remedy


def test_a_prompt_that_grows_too_long_by_its_noun_is_told(faults_of: FaultsOf):
    text = "[V] " + "{class_noun} " * 70
    noun = "x" * 99
    (fault,) = faults_of(f"subjects:\n- {{id: tom, class_noun: {noun}, class_prompt: '{text}'}}\n")
    assert fault.field == "subjects[0].class_prompt"
    assert "1 to 1,000 characters" in fault.remedy


def test_a_class_prompt_is_free_where_no_prior_is_kept(manifest_of: ManifestOf):
    text = subject("class_prompt: a [V] cat\n  preset: style")
    assert manifest_of(text).subjects


def test_sample_prompts_that_all_show_the_class_are_a_warning(
    faults_of: FaultsOf, manifest_of: ManifestOf
):
    (fault,) = faults_of(subject("sample_prompts: [a photo of a cat, a cat]"))
    assert fault.severity == "warning"
    assert "no sample prompt names the subject" in fault.message
    assert not manifest_of(subject("sample_prompts: [a photo of a cat, a sks cat]")).faults


def test_a_wrong_default_prompt_is_told_at_the_default(faults_of: FaultsOf):
    text = "defaults:\n  instance_prompt: a cat\n" + subject("photos: tom")
    (fault,) = faults_of(text)
    assert (fault.line, fault.field) == (2, "defaults.instance_prompt")


def test_the_identifier_itself_names_the_subject(manifest_of: ManifestOf):
    made = manifest_of(subject("instance_prompt: photo of a zwx cat\n  identifier: zwx")).subjects[
        0
    ]
    assert made.photo_prompts[0] == "photo of a zwx cat"


# -- captions -------------------------------------------------------------------------------------


def test_captions_come_from_texts_beside_the_photos(manifest_of: ManifestOf, write: Write):
    write("tom/1.txt", "a [V] cat asleep")
    captions = [photo.caption for photo in manifest_of(subject("photos: tom")).subjects[0].photos]
    assert captions == [None, "a [V] cat asleep", None, None]


def test_captions_of_files_can_be_left_aside(manifest_of: ManifestOf, write: Write):
    write("tom/1.txt", "an unrelated note")
    made = manifest_of(subject("captions: none")).subjects[0]
    assert [photo.caption for photo in made.photos] == [None] * 4


def test_the_manifests_caption_wins_over_the_files(manifest_of: ManifestOf, write: Write):
    write("tom/1.txt", "[V] from the file")
    made = manifest_of(subject("captions: {1.png: '[V] from the manifest'}")).subjects[0]
    assert made.photos[1].caption == "[V] from the manifest"


def test_a_wrong_caption_in_a_file_is_told_in_that_file(faults_of: FaultsOf, write: Write):
    path = write(
        "tom/metadata.jsonl", '{"file_name": "0.png"}\n{"file_name": "2.png", "text": "x"}'
    )
    (fault,) = faults_of(subject("photos: tom"))
    assert (fault.file, fault.line, fault.subject) == (str(path), 2, "tom")


# -- photos ---------------------------------------------------------------------------------------


def test_every_form_of_photos_is_taken(manifest_of: ManifestOf):
    expected = [f"{number}.png" for number in range(4)]
    for written in (
        "tom",
        "tom/*.png",
        "[tom]",
        "[tom/0.png, 'tom/[123].png']",
        "{uri: tom}",
        "[{uri: tom/0.png, caption: '[V]'}, tom/1.png, tom/2.png, tom/3.png]",
        "{tom/0.png: , tom/1.png: '[V]', tom/2.png: , tom/3.png: }",
    ):
        made = manifest_of(subject(f"photos: {written}")).subjects[0]
        assert [photo.uri.rsplit("/", 1)[-1] for photo in made.photos] == expected, written


@pytest.mark.parametrize(
    ("written", "field", "words"),
    [
        ("[]", "photos", "is empty"),
        ("3", "photos", "no place of photos"),
        ("[tom, 3]", "photos[1]", "is not a mapping"),
        ("[{url: tom}]", "photos[0].url", "unknown key `url`"),
        ("nowhere", "photos", "there is no"),
    ],
)
def test_what_names_no_photos_is_told(faults_of: FaultsOf, written: str, field: str, words: str):
    faults = faults_of(subject(f"photos: {written}"))
    assert f"subjects[0].{field}" in [fault.field for fault in faults]
    assert any(words in fault.message for fault in faults), faults


def test_a_photo_named_twice_is_taken_once(faults_of: FaultsOf, manifest_of: ManifestOf):
    text = subject("photos: [tom, tom/0.png]")
    assert [fault.severity for fault in faults_of(text)] == ["warning"]
    assert len(manifest_of(text).subjects[0].photos) == 4


def test_a_folder_that_is_missing_is_told_beside_what_was_left_out(faults_of: FaultsOf):
    (fault,) = faults_of("subjects:\n- {id: felix, class_noun: cat}\n")
    assert "no folder `felix` beside the manifest" in fault.message


def test_too_few_photos_are_a_warning(faults_of: FaultsOf):
    (fault,) = faults_of(subject("photos: [tom/0.png, tom/1.png]"))
    assert (fault.severity, fault.message) == ("warning", "only 2 photos")


def test_photos_that_no_step_would_see_are_a_warning(faults_of: FaultsOf):
    (fault,) = faults_of(subject("recipe: {steps: 3}"))
    assert fault.severity == "warning"
    assert "3 steps show 1 each" in fault.message
