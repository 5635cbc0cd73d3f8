"""Files as other tools, phones and spreadsheets write them: read right, or refused with the cause.

Each case is the kind of a file that a newcomer brings; ``captions/``, ``formats/`` and ``photos/``
test the rules behind them.
"""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zipfile
from pathlib import Path

import pytest
from support.photos import encoded, picture

from farm.base.tokens import prompt_reader
from farm.errors import ManifestError
from farm.intake.check import CheckReport, check_manifest
from farm.intake.manifest import Manifest, read_manifest

TABLE = "subject,class\ntom,cat\n"
PHOTOS = [encoded(picture(number)) for number in range(3)]
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(500)


def lay(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Write files; text is UTF-8."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def subject(folder: Path, extra: dict[str, bytes | str], names: tuple[str, ...] = ()) -> Manifest:
    """One subject `tom` with three photos, and further files in its folder."""
    names = names or ("0.png", "1.png", "2.png")
    photos = dict(zip(names, PHOTOS, strict=True))
    inside = {f"tom/{name}": data for name, data in {**photos, **extra}.items()}
    lay(folder, {"subjects.csv": TABLE, **inside})
    return read_manifest(str(folder), strict=False)


def captions(manifest: Manifest) -> list[str | None]:
    assert not manifest.errors, manifest.errors
    return [photo.caption for photo in manifest.subjects[0].photos]


def pairs(first: str = "0.png", second: str = "1.png", by: str = ",") -> str:
    return f"file_name{by}text\n{first}{by}sks cat a\n{second}{by}sks cat b\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("metadata.csv", pairs().encode("utf-16")),
        ("metadata.csv", pairs(by="\t").encode("utf-16")),
        ("metadata.csv", "\ufeffsep=;\r\n" + pairs(by=";").replace("\n", "\r\n")),
        ("metadata.csv", pairs(by="|")),
        ("metadata.csv", pairs().replace("\n", "\r")),
        ("metadata.csv", 'file_name,text\n0.png,"sks cat\n a"\n1.png,sks cat b\n'),
        ("METADATA.CSV", pairs().replace("file_name,text", "File Name,TEXT")),
        ("metadata.csv", pairs("C:\\set\\tom\\0.png", "C:\\set\\tom\\1.png")),
        ("labels.csv", pairs()),
        ("captions.json", json.dumps({"0.png": "sks cat a", "1.png": "sks cat b"})),
        ("meta_cap.json", json.dumps({"0": {"caption": "sks cat a"}, "1": {"text": "sks cat b"}})),
        ("any.json", json.dumps([{"image": f"{n}.png", "caption": f"sks cat {'ab'[n]}"}
                                 for n in range(2)])),
    ],
    ids=("utf-16", "utf-16 tabs", "sep line", "pipes", "old mac", "quoted newline", "upper case",
         "windows paths", "another name", "json mapping", "kohya json", "json list"),
)  # fmt: skip
def test_a_table_of_captions_is_read_in_the_form_that_its_tool_writes(
    tmp_path: Path, name: str, data: bytes | str
) -> None:
    assert captions(subject(tmp_path, {name: data})) == ["sks cat a", "sks cat b", None]


def test_names_match_however_unicode_spells_them(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "käfer") for form in ("NFC", "NFD")]
    photos = (f"{forms[1]}.png", "b.png", "c.png")
    texts = {f"{forms[0]}.txt": "sks cat a", "metadata.csv": pairs("b.png", "c.png")}
    found = captions(subject(tmp_path, texts, photos))
    assert sorted(str(text) for text in found) == ["sks cat a", "sks cat a", "sks cat b"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"captions.txt": "0.png: sks cat a\n1.png: sks cat b\n"}, "it names 2 of the photos"),
        ({"captions.tsv": "0.png\tsks cat a\n1.png\tsks cat b\n"}, "it names 2 of the photos"),
        ({"coco.json": json.dumps({"images": [{"file_name": f"{n}.png"} for n in range(3)]})},
         "it names 3 of the photos"),
        ({f"{n}.json": json.dumps({"caption": f"sks cat {n}"}) for n in range(3)},
         "captions in 3 JSON files"),
    ],
    ids=("text list", "table without header", "coco", "json beside each photo"),
)  # fmt: skip
def test_captions_in_a_form_that_is_not_read_are_pointed_out(
    tmp_path: Path, files: dict[str, bytes | str], told: str
) -> None:
    manifest = subject(tmp_path, files)
    assert captions(manifest) == [None] * 3
    (fault,) = manifest.faults
    assert told in fault.message
    assert fault.severity == "warning"
    assert fault.remedy


def test_facts_that_phones_and_downloads_leave_beside_photos_are_not_captions(
    tmp_path: Path,
) -> None:
    takeout = json.dumps({"title": "0.png", "description": "at home"})
    files = {"0.png.json": takeout, "0.png.supplemental-metadata.json": takeout, "notes.txt": "hi"}
    manifest = subject(tmp_path, {**files, "2.json": json.dumps({"url": "x"})})
    assert captions(manifest) == [None] * 3
    assert not manifest.faults


