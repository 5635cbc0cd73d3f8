"""Hostile input: a check ends with faults, never with a crash or hang, in bounded memory."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.photos import encoded, picture

from farm.errors import FarmError
from farm.intake.check import check_manifest
from farm.intake.formats.tables import read_parquet
from farm.intake.manifest import read_manifest
from farm.intake.photos.bytes import PhotoReader
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
