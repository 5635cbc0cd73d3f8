"""``farm export``: copy adapters out of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from farm.cli.existing_store import existing_store
from farm.cli.options import JsonOption, NamesArgument, NamesOption, StoreOption
from farm.cli.views.output import note, print_json, say
from farm.text.listed import listed
from farm.text.visible import visible

__all__ = ["register"]

SHOWN = 10
"""Names in a note; with --json all of them are in the document."""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(export)


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    names: NamesArgument = None,
    name: NamesOption = None,
    run: Annotated[
        str | None, typer.Option("--run", help="Export all adapters of this run.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--form", help="Only diffusers, peft or kohya; all files by default."),
    ] = None,
    store: StoreOption = "work",
    json: JsonOption = False,
) -> None:
    """Copy adapters out of the store, one folder each, and verify their digests.

    Without names or --run, all adapters are copied.

    With --form only that file is written, named after the adapter. An adapter that cannot be read
    is reported, and the others are exported; revoked ones are left out and named.
    """
    from farm.training.run.export import export_adapters

    opened = existing_store(store)
    named = [*(names or ()), *(name or ())]
    result = export_adapters(opened, out, names=named, run_id=run, form=form)
    if json and result.stopped is None:  # else the error is the document
        rows: list[dict[str, str | None]] = [
            {"name": label, "path": str(path)} for label, path in result.written
        ]
        rows += [{"name": label, "path": None, "left_out": why} for label, why in result.left_out]
        rows += [
            {"name": label, "error": error.message, "remedy": error.remedy}
            for label, error in result.failed
        ]
        print_json(rows)
    elif not json:
        for label, path in result.written:
            say(f"{visible(label)}\t{visible(str(path))}")
    for why in dict.fromkeys(why for _, why in result.left_out):
        note(_left_out([label for label, reason in result.left_out if reason == why], why))
    for label, error in result.failed:
        note(visible(f"{label} was not exported: {error.message}"))
        if error.remedy:
            note(f"  remedy: {visible(error.remedy)}")
    if result.stopped is not None:
        raise result.stopped
    if result.failed:
        raise typer.Exit(result.failed[0][1].exit_code)
    if not (result.written or result.left_out):
        note(f"the store {opened.url} holds no adapters to export")


def _left_out(labels: Sequence[str], why: str) -> str:
    are = f"{len(labels):,} {'adapter is' if len(labels) == 1 else 'adapters are'} left out, {why}"
    return f"{are}: {visible(listed(labels, SHOWN))}"
