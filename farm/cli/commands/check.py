"""``farm check``: report every fault of a manifest and its photos at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.options import BaseOption, JsonOption, ManifestArgument, SetOption, recipe_fields
from farm.cli.private_hosts import PrivateHostsOption

if TYPE_CHECKING:
    from farm.intake.check import CheckReport

__all__ = ["register", "report_document"]

SHOWN_PER_KIND = 5
"""Faults shown of each kind; the others are counted."""


def register(app: typer.Typer) -> None:
    """Add ``check`` to the command line."""
    app.command()(check)


def check(
    manifest: ManifestArgument,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=32, help="Side of the training crops in pixels, for recipes that set none."
        ),
    ] = None,
    base: BaseOption = "embedded",
    recipe: SetOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one per CPU core by default.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show every fault, not only five of each kind.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Find every fault of a manifest and its photos, each with its line and remedy.

    Needs no GPU. Facts about photos are cached on this machine, so that a second check reads only
    changed photos. Exit code 0: all subjects can be trained; 3: some cannot.

    Examples:

      farm check jobs/article.yaml

      farm check photos/ --set steps=60 --json
    """
    from farm.cli.execute import check_recipe
    from farm.cli.views.check import render_report
    from farm.cli.views.output import print_json, print_rich
    from farm.cli.views.progress import progress_bar
    from farm.errors import ManifestError
    from farm.intake.check import check_manifest
    from farm.training.run.check import read_for_check

    fields = recipe_fields(recipe)
    check_recipe(fields)
    read = read_for_check(manifest, base, fields)
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
    """The report as plain values, with every fault that was kept."""
    from dataclasses import asdict

    manifest = report.manifest
    return {
        "manifest": manifest.source,
        "ok": not report.errors,
        "subjects": len(manifest.resolved),
        "trainable": report.num_trainable,
        "photos": report.num_photos,
        "captions": dict(zip(("captioned", "photos"), report.captions, strict=True)),
        "bytes": report.num_bytes,
        "seconds": round(report.seconds, 3),
        "errors": report.num_errors,
        "warnings": report.num_warnings,
        "faults": [asdict(fault) for fault in report.faults],
    }
