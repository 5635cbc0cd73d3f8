"""Tables of captions above a folder of photos, which are not read.

Owns the warning about them, so that captions never disappear without a word.
"""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable

from farm.errors import Fault, PhotoFault
from farm.intake.captions.photo_table import read_photo_table

__all__ = ["Above", "rows_above", "unread_above"]

Above = dict[str, tuple[str, int]]
"""Table and line of each photo that tables caption, by its path from their folder."""
NAMES = tuple(
    stem + suffix
    for stem in ("metadata", "captions")
    for suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")
)
"""Looked for one by one, because the folder may hold those of a hundred thousand subjects."""
MAX_BYTES = 2**24
"""Of each table: this concerns only warnings."""


def rows_above(folder: str, read: Callable[[str], bytes]) -> Above:
    """The rows with captions in the tables of a local folder.

    Args:
        read: returns the bytes of a path.
    """
    found: Above = {}
    for name in NAMES:
        file = f"{folder}/{name}"
        try:
            if not os.path.isfile(file) or os.path.getsize(file) > MAX_BYTES:
                continue
            table = read_photo_table(read(file), file)
        except (OSError, PhotoFault):
            continue
        if not (table.names_photos and table.has_captions):
            continue
        for row in table.rows:
            for photo in row.files if row.caption else ():
                found.setdefault(_path(photo), (file, row.line))
    return found


def _path(name: str) -> str:
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def unread_above(folder: str, photos: Iterable[str], rows: Above) -> Fault | None:
    """A warning if tables above a folder caption its photos, which have no other captions.

    Args:
        photos: names in the folder.
        rows: of the tables above it.
    """
    inner = posixpath.basename(folder)
    for photo in photos:
        for name in (_path(f"{inner}/{photo}"), _path(photo)):
            if name not in rows:
                continue
            file, line = rows[name]
            message = f"its captions are not read, here that of `{name}`: it is above the photos"
            remedy = (
                f"put the rows of these photos into a metadata.csv in {folder}, with the names as "
                "seen from there"
            )
            return Fault(file, message, remedy, line, "caption", severity="warning")
    return None
