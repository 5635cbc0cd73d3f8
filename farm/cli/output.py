"""How results are printed: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["print_facts", "print_json", "print_table"]


def print_json(value: object) -> None:
    """One JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(value, sort_keys=True, default=str) + "\n")
    sys.stdout.flush()


def print_facts(facts: Mapping[str, object], *, title: str = "") -> None:
    """Names and values, one a line, aligned."""
    print_table(("", title), facts.items())


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = ""
) -> None:
    """A table on stdout; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [list(row) for row in rows]
    numeric = [
        bool(lines) and all(isinstance(line[i], int | float) for line in lines)
        for i in range(len(headers))
    ]
    table = Table(title=title or None, title_justify="left", show_header=any(headers))
    for header, is_number in zip(headers, numeric, strict=True):
        table.add_column(header, justify="right" if is_number else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(_shown(value)) for value in line))
    Console().print(table)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
