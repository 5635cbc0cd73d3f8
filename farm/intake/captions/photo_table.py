"""Tables with one photo a row: `metadata.csv`, `.jsonl`, `.parquet` and their like.

Owns which columns name photos and captions, and reads such a table in any of its forms, detected by
content. ``files.py`` uses the rows as captions beside photos, ``formats/imagefolder.py`` as a
manifest.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from farm.errors import Fault, FaultList
from farm.intake.parsing.delimited import folded, read_delimited
from farm.intake.parsing.json import is_json_lines, read_json, read_jsonl
from farm.intake.parsing.parquet import TableTooLarge, open_parquet, parquet_rows
from farm.intake.parsing.text_files import NotText, decoded, is_parquet
from farm.intake.rows import ManifestRow

__all__ = [
    "CAPTION_COLUMNS",
    "MAX_LISTED_ROWS",
    "PhotoRow",
    "PhotoTable",
    "TABLE_COLUMNS",
    "caption_key",
    "column_faults",
    "is_image_name",
    "is_photo_manifest",
    "is_photo_row",
    "photo_row",
    "read_photo_table",
]

MAX_LISTED_ROWS = 50
"""Rows of one table that caption no photo and are reported one by one."""
CAPTION_COLUMNS = (
    "caption",
    "text",
    "prompt",
    "captions",
    "description",
    "caption_text",
    "image_caption",
) + ("texts", "prompts", "txt", "image_description", "image_text", "alt_text", "alt")
"""Columns that hold the caption; the first present wins."""
PHOTO_COLUMNS = (
    ("file_name", "filename", "image_file_name", "image", "image_path", "path", "file", "file_path")
    + ("filepath", "image_name", "image_file", "image_filename", "img", "img_path", "img_name")
    + ("photo", "photo_path", "photo_name", "picture", "file_names", "images", "image_file_names")
    + ("uri", "url", "image_url")
)
"""Columns that name the photo; the first present wins. Compared without case and with `_` for
spaces; besides them, the one column that ends in `_file_name`."""


MAX_ROWS = 200_000
"""Maximum number read of one table: as many as a folder may have names."""
MAX_COLUMNS = 2_000
TABLE_COLUMNS = frozenset((*CAPTION_COLUMNS, *PHOTO_COLUMNS))


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """One row of such a table."""

    line: int
    """1-based line; the row's number in Parquet."""
    files: tuple[str, ...]
    """Names of its photos as written; usually one."""
    caption: str
    """On one line; empty where it has none."""
    value: Mapping[str, Any]
    """All cells by folded column name."""
    choices: int = 1
    """Captions that the row offers; the first is taken."""
    column: str = ""
    """Of its caption; of what stands there instead, if it is not text."""
    other_column: str = ""
    """Another column of captions that says something else."""


@dataclass(slots=True)
class PhotoTable:
    """A table of photos, read."""

    rows: list[PhotoRow] = field(default_factory=list)
    faults: FaultList = field(default_factory=FaultList)
    columns: dict[str, str] = field(default_factory=dict)
    """Every column, by its folded name."""
    is_other: bool = False
    """Whether it is a JSON object of other facts, as albums of phones and clouds have."""

    @property
    def names_photos(self) -> bool:
        """Whether a column names photos."""
        return is_photo_row(self.columns)

    @property
    def has_captions(self) -> bool:
        """Whether a column holds captions."""
        return any(column in self.columns for column in CAPTION_COLUMNS)


def photo_column(columns: Iterable[str]) -> str | None:
    """The column that names photos, among folded names."""
    names = list(columns)
    for column in PHOTO_COLUMNS:
        if column in names:
            return column
    ending = [name for name in names if name.endswith(("_file_name", "_file_names"))]
    return ending[0] if len(ending) == 1 else None


def is_image_name(name: str) -> bool:
    """Whether a name is a picture's, by its suffix."""
    return _IMAGE_NAME.search(name) is not None


def is_photo_row(columns: Iterable[str]) -> bool:
    """Whether a table or row of these columns is about photos, not about whole subjects."""
    names = [folded(column) for column in columns]
    return photo_column(names) is not None and "photos" not in names


_CAPTIONS = frozenset(CAPTION_COLUMNS)
_IMAGE_NAME = re.compile(
    r"\.(?:jpe?g?|jfif|png|webp|bmp|gif|tiff?|avif|hei[cf]|jp2|mpo|p[gp]m|tga)$", re.IGNORECASE
)
_SURE_COLUMNS = frozenset(
    ("file_name", "filename", "file_names", "image", "images", "image_path", "image_file", "img")
)
"""Columns that make any manifest a table of photos; `path` or `url` may belong to a subject."""
_PHOTO_WORDS = frozenset(("photo", "photo_name", "photo_path", "picture"))
_OF_SUBJECTS = frozenset(("id", "subject", "name", "class", "class_noun", "version", "defaults"))


def is_photo_manifest(columns: Iterable[str], file: str) -> bool:
    """Whether a table that is given as a manifest has one photo a row, not one subject."""
    names = {folded(column) for column in columns}
    if "photos" in names:
        return False
    if any(name in _SURE_COLUMNS or name.endswith("_file_name") for name in names):
        return True
    if photo_column(names) and names & _CAPTIONS and not names & _OF_SUBJECTS:
        return True
    if names & _PHOTO_WORDS and names & {"caption", "text"}:
        return True
    is_metadata = posixpath.basename(file).casefold().startswith("metadata.")
    return is_metadata and not names & {"id", "subject", "class_noun", "version", "defaults"}


