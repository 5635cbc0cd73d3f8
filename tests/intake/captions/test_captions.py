from __future__ import annotations

import io
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.factories import Draw

from farm.errors import Fault
from farm.intake.captions.files import Captions
from farm.intake.manifest import read_manifest
from farm.intake.rows import CaptionStyle


def captions(style: CaptionStyle | None = None, **files: str | bytes) -> Captions:
    """Captions among files, `a__b_c` standing for `a/b.c`, beside `0.png` and `sub/0.png`."""
    named = {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
    plain = {k: text.encode() if isinstance(text, str) else text for k, text in named.items()}
    return Captions([*named, "0.png", "sub/0.png"], lambda name: plain[name], style)


def told(found: Captions) -> list[tuple[str, int | None, str]]:
    return [(fault.file, fault.line, fault.severity) for fault in found.faults]


def text(found: Captions, photo: str = "0.png") -> str | None:
    caption = found.of(photo)
    return caption.text if caption else None


def test_a_text_beside_the_photo_is_its_caption():
    assert text(captions(**{"0_txt": " a [V] cat\n asleep \n"})) == "a [V] cat asleep"
    assert text(captions(**{"0_png_txt": "[V]"})) == "[V]"
    assert text(captions(**{"0_caption": "[V]"})) == "[V]"


def test_an_empty_text_is_no_caption():
    assert text(captions(**{"0_txt": " \n"})) is None


@pytest.mark.parametrize("column", ["caption", "text", "prompt"])
def test_a_metadata_file_captions_its_folder(column: str):
    line = f'{{"file_name": "0.png", "{column}": "[V] one"}}\n{{"file_name": "1.png"}}'
    found = captions(metadata_jsonl=line)
    assert text(found) == "[V] one"
    assert text(found, "1.png") is None


def test_a_metadata_table_counts_from_its_own_folder():
    found = captions(sub__metadata_csv='file_name,text\n0.png,"[V], two"\n')
    assert text(found, "sub/0.png") == "[V], two"
    caption = found.of("sub/0.png")
    assert caption is not None
    assert (caption.file, caption.line) == ("sub/metadata.csv", 2)
    assert text(found, "0.png") is None


def test_a_photos_own_text_wins():
    line = '{"file_name": "0.png", "text": "[V] listed"}'
    assert text(captions(metadata_jsonl=line, **{"0_txt": "[V] own"})) == "[V] own"


def test_broken_metadata_is_told_with_its_line():
    found = captions(metadata_jsonl='{"file_name": "0.png", "text": "[V]"}\n{')
    assert told(found) == [("metadata.jsonl", 2, "error")]
    assert "not valid JSON" in found.faults[0].message
    assert text(found) == "[V]"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"sks \xff cat", "not UTF-8"),
        (b"\xff\xd8\xff\xe0 photo", "JPEG"),
        (b"%PDF-1.7", "PDF"),
    ],
)
def test_a_text_that_is_none_is_told_for_what_it_is(data: bytes, what: str):
    faults: list[Fault] = []
    assert captions(**{"0_txt": data}).of("0.png", faults) is None
    assert what in faults[0].message
    assert faults[0].severity == "error"
    assert faults[0].remedy


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_texts_and_tables_are_read_as_editors_save_them(encoding: str):
    words = "a [V] café, asleep"
    assert text(captions(**{"0_txt": words.encode(encoding)})) == words
    table = f'file_name;text\r\n0.png;"{words}"\r\n'
    assert text(captions(metadata_csv=table.encode(encoding))) == words


@pytest.mark.parametrize(
    "table",
    [
        "file_name;text\n0.png;[V], asleep",
        "sep=;\nfile_name;text\n0.png;[V], asleep",
        'sep=,\r\nfile_name,text\r\n0.png,"[V], asleep"',
        "file_name\ttext\n0.png\t[V], asleep",
        "\n\nImage;Caption;;\n0.png;[V], asleep;;\n;;;\n",
        'File Name,Prompt\n./0.png,"[V], asleep"',
        'text,path\n"[V], asleep",0.png',
        '"file-name","description"\n"0.png","[V], asleep"',
        '"file_name,text"\n"0.png,""[V], asleep"""',
        'file_name,text\n"0.png,""[V], asleep"""\n"a, b.png",',
    ],
)
def test_every_dialect_and_usual_column_captions_the_photo(table: str):
    found = captions(metadata_csv=table)
    assert text(found) == "[V], asleep"
    assert not found.faults


