from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Draw, Write

from farm.errors import Fault
from farm.intake.manifest import Manifest

FaultsOf = Callable[..., list[Fault]]
ManifestOf = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def _photos(draw_subject: Draw) -> None:
    for name in ("tom", "rex"):
        draw_subject(name, 3)


def rows(extra: str = "") -> str:
    lines = [
        f'{{"file_name": "{name}/{n}.png", "text": "a [V] {noun}", "label": "{noun}"{extra}}}'
        for name, noun in (("tom", "cat"), ("rex", "dog"))
        for n in range(3)
    ]
    return "\n".join(lines) + "\n"


def test_rows_are_grouped_by_their_folder(manifest_of: ManifestOf):
    tom, rex = manifest_of(rows(), "metadata.jsonl").subjects
    assert (tom.id, tom.class_noun, rex.id, rex.class_noun) == ("tom", "cat", "rex", "dog")
    assert [photo.caption for photo in rex.photos] == ["a [V] dog"] * 3


def test_a_subject_column_groups_them_otherwise(faults_of: FaultsOf, manifest_of: ManifestOf):
    text = rows(', "subject": "both"')
    assert "a cat above, and a dog here" in faults_of(text, "metadata.jsonl")[0].message
    same = manifest_of(text.replace("dog", "cat"), "metadata.jsonl").subjects
    assert [(subject.id, len(subject.photos)) for subject in same] == [("both", 6)]


def test_a_table_says_the_same(manifest_of: ManifestOf):
    lines = "".join(f"tom/{n}.png,[V],cat\n" for n in range(3))
    (tom,) = manifest_of("file_name,text,class\n" + lines, "metadata.csv").subjects
    assert (tom.id, tom.class_noun, len(tom.photos)) == ("tom", "cat", 3)


def test_a_missing_class_may_come_from_a_head(manifest_of: ManifestOf, write: Write):
    write("metadata.jsonl", '{"file_name": "tom/0.png"}\n{"file_name": "tom/1.png"}\n')
    text = "defaults: {class_noun: cat}\nsubjects: metadata.jsonl\n"
    assert manifest_of(text).subjects[0].class_noun == "cat"


def test_faults_have_the_lines_of_the_metadata(faults_of: FaultsOf):
    text = '{"file_name": "tom/0.png", "label": "cat"}\n{"label": "cat"}\n'
    text += '{"file_name": "tom/9.png", "text": "a cat"}\n'
    faults = faults_of(text, "metadata.jsonl")
    assert {fault.line for fault in faults if fault.severity == "error"} == {2, 3}
