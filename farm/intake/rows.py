"""Raw rows of a manifest: plain values with the file and line they were written in.

Owns the common form that every format (YAML, JSON, JSONL, CSV, Parquet, importers) is read into,
and how a fault finds its line. ``resolve.py`` interprets the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from farm.errors import Fault, FaultList

__all__ = [
    "KOHYA_TREE_STYLE",
    "CaptionStyle",
    "Path",
    "ManifestRow",
    "ManifestRows",
    "join_url",
    "note_line",
    "parent_url",
    "shown_field",
]

Path = tuple[str | int, ...]
"""Keys and indices from a row down to a value: ``("recipe", "rank")``."""


@dataclass(frozen=True, slots=True)
class CaptionStyle:
    """Which files caption photos, and how their text is used."""

    suffixes: tuple[str, ...] = (".txt", ".caption")
    """Suffixes of the text beside a photo; the first present wins."""
    has_tables: bool = True
    """Whether tables beside the photos caption them."""
    takes_first_line: bool = False
    """Whether only a text's first line is the caption, as in kohya's scripts; otherwise its lines
    are joined."""
    prefix: str = ""
    """Prepended to every caption."""
    suffix: str = ""
    """Appended to every caption."""
    fallback: str | None = None
    """Caption of photos without one, if it is not the subject's instance prompt."""
    unread_suffix: str = ""
    """Warn if the only texts beside the photos have this suffix."""
    remedy: str = "put [V] into it, or set `captions: none`"
    """For a caption that does not name the subject, in terms of the manifest's form."""

    def finished(self, text: str) -> str:
        """A caption with the prefix and suffix of its dataset."""
        return " ".join(part for part in (self.prefix, text, self.suffix) if part)

    def with_fallback(self, text: str) -> CaptionStyle:
        """The same style, with a caption for photos without one."""
        return replace(self, fallback=text)


KOHYA_TREE_STYLE = CaptionStyle(takes_first_line=True)
"""Style of folders named `10_sks cat`, whose texts were written for kohya's scripts."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One mapping of a manifest: a subject, or the head with version and defaults."""

    value: dict[str, Any]
    """Plain values: dict, list, str, int, float, bool, None."""
    file: str
    """The file, as faults name it."""
    base: str
    """Folder or URL that relative paths of the row start from."""
    line: int | None = None
    """1-based line of the row; the row's number in a table that has no lines."""
    lines: Mapping[Path, int] = field(default_factory=dict)
    """Lines of values inside the row, if the format has lines."""
    prefix: Path = ()
    """Path of the row in its document: ``("subjects", 3)``."""
    styles: Mapping[Path, CaptionStyle] = field(default_factory=dict)
    """How captions are read below a path, where it differs from the default."""
    terms: Mapping[Path, str] = field(default_factory=dict)
    """The row's own names of values, where they differ from their paths; one with a dot is whole,
    for a value that is written outside the row."""
    hints: Mapping[Path, str] = field(default_factory=dict)
    """Remedies for missing values and unknown keys, in terms of the row's form."""

    def fault(
        self,
        path: Path,
        message: str,
        remedy: str,
        *,
        severity: Literal["error", "warning"] = "error",
    ) -> Fault:
        """A fault of a value in this row, with the nearest line that is known."""
        subject = self.value.get("id", "")
        return Fault(
            file=self.file,
            message=message,
            remedy=remedy,
            line=self.line_of(path),
            field=self.field(path),
            subject=str(subject) if isinstance(subject, str | int) else "",
            severity=severity,
        )

    def field(self, path: Path) -> str:
        """A value's name as the row's own form writes it."""
        for length in range(len(path), 0, -1):
            if (term := self.terms.get(path[:length])) is not None:
                return term if "." in term else shown_field((*self.prefix, term))
        return shown_field(self.prefix + path)

    def style(self, path: Path) -> CaptionStyle:
        """How the captions of the photos at a path are read."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.styles:
                return self.styles[path[:length]]
        return CaptionStyle()

    def line_of(self, path: Path) -> int | None:
        """The line of a value, or of the closest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.line


@dataclass(slots=True)
class ManifestRows:
    """A manifest as it is read: its head, then its subjects one by one."""

    head: ManifestRow
    """``version`` and ``defaults``; empty for tables."""
    subjects: Iterator[ManifestRow]
    """Read as it is consumed; rows that cannot be read are added to ``faults`` instead."""
    faults: FaultList
    """Grows while ``subjects`` is consumed."""
    folder: str = ""
    """The folder whose subjects are all in this table; empty where there is no such folder."""
    names_photos: bool = False
    """Whether it names each photo, not folders of photos."""


def shown_field(path: Sequence[str | int]) -> str:
    """A path as people write it: ``subjects[3].recipe.rank``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


MAX_LINE_DEPTH = 6
"""Nesting up to which values have lines of their own."""


def note_line(lines: dict[Path, int], place: Path, line: int, own: int = 1) -> None:
    """Record the line of a value, unless ``line_of`` gives it from a value around this one: the
    lines of millions of values take more memory than the values.

    Args:
        own: length of places that are recorded in any case.
    """
    if len(place) > MAX_LINE_DEPTH:
        return
    for length in range(len(place) - 1, own - 1, -1):
        if (around := lines.get(place[:length])) is not None:
            if around == line:
                return
            break
    lines[place] = line


def parent_url(url: str) -> str:
    """The folder of a file, for local paths and URLs alike."""
    head, slash, _ = url.rstrip("/").rpartition("/")
    return head or ("/" if slash else ".")


def join_url(base: str, path: str) -> str:
    """A path as seen from a folder; absolute paths and URLs stay as they are."""
    if path.startswith(("/", "~")) or "://" in path:
        return path
    while path.startswith("./"):
        path = path[2:]
    return base if path in {"", "."} else f"{base.rstrip('/')}/{path}"