@pytest.mark.parametrize("name", ["metadata.parquet", "metadata.csv", "captions.parquet"])
def test_parquet_captions_by_its_content(name: str):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"file_name": ["0.png", "7.png"], "text": ["[V] one", "x"]}), buffer)
    found = Captions([name, "0.png"], lambda _: buffer.getvalue())
    assert text(found) == "[V] one"
    is_meant = name.startswith("metadata")
    assert told(found) == [(name, 2, "error" if is_meant else "warning")]


def test_a_table_of_any_name_captions_if_its_columns_say_so():
    found = captions(labels_csv="image;caption\n0.png;[V] one")
    assert text(found) == "[V] one"
    prices = captions(prices_csv="name;price\n0.png;3,50")
    assert text(prices) is None
    assert not prices.faults


def workbook(folder: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}sheet1.xml", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (workbook("xl/worksheets/"), "Excel workbook (.xlsx)"),
        (workbook("content.xml"), "OpenDocument"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel workbook (.xls)"),
        (b"<!DOCTYPE html><table>", "web page"),
        ("file_name;text\n0.png;café".encode("cp1252"), "not UTF-8"),
    ],
)
def test_a_spreadsheet_that_is_no_text_is_told_for_what_it_is(data: bytes, what: str):
    found = captions(metadata_csv=data)
    (fault,) = found.faults
    assert (fault.file, fault.severity) == ("metadata.csv", "error")
    assert what in fault.message
    assert "CSV UTF-8" in fault.remedy or "download" in fault.remedy


def test_each_row_that_captions_no_photo_is_told_at_its_line():
    table = "file_name,text\n0.png,[V] a\n00.png,[V] b\n,[V] c\n1.png,\n"
    found = captions(metadata_csv=table)
    assert told(found) == [("metadata.csv", 3, "error"), ("metadata.csv", 4, "error")]
    assert "`0.png`" in found.faults[0].remedy


def test_a_name_without_its_leading_zeros_is_told_the_photo_of_that_number():
    photos = [f"IMG_{number:04d}.jpg" for number in (0, 3, 10, 100)]
    table = "file_name,text\nIMG_0.jpg,[V]\nIMG_10.jpg,[V]\n"
    found = Captions([*photos, "metadata.csv"], lambda _: table.encode())
    assert ["IMG_0000.jpg" in one.remedy for one in found.faults] == [True, False]
    assert "IMG_0010.jpg" in found.faults[1].remedy


def test_a_row_with_too_many_cells_is_told():
    found = captions(metadata_csv="file_name,text\n0.png,[V], asleep\n")
    assert told(found) == [("metadata.csv", 2, "error")]
    assert "quotes" in found.faults[0].remedy


@pytest.mark.parametrize(
    ("table", "message", "severity"),
    [
        ("bild;worte\n0.png;[V]", "no column names the photos", "error"),
        ("file_name;label\n0.png;cat", "no column holds captions", "warning"),
        ("", "no rows", "warning"),
    ],
)
def test_a_metadata_table_without_captions_is_told(table: str, message: str, severity: str):
    (fault,) = captions(metadata_csv=table).faults
    assert message in fault.message
    assert fault.severity == severity


