"""The content of a file decides what it is, whatever its suffix says."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.folders import photos, read

YAML = "# mine\nsubjects:\n  - {id: tom, class_noun: cat}\n"
TABLE = "Subject;Class\ntom;cat\n"
TOML = """# mine
[general]
resolution = 64
[[datasets]]
[[datasets.subsets]]
image_dir = "tom"
class_tokens = "sks cat"
"""
JSON = '{\n\t"subjects": [{"id": "tom", "class_noun": "cat"}]\n}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"m.{suffix}", YAML) for suffix in ("json", "jsonl", "csv", "yml")),
        *((f"m.{suffix}", TABLE) for suffix in ("json", "jsonl", "yaml", "tsv")),
        *((f"m.{suffix}", TOML) for suffix in ("json", "csv", "yaml")),
        ("m.yaml", JSON),
    ],
)
def test_a_manifest_with_the_suffix_of_another_form_is_read(
    tmp_path: Path, name: str, text: str
) -> None:
    manifest = read(tmp_path, {**photos("tom/"), name: text}, name)
    assert not manifest.faults
    assert [one.class_noun for one in manifest.subjects] == ["cat"]


@pytest.mark.parametrize(
    ("name", "text", "line", "told"),
    [
        ("m.yaml", f"---\n{YAML}---\n{YAML}", 5, "a second document begins here"),
        ("m.toml", '[[subjects]]\nid = "tom"\n', 1, "write the manifest as YAML"),
    ],
)
def test_what_is_not_read_of_a_manifest_is_told(
    tmp_path: Path, name: str, text: str, line: int, told: str
) -> None:
    (fault,) = read(tmp_path, {**photos("tom/"), name: text}, name).faults
    assert fault.line == line
    assert told in str(fault)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pets.yaml", YAML),
        ("dataset.toml", TOML),
        ("pets.json", '{"subjects": [{"id": "tom", "class_noun": "cat"}]}'),
    ],
)
def test_a_manifest_of_another_name_in_a_folder_is_told(
    tmp_path: Path, name: str, text: str
) -> None:
    first = read(tmp_path, {**photos("tom/"), name: text}).faults[0]
    assert f"name the file itself, {tmp_path}/{name}" in first.remedy
    assert not read(tmp_path, {}, name).faults


@pytest.mark.parametrize("other", ["manifest.json", "subjects.csv", "concepts_list.json"])
def test_a_second_manifest_of_a_folder_is_told(tmp_path: Path, other: str) -> None:
    files = {**photos("tom/"), "manifest.yaml": YAML, other: "x"}
    (fault,) = read(tmp_path, files).faults
    assert f"{other} beside it is not read" in fault.message
    (tmp_path / other).write_text(TABLE)
    text = f"subjects: {other}\ndefaults: {{class_noun: cat}}\n"
    if other.endswith(".csv"):
        assert not read(tmp_path, {"manifest.yaml": text}).faults


def test_captions_beside_a_manifest_are_told(tmp_path: Path) -> None:
    table = "file_name,text\ntom/0.png,sks cat\n"
    files = {**photos("tom/"), "m.yaml": YAML, "metadata.csv": table}
    (fault,) = read(tmp_path, files, "m.yaml").faults
    assert "its captions are not read" in fault.message
    assert fault.file.endswith("metadata.csv")
    head = {"m.yaml": "subjects: metadata.csv\ndefaults: {class_noun: cat}\n"}
    assert not [one for one in read(tmp_path, head, "m.yaml").faults if "captions" in one.message]


@pytest.mark.parametrize("pattern", ["tom/**/*.png", "tom/*/*.png", "tom/**/*"])
def test_a_table_above_the_photos_of_a_pattern_captions_them(tmp_path: Path, pattern: str) -> None:
    table = "file_name,text\n" + "".join(f"a/{n}.png,sks cat\n" for n in range(3))
    text = f"subjects:\n  - {{id: tom, class_noun: cat, photos: '{pattern}'}}\n"
    files = {**photos("tom/a/"), "tom/metadata.csv": table, "m.yaml": text}
    (tom,) = read(tmp_path, files, "m.yaml").subjects
    assert [photo.caption for photo in tom.photos] == ["sks cat"] * 3


def test_a_path_from_another_folder_than_the_manifests_is_told(tmp_path: Path) -> None:
    text = "subjects:\n  - {id: tom, class_noun: cat, photos: sets/tom}\n"
    (fault,) = read(tmp_path, {**photos("sets/tom/"), "sets/m.yaml": text}, "sets/m.yaml").errors
    assert "did you mean `tom`?" in fault.remedy
