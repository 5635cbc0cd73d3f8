"""Hostile input: a check ends with faults, never with a crash or hang, in bounded memory."""

from __future__ import annotations

import io
import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.photos import encoded, picture

from farm.errors import FarmError
from farm.intake import resolve
from farm.intake.check import check_manifest
from farm.intake.formats.tables import read_parquet
from farm.intake.manifest import read_manifest
from farm.intake.photos.bytes import PhotoReader
from farm.intake.photos.fields import list_photos
from farm.intake.photos.inspect import PhotoFacts, PhotoRefusal, inspect_photo

FORMS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "TGA")
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GOOD = {
    ".yaml": "defaults: {class_noun: &c cat}\nsubjects:\n  - {id: a, photos: [x.png]}\n",
    ".json": '{"defaults": {"class_noun": "cat"}, "subjects": [{"id": "a", "photos": ["x.png"]}]}',
    ".jsonl": '{"defaults": {"class_noun": "cat"}}\n{"id": "a", "photos": "x.png"}\n',
    ".csv": "subject;class;photos;recipe.steps\na;cat;x.png|y.png;1,5\n",
    ".toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\nclass_tokens = "sks cat"\n',
}


class Reader(PhotoReader):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def read(self, uri: str) -> bytes:
        return self._data


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    return {form: encoded(picture(), form) for form in FORMS}


@QUICK
@given(
    form=st.sampled_from(FORMS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=6),
    cut=st.floats(0.2, 1),
)
def test_mutated_photos_are_judged(
    photos: dict[str, bytes], form: str, edits: list[tuple[float, bytes]], cut: float
):
    data = bytearray(photos[form])
    for where, piece in edits:
        at = int(where * (len(data) - 1))
        data[at : at + len(piece)] = piece
    started = time.monotonic()
    verdict = inspect_photo("x", Reader(bytes(data[: int(len(data) * cut)])))
    assert isinstance(verdict, PhotoFacts | PhotoRefusal)
    assert time.monotonic() - started < 20


@QUICK
@given(
    suffix=st.sampled_from(sorted(GOOD)),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 8), st.text(max_size=8)), min_size=1, max_size=5
    ),
)
def test_mutated_manifests_are_refused_or_read(
    tmp_path: Path, suffix: str, edits: list[tuple[float, int, str]]
):
    text = GOOD[suffix]
    for where, removed, piece in edits:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + removed :]
    path = tmp_path / f"m{suffix}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        manifest = read_manifest(str(path), strict=False)
    except FarmError:
        return
    assert manifest.resolved or manifest.faults


@QUICK
@given(
    data=st.binary(max_size=200), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)))
)
def test_mutated_parquet_is_refused_or_read(data: bytes, edits: list[tuple[float, int]]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"] * 50, "photos": [["x"]] * 50}), file)
    whole = bytearray(file.getvalue())
    for where, value in edits:
        whole[int(where * (len(whole) - 1))] = value
    rows = read_parquet(io.BytesIO(bytes(whole) + data), "m.parquet", "/")
    list(rows.subjects)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".json", "[" * 100_000),
        (".json", '{"subjects": [' + '{"a":' * 50_000),
        (".jsonl", '{"a":' * 50_000 + "\n"),
        (".yaml", "[" * 100_000),
        (".yaml", "subjects: " + "- " * 50_000),
        (".toml", "a." * 100_000 + "a = 1"),
        (".toml", "a = " + "[" * 100_000),
        (".toml", "[" + "a." * 100_000 + "a]"),
        (".csv", "id,class\n" + "a" * 1_000_000 + ",cat\n"),
        (".csv", ",".join(["c"] * 100_000) + "\n"),
        (".csv", 'id,class\n"' + "a\n" * 1_000_000),
    ],
)
def test_deep_and_long_manifests_are_refused_quickly(tmp_path: Path, suffix: str, text: str):
    path = tmp_path / f"m{suffix}"
    path.write_text(text)
    started = time.monotonic()
    with suppress(FarmError):
        assert read_manifest(str(path), strict=False).errors
    assert time.monotonic() - started < 20


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\nclass_tokens = "sks cat"\n'
ROW = '{"id": "a", "class_noun": "cat", "photos": "x"'


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", SUBSET + f'resolution = "{"9" * 5_000}"\n'),
        (".toml", SUBSET + "flip_aug = 1979-05-27T07:32:00Z\nbatch_size = 07:32:00\n"),
        (".toml", SUBSET + "resolution = [" + "1," * 100_000 + "2]\n"),
        (".toml", SUBSET + "x = [\n[" + " " * 20_000 + "1" + " " * 20_000 + ", 2]]\n"),
        (".toml", ('x = "' + ("a" * 64 + ".") * 23 + '"\n') * 400),
        (".toml", '"!".' * 50_000 + "a = 1"),
        (".csv", "id,class,photos,recipe." + ".".join("a" * 5_000) + "\nb,cat,x,1\n"),
        (".csv", "id,class,photos," + ".".join("a" * 5_000) + "\nb,cat,x,1\n"),
        (".csv", "id,class,photos\n" + "ab," * 1_000_000),
        (".csv", 'id,class,photos\na,"\n' + '","\n' * 100_000),
        (".csv", "ab," * 1_000_000 + "\n"),
        (".jsonl", ROW + ', "class_images": "\\ud800"}\n'),
        (".jsonl", ROW + ', "recipe": {"\\ud800": "\\udfff"}}\n'),
        (".jsonl", ROW + ', "sample_prompts": [' + "0," * 100_000 + "0]}\n"),
        (".jsonl", ROW + "".join(f', "{number}": 0' for number in range(50_000)) + "}\n"),
        (".jsonl", ROW + ', "recipe": {"steps": [' + "0," * 300_000 + "0]}}\n"),
        (".jsonl", f'{{"id": "{"a" * 1_000_000}", "{"b" * 1_000_000}": 1}}\n'),
        (".json", '{"subjects": [], "subjects": [{"id": "a", "id": "b"}, 1]}'),
    ],
)
def test_values_that_no_field_takes_are_short_faults_in_little_time(
    tmp_path: Path, suffix: str, text: str
):
    path = tmp_path / f"m{suffix}"
    path.write_text(text)
    started = time.process_time()
    errors = read_manifest(str(path), strict=False).errors
    assert errors
    assert not any("this as a bug" in fault.remedy for fault in errors)
    assert all(len(str(fault)) < 10_000 for fault in errors)
    assert time.process_time() - started < 10