@pytest.mark.parametrize(
    ("name", "table", "message", "severity"),
    [
        ("metadata.csv", "file_name,text,Text\n0.png,[V],\n", "`text` is given 2 times", "error"),
        (
            "metadata.csv",
            "file_name,text,caption\n0.png,[V] a,[V] b\n",
            "in `text` are not",
            "warning",
        ),
        ("metadata.csv", "file_name,text,caption\n0.png,[V] a,[V] a\n1.png,[V],\n", "", ""),
        ("metadata.jsonl", '{"file_name": "0.png", "text": {"en": "[V]"}}', "is not text", "error"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": {}}', "", ""),
        ("a.jsonl", '{"file_name": "0.png", "text": [{"a": "[V]"}]}', "is not text", "warning"),
    ],
)
def test_no_cell_or_column_of_captions_is_dropped_without_a_word(
    name: str, table: str, message: str, severity: str
):
    found = Captions([name, "0.png", "1.png"], lambda _: table.encode())
    assert [fault.severity for fault in found.faults] == ([severity] if severity else [])
    assert all(message in fault.message and fault.line for fault in found.faults)


def test_thousands_of_rows_without_photos_are_told_in_few_words():
    table = "file_name,text\n" + "".join(f"x{n}.png,[V]\n" for n in range(5_000))
    found = captions(metadata_csv=table)
    assert len(found.faults) < 100
    assert "4950 more" in found.faults[-1].message


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_compared_in_one_unicode_form(form: str):
    photo = unicodedata.normalize(form, "café.jpg")
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "café")
    table = f"file_name,text\n{other}.jpg,[V] café".encode()
    found = Captions([photo, "metadata.csv"], lambda _: table)
    assert text(found, photo) == "[V] café"
    assert not found.faults
    beside = Captions([photo, f"{other}.txt"], lambda _: b"[V] beside")
    assert text(beside, photo) == "[V] beside"


def test_names_that_differ_in_case_match_with_a_warning():
    table = b"file_name,text\nimg_0.jpg,[V]"
    found = Captions(["IMG_0.JPG", "metadata.csv"], lambda _: table)
    assert text(found, "IMG_0.JPG") == "[V]"
    assert told(found) == [("metadata.csv", 2, "warning")]
    two = Captions(["IMG_0.JPG", "Img_0.jpg", "metadata.csv"], lambda _: table)
    assert told(two) == [("metadata.csv", 2, "error")]
    faults: list[Fault] = []
    beside = Captions(["IMG_0.JPG", "img_0.txt"], lambda _: b"[V]")
    assert beside.of("IMG_0.JPG", faults) is not None
    assert [fault.severity for fault in faults] == ["warning"]


@pytest.mark.parametrize("name", ["C:\\me\\0.png", "/data/tom/0.png", "tom/0.png"])
def test_a_folder_that_all_rows_share_is_left_out_with_a_warning(name: str):
    found = captions(metadata_csv=f"file_name,text\n{name},[V]")
    assert text(found) == "[V]"
    assert [severity for *_, severity in told(found)] == ["warning"]
    mixed = captions(metadata_csv=f"file_name,text\n{name},[V]\nrex/0.png,[V] other")
    assert text(mixed) is None
    assert [severity for *_, severity in told(mixed)] == ["error", "error"]


def test_names_without_suffix_and_several_files_a_row_are_read():
    assert text(captions(metadata_csv="file_name,text\n0,[V]")) == "[V]"
    line = '{"file_names": ["0.png", "sub/0.png"], "text": ["[V] one", "[V] two"]}'
    found = captions(metadata_jsonl=line)
    assert (text(found), text(found, "sub/0.png")) == ("[V] one", "[V] one")
    assert all(fault.severity == "warning" for fault in found.faults)


def test_two_captions_of_one_photo_are_told():
    table = "file_name,text\n0.png,[V] a\n0.png,[V] b\n0.png,[V] a"
    found = captions(metadata_csv=table)
    assert text(found) == "[V] a"
    assert told(found) == [("metadata.csv", 3, "warning")]


def test_several_lines_are_one_caption_with_a_warning():
    faults: list[Fault] = []
    found = captions(**{"0_txt": "[V] cat\n\nasleep\n"})
    assert found.of("0.png", faults) is not None
    assert [fault.severity for fault in faults] == ["warning"]
    first = captions(CaptionStyle(takes_first_line=True), **{"0_txt": "[V] cat\nsecond wording"})
    assert text(first) == "[V] cat"


def test_texts_that_belong_to_no_photo_are_told():
    found = captions(**{"7_txt": "[V]", "8_txt": "[V]", "0_txt": "[V]"})
    (fault,) = found.orphans(["0.png"])
    assert "7.txt, 8.txt" in fault.message
    assert not captions(notes_txt="x").orphans(["0.png"])
    (fault,) = captions(texts__0_txt="[V]").orphans(["0.png"])
    assert "put each beside its photo" in fault.remedy


