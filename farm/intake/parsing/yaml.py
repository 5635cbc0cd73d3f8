"""YAML manifests, read event by event with the line of every value.

Owns the YAML dialect: the 1.2 core schema, so that ``no`` is a word, ``1e-4`` a number and ``007``
a name; anchors, aliases and ``<<`` merges; duplicate keys are faults. Aliases are shared, never
copied, and their expanded size is bounded.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import yaml

from farm.errors import Fault, FaultList
from farm.intake.rows import ManifestRow, ManifestRows, Path, note_line, shown_field

__all__ = ["parse_scalar", "read_yaml"]

MAX_DEPTH = 24
"""Maximum nesting of lists and mappings; a manifest needs five levels."""
MAX_VALUES = 200_000
"""Maximum number in one subject, aliases expanded: more is an attack (`billion laughs`)."""

MAX_VALUES_IN_ALL = 10_000_000
"""Maximum number in a file, aliases expanded: half a million subjects of twenty values each."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAGS = {"tag:yaml.org,2002:" + name for name in ("int", "float", "bool", "null", "map", "seq")}


def parse_scalar(text: str) -> Any:
    """The value of a plain word: null, true, false, an integer, a float, or the word itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text) if len(text) < 20 else text
    return float(text) if _FLOAT.match(text) else text


def read_yaml(text: str, file: str, base: str) -> ManifestRows:
    """Read a manifest with ``version``, ``defaults`` and ``subjects``, or a bare list of subjects.

    Reading stops at a syntax fault; everything before it is kept.
    """
    faults = FaultList()
    reader = _Reader(text, file, faults)
    head: dict[str, Any] = {}
    lines: dict[Path, int] = {}
    subjects: list[ManifestRow] = []
    try:
        for path, line, value, inner in reader.document():
            if len(path) == 2 and path[0] == "subjects" and isinstance(path[1], int):
                if isinstance(value, dict):
                    subjects.append(ManifestRow(value, file, base, line, inner, path))
                else:
                    faults.append(_not_a_mapping(file, line, path))
            else:
                head[str(path[0])] = value
                lines[path] = line
                lines.update({path + rest: number for rest, number in inner.items()})
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(error, text, file))
    return ManifestRows(ManifestRow(head, file, base, 1, lines), iter(subjects), faults)


def _not_a_mapping(file: str, line: int, path: Path) -> Fault:
    return Fault(
        file,
        "a subject must be a mapping with `id`, `class_noun` and `photos`",
        "write `- id: …` and the other fields below it",
        line=line,
        field=shown_field(path),
    )


_TAB = re.compile(r" *\t")


def _text_of(text: str, index: int) -> str:
    """One line of a text, by its index."""
    return next(islice(io.StringIO(text), index, None), "")


def _syntax_fault(error: yaml.YAMLError, text: str, file: str) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = [getattr(error, part, None) for part in ("problem", "context")]
    message = ", ".join(word for word in words if word) or " ".join(str(error).split())
    remedy = "correct the syntax; what follows this line was not read"
    if "escape" in message or "hexdecimal" in message:
        message += ": a backslash in double quotes begins an escape"
        remedy = "write paths in single quotes or without quotes, or with slashes"
    if mark is not None and _TAB.match(_text_of(text, mark.line)):
        message = "a tab indents this line"
        remedy = "indent with blanks; what follows this line was not read"
    return Fault(
        file,
        f"not valid YAML: {message}",
        remedy,
        line=mark.line + 1 if mark is not None else None,
    )


class _Reader:
    """Builds plain values from YAML events, one value at a time, so that no tree is held twice."""

    def __init__(self, text: str, file: str, faults: list[Fault]) -> None:
        self._events = yaml.parse(text, Loader=_LOADER)
        self._file = file
        self._faults = faults
        self._anchors: dict[str, tuple[Any, int]] = {}
        """Value and size of every anchored value so far."""
        self._num_values = 0

    def document(self) -> Iterator[tuple[Path, int, Any, dict[Path, int]]]:
        """Top-level values: path, line, value, and the lines inside it. Subjects one by one."""
        event = self._next(yaml.StreamStartEvent, yaml.DocumentStartEvent)
        if isinstance(event, yaml.StreamEndEvent):
            self._fault(1, (), "the file is empty", "write `subjects:` and a list of subjects")
        elif isinstance(event, yaml.SequenceStartEvent):
            yield from self._subjects()
        elif isinstance(event, yaml.MappingStartEvent):
            yield from self._top()
        else:
            self._fault(
                _line(event),
                (),
                "this is not a manifest",
                "write `subjects:` and a list of subjects",
            )
            return
        event = next(self._events, None)
        while isinstance(event, yaml.DocumentEndEvent):
            event = next(self._events, None)
        if isinstance(event, yaml.DocumentStartEvent):
            message = "a second document begins here, and is not read"
            self._fault(_line(event), (), message, "write all subjects into one document")

    def _top(self) -> Iterator[tuple[Path, int, Any, dict[Path, int]]]:
        seen: set[str] = set()
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key, line = self._key(event, (), seen), _line(event)
            event = self._next()
            if key == "subjects" and isinstance(event, yaml.SequenceStartEvent):
                yield from self._subjects()
                continue
            lines: dict[Path, int] = {}
            value, size = self._value(event, (), lines, 0)
            self._count(size, event)
            if key:
                yield (key,), line, value, lines

    def _subjects(self) -> Iterator[tuple[Path, int, Any, dict[Path, int]]]:
        index = 0
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            lines: dict[Path, int] = {}
            line = _line(event)
            value, size = self._value(event, (), lines, 0)
            self._count(size, event)
            yield ("subjects", index), line, value, lines
            index += 1

    def _count(self, size: int, event: Any) -> None:
        self._num_values += size
        if self._num_values > MAX_VALUES_IN_ALL:
            raise _refusal(f"expands to more than {MAX_VALUES_IN_ALL} values in all", event)

    def _next(self, *skipped: type) -> Any:
        event = next(self._events)
        while isinstance(event, skipped):
            event = next(self._events)
        return event

    def _value(self, event: Any, path: Path, lines: dict[Path, int], depth: int) -> tuple[Any, int]:
        """One value and its size, aliases expanded."""
        if depth > MAX_DEPTH:
            raise _refusal("nested too deeply", event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _refusal(f"`*{event.anchor}` is not defined above", event)
            return self._anchors[event.anchor]
        if isinstance(event, yaml.MappingStartEvent):
            built = self._mapping(path, lines, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            built = self._sequence(path, lines, depth)
        else:
            built = self._scalar(event), 1
        if built[1] > MAX_VALUES:
            raise _refusal(f"expands to more than {MAX_VALUES} values", event)
        if event.anchor:
            self._anchors[event.anchor] = built
        return built

    def _mapping(self, path: Path, lines: dict[Path, int], depth: int) -> tuple[Any, int]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen: set[str] = set()
        size = 1
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = _line(event)
            key = self._key(event, path, seen)
            value, grown = self._value(self._next(), (*path, key), lines, depth + 1)
            size += grown
            if key == "<<":
                for source in reversed(value if isinstance(value, list) else [value]):
                    merged |= source if isinstance(source, dict) else {"<<": source}
            else:
                own[key] = value
                note_line(lines, (*path, key), line)
        return {**merged, **own}, size

    def _sequence(self, path: Path, lines: dict[Path, int], depth: int) -> tuple[Any, int]:
        items: list[Any] = []
        size = 1
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            place = (*path, len(items))
            note_line(lines, place, _line(event))
            item, grown = self._value(event, place, lines, depth + 1)
            items.append(item)
            size += grown
        return items, size

    def _key(self, event: Any, path: Path, seen: set[str]) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise _refusal("a key must be a word", event)
        key = str(event.value)
        if key in seen and key != "<<":
            self._fault(_line(event), (*path, key), "this key is given twice", "remove one of them")
        seen.add(key)
        return key

    def _scalar(self, event: Any) -> Any:
        if event.tag in _TAGS or (event.tag is None and event.implicit[0]):
            return parse_scalar(event.value)
        if event.tag not in {None, "!", "tag:yaml.org,2002:str"}:
            self._fault(
                _line(event), (), f"the tag {event.tag} is not known here", "write a plain value"
            )
        return event.value

    def _fault(self, line: int, path: Path, message: str, remedy: str) -> None:
        self._faults.append(Fault(self._file, message, remedy, line=line, field=shown_field(path)))


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _refusal(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
