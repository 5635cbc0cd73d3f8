"""Importer of Hugging Face ImageFolder metadata: one photo a row, rows grouped into subjects.

Owns which columns mean what: `file_name` is the photo; `subject` or `id` its subject, and else the
first folder of its path; `class_noun`, `class` or `label` the class; `caption`, `text` or `prompt`
the caption. Other columns are not ours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from farm.errors import Fault
from farm.intake.captions import CAPTION_COLUMNS
from farm.intake.faults import slug
from farm.intake.json_rows import read_jsonl
from farm.intake.rows import Path, Row, Rows

__all__ = ["read_imagefolder"]

SUBJECT_COLUMNS = ("subject", "id")
CLASS_COLUMNS = ("class_noun", "class", "label")


def read_imagefolder(text: str, file: str, base: str) -> Rows:
    """Read a ``metadata.jsonl`` or ``metadata.csv``; one row per subject comes out."""
    faults: list[Fault] = []
    if file.split("?", 1)[0].endswith(".csv"):
        head, rows = Row({}, file, base), _csv_rows(text, file, base)
    else:
        lines = read_jsonl(text.splitlines(), file, base)
        head, rows, faults = lines.head, lines.subjects, lines.faults
    return Rows(head, _subjects(rows, file, base, faults), faults)


def _csv_rows(text: str, file: str, base: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline=""))
    for cells in reader:
        value = {column: cell for column, cell in cells.items() if column and cell}
        yield Row(value, file, base, reader.line_num)


def _subjects(rows: Iterator[Row], file: str, base: str, faults: list[Fault]) -> Iterator[Row]:
    values: dict[str, dict[str, Any]] = {}
    lines: dict[str, dict[Path, int]] = {}
    for row in rows:
        name = row.value.get("file_name")
        if not isinstance(name, str) or not name:
            faults.append(row.fault(("file_name",), "`file_name` is missing", "name the photo"))
            continue
        subject = _first(row.value, SUBJECT_COLUMNS) or _folder_of(name) or _last(base)
        value = values.setdefault(subject, {"id": slug(subject), "photos": []})
        place = lines.setdefault(subject, {(): row.line or 1})
        noun = _first(row.value, CLASS_COLUMNS)
        if noun and value.setdefault("class_noun", noun) != noun:
            message = f"`{subject}` is a {value['class_noun']} above, and a {noun} here"
            faults.append(row.fault(("class_noun",), message, "a subject has one class"))
        place[("photos", len(value["photos"]))] = row.line or 1
        caption = _first(row.value, CAPTION_COLUMNS)
        value["photos"].append({"uri": name, "caption": caption} if caption else name)
    for subject, value in values.items():
        yield Row(value, file, base, lines[subject].pop(()), lines[subject])


def _first(value: dict[str, Any], columns: tuple[str, ...]) -> str:
    """The first of some columns that holds text, on one line."""
    found = (value[column] for column in columns if isinstance(value.get(column), str | int))
    return " ".join(str(next(found, "")).split())


def _folder_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else ""


def _last(base: str) -> str:
    return base.rstrip("/").rsplit("/", 1)[-1]
