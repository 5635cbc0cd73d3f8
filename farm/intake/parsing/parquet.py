"""Rows of Parquet tables, read in batches whose size in memory is bounded.

Owns the limits on what a small file may expand to: row groups, cells, lists, and dictionaries whose
few long values are repeated in every row. Sizes are read from the pages themselves, as decoders do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from farm.intake.parsing.parquet_pages import BadPage, Page, pages_of

__all__ = ["TableTooLarge", "bytes_column", "open_parquet", "parquet_rows"]

BATCH_ROWS = 1_000
MAX_GROUP_BYTES = 256 * 2**20
"""Maximum size of one row group, unpacked."""
MAX_CELL_BYTES = 2**20
"""Maximum size of one text; longer ones are not a manifest's."""
MAX_BATCH_BYTES = 128 * 2**20
"""Maximum size of the texts of one batch, with dictionaries expanded."""
MAX_LIST_VALUES = 32_000_000
"""Maximum number of values in the lists of one row group: a single row may hold all of them."""
LIST_ITEM_BYTES = 64
"""What an item of a list counts, empty or not: as a Python value it takes that much."""
MAX_FIXED_BYTES = 4_096
"""Maximum length of values that all have the same one, as of a UUID."""
MAX_PAGES = 200_000
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
        TableTooLarge: if its footer or its pages exceed a bound.
        pyarrow.ArrowException, OSError: if it is not a complete Parquet file.
    """
    import pyarrow.parquet as pq

    table = _with_bounded_footer(source)
    footer = table.metadata
    if footer.num_columns > MAX_COLUMNS:
        raise TableTooLarge(f"it has {footer.num_columns} columns, more than {MAX_COLUMNS}")
    if footer.num_rows > MAX_ROWS:
        raise TableTooLarge(f"it has {footer.num_rows} rows, more than {MAX_ROWS}")
    _check_pages(source, footer)
    texts = [
        footer.schema.column(at).path
        for at in range(footer.num_columns)
        if footer.schema.column(at).physical_type == "BYTE_ARRAY"
    ]
    # dictionaries are kept, so that their values can be measured before they are expanded
    source.seek(0)
    table = pq.ParquetFile(source, read_dictionary=texts)
    for field in table.schema_arrow:
        _check_kind(field.type)
    return table


def _check_kind(kind: Any) -> None:
    """Refuse types of other libraries, whose dictionaries would be expanded at once."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        raise TableTooLarge(f"a column of type {str(kind)[:60]} is not read")
    if pa.types.is_nested(kind):
        for at in range(kind.num_fields):
            _check_kind(kind.field(at).type)


def _check_pages(source: BinaryIO, footer: Any) -> None:
    """Refuse a row group that unpacks too far, by the headers of its pages.

    Raises:
        TableTooLarge: if it exceeds a bound.
    """
    num_pages = 0
    for number in range(footer.num_row_groups):
        group, size, num_listed = footer.row_group(number), 0, 0
        for at in range(group.num_columns):
            column = footer.schema.column(at)
            is_fixed, is_list = column.length > 0, column.max_repetition_level > 0
            if is_fixed and column.length > MAX_FIXED_BYTES:
                raise TableTooLarge(
                    f"its column {column.path[:60]} has values of {column.length:,} bytes"
                )
            for page in _pages(source, group.column(at)):
                num_pages += 1
                size += page.num_bytes
                if is_list and not page.is_dictionary:
                    num_listed += page.num_values
                    size += page.num_values * max(0, column.length)
                if num_pages > MAX_PAGES:
                    raise TableTooLarge(f"it has more than {MAX_PAGES:,} pages")
                if size > MAX_GROUP_BYTES or num_listed > MAX_LIST_VALUES:
                    raise TableTooLarge(
                        f"row group {number} unpacks to more than {MAX_GROUP_BYTES // 2**20} MiB, "
                        f"or to lists of more than {MAX_LIST_VALUES:,} values"
                    )


def _pages(source: BinaryIO, column: Any) -> Iterator[Page]:
    """The pages of a column in a row group."""
    starts = [column.data_page_offset]
    if column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    for page in pages_of(source, min(starts), column.total_compressed_size):
        if page.is_dictionary and page.num_values > page.num_bytes:
            raise BadPage("a dictionary has more values than bytes")
        if page.shares_prefixes:
            raise TableTooLarge("its texts are packed as DELTA_BYTE_ARRAY, which is not read")
        yield page


def _with_bounded_footer(source: BinaryIO) -> Any:
    import pyarrow.parquet as pq

    source.seek(0, os.SEEK_END)
    source.seek(-min(8, source.tell()), os.SEEK_END)
    tail = source.read(8)
    if tail[4:] == b"PAR1" and int.from_bytes(tail[:4], "little") > MAX_FOOTER_BYTES:
        raise TableTooLarge(f"its footer has more than {MAX_FOOTER_BYTES // 2**20} MiB")
    source.seek(0)
    return pq.ParquetFile(source)


def bytes_column(source: BinaryIO) -> str | None:
    """The column that holds whole files, as the `datasets` library stores photos; from the table's
    footer alone. None as well if the footer is damaged or too large."""
    import pyarrow as pa

    try:
        fields = _with_bounded_footer(source).schema_arrow
    except (TableTooLarge, pa.ArrowException, OSError):
        return None
    for field in fields:
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
                f"{batch.num_rows} rows hold more than {MAX_BATCH_BYTES // 2**20} MiB of text "
                "and lists"
            )
        yield from batch.to_pylist()


def _text_bytes(array: Any) -> int:
    """Bytes of all texts of a column, with dictionaries expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_fixed_size_binary(kind):
        return len(array) * int(kind.byte_width)
    if pa.types.is_dictionary(kind):
        if not _is_text(kind.value_type):
            return 0
        lengths = pc.binary_length(array.dictionary)
        _refuse_long(pc.max(lengths).as_py())
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_text_bytes(array.field(at)) for at in range(kind.num_fields))
    if pa.types.is_map(kind):
        items = _text_bytes(array.keys) + _text_bytes(array.items)
        return len(array.keys) * LIST_ITEM_BYTES + items
    if pa.types.is_fixed_size_list(kind):
        return len(array.values) * LIST_ITEM_BYTES + _text_bytes(array.values)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(array.values) * LIST_ITEM_BYTES + _text_bytes(array.flatten())
    if _is_text(kind):
        lengths = pc.binary_length(array)
        _refuse_long(pc.max(lengths).as_py())
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_nested(kind):
        raise TableTooLarge(f"a column of type {str(kind)[:60]} is not read")
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
