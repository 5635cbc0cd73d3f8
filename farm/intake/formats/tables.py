"""Manifests as tables: CSV and Parquet, one subject a row.

Owns the interpretation of cells: dotted columns nest (``recipe.steps``), ``|`` separates the items
of a list in one cell, empty cells are absent. Parquet is read in batches of rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from farm.errors import Fault, FaultList
from farm.intake.captions.photo_table import TABLE_COLUMNS, is_photo_manifest
from farm.intake.faults import LIKE_A_FIELD, closest, meaning, nearest
from farm.intake.formats.imagefolder import read_imagefolder
from farm.intake.parsing.delimited import Delimited, folded, read_delimited
from farm.intake.parsing.json import read_json
from farm.intake.parsing.parquet import TableTooLarge, bytes_column, open_parquet, parquet_rows
from farm.intake.parsing.yaml import parse_scalar
from farm.intake.photos.listings import INSIDE_REMEDY
from farm.intake.rows import ManifestRow, ManifestRows, Path
from farm.intake.schema import SubjectEntry
from farm.recipe import Recipe

__all__ = ["LIST_MARK", "is_table", "read_csv", "read_parquet"]

LIST_MARK = "|"
"""Divides the items of a list in one cell."""
TEXT_COLUMNS = frozenset(
    ("id", "class_noun", "name", "namespace", "identifier", "instance_prompt", "class_prompt")
)
LIST_COLUMNS = frozenset(("photos", "sample_prompts", "class_images"))
SHORT_COLUMNS = {"subject": "id", "class": "class_noun"}
"""Names of the ``subjects.csv`` shorthand; besides them ``live``, which chooses a preset."""


REQUIRED = {"id": "subject", "class_noun": "class"}
"""Fields that every table of subjects has, and the columns that it is advised to name them by."""
FOLDER_COLUMNS = frozenset(("folder", "directory", "dir"))
"""Words for a subject's photos that also name the subject, where nothing else does."""
ONE = "keep one of them"
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:[.,][0-9]{3})+")
"""A number that may have marks between its thousands, or a decimal mark: `1.000`."""
_WHOLE = frozenset(
    name
    for name, field in (*Recipe.model_fields.items(), *SubjectEntry.model_fields.items())
    if field.annotation in (int, int | None)
)
"""Fields of whole numbers."""
_SWITCHES = {"live", *(name for name, one in Recipe.model_fields.items() if one.annotation is bool)}
"""Columns of true and false."""
_LOCAL_SWITCHES = {
    **dict.fromkeys(("wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar", "sant"), True),
    **dict.fromkeys(("falsch", "faux", "falso", "onwaar", "falskt"), False),
}
"""Into which spreadsheet programs of other languages change `true` and `false`."""
_OWN_COLUMNS = TEXT_COLUMNS | LIST_COLUMNS | SHORT_COLUMNS.keys() | {"live", "captions", "preset"}


_FIELDS = _OWN_COLUMNS | SubjectEntry.model_fields.keys() | Recipe.model_fields.keys()
_KNOWN = _OWN_COLUMNS | TABLE_COLUMNS


def is_table(text: str) -> bool:
    """Whether a text begins with the names of columns, whatever its file is called."""
    columns = read_delimited(text, _KNOWN).columns
    return len({folded(column) for column in columns} & _KNOWN) > 1


def read_csv(text: str, file: str, base: str) -> ManifestRows:
    """Read a table with a header row: of photos if its columns are those of photos, else of
    subjects."""
    faults = FaultList()
    table = read_delimited(text, _KNOWN)
    head = ManifestRow({}, file, base)
    if is_photo_manifest(table.columns, file):
        return read_imagefolder(_photo_rows(table, head, faults), head, faults)
    if (renamed := _renamed(table.columns)) is not None:
        message, columns = renamed
        header = io.StringIO()
        csv.writer(header, delimiter=table.delimiter, lineterminator="").writerow(columns)
        fault = Fault(file, message, f"write it as `{header.getvalue()[:200]}`", table.line)
        return ManifestRows(head, iter(()), FaultList([fault]))
    if table.columns and not any(_is_known(column) for column in table.columns):
        shown = ", ".join(f"`{column[:40]}`" for column in table.columns[:5])
        message = f"its first line names no column that is known here: {shown}"
        remedy = "begin it with the names of its columns, such as `subject,class`"
        return ManifestRows(head, iter(()), FaultList([Fault(file, message, remedy, table.line)]))
    return ManifestRows(head, _subject_rows(table, head, faults), faults)


def _photo_rows(table: Delimited, head: ManifestRow, faults: FaultList) -> Iterator[ManifestRow]:
    for line, cells in table.rows:
        value = dict(zip(table.columns, cells, strict=False))
        yield ManifestRow(
            {key: cell for key, cell in value.items() if key and cell}, *_at(head, line)
        )
    faults += [ManifestRow({}, *_at(head, line)).fault((), *words) for line, *words in table.faults]


