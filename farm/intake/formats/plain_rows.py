"""Rows of plain values: what every row is before anything interprets it, in any form.

Owns the limits on one row's values. Formats such as TOML and Parquet hold values that no field
takes (dates, bytes), and any form can hold text that is not Unicode, or very large mappings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from farm.errors import FaultList
from farm.intake.rows import ManifestRow, ManifestRows

__all__ = ["plain_rows"]

MAX_DEPTH = 24
"""Maximum nesting of lists and mappings; a manifest needs five levels."""
MAX_VALUES = 200_000
"""Maximum number of values and keys in one row; ten thousand photos with captions are a third."""
MAX_KEYS = 10_000
"""Maximum number of keys of a row itself, of which a subject has about twenty."""
_PLAIN = (str, int, float, bool, type(None))


def plain_rows(rows: ManifestRows) -> ManifestRows:
    """The same rows without values that are not plain; each of those is a fault."""

    def subjects() -> Iterator[ManifestRow]:
        for row in rows.subjects:
            yield _plain(row, rows.faults)

    return replace(rows, head=_plain(rows.head, rows.faults), subjects=subjects())


def _plain(row: ManifestRow, faults: FaultList) -> ManifestRow:
    if len(row.value) > MAX_KEYS:
        message = f"it has {len(row.value):,} keys"
        faults.append(row.fault((), message, "write the fields of a manifest, and only those"))
        return replace(row, value={})
    wrong = {
        key: problem
        for key, value in row.value.items()
        if (problem := _problem(key) or _problem(value)) is not None
    }
    if not wrong:
        return row
    faults += [row.fault((str(key),), *problem) for key, problem in wrong.items()]
    return replace(row, value={key: row.value[key] for key in row.value.keys() - wrong.keys()})


def _problem(value: Any) -> tuple[str, str] | None:
    """Message and remedy of a value that is not plain, or has too many values."""
    if type(value) in (int, float, bool) or value is None:
        return None
    waiting, count = [(value, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        count += 1
        if isinstance(one, dict | list | tuple):
            inner = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            if depth >= MAX_DEPTH:
                return "it is nested too deeply", "write the fields of a manifest"
            if count + len(waiting) + len(inner) > MAX_VALUES:
                return f"it has more than {MAX_VALUES:,} values", "correct it"
            waiting += [(item, depth + 1) for item in inner]
        elif isinstance(one, str):
            if not one.isascii() and not _is_unicode(one):
                return "it is not Unicode text", "write it again"
        elif not isinstance(one, _PLAIN):
            return f"a value of type {type(one).__name__} has no meaning here", "write it as text"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
