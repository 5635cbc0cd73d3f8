"""The page of commands, generated from the real parsers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main


def commands_page() -> str:
    """Every command of ``farm`` with its arguments and options."""
    from farm.cli import app

    parts = [
        "# Commands",
        "Generated from the parsers of `farm`; `farm COMMAND --help` shows the same.",
    ]
    for path, command in _leaves(typer.main.get_command(app), "farm"):
        parts.append(f"## `{path}`")
        parts.append(_prose(command.help or ""))
        context = command.context_class(command, info_name=path)
        rows = [
            row for parameter in command.params if (row := _row(parameter, context)) is not None
        ]
        if rows:
            parts.append(
                "\n".join(
                    ["| option | takes | default | description |", "|---|---|---|---|", *rows]
                )
            )
    return "\n\n".join(parts) + "\n"


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        if not child.hidden:
            yield from _leaves(child, f"{path} {name}")


def _prose(text: str) -> str:
    """Help as Markdown: examples, which are indented, become code."""
    cleaned = inspect.cleandoc(text.replace("\b", "").replace("\f", "")).replace("``", "`")
    lines = [
        f"    {line.strip()}" if line.startswith("  ") else _escaped(line)
        for line in cleaned.splitlines()
    ]
    return "\n".join(lines)


def _row(parameter: Any, context: Any) -> str | None:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).strip('{}[]').upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    takes = _kind(parameter, context)
    if parameter.nargs == -1 or getattr(parameter, "multiple", False):
        takes += ", repeatable"
    cells = [names, takes, _default(parameter), _escaped(parameter.help or "")]
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"


def _kind(parameter: Any, context: Any) -> str:
    """The type that the help shows; empty for a switch."""
    name = str(parameter.display_type(context)).strip("<>{}")
    return "" if name == "bool" else f"`{name}`"


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if callable(value):
        value = value()
    shown = (
        value is not None
        and value != ()
        and not isinstance(value, bool)
        and "UNSET" not in str(value)
    )
    return f"`{value}`" if shown else ""


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*") if text.strip() else ""
