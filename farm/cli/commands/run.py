"""``farm plan`` and ``farm run``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from farm.cli.execute import (
    calibrate_device,
    confirm,
    finish,
    plan_request,
    prepare,
    run_prepared,
    run_request,
    show_plan,
    show_warnings,
)
from farm.cli.options import (
    JsonOption,
    ManifestArgument,
    OptionalManifest,
    PlanOptions,
    RunOptions,
    with_options,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(plan)
    app.command()(run)


@with_options
def plan(
    options: PlanOptions,
    manifest: OptionalManifest = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure this machine's GPU first, for about a minute; later plans for this card "
            "use the result.",
        ),
    ] = False,
    all_bases: Annotated[
        bool,
        typer.Option(
            "--all-bases",
            help="Show which bases fit on cards of 16 to 80 GiB instead, and with how many slots.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show how a manifest would be trained, how long it takes and what it costs. Trains nothing."""
    from farm.cli.views.output import print_json, print_rich
    from farm.cli.views.plan import plan_facts, plan_table, show_all_bases
    from farm.errors import UserError

    if all_bases:
        show_all_bases(json=json)
        return
    if manifest is None:
        raise UserError("no manifest is given", "name one, or use --all-bases")
    if calibrate:
        calibrate_device(options)
    prepared = prepare(plan_request(manifest, options), only_shown=True)
    show_warnings(prepared)
    if json:
        print_json(plan_facts(prepared))
    else:
        print_rich(plan_table(prepared))


@with_options
def run(
    manifest: ManifestArgument,
    options: RunOptions,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip confirmation.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines instead of a live table.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train every subject of a manifest that has no adapter yet.

    Run the same command again to resume an interrupted run. It costs nothing once all adapters are
    committed.

    Examples:

      farm run jobs/article.yaml

      farm run s3://bucket/manifest.jsonl --store s3://bucket/farm --address auto --nodes 4 --yes
    """
    from farm.storage import Store
    from farm.training.run.earlier import refuse_driven

    Store(os.fspath(options.store)).check_writable()
    request = run_request(manifest, options)
    refuse_driven(request)
    prepared = prepare(request)
    show_plan(prepared)
    if not (yes or json):
        confirm(prepared)
    summary = run_prepared(prepared, plain=plain or json)
    finish(prepared, summary, report=options.report, json=json)
    raise typer.Exit(summary.exit_code)