def photo_row(value: Mapping[str, Any], line: int) -> PhotoRow:
    """A row as photos and a caption."""
    cells = {folded(column): cell for column, cell in value.items()}
    column = photo_column(name for name, cell in cells.items() if cell not in (None, ""))
    named = cells.get(column) if column else None
    if isinstance(named, dict):
        # an image of the `datasets` library: bytes inside the table, and perhaps a path
        named = named.get("path") if not named.get("bytes") else None
    files = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    names = tuple(name.strip() for name in files if isinstance(name, str) and name.strip())
    found = {name: texts for name in CAPTION_COLUMNS if (texts := _texts(cells.get(name)))}
    if not found:
        filled = (name for name in CAPTION_COLUMNS if cells.get(name))
        return PhotoRow(line, names, "", cells, 0, next(filled, ""))
    first, captions = next(iter(found.items()))
    others = (name for name, texts in found.items() if texts[0] != captions[0])
    return PhotoRow(line, names, captions[0], cells, len(captions), first, next(others, ""))


def _texts(value: object) -> list[str]:
    """The captions in a cell, each on one line; numbers that are none mark an empty cell."""
    items = value if isinstance(value, list) else [value]
    items = [one for one in items if isinstance(one, str | int | float) and one == one]
    return [text for item in items if (text := " ".join(str(item).split()))]


def column_faults(rows: Iterable[PhotoRow]) -> Iterator[tuple[PhotoRow, str, str, bool]]:
    """First row, message, remedy and whether it is a warning, for what columns of captions hold and
    no photo is given: what is not text, and a second column's texts."""
    rows = list(rows)
    if unread := [row for row in rows if row.column and not row.caption]:
        row, more = unread[0], len(unread) - 1
        rest = f", and in {more} row{'s' if more > 1 else ''} below" if more else ""
        message = f"the caption in `{row.column}` is not text here{rest}"
        yield row, message, "write each caption as plain text", False
    if others := [row for row in rows if row.other_column]:
        row = others[0]
        message = f"captions are read from `{row.column}`; those in `{row.other_column}` are not"
        yield row, message, "keep the column that you want, and remove or rename the other", True


def caption_key(data: bytes) -> str | None:
    """The key of a JSON object that holds a caption, such as ``caption``; None without one."""
    try:
        value = read_json(decoded(data), "", "").head.value
    except NotText:
        return None
    names = {folded(name): name for name, cell in value.items() if _texts(cell)}
    # a description beside a photo of a phone is hardly ever its caption
    known = (*CAPTION_COLUMNS, "tags", "tag_string")
    wanted = [name for name in known if name in names and name != "description"]
    return names[wanted[0]] if wanted else None


def read_photo_table(data: bytes, name: str) -> PhotoTable:
    """Read a table of photos: Parquet, JSON, JSONL or delimited text, whatever its name ends in.

    Args:
        name: as faults name it.
    """
    table = PhotoTable()
    if is_parquet(data):
        _take(table, _parquet_rows(data, table.faults, name), name)
        return table
    try:
        text = decoded(data)
    except NotText as error:
        table.faults.append(Fault(name, error.message, error.remedy, line=error.line))
        return table
    start = text.lstrip()[:1]
    if start in {"{", "["}:
        is_lines = start == "{" and (not name.lower().endswith(".json") or is_json_lines(text))
        rows = read_jsonl(text.split("\n"), name, "") if is_lines else read_json(text, name, "")
        _take(table, ((row.line or 1, row.value) for row in rows.subjects), name)
        if not table.rows:
            _take(table, _mapping_rows(rows.head), name)
            table.is_other = bool(rows.head.value)
        table.faults += rows.faults
    else:
        _take_delimited(table, text, name)
    return table


def _take(table: PhotoTable, rows: Iterable[tuple[int, dict[str, Any]]], name: str) -> None:
    for line, value in rows:
        if len(table.rows) == MAX_ROWS:
            message = f"it has more than {MAX_ROWS:,} rows; the others are not read"
            table.faults.append(Fault(name, message, "keep the photos' captions alone", line))
            return
        for column in value if len(table.columns) < MAX_COLUMNS else ():
            table.columns.setdefault(folded(column), column)
        table.rows.append(photo_row(value, line))


def _mapping_rows(head: ManifestRow) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON object whose keys name photos: ``{"0.jpg": "a caption"}``, or with an
    object of captions and tags for each, as kohya's scripts write it."""
    for key, value in head.value.items():
        if isinstance(value, str) and is_image_name(key):
            value = {"caption": value}
        if not isinstance(value, dict) or not {folded(name) for name in value} & _CAPTIONS:
            continue
        yield head.line_of((key,)) or 1, {**value, "file_name": key}


def _take_delimited(table: PhotoTable, text: str, name: str) -> None:
    cells = read_delimited(text, TABLE_COLUMNS)
    table.columns = {folded(column): column for column in cells.columns if column}
    rows = (
        (line, {key: cell for key, cell in zip(cells.columns, row, strict=False) if key})
        for line, row in cells.rows
    )
    _take(table, rows, name)
    table.faults += [
        Fault(name, message, remedy, line=line) for line, message, remedy in cells.faults
    ]


def _parquet_rows(
    data: bytes, faults: FaultList, name: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa

    number = 0
    try:
        for value in parquet_rows(open_parquet(io.BytesIO(data))):
            number += 1
            yield number, value
    except TableTooLarge as error:
        faults.append(Fault(name, str(error), "keep the photos' captions alone", line=number + 1))
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"not a whole Parquet file: {' '.join(str(error).split())[:200]}"
        faults.append(Fault(name, message, "write it again", line=number or None))