def test_an_error_of_a_library_is_the_fault_of_its_subject_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def breaks(value: object, *rest: object) -> object:
        if value == "bad":
            raise ZeroDivisionError
        return list_photos(value, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(resolve, "list_photos", breaks)
    (tmp_path / "x.png").write_bytes(encoded(picture()))
    rows = [{"id": name, "class_noun": "cat", "photos": name} for name in ("bad", "x.png")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = read_manifest(str(tmp_path / "m.jsonl"), strict=False)
    assert [subject.id for subject in manifest.subjects] == ["x.png"]
    (fault,) = manifest.errors
    assert fault.subject == "bad"
    assert "ZeroDivisionError" in fault.message


def test_subjects_and_rows_of_captions_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("farm.intake.manifest.MAX_SUBJECTS", 3)
    monkeypatch.setattr("farm.intake.captions.photo_table.MAX_ROWS", 3)
    (tmp_path / "x.png").write_bytes(encoded(picture()))
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "x.png,a sks cat\n" * 5)
    (tmp_path / "m.csv").write_text("id,class,photos\n" + "a,cat,.\n" * 5)
    manifest = read_manifest(str(tmp_path / "m.csv"), strict=False)
    assert len(manifest.resolved) == 3
    messages = " ".join(fault.message for fault in manifest.faults)
    assert "more than 3 subjects" in messages
    assert "more than 3 rows" in messages


def test_aliases_are_bounded_over_the_whole_file(tmp_path: Path):
    shared = "x-a: &a [" + ", ".join(["x"] * 100_000) + "]\nsubjects:\n"
    (tmp_path / "m.yaml").write_text(shared + "  - {id: a, photos: *a}\n" * 200)
    manifest = read_manifest(str(tmp_path / "m.yaml"), strict=False)
    assert any("values in all" in fault.message for fault in manifest.errors)


def test_many_bombs_in_one_manifest_are_told_one_by_one(tmp_path: Path):
    for number in range(12):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        (folder / "pixels.png").write_bytes(_flat_png(90_000_000))
        (folder / "gzip.png").write_bytes(b"\x1f\x8b" + bytes(100))
        (folder / "good.png").write_bytes(encoded(picture()))
    subjects = "".join(f"  - {{id: s{n}, class_noun: cat}}\n" for n in range(12))
    (tmp_path / "m.yaml").write_text("subjects:\n" + subjects)
    report = check_manifest(read_manifest(str(tmp_path / "m.yaml"), strict=False), workers=8)
    assert len(report.facts) == 12 * 2
    assert sum("gzip.png" in fault.message for fault in report.errors) == 12


def _flat_png(pixels: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (9_000, pixels // 9_000)).save(file, "PNG")
    return file.getvalue()
