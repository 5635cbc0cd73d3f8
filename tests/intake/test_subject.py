from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from farm.intake.subject import Name, Photo, PriorSettings, Subject, names_identifier
from farm.schedulers import SCHEDULERS, SchedulerName

PHOTOS = (Photo("/a.png"), Photo("/b.png", "[V] cat asleep"))
names = TypeAdapter(Name)


def cat(**fields: object) -> Subject:
    return Subject.model_validate({"id": "tom", "class_noun": "cat", "photos": PHOTOS, **fields})


def test_prompts_name_the_class_and_keep_the_placeholder():
    subject = cat(class_noun="stuffed animal")
    assert subject.instance_prompt == "a photo of [V] stuffed animal"
    assert subject.class_prompt == "a photo of a stuffed animal"
    assert subject.prompt("a [V] cat") == "a sks cat"


def test_a_caption_stands_in_for_the_instance_prompt():
    assert cat(identifier="zwx").photo_prompts == ("a photo of zwx cat", "zwx cat asleep")


def test_the_name_is_the_id_unless_given():
    assert cat().name == "tom"
    assert cat(name="tommy").name == "tommy"


def test_subjects_survive_json_and_pickle():
    subject = cat(priority=3, class_images=("/c.png",))
    assert Subject.model_validate_json(subject.model_dump_json()) == subject
    assert pickle.loads(pickle.dumps(subject)) == subject


def test_a_subject_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        cat().priority = 4


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "a/b", "a..b", "-a", ".a", "a.", "a b", "ä", "a\n", "a" * 129, "a\\b", "a\0b"],
)
def test_names_that_could_leave_a_folder_are_refused(bad: str):
    with pytest.raises(ValidationError):
        names.validate_python(bad)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", fullmatch=True))
def test_accepted_names_are_one_plain_path_part(name: str):
    try:
        names.validate_python(name)
    except ValidationError:
        assert ".." in name or name.endswith(".")
        return
    assert ".." not in name
    assert not name.endswith(".")


@pytest.mark.parametrize("bad", ["", "two words", "[V]", "a{b}", "x" * 65, "tab\t"])
def test_an_identifier_is_one_word_without_brackets(bad: str):
    with pytest.raises(ValidationError):
        cat(identifier=bad)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a photo of [V] cat", True),
        ("a photo of sks cat", True),
        ("sks", True),
        ("a photo of a cat", False),
        ("asksb", False),
        ("sksy cat", False),
        ("<sks>, a cat", True),
        ("Sks cat on a sofa", True),
    ],
)
def test_the_identifier_counts_as_a_whole_word_only(prompt: str, named: bool):
    assert names_identifier(prompt, "sks") is named


@pytest.mark.parametrize("name", SCHEDULERS)
def test_class_images_may_be_drawn_with_every_scheduler(name: SchedulerName) -> None:
    assert PriorSettings(scheduler=name).scheduler == name
