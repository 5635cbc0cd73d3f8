"""Captions from files beside photos: ``photo.txt``, ``photo.caption``, ``metadata.jsonl``.

Owns which file wins (the photo's own over the folder's) and how much of it is read. Whether a
caption names the subject is judged in ``resolve.py``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from farm.intake.errors import PhotoFault
from farm.intake.json_rows import read_jsonl

__all__ = ["CAPTION_COLUMNS", "Caption", "Captions"]

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("caption", "text", "prompt")
"""Columns of a metadata file that hold the caption; the first present wins."""
MAX_CAPTION_BYTES = 64 * 2**10
"""Of one sidecar file; the text encoder reads 77 tokens."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and where it was written."""

    text: str
    file: str
    line: int


class Captions:
    """The captions of one folder or archive."""

    def __init__(self, names: Iterable[str], read: Callable[[str], bytes]) -> None:
        """Look for captions among the names of a folder.

        Args:
            names: paths from the folder, photos and all.
            read: gives the bytes behind a name.
        """
        self._names = frozenset(names)
        self._read = read
        self._listed: dict[str, Caption] = {}
        for name in sorted(self._names):
            if PurePosixPath(name).name in METADATA_NAMES:
                self._take_metadata(name)

    def of(self, photo: str) -> Caption | None:
        """The caption of a photo, by its path from the folder.

        Raises:
            PhotoFault: if its caption file cannot be read as text.
        """
        stem = PurePosixPath(photo)
        for suffix in CAPTION_SUFFIXES:
            name = str(stem.with_suffix(suffix))
            if name in self._names:
                text = self._text(name)[:MAX_CAPTION_BYTES]
                if words := " ".join(text.split()):
                    return Caption(words, name, 1)
        return self._listed.get(photo)

    def _take_metadata(self, name: str) -> None:
        folder = PurePosixPath(name).parent
        text = self._text(name)
        rows = _csv_rows(text) if name.endswith(".csv") else _jsonl_rows(text, name)
        for line, row in rows:
            photo = row.get("file_name")
            words = next((row[column] for column in CAPTION_COLUMNS if row.get(column)), None)
            if isinstance(photo, str) and isinstance(words, str) and words.strip():
                self._listed[str(folder / photo)] = Caption(" ".join(words.split()), name, line)

    def _text(self, name: str) -> str:
        try:
            return self._read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PhotoFault(f"{name} is not UTF-8 text", "save it as UTF-8") from error


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, row


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = read_jsonl(text.splitlines(), name, "")
    for row in rows.subjects:
        yield row.line or 1, row.value
    if rows.faults:
        fault = rows.faults[0]
        raise PhotoFault(f"{name}, line {fault.line}: {fault.message}", fault.remedy)
