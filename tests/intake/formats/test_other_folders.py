"""Folders, tables and settings as people and other tools leave them: nothing in them is dropped
without a word, and what is wrong is named with a remedy that works."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.folders import PHOTOS, Files, photos, read
from support.photos import encoded, picture

from farm.errors import ManifestError
from farm.intake.manifest import read_manifest
from farm.intake.photos.litter import masks_among

TABLE = "subject,class\ntom,cat\n"
ROWS = "file_name,text\ntom/0.png,sks cat a\n"


# -- what is beside or inside the folders of subjects --------------------------------------------


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"captions.csv": ROWS}, "its captions are not read"),
        ({"tom/captions.json": '{"0": "sks cat", "1": "sks cat"}'}, "it names 2 of the photos"),
        ({"metadata.tsv": ROWS.replace(",", "\t")}, "its captions are not read"),
        ({"cap.json": json.dumps({"tom/0.png": {"text": "sks cat"}})}, "its captions are not read"),
        ({"tom/more/9.png": PHOTOS[0]}, "folders in tom are not read: more"),
        ({"tom/captions/0.txt": "sks cat"}, "folders in tom are not read: captions"),
        ({"9.png": PHOTOS[0]}, "1 photo belongs to no subject"),
        ({"tom/0.txt": "sks cat", "tom/0.caption": "sks cat b"}, "`.caption` file is not read"),
        ({"tom/.9.png.icloud": b"bplist"}, "from iCloud"),
        ({"tom/0.caption.txt": "sks cat"}, "1 caption file without a photo"),
        ({"tom/0.json": '{"tags": ["cat"]}'}, "write each `tags` into a text file"),
        ({"tom/0.text": "sks cat"}, "name captions as their photo"),
        ({"tom/9.zip": b"PK"}, "unpack archives"),
        ({"tom/9.numbers": b"PK"}, "CSV UTF-8"),
        ({"tom/9.mp4": b"x"}, "still frames"),
        ({"tom/0-masklabel.png": PHOTOS[0]}, "masks in tom are not used: 0-masklabel.png"),
        ({"tom/0_mask.png": PHOTOS[0]}, "masks in tom are not used: 0_mask.png"),
        ({"tom/0.Mask.jpg": PHOTOS[0]}, "masks in tom are not used: 0.Mask.jpg"),
        ({"tom/masks/0.png": PHOTOS[0]}, "nothing to do if they hold masks"),
    ],
)
def test_what_is_not_used_of_a_folder_is_reported_once(
    tmp_path: Path, more: Files, told: str
) -> None:
    manifest = read(tmp_path, {"subjects.csv": TABLE, **photos("tom/"), **more})
    (fault,) = manifest.faults
    assert fault.severity == "warning"
    assert told in str(fault)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "captions.tsv"])
def test_each_row_of_a_table_beside_the_folders_of_subjects_is_reported_with_its_line(
    tmp_path: Path, name: str
) -> None:
    pairs = [(f"tom/{number}.png", f"sks cat {number}") for number in range(60)]
    by = "\t" if name.endswith(".tsv") else ","
    table = "".join(f"{by.join(pair)}\n" for pair in [("file_name", "text"), *pairs])
    first = 2
    if name.endswith(".jsonl"):
        table, first = "".join(f'{{"file_name":"{one}","text":"{two}"}}\n' for one, two in pairs), 1
    manifest = read(tmp_path, {"subjects.csv": TABLE, **photos("tom/"), name: table})
    *each, last = manifest.faults
    assert [fault.line for fault in each] == list(range(first, first + 50))
    assert {(Path(fault.file).name, fault.severity) for fault in each} == {(name, "warning")}
    assert "`tom/7.png`" in each[7].message
    assert ("10 more rows" in last.message, last.line) == (True, first + 50)


LITTER = (
    *("Thumbs.db", ".picasa.ini", "Picasa.ini", ".stfolder/x", "~syncthing~0.png.tmp", "0.pp3"),
    *("0.png:Zone.Identifier", "0.png_original", "0.xmp", "0.THM", "@eaDir/0.png/SYNOPHOTO_X.jpg"),
    *("0.MOV", "0.dng", "2.heic", "1.aae", "archive_browser.html"),
)


def test_litter_and_other_forms_of_photos_are_neither_photos_nor_warnings(tmp_path: Path) -> None:
    album = json.dumps({"title": "tom", "date": {"timestamp": "1"}})
    files = {f"tom/{name}": b"x" for name in LITTER} | {"tom/metadata.json": album}
    manifest = read(tmp_path, {"subjects.csv": TABLE, **photos("tom/"), **files})
    assert not manifest.faults
    assert len(manifest.subjects[0].photos) == 3


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (["0.jpg", "1.jpg", "0_mask.png", "1-mask.png"], ["0_mask.png", "1-mask.png"]),
        (["0.jpg", "masks/0.png", "mask/0_mask.png"], ["mask/0_mask.png", "masks/0.png"]),
        (["a/0.jpg", "b/0_mask.png"], []),
        (["venice.jpg", "red mask.jpg", "gold_mask.jpg"], []),
        (["0_mask.png", "1_mask.png"], []),
        (["0-masklabel.png", "1-masklabel.png"], []),
        (["masks/0.jpg", "masks/1.jpg"], []),
        (["0.jpg", "unmask.jpg", "mask.jpg"], []),
    ],
)
def test_a_mask_belongs_to_a_photo_and_other_pictures_are_photos(
    names: list[str], masks: list[str]
) -> None:
    assert sorted(masks_among(names)) == masks


def test_all_photos_below_a_folder_are_used_as_the_remedy_says(tmp_path: Path) -> None:
    table = "subject,class,photos\ntom,cat,tom/**/*\n"
    manifest = read(tmp_path, {"subjects.csv": table, **photos("tom/"), "tom/a/9.png": PHOTOS[0]})
    assert len(manifest.subjects[0].photos) == 4


# -- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("Subjects.CSV", TABLE),
        ("subjects.tsv", TABLE.replace(",", "\t")),
        ("subjects.csv", f"My subjects\n{TABLE}"),
        ("subjects.csv", f"My subjects;;\n\n{TABLE.replace(',', ';')}"),
        ("subjects.csv", "subject,class,photos\ntom,cat,.\\tom\n"),
        ("subjects.csv", "subject,class,live\ntom,cat,yes\n"),
        ("subjects.csv", '"subject", "class", "sample_prompts"\n"tom", "cat", "[V], far"\n'),
    ],
)
def test_a_table_of_subjects_is_read_as_people_write_it(
    tmp_path: Path, name: str, table: str
) -> None:
    manifest = read(tmp_path, {name: table, **photos("tom/")})
    assert not manifest.faults
    assert [one.class_noun for one in manifest.subjects] == ["cat"]


@pytest.mark.parametrize(
    ("name", "table", "told"),
    [
        ("subject.csv", TABLE, "rename it subjects.csv"),
        ("subjects.txt", TABLE, "rename it subjects.csv"),
        ("subjects.json", '[{"id": "tom", "class_noun": "cat"}]', "subjects.json"),
        ("subjects.csv", "tom,cat\nrex,dog\n", "begin it with the names of its columns"),
    ],
)
def test_a_table_of_subjects_that_is_not_read_is_named(
    tmp_path: Path, name: str, table: str, told: str
) -> None:
    first = read(tmp_path, {name: table, **photos("tom/")}).faults[0]
    assert first.file.endswith(name)
    assert told in first.remedy


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "Photos of tom;\nfile_name;text\n0.png;sks cat\n"),
        ("metadata.csv", "file_name,text\n/home/ann/tom/0.png,sks cat\n/mnt/x/0.png,\n"),
        ("metadata.csv", "file_name,text\nfile:///home/ann/set/0.png,sks cat\n"),
        ("metadata.json", '{"file_name": "0.png", "text": "sks cat"}\n{"file_name": "1.png"}\n'),
    ],
)
def test_captions_are_found_in_a_table_of_another_machine(
    tmp_path: Path, name: str, table: str
) -> None:
    manifest = read(tmp_path, {"subjects.csv": TABLE, **photos("tom/"), f"tom/{name}": table})
    assert not manifest.errors
    assert manifest.subjects[0].photos[0].caption == "sks cat"


def test_a_percent_encoded_name_captions_its_photo(tmp_path: Path) -> None:
    table = "file_name,text\nmy%20cat.png,sks cat\n"
    files = {"tom/my cat.png": PHOTOS[0], "tom/1.png": PHOTOS[1], "tom/2.png": PHOTOS[2]}
    manifest = read(tmp_path, {"subjects.csv": TABLE, **files, "tom/metadata.csv": table})
    assert not manifest.faults
    assert [one.caption for one in manifest.subjects[0].photos] == [None, None, "sks cat"]


@pytest.mark.parametrize(
    ("name", "data", "line", "told"),
    [
        ("0.txt", b"sks cat\ncaf\xe9", 2, "not UTF-8 text"),
        ("0.txt", b"sks cat\x00\x01", None, "control characters"),
        ("metadata.csv", b"file_name,text\n0.png,sks \x1b[2J\n", 2, "control characters"),
        (
            "metadata.jsonl",
            b'{\n "file_name": "0.png",\n "text": "x"\n}\n',
            1,
            "over several lines",
        ),
    ],
)
def test_a_broken_caption_file_is_one_fault_with_its_line(
    tmp_path: Path, name: str, data: bytes, line: int | None, told: str
) -> None:
    (fault,) = read(tmp_path, {"subjects.csv": TABLE, **photos("tom/"), f"tom/{name}": data}).errors
    assert fault.file.endswith(name)
    assert fault.line == line
    assert told in fault.message
    assert "Excel" not in fault.remedy


def parquet(image: bytes) -> bytes:
    rows = [{"image": {"bytes": image, "path": f"{n}.png"}, "text": "sks cat"} for n in range(3)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("target", ["data/train-0.parquet", "data/big.parquet", ""])
def test_photos_inside_tables_are_told_once_with_what_to_do(tmp_path: Path, target: str) -> None:
    files: Files = {
        "data/train-0.parquet": parquet(PHOTOS[0]),
        "data/big.parquet": parquet(PHOTOS[0] + bytes(2**20)),
    }
    first, *others = read(tmp_path, files, target).faults
    assert "inside" in first.message
    assert "as a file" in first.remedy
    assert not [one for one in others if "inside" in one.message]


# -- archives and prompts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("tom.zip", encoded(picture(1), "JPEG"), "a JPEG photo, not a zip archive"),
        ("tom.zip", b"<!DOCTYPE html>", "a web page"),
        ("tom.zip", b"", "an empty file"),
        ("tom.zip", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("tom.zip", bytes(257) + b"ustar" + bytes(200), "a tar archive"),
    ],
)
def test_an_archive_that_is_none_is_named_for_what_it_is(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    table = f"subject,class,photos\ntom,cat,{name}\n"
    (fault,) = read(tmp_path, {"subjects.csv": table, name: data}).errors
    assert told in fault.message
    assert fault.line == 2


def test_an_archive_named_as_the_subject_is_proposed_and_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in photos("").items():
            archive.writestr(name, data)
    (fault,) = read(tmp_path, {"subjects.csv": TABLE, "tom.zip": buffer.getvalue()}).errors
    assert "`tom.zip`" in fault.remedy
    table = "subject,class,photos\ntom,cat,tom.zip\n"
    assert not read(tmp_path, {"subjects.csv": table}).faults


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("(sks cat:1.2) on a bed", "write the words alone: `sks cat`"),
        ("sks cat <lora:tom:0.8>", "leave it out"),
        ("sks cat BREAK a bed", "leave it out"),
        ("sks cat, [filewords]", "leave it out"),
        ("[trigger] cat, sks", "write [V]"),
    ],
)
def test_notation_of_other_programs_in_captions_and_prompts_is_told(
    tmp_path: Path, caption: str, told: str
) -> None:
    text = json.dumps([{"id": "tom", "class_noun": "cat", "instance_prompt": caption}])
    files: Files = {**photos("tom/"), "tom/0.txt": caption, "m.json": text}
    faults = read(tmp_path, files, "m.json").faults
    assert [fault.remedy for fault in faults] == [told, told]
    assert {fault.file.rsplit("/", 1)[-1] for fault in faults} == {"0.txt", "m.json"}


# -- paths and keys that are nearly right ---------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("my set.yml", "did you mean"),
        ("My Sett", "my set?"),
        ("gone.csv", "correct the path"),
        ("link.csv", "correct the link"),
        ("pipe.csv", "name a file"),
    ],
)
def test_a_manifest_that_is_missing_or_no_file_has_a_remedy(
    tmp_path: Path, target: str, told: str
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to("nowhere")
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, {"my set/subjects.csv": TABLE, "my set.yaml": "x"}, target)
    assert told in caught.value.remedy
    assert target in caught.value.message


def test_a_folder_with_a_backslash_at_its_end_is_read(tmp_path: Path) -> None:
    files = {"my set/subjects.csv": TABLE, **photos("my set/tom/")}
    assert len(read(tmp_path, files, "my set\\").subjects) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{id: tom, class_noun: cat, images: tom}", "did you mean `photos`?"),
        ("{id: tom, class_noun: cat, photos: tom, trigger: sks}", "did you mean `identifier`?"),
        ("{id: tom, class_noun: cat, photos: tom, recipe: {lr: 0.1}}", "did you mean `learning_r"),
    ],
)
def test_keys_of_other_tools_are_translated(tmp_path: Path, row: str, told: str) -> None:
    files = {**photos("tom/"), "m.yaml": f"subjects:\n  - {row}\n"}
    (fault,) = read(tmp_path, files, "m.yaml").errors
    assert told in fault.remedy
    assert fault.line == 2


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.csv", b'<?xml version="1.0"?><Workbook>', "an XML file"),
        ("t.json", b" \n", "the file is empty"),
    ],
)
def test_an_empty_or_old_file_is_called_what_it_is(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        read_manifest(str(write(tmp_path / name, data)))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
