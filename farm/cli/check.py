"""``farm check``: every fault of a manifest and its photos, at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farm.intake.check import CheckReport

__all__ = ["progress_bar", "register", "report_document"]

SHOWN_PER_KIND = 5
"""Faults of one kind that are shown before the rest is counted."""
LINE_EVERY_S = 10.0
"""Between two lines of progress where stderr is no terminal."""
PIPE_WIDTH = 200
"""Columns of what is not a terminal, so that a fault stays on one line for `grep`."""


def register(app: typer.Typer) -> None:
    """Add ``check`` to the command line."""
    app.command()(check)


def check(
    manifest: str = typer.Argument(
        help="A manifest (YAML, JSON, JSONL, CSV, Parquet, kohya TOML, metadata.jsonl) or a "
        "folder of folders; a path or a URL."
    ),
    resolution: int = typer.Option(
        None, min=32, help="Side of the training crops in pixels, where the recipe names none."
    ),
    base: str = typer.Option(
        "embedded", "--base", help="Base model whose tokenizer reads the prompts."
    ),
    workers: int = typer.Option(None, min=1, help="Threads; the default is one a core."),
    every: bool = typer.Option(False, "--all", help="Show every fault, not five of a kind."),
    strict: bool = typer.Option(False, "--strict", help="Count warnings as errors."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document on the last line."),
) -> None:
    """Find every fault of a manifest and its photos, each with its line and remedy.

    Costs no GPU and writes nothing. Exit code 0: all subjects can be trained; 3: some cannot.

    Examples:

      farm check jobs/article.yaml

      farm check photos/ --resolution 512 --json
    """
    from farm.base.tokens import prompt_reader
    from farm.cli.check_view import render_report
    from farm.cli.output import print_json
    from farm.errors import ManifestError
    from farm.intake.check import check_manifest
    from farm.intake.manifest import read_manifest

    read = read_manifest(manifest, strict=False, reader=prompt_reader(base))
    with progress_bar("checking photos") as progress:
        report = check_manifest(read, workers=workers, resolution_px=resolution, progress=progress)
    is_bad = bool(report.errors or (strict and report.warnings))
    if json:
        print_json(report_document(report))
    else:
        _print(render_report(report, None if every else SHOWN_PER_KIND))
    if is_bad:
        raise typer.Exit(ManifestError.exit_code)


def _print(report: RenderableType) -> None:
    """The report on stdout; wide and without padding where that is no terminal."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(report)
        return
    if "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    with console.capture() as captured:
        console.print(report)
    for line in captured.get().splitlines():
        print(line.rstrip())


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show callbacks of (done, total) on stderr: a bar, or a line now and then if no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(what)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(what: str) -> Callable[[int, int], None]:
    """A callback that prints a line every ``LINE_EVERY_S`` seconds."""
    printed = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= LINE_EVERY_S:
            printed = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return show


def report_document(report: CheckReport) -> dict[str, object]:
    """The report as plain values, every fault included."""
    from dataclasses import asdict

    manifest = report.manifest
    return {
        "manifest": manifest.source,
        "ok": not report.errors,
        "subjects": len(manifest.written),
        "trainable": len(report.good_subjects),
        "photos": report.num_photos,
        "bytes": report.num_bytes,
        "seconds": round(report.seconds, 3),
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "faults": [asdict(fault) for fault in report.faults],
    }
