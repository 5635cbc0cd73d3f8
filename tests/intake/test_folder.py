from __future__ import annotations

from pathlib import Path

from conftest import Draw, Write

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


def test_a_manifest_in_the_folder_wins(draw_subject: Draw, write: Write, tmp_path: Path):
    draw_subject("tom")
    write("subjects.csv", "subject,class\ntom,dog\n")
    write("manifest.yaml", "subjects:\n- {id: tom, class_noun: cat}\n")
    assert read_manifest(str(tmp_path)).subjects[0].class_noun == "cat"
