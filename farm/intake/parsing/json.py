"""JSON and JSONL manifests, read with the line of every value.

Owns a small JSON reader, because Python's own does not report lines and accepts duplicate keys.
"""

from __future__ import annotations

import io
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from farm.errors import Fault, FaultList
from farm.intake.rows import ManifestRow, ManifestRows, Path, note_line, shown_field

__all__ = ["is_json_lines", "read_json", "read_jsonl"]

MAX_DEPTH = 24
"""Maximum nesting of lists and objects; a manifest needs five levels."""
MAX_VALUES = 4_000_000
"""Maximum number in a document; a subject has about five. Each line of JSONL is a document."""
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(\.[0-9]+)?([eE][-+]?[0-9]+)?(?![0-9])")
_WORDS = {"true": True, "false": False, "null": None}


def read_json(text: str, file: str, base: str) -> ManifestRows:
    """Read a manifest object, or a bare array of subjects."""
    faults = FaultList()
    if not text.strip():
        faults.append(Fault(file, "the file is empty", 'write {"subjects": [ … ]}', line=1))
        return ManifestRows(ManifestRow({}, file, base), iter(()), faults)
    reader = _Reader(text, file, faults)
    try:
        document = reader.document()
    except json.JSONDecodeError as error:
        faults.append(_syntax_fault(error, file))
        return ManifestRows(ManifestRow({}, file, base), iter(()), faults)
    if isinstance(document, list):
        document = {"subjects": document}
        reader.lines = {("subjects", *path): line for path, line in reader.lines.items()}
    if not isinstance(document, dict):
        faults.append(Fault(file, "this is not a manifest", 'write {"subjects": [ … ]}', line=1))
        return ManifestRows(ManifestRow({}, file, base), iter(()), faults)
    subjects = document.get("subjects")
    if not isinstance(subjects, list):
        return ManifestRows(ManifestRow(document, file, base, 1, reader.lines), iter(()), faults)
    head = {key: value for key, value in document.items() if key != "subjects"}
    rows = _subject_rows(subjects, reader, file, base, faults)
    return ManifestRows(ManifestRow(head, file, base, 1, reader.lines), rows, faults)


def _subject_rows(
    subjects: list[Any], reader: _Reader, file: str, base: str, faults: FaultList
) -> Iterator[ManifestRow]:
    for index, value in enumerate(subjects):
        place: Path = ("subjects", index)
        line, inner = reader.lines[place], reader.inner[index]
        if isinstance(value, dict):
            yield ManifestRow(value, file, base, line, inner, place)
        else:
            faults.append(_not_an_object(file, line, shown_field(place)))


def read_jsonl(lines: Iterable[str], file: str, base: str) -> ManifestRows:
    """Read one subject per line; a first line with ``defaults`` and without ``id`` is the head."""
    faults = FaultList()
    rows = _line_rows(lines, file, base, faults)
    first = next(rows, None)
    if first is not None and "id" not in first.value and {"version", "defaults"} & set(first.value):
        return ManifestRows(first, rows, faults)

    def every() -> Iterator[ManifestRow]:
        if first is not None:
            yield first
            yield from rows

    return ManifestRows(ManifestRow({}, file, base), every(), faults)


def is_json_lines(text: str) -> bool:
    """Whether a text has a JSON object on each of its first two lines."""
    lines = [line for line in islice(io.StringIO(text), 10) if line.strip()][:2]
    return len(lines) == 2 and all(line.strip()[0] + line.strip()[-1] == "{}" for line in lines)


def _line_rows(
    lines: Iterable[str], file: str, base: str, faults: FaultList
) -> Iterator[ManifestRow]:
    for number, text in enumerate(lines, 1):
        text = text.lstrip("\ufeff") if number == 1 else text
        if not text.strip():
            continue
        reader = _Reader(text, file, faults, first_line=number)
        try:
            value = reader.document()
        except json.JSONDecodeError as error:
            if text.strip() in {"{", "["}:
                faults.append(_over_lines(file, number))
                return
            faults.append(_syntax_fault(error, file, number))
            continue
        if isinstance(value, dict):
            yield ManifestRow(value, file, base, number)
        else:
            faults.append(_not_an_object(file, number, ""))


def _over_lines(file: str, line: int) -> Fault:
    message = "not valid JSONL: an object goes over several lines"
    remedy = "write each object on one line, or all in a list, `[{…}, {…}]`"
    return Fault(file, message, remedy, line)


def _not_an_object(file: str, line: int, field: str) -> Fault:
    return Fault(
        file,
        "a subject must be an object with `id`, `class_noun` and `photos`",
        'write {"id": …}',
        line=line,
        field=field,
    )


