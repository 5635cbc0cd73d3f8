"""Page headers of Parquet files: what a column really unpacks to, whatever the footer says.

Owns a reader of the few thrift fields that headers of pages need. Footers of hostile files lie
about sizes and counts; decoders trust the pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["BadPage", "Page", "pages_of"]

FIRST_READ, LAST_READ = 512, 2**24
"""Bytes read for a header: hardly one is longer than the first number, none than the last."""
MAX_DEPTH = 16
"""Structures in each other inside a header."""
DELTA_BYTE_ARRAY = 7
"""The encoding of texts by what they share with the one before."""
_DATA, _DICTIONARY, _DATA_V2 = 5, 7, 8
_ENCODING = {_DATA: 2, _DATA_V2: 4}
"""Fields of a page's header that describe its kind, and where each has its encoding."""


class BadPage(ValueError):
    """A header that no writer makes."""


@dataclass(frozen=True, slots=True)
class Page:
    """What the header of one page says."""

    num_bytes: int
    """Unpacked."""
    num_values: int
    is_dictionary: bool
    shares_prefixes: bool
    """Whether each text holds only what differs from the one before."""


def pages_of(source: BinaryIO, start: int, length: int) -> Iterator[Page]:
    """The pages of one column's part of a row group.

    Args:
        start: offset of the first header.
        length: of all pages and headers, packed.

    Raises:
        BadPage: if a header cannot be a page's.
    """
    at = start
    while at < start + length:
        fields, num_bytes = _header(source, at)
        at += num_bytes + _count(fields.get(3))
        kind = next((one for one in (_DATA, _DATA_V2, _DICTIONARY) if one in fields), None)
        if kind is None:  # an index, which is not decoded
            continue
        inner = fields[kind]
        if not isinstance(inner, dict):
            raise BadPage("a page's header has another form")
        yield Page(
            _count(fields.get(2)),
            _count(inner.get(1)),
            kind == _DICTIONARY,
            inner.get(_ENCODING.get(kind, 0)) == DELTA_BYTE_ARRAY,
        )


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise BadPage("a page's header has no size")
    return value


def _header(source: BinaryIO, at: int) -> tuple[dict[int, object], int]:
    """The fields of the header at an offset, and its length."""
    size = FIRST_READ
    while True:
        source.seek(at)
        reader = _Compact(data := source.read(size))
        try:
            return reader.structure(0), reader.at
        except IndexError:
            if len(data) < size or size >= LAST_READ:
                raise BadPage("a page's header is cut off") from None
            size *= 32


class _Compact:
    """Reads thrift's compact protocol. IndexError where the data ends."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def structure(self, depth: int) -> dict[int, object]:
        if depth > MAX_DEPTH:
            raise BadPage("a page's header is nested too deeply")
        found: dict[int, object] = {}
        number = 0
        while (mark := self._byte()) & 0x0F:
            number = number + (mark >> 4) if mark >> 4 else self._signed()
            found[number] = self._value(mark & 0x0F, depth)
        return found

    def _value(self, kind: int, depth: int) -> object:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 12:
            return self.structure(depth + 1)
        if kind in (9, 10):
            self._items(depth)
            return None
        self._skip({3: 1, 7: 8}.get(kind) or (self._varint() if kind == 8 else -1))
        return None

    def _items(self, depth: int) -> None:
        mark = self._byte()
        count = mark >> 4 if mark >> 4 < 15 else self._varint()
        for _ in range(count):
            if mark & 0x0F in (1, 2):
                self._skip(1)
            else:
                self._value(mark & 0x0F, depth + 1)

    def _skip(self, count: int) -> None:
        if count < 0:
            raise BadPage("a page's header has a field of an unknown type")
        self.at += count
        if self.at > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise BadPage("a page's header has a number that is too long")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