def _at(head: ManifestRow, line: int) -> tuple[str, str, int]:
    return head.file, head.base, line


def _subject_rows(table: Delimited, head: ManifestRow, faults: FaultList) -> Iterator[ManifestRow]:
    columns = [_known(column) for column in table.columns]
    hints = _hints(columns)
    for short, name in SHORT_COLUMNS.items():
        if short in columns and name in columns:
            message = f"the columns `{short}` and `{name}` are the same field"
            faults.append(ManifestRow({}, *_at(head, table.line)).fault((name,), message, ONE))
    for line, cells in table.rows:
        row = ManifestRow({}, *_at(head, line), hints=hints)
        for column, cell in zip(columns, cells, strict=False):
            _place(row, column, _cell(column, cell, table), faults)
        if str(row.value.get("id", "")).startswith("#"):
            message = "the row begins with `#`, but tables have no comments"
            faults.append(ManifestRow({}, *_at(head, line)).fault((), message, "remove the line"))
            continue
        yield row
    faults += [ManifestRow({}, *_at(head, line)).fault((), *words) for line, *words in table.faults]


def _renamed(columns: Sequence[str]) -> tuple[str, list[str]] | None:
    """What is wrong with a header whose required columns have other words, and the right header.

    A misspelled column alone is left to the rows, whose other faults are reported with it.
    """
    names = [_known(column) for column in columns]
    fields = [SHORT_COLUMNS.get(name, name) for name in names]
    missing = [field for field in REQUIRED if field not in fields]
    found: dict[int, str] = {}
    for field in missing:
        meant = (at for at, name in enumerate(names) if meaning(name) == field)
        if (at := next(meant, None)) is not None:
            found[at] = field
    if "id" in missing and "id" not in found.values():
        at = next((at for at, name in enumerate(names) if folded(name) in FOLDER_COLUMNS), None)
        if at is not None and (found or missing == ["id"]):
            found[at] = "id"
    if not found:
        return None
    for field in missing:
        words = (field, REQUIRED[field])
        at = next((at for at, name in enumerate(names) if closest(folded(name), words)), None)
        if at is not None and field not in found.values():
            found.setdefault(at, field)
    right = {at: REQUIRED[field] for at, field in found.items()}
    right = _other_words(names, {*fields, *found.values()}) | right
    pairs = [f"`{columns[at][:40]}` for `{right[at]}`" for at in sorted(right)]
    added = [REQUIRED[field] for field in missing if field not in found.values()]
    also = f"; `{added[0]}` is missing" if added else ""
    header = [right.get(at, name) for at, name in enumerate(columns)]
    return f"columns have other names than here: {', '.join(pairs)}{also}", [*header, *added]


def _other_words(columns: Sequence[str], taken: Collection[str]) -> dict[int, str]:
    """The names that columns should have which name other fields by other words, by position."""
    found: dict[int, str] = {}
    for at, column in enumerate(columns):
        field = meaning(column)
        name = f"recipe.{field}" if field in Recipe.model_fields else field
        if name and folded(column) not in _FIELDS and name not in {*taken, *found.values()}:
            found[at] = name
    return found


def _is_known(column: str) -> bool:
    """Whether a column may be a subject's, if only by a name that is nearly right."""
    name = folded(column)
    return "." in name or name in _FIELDS or closest(name, _FIELDS, LIKE_A_FIELD) is not None


def _known(column: str) -> str:
    """A column's canonical name, if it is written in another case or with spaces."""
    name = folded(column)
    return name if name in _OWN_COLUMNS or name.startswith(("recipe.", "prior.")) else column


def _hints(columns: Iterable[str]) -> dict[Path, str]:
    """Remedies for the columns of a table that have unknown names."""
    fields = [name for name in SubjectEntry.model_fields if name not in SHORT_COLUMNS.values()]
    names = (*SHORT_COLUMNS, "live", *fields)
    taken = {*names, *SHORT_COLUMNS.values(), *Recipe.model_fields}
    unknown = (one for one in columns if one not in taken and "." not in one)
    return {(one,): _hint(one, names) for one in unknown}


def _hint(column: str, names: Iterable[str]) -> str:
    meant = meaning(column) or ""
    if meant in Recipe.model_fields:
        return f"name it `recipe.{meant}`"
    return nearest(REQUIRED.get(meant, column), names)


