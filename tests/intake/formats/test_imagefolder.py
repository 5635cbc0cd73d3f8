from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.factories import Draw, Write

from farm.errors import Fault
from farm.intake.manifest import Manifest, read_manifest

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


def table(mark: str = ",", columns: str = "file_name,text,class") -> str:
    lines = [columns, *(f"tom/{n}.png,[V],cat" for n in range(3))]
    return "\n".join(line.replace(",", mark) for line in lines) + "\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "sep=;\n" + table(";")),
        ("metadata.csv", table("\t", "File Name,Caption,Label")),
        ("photos.csv", table(",", "image,prompt,class")),
        ("data.tsv", table("\t")),
        ("metadata.csv", table(";", "image_file_name,text,class")),
        ("metadata.csv", rows()),
        ("train.json", "[" + ",\n".join(rows().splitlines()) + "]"),
        ("train.json", rows()),
        ("train.ndjson", rows()),
    ],
)
def test_columns_and_content_say_that_a_table_is_one_of_photos(
    manifest_of: ManifestOf, name: str, text: str
):
    tom = manifest_of(text, name).subjects[0]
    assert (tom.id, tom.class_noun, len(tom.photos)) == ("tom", "cat", 3)
    assert all(photo.caption for photo in tom.photos)


@pytest.mark.parametrize("name", ["metadata.parquet", "train.parquet", "metadata.csv"])
def test_parquet_says_the_same_whatever_its_name(tmp_path: Path, name: str):
    columns = {"file_name": [f"tom/{n}.png" for n in range(3)], "text": ["[V]"] * 3}
    pq.write_table(pa.table({**columns, "class": ["cat"] * 3}), tmp_path / name)
    (tom,) = read_manifest(str(tmp_path / name)).subjects
    assert (tom.id, len(tom.photos), tom.photos[0].caption) == ("tom", 3, "[V]")


def test_a_folder_with_parquet_metadata_is_a_manifest(tmp_path: Path):
    columns = {"file_name": ["tom/0.png", "tom/1.png", "tom/2.png"], "label": ["cat"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    assert [one.id for one in read_manifest(str(tmp_path)).subjects] == ["tom"]


def test_photos_inside_a_table_are_told(tmp_path: Path):
    image = {"bytes": b"x", "path": "0.png"}
    pq.write_table(pa.table({"image": [image], "text": ["[V]"]}), tmp_path / "train.parquet")
    (fault,) = read_manifest(str(tmp_path / "train.parquet"), strict=False).faults
    assert "inside the table" in fault.message


def test_a_table_of_subjects_may_have_any_name(manifest_of: ManifestOf):
    (tom,) = manifest_of("id;class_noun;photos\ntom;cat;tom\n", "metadata.csv").subjects
    assert (tom.id, len(tom.photos)) == ("tom", 3)
    (rex,) = manifest_of("subjects: [{id: rex, class_noun: dog}]\n", "metadata.yaml").subjects
    assert (rex.id, len(rex.photos)) == ("rex", 3)


def test_metadata_without_a_column_of_photos_names_its_columns(faults_of: FaultsOf):
    fault = faults_of("bild;worte\ntom/0.png;[V]\n", "metadata.csv")[0]
    assert "`bild`, `worte`" in fault.message


def test_the_train_split_alone_is_trained(draw_subject: Draw, tmp_path: Path):
    for name in ("d/train/cat", "d/train/dog_house", "d/test/cat"):
        draw_subject(name, 3)
    manifest = read_manifest(str(tmp_path / "d"))
    assert [(one.id, one.class_noun) for one in manifest.subjects] == [
        ("cat", "cat"),
        ("dog_house", "dog house"),
    ]
    told = " ".join(fault.message for fault in manifest.faults)
    assert "`test` is not trained on" in told
    assert "its name the class" in told


def test_a_split_may_hold_the_metadata(draw_subject: Draw, write: Write, tmp_path: Path):
    draw_subject("pets/train", 3)
    draw_subject("pets/validation", 3)
    lines = "".join(f"{n}.png,[V] {n},cat\n" for n in range(3))
    write("pets/train/metadata.csv", "file_name,text,label\n" + lines)
    (pets,) = read_manifest(str(tmp_path / "pets")).subjects
    assert (pets.id, pets.class_noun, len(pets.photos)) == ("pets", "cat", 3)


def test_rows_of_other_splits_are_told(draw_subject: Draw, faults_of: FaultsOf):
    draw_subject("train/tom", 3)
    lines = "".join(f"train/tom/{n}.png,cat\n" for n in range(3)) + "test/tom/0.png,cat\n"
    (fault,) = faults_of("file_name,label\n" + lines, "metadata.csv")
    assert (fault.severity, fault.line) == ("warning", 5)
    assert "`test`" in fault.message


@pytest.mark.parametrize(
    ("text", "message", "severity"),
    [
        (
            "file_name,text,caption,class\ntom/0.png,[V] a,[V] b,cat",
            "those in `text` are not",
            "warning",
        ),
        ("file_name,class,class\ntom/0.png,cat,dog", "`class` is given 2 times", "error"),
        (
            '{"file_name": "tom/0.png", "text": {"en": "[V]"}, "class": "cat"}',
            "is not text",
            "error",
        ),
    ],
)
def test_what_a_row_says_twice_or_in_another_form_is_told(
    faults_of: FaultsOf, text: str, message: str, severity: str
):
    (fault,) = [one for one in faults_of(text, "metadata.csv") if "only 1 photo" not in one.message]
    assert message in fault.message
    assert (fault.severity, fault.line is not None) == (severity, True)


def test_photos_that_no_row_names_are_told(write: Write, tmp_path: Path):
    write("metadata.csv", "file_name,class\n" + "".join(f"{n}/0.png,cat\n" for n in ("tom", "rex")))
    told = " ".join(fault.message for fault in read_manifest(str(tmp_path)).faults)
    assert "4 photos belong to no subject and will not be trained: `rex/1.png`" in told


def test_the_data_folder_of_a_hub_data_set_is_read(draw_subject: Draw, tmp_path: Path):
    for name in ("set/data/train/cat", "set/data/test/cat", "other/wrapped/train/cat"):
        draw_subject(name, 3)
    for name in ("set", "other"):
        assert [one.id for one in read_manifest(str(tmp_path / name)).subjects] == ["cat"]


def test_a_split_name_alone_is_a_subject(draw_subject: Draw, manifest_of: ManifestOf):
    draw_subject("test", 3)
    lines = "".join(f"test/{n}.png,cat\n" for n in range(3))
    assert manifest_of("file_name,label\n" + lines, "metadata.csv").subjects[0].id == "test"


def test_names_of_photos_match_in_one_unicode_form(draw: Draw, manifest_of: ManifestOf):
    draw(unicodedata.normalize("NFD", "tom/café.png"))
    text = f"file_name,text,class\n{unicodedata.normalize('NFC', 'tom/café.png')},[V],cat\n"
    assert len(manifest_of(text, "metadata.csv").subjects[0].photos) == 1
