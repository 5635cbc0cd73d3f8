"""The command line: the only place that prints.

Owns the root application, how errors become messages and exit codes, and where output goes:
results to stdout, progress and logs to stderr, one JSON document as the last line with ``--json``.
Each command is a module of ``farm.cli.commands`` that imports heavy packages only when it runs, so
that ``farm --help`` is instant.
"""

from __future__ import annotations

import faulthandler
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from farm.cli.quiet import hush_libraries
from farm.errors import FarmError, Fault, Interrupted, UserError, explain
from farm.local_files import full_disk
from farm.model_imports.lean import keep_imports

__all__ = ["app", "main"]

COMMANDS = (
    *("check", "run", "demo", "submit", "status", "requests", "adapters", "export"),
    *("import_", "serve", "keys", "quality", "base"),
)
"""Modules of ``farm.cli.commands``, in the order of the help page."""


class VisibleCommands(TyperGroup):
    """A group that suggests only visible commands for one that it does not have."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does it, without the hidden commands unless one of them is called."""
        known = self.commands
        if not args or args[0] not in known:
            self.commands = {name: one for name, one in known.items() if not one.hidden}
        try:
            return super().resolve_command(ctx, args)
        finally:
            self.commands = known


app = typer.Typer(
    name="farm",
    cls=VisibleCommands,
    help="Fine-tune one small LoRA adapter per subject, thousands at a time, and serve them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from farm.version import __version__

        print(f"farm {__version__}", flush=True)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Fine-tune one small LoRA adapter per subject, and serve them all."""


for _name in COMMANDS:
    importlib.import_module(f"farm.cli.commands.{_name}").register(app)


def _rewrap_help(group: typer.Typer) -> None:
    """Join the lines of each help paragraph: they are broken for the source, not for a terminal."""
    for command in group.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(
            text if text.startswith(" ") else " ".join(text.split()) for text in paragraphs
        )
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _rewrap_help(inner.typer_instance)


_rewrap_help(app)


def main(begin: Callable[[], None] = lambda: None) -> None:
    """Run the command line; turn every error of the farm into a message and an exit code.

    Args:
        begin: called first; it raises KeyboardInterrupt if Ctrl-C was pressed before.
    """
    try:
        begin()
        faulthandler.enable()  # a crash in native code prints the Python stack
        hush_libraries()
        keep_imports()
        app(prog_name="farm")
    except FarmError as error:
        if os.environ.get("FARM_DEBUG"):
            raise
        _end(error)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        _handle_exit(end)
        raise
    except Exception as error:
        if (full := full_disk(error)) is not None:
            _end(full)
        _print_document(error, 1)
        raise  # a bug: Python prints its stack


def _end(error: FarmError) -> NoReturn:
    """Explain an error and exit. Output that cannot be written changes no exit code: its reader
    has ended, or its disk is full."""
    with suppress(OSError):
        _explain(error)
    with suppress(OSError):
        _print_document(error, error.exit_code)
    _leave(error.exit_code)


def _handle_exit(end: SystemExit) -> None:
    """Print what typer left out: it turns usage errors and Ctrl-C into exits."""
    cause = end.__context__
    if end.code == Interrupted.exit_code or isinstance(cause, typer.Abort):
        _interrupted()
    # click's classes, which newer typer versions contain a copy of
    if (message := getattr(cause, "format_message", None)) is not None:
        context = getattr(cause, "ctx", None)
        command = context.command_path if context is not None else "farm"
        error = UserError(message(), f"see `{command} --help`")
        with suppress(BrokenPipeError):
            _print_document(error, error.exit_code)


def _interrupted() -> NoReturn:
    error = Interrupted("interrupted", "run the same command again")
    with suppress(BrokenPipeError):
        print("farm: interrupted", file=sys.stderr)
        _print_document(error, error.exit_code)
    _leave(error.exit_code)


def _leave(code: int) -> NoReturn:
    """Exit. Do not wait for threads that still wait for a Ray that does not answer: the exit
    handlers of Python and Ray would wait for them, or change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and change the exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    from farm.training.cluster.ray_threads import names_of_ray_threads

    ray = sys.modules.get("ray")
    if names_of_ray_threads() or (ray is not None and ray.is_initialized()):
        os._exit(code)
    sys.exit(code)


def _explain(error: FarmError) -> None:
    from rich.console import Console
    from rich.text import Text

    from farm.text.visible import visible, visible_lines

    console = Console(stderr=True)
    message = visible_lines(error.message)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    faults: Sequence[Fault] = getattr(error, "listed", ())
    if len(faults) == 1 and faults[0].message in error.message:
        faults = ()  # the message says it already
    for fault in faults:
        console.print(Text(f"  {visible(str(fault))}"), soft_wrap=True)
    if error.remedy:
        remedy = visible_lines(error.remedy)
        console.print(Text.assemble(("remedy: ", "bold green"), remedy), soft_wrap=True)


def _print_document(error: Exception, code: int) -> None:
    """With ``--json``, the error as the one JSON document on stdout."""
    if "--json" not in sys.argv[1:]:
        return
    from dataclasses import asdict

    from farm.cli.views.output import print_json

    message, remedy = explain(error)
    document: dict[str, object] = {"code": code, "message": message, "remedy": remedy}
    if faults := getattr(error, "faults", ()):
        document["faults"] = [asdict(fault) for fault in faults]
    print_json({"error": document})