def _cell(column: str, text: str, table: Delimited) -> Any:
    """The value of a cell; None where it is empty."""
    column = SHORT_COLUMNS.get(column, column)
    if not text:
        return None
    if column in TEXT_COLUMNS:
        return text
    if column in LIST_COLUMNS:
        if text.startswith('["') and isinstance(found := _json(text), list):
            return found
        items = [item.strip() for item in text.split(LIST_MARK) if item.strip()]
        return items[0] if len(items) == 1 and column == "photos" else items
    if column.rpartition(".")[2] in _WHOLE and _GROUPED.fullmatch(text):
        return text  # refused as it is written: 1 and 1000 are both possible
    if column.rpartition(".")[2] in _SWITCHES and text.casefold() in _LOCAL_SWITCHES:
        return _LOCAL_SWITCHES[text.casefold()]
    if LIST_MARK in text:
        return [parse_scalar(table.number(item.strip())) for item in text.split(LIST_MARK)]
    return parse_scalar(table.number(text))


def _json(text: str) -> object:
    """The value of a cell that holds JSON; None if it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _place(row: ManifestRow, column: str, value: Any, faults: FaultList) -> None:
    """Put a cell at the path that its column names; absent cells are left out."""
    if value is None or not column:
        return
    if column == "live":
        value = {"yes": True, "no": False, "1": True, "0": False}.get(str(value).lower(), value)
        if not isinstance(value, bool):
            message = f"`{value}` is not true or false"
            faults.append(row.fault((column,), message, "write true or false"))
            return
        column, value = "preset", "live" if value else "object"
    *folders, leaf = SHORT_COLUMNS.get(column, column).split(".")
    target = row.value
    for folder in folders:
        target = target.setdefault(folder, {})
        if not isinstance(target, dict):
            faults.append(row.fault((column,), f"`{folder}` has a column of its own", "keep one"))
            return
    target[leaf] = value


def read_parquet(source: Any, file: str, base: str) -> ManifestRows:
    """Read a Parquet table from an open binary file; ``recipe`` may be JSON or a struct.

    Rows are numbered from 1, for faults.
    """
    import pyarrow as pa

    faults = FaultList()
    head = ManifestRow({}, file, base)
    try:
        table = open_parquet(source)
    except TableTooLarge as error:
        faults.append(_too_large(source, file, error, None))
        return ManifestRows(head, iter(()), faults)
    except (pa.ArrowException, OSError, ValueError) as error:
        faults.append(_damaged(file, error, None))
        return ManifestRows(head, iter(()), faults)
    rows = _numbered(table, source, file, faults)
    if is_photo_manifest(table.schema_arrow.names, file):
        photos = (ManifestRow(value, *_at(head, number)) for number, value in rows)
        return read_imagefolder(photos, head, faults)
    if (renamed := _renamed(table.schema_arrow.names)) is not None:
        message, columns = renamed
        shown = ", ".join(f"`{column[:40]}`" for column in columns[:10])
        faults.append(Fault(file, message, f"name the columns {shown}"))
        return ManifestRows(head, iter(()), faults)
    return ManifestRows(head, _parquet_rows(rows, file, base, faults), faults)


def _damaged(file: str, error: Exception, line: int | None) -> Fault:
    message = f"not a Parquet file, or not a whole one: {' '.join(str(error).split())[:200]}"
    return Fault(file, message, "write it again", line=line)


def _too_large(source: Any, file: str, error: TableTooLarge, line: int | None) -> Fault:
    if (inside := bytes_column(source)) is not None:
        message = f"`{inside}` holds the photos themselves, inside the table"
        return Fault(file, message, INSIDE_REMEDY, line, inside)
    return Fault(file, str(error), "split it, or remove columns of other data", line)


def _numbered(
    table: Any, source: Any, file: str, faults: FaultList
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table, numbered from 1; ends with a fault where reading fails."""
    import pyarrow as pa

    number = 0
    try:
        for value in parquet_rows(table):
            number += 1
            yield number, value
    except TableTooLarge as error:
        faults.append(_too_large(source, file, error, number + 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        faults.append(_damaged(file, error, number or None))


def _parquet_rows(
    rows: Iterator[tuple[int, dict[str, Any]]], file: str, base: str, faults: FaultList
) -> Iterator[ManifestRow]:
    hints: dict[Path, str] | None = None
    for number, value in rows:
        hints = _hints(value) if hints is None else hints
        row = ManifestRow({}, file, base, number, hints=hints)
        for column, cell in value.items():
            is_json = column in {"recipe", "prior"} and isinstance(cell, str)
            plain = _parsed(cell, row, column, faults) if is_json else _plain(cell)
            _place(row, column, plain, faults)
        yield row


def _parsed(text: str, row: ManifestRow, column: str, faults: FaultList) -> Any:
    rows = read_json(text, row.file, row.base)
    if rows.faults:
        faults.append(row.fault((column,), rows.faults[0].message, "write one JSON object"))
        return None
    return rows.head.value


def _plain(value: Any) -> Any:
    """Arrow's values as in a manifest: no nulls in structs, whole floats as integers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None if isinstance(value, float) and value != value else value