def _syntax_fault(error: json.JSONDecodeError, file: str, line: int | None = None) -> Fault:
    remedy = "correct the syntax"
    if "escape" in error.msg:
        remedy = "write a backslash twice, or paths with slashes"
    return Fault(
        file,
        f"not valid JSON: {error.msg} at column {error.colno}",
        remedy if line else f"{remedy}; nothing of the file could be used",
        line=line or error.lineno,
    )


def _no_key(text: str, at: int) -> str:
    """What stands where the key of an object is expected."""
    if text.startswith(("//", "/*", "#"), at):
        return "a comment begins, which JSON does not have,"
    if text.startswith("}", at):
        return "a comma stands before the `}`"
    return "a key in quotes is expected"


class _Reader:
    """A JSON reader that records line numbers and reports duplicate keys."""

    def __init__(self, text: str, file: str, faults: FaultList, first_line: int = 1) -> None:
        self._text = text
        self._file = file
        self._faults = faults
        self._first_line = first_line
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[Path, int] = {}
        """Of the document, or of the subject that is being read."""
        self.inner: list[dict[Path, int]] = []
        """Of the values inside each subject."""
        self._prefix: Path = ()
        self._num_values = 0

    def document(self) -> Any:
        value, end = self._value(self._skip(0), (), 0)
        if (end := self._skip(end)) != len(self._text):
            raise json.JSONDecodeError("something follows the value", self._text, end)
        return value

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        assert match is not None
        return match.end()

    def _line(self, at: int) -> int:
        return bisect_right(self._breaks, at - 1) + self._first_line

    def _value(self, at: int, path: Path, depth: int) -> tuple[Any, int]:
        if depth > MAX_DEPTH:
            raise json.JSONDecodeError("nested too deeply", self._text, at)
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise json.JSONDecodeError(f"more than {MAX_VALUES} values", self._text, at)
        mark = self._text[at : at + 1]
        if mark == "{":
            return self._object(at, path, depth)
        if mark == "[":
            return self._array(at, path, depth)
        if mark == '"':
            return self._string(at)
        for word, value in _WORDS.items():
            if self._text.startswith(word, at):
                return value, at + len(word)
        if match := _NUMBER.match(self._text, at):
            number = match.group()
            is_float = match.group(1) or match.group(2)
            return (float(number) if is_float else int(number)), match.end()
        raise json.JSONDecodeError("a value is expected", self._text, at)

    def _string(self, at: int) -> tuple[str, int]:
        text, end = json.decoder.scanstring(self._text, at + 1, True)  # type: ignore[attr-defined]
        return str(text), int(end)

    def _object(self, at: int, path: Path, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        at = self._skip(at + 1)
        while self._text[at : at + 1] != "}":
            if found:
                at = self._skip(self._expect(",", at))
            if self._text[at : at + 1] != '"':
                raise json.JSONDecodeError(_no_key(self._text, at), self._text, at)
            start = at
            key, at = self._string(at)
            place = (*path, key)
            self._note(place, start)
            if key in found:
                self._twice(place, self._line(start))
            at = self._skip(self._expect(":", self._skip(at)))
            found[key], at = self._value(at, place, depth + 1)
            at = self._skip(at)
        return found, at + 1

    def _array(self, at: int, path: Path, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        is_subjects = not self._prefix and (path == ("subjects",) or not depth)
        if is_subjects:
            self.inner.clear()  # of a list given twice, the last one counts
        at = self._skip(at + 1)
        while self._text[at : at + 1] != "]":
            if found:
                at = self._skip(self._expect(",", at))
            place = (*path, len(found))
            self._note(place, at)
            if is_subjects:
                item, at = self._subject(at, len(found), depth + 1)
            else:
                item, at = self._value(at, place, depth + 1)
            found.append(item)
            at = self._skip(at)
        return found, at + 1

    def _subject(self, at: int, index: int, depth: int) -> tuple[Any, int]:
        """An item of the list of subjects, with lines of its own."""
        document, self.lines, self._prefix = self.lines, {}, ("subjects", index)
        self.inner.append(self.lines)
        item = self._value(at, (), depth)
        self.lines, self._prefix = document, ()
        return item

    def _note(self, place: Path, at: int) -> None:
        note_line(self.lines, place, self._line(at), 1 if self._prefix else 2)

    def _expect(self, mark: str, at: int) -> int:
        if self._text[at : at + 1] != mark:
            raise json.JSONDecodeError(f"`{mark}` is expected", self._text, at)
        return at + 1

    def _twice(self, place: Path, line: int) -> None:
        self._faults.append(
            Fault(
                self._file,
                "this key is given twice",
                "remove one of them",
                line=line,
                field=shown_field(self._prefix + place),
            )
        )