KOHYA = """
[general]
caption_extension = "{extension}"
{general}
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "tom"
  class_tokens = "sks cat"
  num_repeats = 10
  {subset}
"""


@pytest.mark.parametrize(
    ("extension", "general", "subset", "told"),
    [
        (".cap", "", "", ()),
        ("cap", "", "", ("`cap` is read as `.cap`",)),
        (".CAP", "keep_tokens = 1", "", ()),
        (".cap", "shuffle_caption = true\nkeep_tokens = 1", "", ("not used: `shuffle_caption`",)),
        (".cap", "", 'caption_extention = ".txt"', ("unknown option `caption_extention`",)),
        (".cap", "", 'image_dirr = "x"', ("unknown option `image_dirr`",)),
    ],
)
def test_options_of_kohya_datasets_are_obeyed_or_named(
    tmp_path: Path, extension: str, general: str, subset: str, told: tuple[str, ...]
) -> None:
    files: dict[str, bytes | str] = {f"tom/{n}.png": data for n, data in enumerate(PHOTOS)}
    files |= {f"tom/{n}.cap": f"sks cat {n}" for n in range(3)} | {"tom/0.txt": "1girl, tag"}
    toml = KOHYA.format(extension=extension, general=general, subset=subset)
    lay(tmp_path, {**files, "set.toml": toml})
    manifest = read_manifest(str(tmp_path / "set.toml"), strict=False)
    assert [photo.caption for photo in manifest.subjects[0].photos] == [
        f"sks cat {n}" for n in range(3)
    ]
    assert len(manifest.faults) == len(told)
    for fault, words in zip(manifest.faults, told, strict=True):
        assert words in fault.message
        assert fault.line


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("config.json", '{"LoRA_type": "Standard", "train_data_dir": "img"}', "img"),
        ("train.toml", 'train_data_dir = "img"\nmax_train_steps = 9\n', "img"),
        ("0.png", PHOTOS[0], "it is a photo: name the folder"),
        ("tom.zip", b"PK\x03\x04", "it is an archive: unpack it"),
        ("subjects.xlsx", b"PK\x03\x04", "CSV UTF-8"),
        ("subjects.csv", b"PK\x03\x04" + bytes(40), "unpack it"),
        ("subjects.csv", "<!DOCTYPE html><html>sign in</html>", "download the file itself"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_with_what_to_name_instead(
    tmp_path: Path, name: str, data: bytes | str, told: str
) -> None:
    lay(tmp_path, {name: data})
    with pytest.raises(ManifestError) as caught:
        read_manifest(str(tmp_path / name))
    remedies = [caught.value.remedy, *(fault.remedy for fault in caught.value.faults)]
    assert any(told in remedy for remedy in remedies)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("subject;class;steps\ntom;cat;300", "name it `recipe.steps`"),
        ("subject,class\ntomm,cat", "did you mean the folder `tom`?"),
        ("Name;Klasse\ntom;cat", "write it as `subject;class`"),
    ],
)
def test_a_column_or_folder_that_is_nearly_right_is_named(
    tmp_path: Path, row: str, told: str
) -> None:
    files: dict[str, bytes | str] = {f"tom/{n}.png": data for n, data in enumerate(PHOTOS)}
    lay(tmp_path, {**files, "subjects.csv": row})
    manifest = read_manifest(str(tmp_path), strict=False)
    assert any(told in f"{fault.message} {fault.remedy}" for fault in manifest.errors)
    assert not any("``" in fault.message for fault in manifest.faults)


def test_numbers_with_decimal_commas_are_read(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"Tom/{n}.png": data for n, data in enumerate(PHOTOS)}
    row = "\ufeffsep=;\r\nsubject;class;recipe.learning_rate\r\ntom;cat;0,0005\r\n"
    lay(tmp_path, {**files, "subjects.csv": row})
    manifest = read_manifest(str(tmp_path), strict=False)
    assert manifest.subjects[0].recipe.learning_rate == 0.0005
    (fault,) = manifest.faults  # the folder is `Tom`
    assert "differs in case" in fault.message


def test_spreadsheets_beside_folders_of_photos_are_named(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"tom/{n}.png": data for n, data in enumerate(PHOTOS)}
    lay(tmp_path, {**files, "subjects.xlsx": b"PK\x03\x04"})
    faults = read_manifest(str(tmp_path), strict=False).errors
    assert "spreadsheet" in faults[0].message
    assert "subjects.csv" in faults[0].remedy


def check(folder: Path, name: str, data: bytes) -> CheckReport:
    return check_manifest(subject(folder, {name: data}))


