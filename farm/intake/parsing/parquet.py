"""Rows of Parquet tables, read in batches whose size in memory is bounded.

Owns the limits on what a small file may expand to: row groups, cells, and dictionaries whose few
long values are repeated in every row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["TableTooLarge", "bytes_column", "open_parquet", "parquet_rows"]

BATCH_ROWS = 1_000
MAX_GROUP_BYTES = 256 * 2**20
"""Maximum size of one row group, unpacked."""
MAX_CELL_BYTES = 2**20
"""Maximum size of one text; longer ones are not a manifest's."""
MAX_BATCH_BYTES = 128 * 2**20
"""Maximum size of the texts of one batch, with dictionaries expanded."""
MAX_COLUMNS = 2_000
MAX_ROWS = 5_000_000
MAX_FOOTER_BYTES = 8 * 2**20
"""Maximum size of the description of all row groups and columns, which takes ten times as much in
memory; that of a manifest has some kilobytes."""


class TableTooLarge(ValueError):
    """A table that would take too much memory; the message names the exceeded bound."""


def open_parquet(source: BinaryIO) -> Any:
    """Open a Parquet file for ``parquet_rows``.

    Raises:
        TableTooLarge: if its footer alone exceeds a bound.
        pyarrow.ArrowException, OSError: if it is not a complete Parquet file.
    """
    import pyarrow.parquet as pq

    source.seek(0, os.SEEK_END)
    source.seek(-min(8, source.tell()), os.SEEK_END)
    tail = source.read(8)
    if tail[4:] == b"PAR1" and int.from_bytes(tail[:4], "little") > MAX_FOOTER_BYTES:
        raise TableTooLarge(f"its footer has more than {MAX_FOOTER_BYTES // 2**20} MiB")
    source.seek(0)
    table = pq.ParquetFile(source)
    footer = table.metadata
    if footer.num_columns > MAX_COLUMNS:
        raise TableTooLarge(f"it has {footer.num_columns} columns, more than {MAX_COLUMNS}")
    if footer.num_rows > MAX_ROWS:
        raise TableTooLarge(f"it has {footer.num_rows} rows, more than {MAX_ROWS}")
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = [group.column(at) for at in range(group.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns)
        if max(size, group.total_byte_size) > MAX_GROUP_BYTES:
            raise TableTooLarge(
                f"row group {number} unpacks to more than {MAX_GROUP_BYTES // 2**20} MiB"
            )
    texts = [
        footer.schema.column(at).path
        for at in range(footer.num_columns)
        if footer.schema.column(at).physical_type == "BYTE_ARRAY"
    ]
    # dictionaries are kept, so that their values can be measured before they are expanded
    return pq.ParquetFile(source, read_dictionary=texts)


def bytes_column(source: Any) -> str | None:
    """The column that holds whole files, as the `datasets` library stores photos; from the table's
    footer alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for field in pq.ParquetFile(source).schema_arrow:
        kinds = [one.type for one in field.type] if pa.types.is_struct(field.type) else [field.type]
        if any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds):
            return str(field.name)
    return None


def parquet_rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table from ``open_parquet`` as plain values.

    Raises:
        TableTooLarge: if a cell or a batch exceeds its bound.
        pyarrow.ArrowException, OSError: if the file is damaged.
    """
    for batch in table.iter_batches(batch_size=BATCH_ROWS):
        if sum(_text_bytes(column) for column in batch.columns) > MAX_BATCH_BYTES:
            raise TableTooLarge(
                f"{batch.num_rows} rows hold more than {MAX_BATCH_BYTES // 2**20} MiB of text"
            )
        yield from batch.to_pylist()


def _text_bytes(array: Any) -> int:
    """Bytes of all texts of a column, with dictionaries expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        if not _is_text(kind.value_type):
            return 0
        lengths = pc.binary_length(array.dictionary)
        _refuse_long(pc.max(lengths).as_py())
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_text_bytes(array.field(at)) for at in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(array.values) * 8 + _text_bytes(array.flatten())
    if pa.types.is_map(kind):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if _is_text(kind):
        lengths = pc.binary_length(array)
        _refuse_long(pc.max(lengths).as_py())
        return int(pc.sum(lengths).as_py() or 0)
    return 0


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    )


def _refuse_long(length: int | None) -> None:
    if length is not None and length > MAX_CELL_BYTES:
        raise TableTooLarge(f"a cell holds {length} bytes, more than {MAX_CELL_BYTES}")
