"""Manifests at web addresses, such as the exports of online spreadsheets.

Owns the form that an address names, and reading from servers that send no length.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection
from typing import Any

from farm.intake.photos.listings import ARCHIVE_SUFFIXES, is_photo_name

__all__ = ["can_seek", "held", "is_web", "remedy_of_sheet", "suffix_of"]

_QUERY_FORM = re.compile(r"(?:^|&)(?:(?:format|output|exportFormat)=|tqx=out:)(\w+)")
"""The form in a query, as exports of online spreadsheets name it."""
_SHEET = re.compile(r"https://docs\.google\.com/spreadsheets/")


def is_web(url: str) -> bool:
    """Whether a server on the web is asked for it."""
    return url.startswith(("http://", "https://"))


def suffix_of(url: str, forms: Collection[str]) -> str:
    """The suffix of a name, in lower case.

    A web address has that of its path if a manifest, a photo or an archive may have it, else the
    form that its query names (`?format=csv`), else none: its content decides.

    Args:
        forms: suffixes of manifests.
    """
    if not is_web(url):
        return os.path.splitext(url)[1].lower()
    path, _, query = url.partition("#")[0].partition("?")
    suffix = os.path.splitext(path)[1].lower()
    if suffix in forms or suffix in ARCHIVE_SUFFIXES or is_photo_name(path):
        return suffix
    named = next((f".{match[1].lower()}" for match in _QUERY_FORM.finditer(query)), "")
    return named if named in forms else ""


def remedy_of_sheet(url: str) -> str:
    """The remedy for the address of an online spreadsheet that is not that of an export; empty for
    other addresses."""
    if not _SHEET.match(url):
        return ""
    return (
        "share the sheet with anyone who has its link, and end its address with "
        "`/export?format=csv` in place of `/edit…`"
    )


def can_seek(file: Any) -> bool:
    """Whether an open file can seek: a server that sends no length sends a stream, which cannot."""
    return getattr(file, "size", 0) is not None


def held(file: Any, limit: int) -> io.BytesIO:
    """A stream in memory, up to one byte beyond a limit. Each read returns what has arrived."""
    body = io.BytesIO()
    with file:
        while part := file.read(limit + 1 - body.tell()):
            body.write(part)
    body.seek(0)
    return body
