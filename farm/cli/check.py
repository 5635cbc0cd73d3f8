"""``farm check``: every fault of a manifest and its photos, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from farm.cli.private_hosts import PrivateHostsOption
from farm.cli.progress import progress_bar

if TYPE_CHECKING:
    from farm.intake.check import CheckReport

__all__ = ["progress_bar", "register", "report_document"]

SHOWN_PER_KIND = 5
"""Faults of one kind that are shown before the rest is counted."""


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
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Find every fault of a manifest and its photos, each with its line and remedy.

    Costs no GPU and writes nothing. Exit code 0: all subjects can be trained; 3: some cannot.

    Examples:

      farm check jobs/article.yaml

      farm check photos/ --resolution 512 --json
    """
    from farm.base.tokens import prompt_reader
    from farm.cli.check_view import render_report
    from farm.cli.output import print_json, print_rich
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
        print_rich(render_report(report, None if every else SHOWN_PER_KIND))
    if is_bad:
        raise typer.Exit(ManifestError.exit_code)


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
        "captions": dict(zip(("captioned", "photos"), report.captions, strict=True)),
        "bytes": report.num_bytes,
        "seconds": round(report.seconds, 3),
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "faults": [asdict(fault) for fault in report.faults],
    }