def jpeg_with_metadata() -> bytes:
    """A JPEG behind 2.5 MB of application segments, as panoramas of phones have."""
    whole = encoded(picture(7), "JPEG")
    segment = b"\xff\xe2" + struct.pack(">H", 65000) + b"MPF\0" + bytes(64994)
    return whole[:2] + segment * 40 + whole[2:]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jpg", encoded(picture(8, mode="CMYK"), "JPEG", icc_profile=b"broken" * 99)),
        ("x.png", encoded(picture(8).convert("P"), transparency=0)),
        ("x.png", encoded(picture(8).convert("LA"))),
        ("x.JPG", encoded(picture(8), "MPO", save_all=True, append_images=[picture(9)])),
        ("x.gif", encoded(picture(8), "GIF", save_all=True, append_images=[picture(9)])),
        ("x.webp", encoded(picture(8), "WEBP", save_all=True, append_images=[picture(9)])),
        ("x.jpg", encoded(picture(8))),
        ("x.jpg", jpeg_with_metadata()),
    ],
    ids=("cmyk with a broken profile", "palette", "grey with alpha", "mpo", "gif", "webp",
         "png named jpg", "long metadata"),
)  # fmt: skip
def test_a_whole_photo_of_any_kind_is_accepted(tmp_path: Path, name: str, data: bytes) -> None:
    report = check(tmp_path, name, data)
    assert not report.faults
    assert report.num_photos == 4


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("x.heic", HEIC, "a HEIC photo"),
        ("x.jpg", HEIC, "a HEIC photo"),
        ("x.avif", HEIC.replace(b"heic", b"avif"), "a damaged AVIF photo"),
        ("x.jpg", b"\xff\x0a" + bytes(99), "a JPEG XL photo"),
        ("x.jpg", encoded(picture(8), "JPEG")[:900], "it is truncated"),
        ("x.jpg", b"", "the file is empty"),
        ("x.jpg", bytes(9000), "only zeros"),
        ("x.jpg", b"Rar!\x1a\x07" + bytes(99), "a RAR archive"),
        ("x.jpg", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("IMG_0001", encoded(picture(8), "JPEG"), "passed over"),
    ],
)
def test_a_file_that_is_no_photo_is_named_for_what_it_is(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (fault,) = check(tmp_path, name, data).faults
    assert told in fault.message
    assert name in fault.message
    assert fault.remedy
    assert fault.line == 2


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (zipped(**{"inner.zip": b"PK\x03\x04"}), "only archives: inner.zip"),
        (zipped(**{"/abs/0.png": PHOTOS[0]}), "points out of the archive"),
        (zipped(**{"../0.png": PHOTOS[0]}), "points out of the archive"),
        (b"Rar!\x1a\x07" + bytes(99), "a RAR archive, not a zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"),
        (zipped(**{"0.png": PHOTOS[0]})[:-30], "not a whole zip archive"),
        (zipped(), "holds no photos"),
    ],
)
def test_an_archive_that_cannot_be_read_says_why(tmp_path: Path, data: bytes, told: str) -> None:
    manifest = "subjects:\n  - {id: tom, class_noun: cat, photos: tom.zip}\n"
    lay(tmp_path, {"m.yaml": manifest, "tom.zip": data})
    (fault,) = read_manifest(str(tmp_path / "m.yaml"), strict=False).errors
    assert told in fault.message
    assert fault.line == 2


def test_classes_that_the_embedded_base_cannot_generate_are_reported_once(tmp_path: Path) -> None:
    table = "subject,class\na,sofa\nb,vase\nc,black cat\n"
    photos: dict[str, bytes | str] = {
        f"{one}/{n}.png": PHOTOS[n] for one in "abc" for n in range(3)
    }
    lay(tmp_path, {**photos, "subjects.csv": table})
    reader = prompt_reader("embedded")
    (fault,) = read_manifest(str(tmp_path), strict=False, reader=reader).faults
    assert fault.severity == "warning"
    assert "cannot generate `sofa`, `vase`" in fault.message
    assert "--base" in fault.remedy
    lay(tmp_path, {"subjects.csv": "subject,class\na,can\nb,cta\nc,cat\n"})
    (fault,) = read_manifest(str(tmp_path), strict=False, reader=reader).faults
    assert "did you mean `cat` for `cta`?" in fault.remedy  # a can is no cat
    assert not read_manifest(str(tmp_path), strict=False).faults


def test_mistyped_classes_are_compared_with_those_of_the_base(tmp_path: Path) -> None:
    table = "subject,class\na,catt\nb,dgo\nc,cat\nd,Cat\n"
    photos: dict[str, bytes | str] = {
        f"{one}/{n}.png": PHOTOS[n] for one in "abcd" for n in range(3)
    }
    lay(tmp_path, {**photos, "subjects.csv": table})
    faults = read_manifest(str(tmp_path), reader=prompt_reader("embedded")).faults
    unknown, cases = faults
    assert unknown.remedy.startswith("did you mean `cat` for `catt`, `dog` for `dgo`? ")
    assert "differ only in case" in cases.message
    assert cases.message.endswith("`cat` and `Cat`")
    assert {fault.severity for fault in faults} == {"warning"}
