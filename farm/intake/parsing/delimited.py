"""Tables of text as spreadsheets export them: one dialect for every CSV that intake reads.

Owns the separator (commas, semicolons, tabs, bars, or what a `sep=` line says), quotes, titles
above the header, the header and line numbers. The readers interpret the columns:
``formats/tables.py``, ``formats/imagefolder.py`` and ``captions/``.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

__all__ = ["Delimited", "folded", "read_delimited"]

_SEPARATOR_LINE = re.compile(r'^\s*"?sep=(?P<mark>.)"?[\s,;|]*$', re.IGNORECASE)
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
MAX_COLUMNS = 2_000
MAX_CELLS = 20_000
"""Maximum number in one row, which is a list of all its cells before their number is known."""
MAX_WRONG_ROWS = 1_000
"""Rows of too many cells that are reported one by one."""
MAX_TITLES = 5
"""Lines with a title above the header, as people write them into a sheet."""
_QUOTED = re.compile(r'"[^"]*"')
_MARKS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]*,[0-9]+(?:[eE][-+]?[0-9]+)?")


@dataclass(slots=True)
class Delimited:
    """A table with its header read; rows are read as they are consumed."""

    columns: list[str]
    """Header cells, stripped; empty if the table has none."""
    rows: Iterator[tuple[int, list[str]]]
    """Line and cells of each row that is not blank; cells are stripped and never more than the
    columns."""
    delimiter: str
    line: int = 1
    """Line of the header."""
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    """Line, message and remedy of each error, and beyond ``MAX_WRONG_ROWS`` their number; grows
    while rows are consumed."""
    num_wrong: int = 0
    """Rows of too many cells, or divided by another mark."""
    num_unnamed: int = 0
    """Cells without a name at the end of the header."""

    def number(self, cell: str) -> str:
        """A cell with its decimal comma replaced by a point, unless commas separate cells."""
        if self.delimiter != "," and _DECIMAL_COMMA.fullmatch(cell):
            return cell.replace(",", ".")
        return cell


def folded(column: str) -> str:
    """A column's name for comparison: `File Name` and `file-name` become `file_name`."""
    return re.sub(r"[\s\-]+", "_", column.strip().casefold())


def read_delimited(text: str, known: Collection[str] = ()) -> Delimited:
    """Read a table with a header row.

    Args:
        known: folded names of columns, by which the header below a title is found.
    """
    text = text.removeprefix("\ufeff")
    skipped, marked = 0, ""
    first, _, rest = text.partition("\n")
    if match := _SEPARATOR_LINE.match(first.rstrip("\r")):
        marked, text, skipped = match["mark"], rest, 1
    header, titles = _header(text, marked, known)
    delimiter = marked or _delimiter(header)
    source = _BoundedRows(islice(_lines(text), titles, None), delimiter)
    lines = csv.reader(source, delimiter=delimiter, strict=True, skipinitialspace=True)
    table = Delimited([], iter(()), delimiter)
    rows = _rows(lines, source, table, skipped + titles)
    # the header is read immediately; rows are read on demand
    table.rows = rows
    next(rows, None)
    _report_twice(table, known)
    return table


def _report_twice(table: Delimited, known: Collection[str]) -> None:
    """Report each column that is known, or a field of a recipe, and given more than once."""
    names = Counter(folded(column) for column in table.columns if column)
    for name, count in names.items():
        if count > 1 and (name in known or "." in name):
            message = f"the column `{name}` is given {count} times; only one can be read"
            table.faults.append((table.line, message, "remove or rename the others"))


def _header(text: str, marked: str, known: Collection[str]) -> tuple[str, int]:
    """The header line, and the number of lines above it: one that names known columns, below
    lines of a single cell; otherwise the first line that holds anything."""
    first = ""
    for number, line in enumerate(islice(_lines(text), 2 * MAX_TITLES)):
        if not line.strip(" \t\r\n,;"):
            continue
        cells = line.strip("\r\n").split(marked or _delimiter(line), MAX_CELLS)
        names = [name for cell in cells if (name := folded(cell.strip().strip('"')))]
        if first and len(names) > 1 and not set(names).isdisjoint(known):
            return line, number
        first = first or line
        if len(names) != 1 or names[0] in known:
            break
    return first, 0