def test_the_style_says_which_texts_are_captions():
    style = CaptionStyle(suffixes=(".cap",), prefix="a", suffix="!", has_tables=False)
    found = captions(
        style, **{"0_txt": "tags", "0_cap": "[V]", "metadata_csv": "file_name,text\n9.png,x"}
    )
    assert text(found) == "a [V] !"
    assert not found.faults


def test_wildcards_in_captions_are_told(tmp_path: Path, draw: Draw):
    for number in range(3):
        draw(f"a/{number}.jpg")
    (tmp_path / "a/0.txt").write_text("sks cat, {sitting|standing} in __place__")
    (tmp_path / "m.yaml").write_text("subjects:\n  - {id: a, class_noun: cat}\n")
    [fault] = read_manifest(str(tmp_path / "m.yaml"), strict=False).faults
    assert "{sitting|standing}" in fault.message
    assert fault.severity == "warning"
    assert fault.file.endswith("a/0.txt")


@pytest.mark.parametrize("form", ["0.txt", "metadata.csv", "../manifest.jsonl", "../captions"])
def test_a_caption_has_one_bound_wherever_it_is_written(
    draw_subject: Draw, tmp_path: Path, form: str
) -> None:
    folder = draw_subject("tom")

    def faults(caption: str) -> list[Fault]:
        row = '"id": "tom", "class_noun": "cat"'
        if form == "../manifest.jsonl":
            row += f', "photos": [{{"uri": "tom/0.png", "caption": "{caption}"}}, "tom/1.png"]'
        elif form == "../captions":
            row += f', "captions": {{"0.png": "{caption}"}}'
        else:
            table = f'file_name,text\n0.png,"{caption}"\n'
            (folder / form).write_text(table if form == "metadata.csv" else caption)
        (tmp_path / "manifest.jsonl").write_text(f"{{{row}}}\n")
        return list(read_manifest(str(tmp_path / "manifest.jsonl"), strict=False).faults)

    assert all(fault.severity == "warning" for fault in faults("a [V] cat " + 190 * "asleep, "))
    (long,) = [one for one in faults("a [V] cat " + "x" * 10_000) if one.severity == "error"]
    wanted = "text of 1 to 10,000 characters on one line"
    assert (wanted in long.message, long.remedy) == (True, f"give {wanted}")
    assert Path(long.file).name == (form if "/" not in form else "manifest.jsonl")
    assert (long.line, long.subject) == (2 if form == "metadata.csv" else 1, "tom")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_table_above_the_folders_of_a_subject_captions_their_photos(
    draw_subject: Draw, tmp_path: Path, name: str
) -> None:
    for folder in ("tom/front", "tom/back", "rex"):
        draw_subject(folder)
    rows = [("front/0.png", "[V] in front"), ("back/1.png", "[V] behind"), ("back/9.png", "[V]")]
    table = "".join(f'{{"file_name": "{file}", "text": "{one}"}}\n' for file, one in rows)
    if name.endswith(".csv"):
        table = "".join(f"{file},{one}\n" for file, one in [("file_name", "text"), *rows])
    (tmp_path / "tom" / name).write_text(table)
    (tmp_path / "tom/back/0.txt").write_text("[V] of its own")
    manifest = tmp_path / "m.yaml"

    def read(photos: str) -> tuple[dict[str, str], list[tuple[str, int | None, str]]]:
        manifest.write_text(f"subjects:\n- {{id: tom, class_noun: cat, photos: {photos}}}\n")
        found = read_manifest(str(manifest), strict=False)
        (subject,) = found.subjects or [None]
        captions = {
            str(Path(photo.uri).relative_to(tmp_path)): photo.caption
            for photo in (subject.photos if subject is not None else ())
            if photo.caption is not None
        }
        return captions, [(Path(one.file).name, one.line, one.severity) for one in found.faults]

    line = 4 if name.endswith(".csv") else 3
    captions, faults = read("[tom/front, tom/back]")
    assert faults == [(name, line, "error")]
    draw_subject("tom/side")  # of another subject, perhaps: the table may be for it too
    captions, faults = read("[tom/front, tom/back]")
    assert faults == [(name, line, "warning")]
    assert captions == {
        "tom/front/0.png": "[V] in front",
        "tom/back/0.png": "[V] of its own",
        "tom/back/1.png": "[V] behind",
    }
    assert read("[tom/front, rex]")[0] == {}
