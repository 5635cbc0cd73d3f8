"""The shorthand of a folder: one folder per subject, and at best a `subjects.csv`.

Owns what a folder stands for when it is given as a manifest. The table itself is read by
``table_rows.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from farm.errors import ManifestError
from farm.intake.faults import slug
from farm.intake.rows import Row, Rows

__all__ = ["MANIFEST_NAMES", "TABLE_NAMES", "read_folder"]

TABLE_NAMES = (
    *("subjects.csv", "subjects.jsonl", "subjects.parquet"),
    *("metadata.jsonl", "metadata.csv"),
)
"""Tables that speak for a folder; the first present wins."""
MANIFEST_NAMES = (
    *(f"manifest.{suffix}" for suffix in ("yaml", "yml", "json", "jsonl", "csv", "parquet")),
    *TABLE_NAMES,
)
"""Everything that speaks for a folder; the first present wins."""

_KOHYA_NAME = re.compile(r"(\d+)_(\S+)\s+(.+)")
"""``10_sks cat``: repeats, identifier, class noun, as kohya's scripts name folders."""


def read_folder(folder: str) -> Rows:
    """Read a folder without any table: each folder in it is a subject.

    It is named ``<repeats>_<identifier> <class noun>`` as for kohya's scripts, or by its id alone,
    and then the class noun has to come from a head's defaults.

    Raises:
        ManifestError: if there are no folders.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise ManifestError(
            f"{folder} holds neither a manifest nor folders of photos",
            "put one folder of photos per subject there, and a subjects.csv with the columns "
            "`subject,class`",
        )
    base = os.path.abspath(folder)
    return Rows(Row({}, folder, base), _folder_rows(names, folder, base), [])


def _folder_rows(names: list[str], folder: str, base: str) -> Iterator[Row]:
    for name in names:
        value: dict[str, object] = {"id": slug(name), "photos": f"{base}/{name}"}
        if match := _KOHYA_NAME.fullmatch(name):
            _, identifier, noun = match.groups()
            value = {**value, "class_noun": noun, "identifier": identifier}
        yield Row(value, os.path.join(folder, name), base)
