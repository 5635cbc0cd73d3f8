from __future__ import annotations

from pathlib import Path

import pytest
from support.factories import Draw, Write

from farm.errors import ManifestError
from farm.intake.manifest import read_manifest
from farm.recipe import PRESETS


def test_a_folder_of_folders_with_a_table_is_a_manifest(
    draw_subject: Draw, write: Write, tmp_path: Path
):
    for name in ("cat2", "can"):
        draw_subject(name)
    write("subjects.csv", "subject,class,live\ncat2,cat,true\ncan,can,false\n")
    cat, can = read_manifest(str(tmp_path)).subjects
    assert (cat.id, cat.class_noun, len(cat.photos)) == ("cat2", "cat", 4)
    assert cat.recipe.steps == PRESETS["live"]["steps"]
    assert can.recipe.steps == PRESETS["object"]["steps"]


def test_a_subject_without_a_folder_is_told_at_its_row(write: Write, tmp_path: Path):
    write("subjects.csv", "subject,class\ncat2,cat\n")
    (fault,) = read_manifest(str(tmp_path), strict=False).faults
    assert (fault.line, fault.subject) == (2, "cat2")


def test_folders_alone_need_class_nouns(draw_subject: Draw, tmp_path: Path):
    draw_subject("tom")
    (fault,) = read_manifest(str(tmp_path), strict=False).faults
    assert "`class_noun` is missing" in fault.message
    assert fault.file == f"{tmp_path}/tom"


def test_folders_named_as_for_kohya_say_all(draw_subject: Draw, tmp_path: Path):
    draw_subject("10_zwx stuffed animal")
    (subject,) = read_manifest(str(tmp_path)).subjects
    assert (subject.identifier, subject.class_noun) == ("zwx", "stuffed animal")
    assert subject.id == "10_zwx-stuffed-animal"
    assert len(subject.photos) == 4


def test_a_kohya_folder_that_is_switched_off_is_left_out_with_a_word(
    draw_subject: Draw, tmp_path: Path
):
    for name in ("10_sks cat", "0_sks dog"):
        draw_subject(name)
    manifest = read_manifest(str(tmp_path))
    assert [one.class_noun for one in manifest.subjects] == ["cat"]
    (fault,) = manifest.faults
    assert "no repeats" in fault.message


def test_a_manifest_in_the_folder_wins(draw_subject: Draw, write: Write, tmp_path: Path):
    draw_subject("tom")
    write("subjects.csv", "subject,class\ntom,dog\n")
    write("manifest.yaml", "subjects:\n- {id: tom, class_noun: cat}\n")
    assert read_manifest(str(tmp_path)).subjects[0].class_noun == "cat"


def test_a_kohya_project_names_its_folder_of_photos(draw_subject: Draw, tmp_path: Path):
    for name in ("proj/img/10_ohwx man", "proj/reg/1_man"):
        draw_subject(name)
    (tmp_path / "proj/log").mkdir()
    with pytest.raises(ManifestError, match="kohya_ss project") as told:
        read_manifest(str(tmp_path / "proj"))
    assert told.value.remedy.endswith(f"{tmp_path}/proj/img")
    manifest = read_manifest(str(tmp_path / "proj/img"))
    (subject,) = manifest.subjects
    assert (subject.identifier, subject.class_noun) == ("ohwx", "man")
    (fault,) = manifest.faults
    assert "proj/reg are not used" in fault.message


def test_a_caption_in_a_kohya_folder_is_read_as_kohya_does(
    draw_subject: Draw, write: Write, tmp_path: Path
):
    draw_subject("10_ohwx man")
    write("10_ohwx man/0.txt", "ohwx man one\nsecond wording\n")
    manifest = read_manifest(str(tmp_path))
    assert manifest.subjects[0].photos[0].caption == "ohwx man one"
    assert [fault.severity for fault in manifest.faults] == ["warning"]


def test_metadata_beside_a_table_of_subjects_is_told(
    draw_subject: Draw, write: Write, tmp_path: Path
):
    draw_subject("tom")
    write("subjects.csv", "subject,class\ntom,cat\n")
    write("metadata.csv", "file_name,text\ntom/0.png,[V]\n")
    (fault,) = read_manifest(str(tmp_path)).faults
    assert "metadata.csv" in fault.message


def test_photos_without_folders_are_told(draw_subject: Draw, tmp_path: Path):
    with pytest.raises(ManifestError, match="holds photos, not one folder of photos") as told:
        read_manifest(str(draw_subject("tom")))
    assert "name the folder around it" in told.value.remedy


@pytest.mark.parametrize("table", ["Subject;Class;Recipe.learning_rate\ntom;cat;0,002\n"])
def test_a_table_of_a_spreadsheet_is_read(
    draw_subject: Draw, write: Write, tmp_path: Path, table: str
):
    draw_subject("tom")
    (tmp_path / "subjects.csv").write_bytes(("sep=;\r\n" + table).encode("utf-16"))
    (tom,) = read_manifest(str(tmp_path)).subjects
    assert (tom.class_noun, tom.recipe.learning_rate) == ("cat", 0.002)


def test_a_workbook_named_csv_is_refused_as_a_workbook(tmp_path: Path):
    (tmp_path / "subjects.csv").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ManifestError) as told:
        read_manifest(str(tmp_path))
    (fault,) = told.value.faults
    assert "Excel workbook" in fault.message


def test_class_label_folders_are_told_how_subjects_are_given(tmp_path: Path, draw: Draw):
    for name in ("cat", "sks dog"):
        draw(f"{name}/0.jpg")
    manifest = read_manifest(str(tmp_path), strict=False)
    cat, dog = (fault.remedy for fault in manifest.errors)
    assert "subjects.csv" in cat
    assert "different subjects belong in different folders" in cat
    assert "`1_sks dog`" in dog


def test_folders_of_photos_without_a_row_are_reported_once(
    draw_subject: Draw, draw: Draw, write: Write, tmp_path: Path
) -> None:
    for name in ("tom", "elsewhere", "dog2", "forgotten"):
        draw_subject(name)
    draw("work/samples/0.png")
    (tmp_path / "empty").mkdir()
    draw("__MACOSX/0.png")
    write("subjects.csv", "subject,class,photos\ntom,cat,\nada,cat,elsewhere\n")
    manifest = read_manifest(str(tmp_path))
    (fault,) = manifest.faults
    assert fault.severity == "warning"
    assert fault.message == (
        "2 folders of photos have no row and will not be trained: `dog2`, `forgotten`"
    )
    assert fault.remedy == "add a row for each, or remove them"
    assert len(manifest) == 2


def test_a_table_without_rows_is_reported_as_such(write: Write, tmp_path: Path) -> None:
    write("subjects.csv", "subject,class\n")
    (fault,) = read_manifest(str(tmp_path), strict=False).faults
    assert fault.message == "it holds no subjects: no rows below its header"
    assert fault.file.endswith("subjects.csv")


def test_an_unknown_column_is_compared_with_the_columns_of_a_table(
    draw_subject: Draw, write: Write, tmp_path: Path
) -> None:
    draw_subject("tom")
    write("subjects.csv", "subject;klass;zzzzzz\ntom;cat;1\n")
    faults = read_manifest(str(tmp_path), strict=False).faults
    remedies = {fault.field: fault.remedy for fault in faults}
    assert remedies["klass"] == "did you mean `class`?"
    assert remedies["zzzzzz"].startswith("known here: subject, class, live, ")
