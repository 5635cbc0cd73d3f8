from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farm.errors import Fault
from farm.intake.formats.tables import read_parquet
from farm.intake.parsing import parquet


def faults_of(table: pa.Table, **options: object) -> list[Fault]:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", **options)
    file.seek(0)
    rows = read_parquet(file, "m.parquet", "/")
    list(rows.subjects)
    return rows.faults


def test_a_dictionary_whose_long_value_is_repeated_is_refused_unexpanded():
    long = pa.array(["x" * 900_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), long)
    peak = pa.total_allocated_bytes()
    [fault] = faults_of(pa.table({"id": column}))
    assert "MiB of text" in fault.message
    assert fault.remedy
    assert pa.total_allocated_bytes() - peak < 2**26


def test_a_huge_cell_is_refused_also_inside_lists_and_structs():
    huge = "x" * 3_000_000
    for value in (huge, [huge], {"uri": huge}, [{"uri": huge}]):
        [fault] = faults_of(pa.table({"photos": [value]}))
        assert "a cell holds" in fault.message


def test_a_row_group_that_unpacks_too_far_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 100_000)
    table = pa.table({"id": [f"{n:064d}" for n in range(10_000)]})
    [fault] = faults_of(table, use_dictionary=False)
    assert "row group 0" in fault.message


def test_columns_and_rows_are_bounded(monkeypatch: pytest.MonkeyPatch):
    assert "columns" in faults_of(pa.table({f"c{n}": [1] for n in range(2_001)}))[0].message
    monkeypatch.setattr(parquet, "MAX_ROWS", 3)
    assert "rows" in faults_of(pa.table({"id": ["a"] * 4}))[0].message


def test_a_large_footer_is_refused_unread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "MAX_FOOTER_BYTES", 1_000)
    [fault] = faults_of(pa.table({f"c{n}": [1] for n in range(100)}))
    assert "its footer has more than" in fault.message
    rows = read_parquet(io.BytesIO(b"PAR1"), "m.parquet", "/")
    assert "has more than" not in rows.faults[0].message
    assert not list(rows.subjects)


def test_ordinary_tables_are_read(tmp_path: Path):
    table = pa.table(
        {
            "id": ["a", "b"],
            "class_noun": ["cat", None],
            "photos": [[{"uri": "x", "caption": None}], []],
            "recipe": [{"steps": 10.0}, None],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    file = io.BytesIO((tmp_path / "m.parquet").read_bytes())
    rows = read_parquet(file, "m.parquet", "/")
    first, second = rows.subjects
    assert first.value["recipe"] == {"steps": 10}
    assert first.value["photos"] == [{"uri": "x"}]
    assert second.value["id"] == "b"
    assert rows.faults == []


def written(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", **options)
    return file.getvalue()


def listed(count: int, items: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), items)


def with_lies(data: bytes, number: int) -> bytes:
    """A file whose footer says one where the given number is true."""

    def varint(number: int) -> bytes:
        parts = [number >> shift & 127 for shift in range(0, number.bit_length(), 7)]
        return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])

    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length :]
    true = varint(2 * number)
    assert true in footer
    return body + footer.replace(true, b"\x82" + b"\x80" * (len(true) - 2) + b"\0")


def grown() -> dict[str, bytes]:
    """Files of some hundred bytes that hold a million values, or a text a thousand times."""
    many, text = 1_000_000, "x" * 100_000
    nulls = pa.table({"photos": listed(many, pa.nulls(many, pa.string()))})
    plain = written(pa.table({"id": [text] * 100}), use_dictionary=False, write_statistics=False)
    group = pq.ParquetFile(io.BytesIO(plain)).metadata.row_group(0)
    deltas = pa.table({"id": [f"{text}{number:04d}" for number in range(100)]})
    return {
        "a list of nulls": written(nulls),
        "a list whose length the footer hides": with_lies(written(nulls), many),
        "a page whose size the footer hides": with_lies(plain, group.total_byte_size),
        "a list of a fixed size": written(
            pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.nulls(many, pa.int8()), many)})
        ),
        "a mapping": written(
            pa.table(
                {
                    "captions": pa.MapArray.from_arrays(
                        pa.array([0, 1_000], pa.int32()), ["k"] * 1_000, ["v"] * 1_000
                    )
                }
            )
        ),
        "texts that share prefixes": written(
            deltas, use_dictionary=False, column_encoding={"id": "DELTA_BYTE_ARRAY"}
        ),
        "long values of one length": written(
            pa.table({"id": pa.array([b"x" * 5_000] * 100, pa.binary(5_000))})
        ),
    }


@pytest.mark.parametrize("kind", grown())
def test_what_grows_when_it_is_read_is_refused_by_its_pages(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 2_000_000)
    monkeypatch.setattr(parquet, "MAX_LIST_VALUES", 500)
    before = pa.total_allocated_bytes()
    rows = read_parquet(io.BytesIO(grown()[kind]), "m.parquet", "/")
    assert not list(rows.subjects)
    assert len(rows.faults) == 1
    assert rows.faults[0].remedy
    assert pa.total_allocated_bytes() - before < 2**20


def test_damaged_pages_are_faults():
    data = bytearray(written(pa.table({"id": ["a"] * 50, "photos": [["x"]] * 50})))
    for place in range(4, 120):
        damaged = bytes(data[:place]) + b"\xff" + bytes(data[place + 1 :])
        rows = read_parquet(io.BytesIO(damaged), "m.parquet", "/")
        list(rows.subjects)
