"""The command line: the only place that prints.

Owns the root application, how errors become messages and exit codes, and where output goes:
results on stdout, progress and logs on stderr, one JSON document as the last line with ``--json``.
Each command group lives in a module of its own and imports what is heavy when it runs, so that
``farm --help`` is instant.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys

import typer

from farm.cli.quiet import hush_libraries
from farm.errors import FarmError, Interrupted

__all__ = ["app", "main"]

GROUPS = ("check", "run", "serve", "quality", "base")
"""Modules of this package that register commands, in the order of the help page."""

app = typer.Typer(
    name="farm",
    help="Fine-tune one small LoRA adapter per subject, thousands at a time, and serve them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from farm import __version__

        print(f"farm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options of the farm itself."""


for _group in GROUPS:
    importlib.import_module(f"farm.cli.{_group}").register(app)


def main() -> None:
    """Run the command line; every error of the farm becomes a message and its exit code."""
    faulthandler.enable()  # a crash below Python says where it happened
    hush_libraries()
    try:
        app()
    except FarmError as error:
        if os.environ.get("FARM_DEBUG"):
            raise
        _explain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("farm: interrupted", file=sys.stderr)
        sys.exit(Interrupted.exit_code)


def _explain(error: FarmError) -> None:
    from rich.console import Console
    from rich.text import Text

    from farm.visible import visible, visible_lines

    console = Console(stderr=True)
    message = visible_lines(error.message)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    for fault in getattr(error, "faults", ()):
        console.print(Text(f"  {visible(str(fault))}"), soft_wrap=True)
    if error.remedy:
        remedy = visible_lines(error.remedy)
        console.print(Text.assemble(("remedy: ", "bold green"), remedy), soft_wrap=True)
