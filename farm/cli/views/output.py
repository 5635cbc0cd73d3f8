"""How results are printed: JSON for programs, tables for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from farm.text.visible import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = [
    "ask",
    "note",
    "note_verdicts",
    "print_facts",
    "print_json",
    "print_rich",
    "print_table",
    "say",
    "table_of",
]

PIPE_WIDTH = 200
"""Columns where the output is not a terminal, so that a row stays on one line for `grep`."""


def say(text: str) -> None:
    """Print a line of results on stdout."""
    print(visible_lines(text), flush=True)


def note(text: str) -> None:
    """Print a line about the progress of a command on stderr. If its reader has ended, such as a
    ``tee`` that Ctrl-C also reached, the command continues."""
    with suppress(BrokenPipeError):
        print(visible_lines(text), file=sys.stderr, flush=True)


def ask(question: str, *, default: bool) -> bool:
    """Ask on the terminal. Ctrl-C is reported once: typer would report it too."""
    import typer

    try:
        return typer.confirm(question, default=default, err=True)
    except typer.Abort as error:
        note("")
        raise KeyboardInterrupt from error


def note_verdicts(bases: Iterable[str]) -> None:
    """Note what verdicts of adapters on these bases are worth, where that is little."""
    from farm.base.names import verdict_note

    for text in dict.fromkeys(map(verdict_note, bases)):
        if text:
            note(f"note: {text}")


def print_rich(what: RenderableType, *, stderr: bool = False) -> None:
    """Print in the terminal's width; elsewhere wide enough for `grep` and without padding."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if console.is_terminal:
        console.print(what)
        return
    if "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    with console.capture() as captured:
        console.print(what)
    for line in captured.get().splitlines():
        print(line.rstrip(), file=sys.stderr if stderr else sys.stdout)


def print_json(value: object) -> None:
    """Print one JSON document on one line of stdout."""
    sys.stdout.write(json.dumps(value, sort_keys=True, default=str) + "\n")
    sys.stdout.flush()


def print_facts(facts: Mapping[str, object], *, title: str = "") -> None:
    """Print names and values, one pair per line, aligned."""
    print_table(("", title), facts.items())


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = ""
) -> None:
    """Print a table on stdout; numbers are right-aligned."""
    print_rich(table_of(headers, rows, title=title))


def table_of(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """A table whose numbers are right-aligned."""
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
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else visible(str(value))
    )
