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
