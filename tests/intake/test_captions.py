from __future__ import annotations

import pytest

from farm.intake.captions import Captions
from farm.intake.errors import PhotoFault


def captions(**files: str) -> Captions:
    named = {name.replace("__", "/").replace("_", "."): text for name, text in files.items()}
    return Captions([*named, "0.png"], lambda name: named[name].encode())


def text(found: Captions, photo: str = "0.png") -> str | None:
    caption = found.of(photo)
    return caption.text if caption else None


def test_a_text_beside_the_photo_is_its_caption():
    assert text(captions(**{"0_txt": " a [V] cat\n asleep \n"})) == "a [V] cat asleep"
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
    with pytest.raises(PhotoFault, match=r"metadata.jsonl, line 2: not valid JSON"):
        captions(metadata_jsonl='{"file_name": "0.png"}\n{')


def test_what_is_no_text_is_told():
    found = Captions(["0.txt"], lambda _: b"\xff\xfe\x00broken")
    with pytest.raises(PhotoFault, match="not UTF-8"):
        found.of("0.png")
