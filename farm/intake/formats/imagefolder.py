"""Importer of Hugging Face ImageFolder metadata: one photo a row, rows grouped into subjects.

Owns how rows become subjects: `subject` or `id` names the subject, and else the first folder of the
photo's path; `class_noun`, `class` or `label` its class. Only the train split is read. The columns
of photos and captions are in ``captions/photo_table.py``; other columns are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from farm.errors import Fault, FaultList
from farm.intake.captions.photo_table import PhotoRow, column_faults, photo_row
from farm.intake.faults import slug
from farm.intake.photos.listings import INSIDE_REMEDY
from farm.intake.rows import ManifestRow, ManifestRows, Path

__all__ = ["DATA_FOLDER", "OTHER_SPLITS", "TRAIN_SPLITS", "dataset_name", "read_imagefolder"]

SUBJECT_COLUMNS = ("subject", "subject_id", "id")
CLASS_COLUMNS = ("class_noun", "class", "class_name", "label", "labels", "category")
TRAIN_SPLITS = frozenset(("train", "training"))
OTHER_SPLITS = frozenset(
    ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
)
"""Folder names that Hugging Face's `datasets` treats as splits, besides `train`."""
DATA_FOLDER = "data"
"""The folder beside a README in which data sets on the Hub keep their files."""
CLASS_REMEDY = "add a column `class` that says what each subject is, such as `cat`"


def read_imagefolder(
    rows: Iterable[ManifestRow], head: ManifestRow, faults: FaultList
) -> ManifestRows:
    """Group rows of photos; one row per subject comes out.

    Args:
        rows: of the table, one photo each.
        head: of the table, for its file and base.
        faults: of the table so far; grows while the subjects are consumed.
    """
    return ManifestRows(head, _subjects(rows, head, faults), faults, names_photos=True)


def _subjects(
    rows: Iterable[ManifestRow], head: ManifestRow, faults: FaultList
) -> Iterator[ManifestRow]:
    values: dict[str, dict[str, Any]] = {}
    lines: dict[str, dict[Path, int]] = {}
    has_photos_inside = False
    for row, read in _train_rows(rows, head, faults):
        if not read.files:
            inside = _inside(read)
            if inside is None:
                faults.append(_nameless(row, read))
            elif not has_photos_inside:
                has_photos_inside = True
                message = f"`{inside}` holds the photos themselves, inside the table"
                faults.append(row.fault((inside,), message, INSIDE_REMEDY))
            continue
        subject = _first(read, SUBJECT_COLUMNS) or _folder_of(read.files[0], head.base)
        value = values.setdefault(subject, {"id": slug(subject), "photos": []})
        place = lines.setdefault(subject, {(): row.line or 1})
        noun = _first(read, CLASS_COLUMNS)
        # a number is the index of a label whose name is elsewhere
        if noun and not noun.isdigit() and value.setdefault("class_noun", noun) != noun:
            message = f"`{subject}` is a {value['class_noun']} above, and a {noun} here"
            faults.append(row.fault(("class_noun",), message, "a subject has one class"))
        for name in read.files:
            place[("photos", len(value["photos"]))] = row.line or 1
            uri = name.replace("\\", "/")
            value["photos"].append({"uri": uri, "caption": read.caption} if read.caption else uri)
    for subject, value in values.items():
        yield ManifestRow(
            value,
            head.file,
            head.base,
            lines[subject].pop(()),
            lines[subject],
            hints={("class_noun",): CLASS_REMEDY},
        )


def _inside(read: PhotoRow) -> str | None:
    """The column with a photo's bytes, as the `datasets` library stores them."""
    for name, cell in read.value.items():
        if isinstance(cell, bytes) or (isinstance(cell, dict) and cell.get("bytes")):
            return name
    return None


def _nameless(row: ManifestRow, read: PhotoRow) -> Fault:
    columns = ", ".join(f"`{name}`" for name in row.value) or "none"
    message = f"`file_name` is missing; the columns are {columns}"
    return row.fault(("file_name",), message, "name the photo in a column `file_name`")


def _train_rows(
    rows: Iterable[ManifestRow], head: ManifestRow, faults: FaultList
) -> Iterator[tuple[ManifestRow, PhotoRow]]:
    """The rows of the train split, or all where the table has none."""
    read = [(row, photo_row(row.value, row.line or 1)) for row in rows]
    has_splits = any(_split(one) in TRAIN_SPLITS for _, one in read)
    kept: list[PhotoRow] = []
    skipped: Counter[str] = Counter()
    first: dict[str, ManifestRow] = {}
    for row, one in read:
        top = _split(one)
        if has_splits and top in OTHER_SPLITS:
            skipped[top] += 1
            first.setdefault(top, row)
        else:
            kept.append(one)
            yield row, one
    for one, *words, is_warning in column_faults(kept):
        at = replace(head, line=one.line)
        severity: Literal["error", "warning"] = "warning" if is_warning else "error"
        faults.append(at.fault((one.column,), *words, severity=severity))
    for split, count in skipped.items():
        message = f"{count} rows of the split `{split}` are not trained on"
        remedy = "nothing to do, unless you want them trained; then move them to `train`"
        faults.append(first[split].fault((), message, remedy, severity="warning"))


def _split(read: PhotoRow) -> str:
    """The split of a row: the first folder of its photo, or else what its column `split` says."""
    top = _top(read.files)
    return top if top in TRAIN_SPLITS | OTHER_SPLITS else _first(read, ("split",)).casefold()


def _top(files: tuple[str, ...]) -> str:
    parts = PurePosixPath(files[0].replace("\\", "/")).parts if files else ()
    return parts[0].casefold() if len(parts) > 1 else ""


def _first(read: PhotoRow, columns: tuple[str, ...]) -> str:
    """The first of some columns that holds text, on one line."""
    cells = (read.value.get(column) for column in columns)
    return " ".join(str(next((one for one in cells if isinstance(one, str | int)), "")).split())


def _folder_of(name: str, base: str) -> str:
    """The subject in a photo's path: the first folder that is not a split, or the data set."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts[:-1] if part != "."]
    if parts and parts[0].casefold() in TRAIN_SPLITS:
        parts = parts[1:]
    return parts[0] if parts and parts[0] != "/" else dataset_name(base)


def dataset_name(base: str) -> str:
    """The name of a folder, or of the one around it if it is a split or the folder of the data."""
    parts = [part for part in base.split("/") if part]
    while len(parts) > 1 and parts[-1].casefold() in TRAIN_SPLITS | OTHER_SPLITS | {DATA_FOLDER}:
        parts.pop()
    return parts[-1] if parts else "subject"