def _lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends, without the copy that ``io.StringIO`` would make."""
    return (match.group() for match in _LINE.finditer(text))


class _BoundedRows:
    """The lines of a table, of which no row has more than ``MAX_CELLS`` cells."""

    def __init__(self, lines: Iterator[str], delimiter: str) -> None:
        self._lines, self._delimiter = lines, delimiter
        self._num_cells = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._num_cells += line.count(self._delimiter) + 1
        if self._num_cells > MAX_CELLS:
            raise csv.Error(f"a row of more than {MAX_CELLS:,} cells")
        return line

    def begin_row(self) -> None:
        """Note that a row has ended."""
        self._num_cells = 0


def _delimiter(header: str) -> str:
    plain = _QUOTED.sub("", header)
    if not plain.strip():
        plain = header  # each whole line is in quotes
    best = max(_MARKS, key=plain.count)
    if plain.count(best):
        return best
    return "|" if "|" in plain else ","


def _rows(
    lines: Any, source: _BoundedRows, table: Delimited, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    def line() -> int:
        return int(lines.line_num) + skipped

    end = 0
    try:
        for cells in lines:
            end = lines.line_num
            source.begin_row()
            cells = [cell.strip() for cell in _unwrapped(cells, table)]
            if not any(cells):
                continue
            if not table.columns:
                while cells and not cells[-1]:
                    cells.pop()
                    table.num_unnamed += 1
                if len(cells) > MAX_COLUMNS:
                    message = f"{len(cells)} columns, more than {MAX_COLUMNS}"
                    table.faults.append((line(), message, "keep the columns of a manifest"))
                    return
                table.columns, table.line = cells, line()
                yield line(), cells
                continue
            # exports of wide sheets end rows with empty cells
            while len(cells) > len(table.columns) and not cells[-1]:
                cells.pop()
            if _is_wrong(table, line(), cells):
                continue
            yield line(), cells
    except csv.Error as error:
        table.faults.append(_fault_of(error, line(), end + 1 + skipped))
    _count_wrong(table, line())


def _unwrapped(cells: list[str], table: Delimited) -> list[str]:
    """The cells inside a row's only cell: a spreadsheet program that took another separator exports
    whole lines in quotes, with the quotes inside doubled."""
    if len(cells) != 1 or table.delimiter not in cells[0]:
        return cells
    try:
        (inner,) = csv.reader(cells, delimiter=table.delimiter, strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):  # its quotes are words of their own, or it has several lines
        return cells
    if table.columns and len(inner) != len(table.columns):
        return cells
    return inner


def _other_mark(cells: list[str], table: Delimited) -> str | None:
    """The mark that divides a row whose header is divided by another one."""
    if len(table.columns) < 2 or len(cells) != 1:
        return None
    wanted = len(table.columns) - 1
    others = (mark for mark in _MARKS if mark != table.delimiter)
    return next((mark for mark in others if cells[0].count(mark) == wanted), None)


def _is_wrong(table: Delimited, line: int, cells: list[str]) -> bool:
    """Whether a row cannot be divided into the columns; reports it."""
    mark = _other_mark(cells, table)
    if mark is None and len(cells) <= len(table.columns):
        return False
    _add_wrong(table, line, len(cells), mark or "")
    return True


def _add_wrong(table: Delimited, line: int, num_cells: int, mark: str = "") -> None:
    """Report a row of too many cells, or one that another mark divides; or count it."""
    table.num_wrong += 1
    if table.num_wrong <= MAX_WRONG_ROWS:
        if mark:
            message = f"`{mark}` divides this row, and `{table.delimiter}` the header"
            table.faults.append((line, message, "divide all rows alike"))
            return
        message = f"{num_cells} cells in a table of {len(table.columns)} columns"
        mark = "comma" if table.delimiter == "," else f"`{table.delimiter}`"
        remedy = f'put cells that hold a {mark} in quotes: "a{table.delimiter} b"'
        if num_cells <= len(table.columns) + table.num_unnamed:
            remedy = f"name column {num_cells} in line {table.line}, or empty its cells"
        table.faults.append((line, message, remedy))


def _count_wrong(table: Delimited, line: int) -> None:
    if (num_more := table.num_wrong - MAX_WRONG_ROWS) > 0:
        message = f"{num_more:,} more rows above have too many cells, or are divided otherwise"
        table.faults.append((line, message, "correct the others first"))


def _fault_of(error: csv.Error, line: int, first: int) -> tuple[int, str, str]:
    """Line, message and remedy of a row that cannot be read.

    Args:
        line: where reading stopped.
        first: where the row begins.
    """
    if "unexpected end" in str(error):
        return first, "a cell's quotes never end", "close the quotes that begin on this line"
    remedy = "correct the quotes"
    if "field larger" in str(error):
        remedy = "shorten the cell, or close its quotes"
    elif "a row of more than" in str(error):
        line = first
        remedy = "keep the columns of a manifest, and close quotes"
    return line, f"not a valid table: {error}", remedy
