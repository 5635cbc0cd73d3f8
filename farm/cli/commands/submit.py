"""``farm submit``, ``farm supervise`` that its jobs run, and ``farm drain`` for spot nodes.

Owns the checks made before anything is sent.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from farm.cli.options import (
    BaseOption,
    JsonOption,
    ManifestArgument,
    RunOptions,
    ScoringOptions,
    read_options,
    with_options,
)
from farm.cli.private_hosts import PrivateHostsOption
from farm.cli.views.output import note, print_json, say

__all__ = ["register"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(submit)
    app.command()(drain)
    app.command(
        hidden=True,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )(supervise)


@with_options
def submit(
    manifest: ManifestArgument,
    store: Annotated[
        str,
        typer.Option(
            "--store", envvar="FARM_STORE", help="Folder or fsspec URL that the cluster can reach."
        ),
    ],
    scoring: ScoringOptions,
    address: Annotated[
        str,
        typer.Option(
            "--address",
            help="Address of the cluster's dashboard.",
            envvar="RAY_API_SERVER_ADDRESS",
        ),
    ] = DEFAULT_ADDRESS,
    base: BaseOption = "embedded",
    options: Annotated[
        list[str] | None,
        typer.Option("--with", help='More options of `farm run`, such as "--nodes 4".'),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retry", min=0, help="How often to restart a driver that died.")
    ] = 0,
    working_dir: Annotated[
        str | None,
        typer.Option("--working-dir", help="Folder to send to the cluster with the job."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the log of the job until it ends.")
    ] = False,
    json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Send a run to a cluster as a Ray Job, which outlives this terminal.

    A local manifest and local photos are checked and copied into the store first. Submitting a
    running job again does not start a second one; submitting it later resumes what is left.
    """
    from farm.intake.scoring import ScoringSettings
    from farm.storage import Store
    from farm.training.cluster.jobs.submit import (
        connect,
        scoring_arguments,
        split_options,
        submit_run,
    )

    settings = ScoringSettings(scoring.scorer, scoring.dino, scoring.scoring_share)
    private = ["--allow-private-hosts"] if allow_private_hosts else []
    words = [*scoring_arguments(settings), *private, *split_options(options or ())]
    store_url = Store(store).url  # a relative path would be a different folder on the head node
    chosen = _parsed(manifest, words)
    client = connect(address)
    url = _reachable(manifest, store_url, base, chosen)
    sent = submit_run(
        client,
        [url, "--store", store_url, "--base", base, *words],
        retries=retries,
        working_dir=working_dir,
        follow=(lambda text: print(text, end="", file=sys.stderr)) if follow else None,
    )
    if json:
        print_json(asdict(sent) | {"address": address, "manifest": url})
        return
    found = "is already running" if sent.was_running else "was submitted"
    say(f"{sent.job} {found} on the cluster at {address}: {sent.entrypoint}")
    if sent.run is None and sent.status == "SUCCEEDED":
        say("it has succeeded already: every subject has its adapter in the store")
    elif sent.run is None:
        say(f"the job is {sent.status.lower()}; its run appears in the store once it starts")
    run = f"{sent.run} " if sent.run else ""
    say(f"watch it with:  farm status {run}--store {store_url} --watch")
    say(f"read its log:   ray job logs --follow --address {address} {sent.job}")
    say(f"stop it with:   ray job stop --address {address} {sent.job}")


def supervise(
    arguments: Annotated[list[str], typer.Argument(help="A farm command and its options.")],
    retries: Annotated[
        int, typer.Option("--retries", min=0, help="How often to restart the command.")
    ] = 3,
) -> None:
    """Run a farm command and restart it if it dies."""
    from farm.training.cluster.jobs.supervisor import driver_command, supervise

    code = supervise(
        driver_command(arguments),
        retries=retries,
        report=lambda text: note(f"farm: {text}"),
    )
    raise typer.Exit(code)


def drain(
    address: Annotated[
        str, typer.Option(help="The cluster's head, host:port.", envvar="RAY_ADDRESS")
    ],
    cloud: Annotated[
        str | None, typer.Option(help="Wait for this cloud's notice: aws, gcp or azure.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Drain at once, without a notice.")] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="With --now: time until the machine is gone.")
    ] = 100.0,
    endpoint: Annotated[
        str | None, typer.Option(help="Metadata server to ask instead of the cloud's own.")
    ] = None,
    node_id: Annotated[
        str | None, typer.Option(help="Ray's id of the node; by default the one on this machine.")
    ] = None,
) -> None:
    """Drain this node when its cloud announces preemption, or at once.

    The node's lanes save their jobs and return; other nodes train them. Run it beside
    `ray start` on every spot node, or with --now as a Kubernetes preStop hook, where it waits
    for the lanes.
    """
    from farm.errors import UserError
    from farm.training.cluster.preemption import CLOUDS, drain_now, drain_on_notice

    if now == (cloud is not None):
        raise UserError("either --cloud or --now is needed", "for instance --cloud aws")
    if cloud is None:
        drain_now(address, seconds, node_id=node_id)
        return
    if cloud not in CLOUDS:
        raise UserError(f"--cloud {cloud!r} is not known", f"use one of {', '.join(CLOUDS)}")
    drain_on_notice(address, cloud, endpoint=endpoint, node_id=node_id)


def _parsed(manifest: str, words: list[str]) -> RunOptions:
    """The options as `farm run` will read them, with known hardware.

    Raises:
        ManifestError: for recipe fields that are invalid.
        UserError: for an option that `farm run` does not have, a value that it refuses, or a GPU
            of unknown memory.
    """
    from typer.main import get_command

    from farm.cli import app
    from farm.cli.execute import check_recipe, hardware_of
    from farm.errors import FarmError, UserError

    group = get_command(app)
    command = group.commands["run"]  # type: ignore[attr-defined]
    try:
        context = command.make_context("farm run", [manifest, *words])
    except Exception as error:  # of click, or of the copy of click inside newer typer versions
        if isinstance(error, FarmError) or not hasattr(error, "exit_code"):
            raise
        message = getattr(error, "message", "") or "--help cannot be sent to a cluster"
        raise UserError(f"--with: {message}", "see `farm run --help`") from error
    options = read_options(RunOptions, context.params)
    check_recipe(options.recipe)
    if options.gpu is not None or options.cpus is not None:
        hardware_of(options)
    return options


def _reachable(manifest: str, store_url: str, base: str, options: RunOptions) -> str:
    """The URL of the manifest for the cluster: its own, or that of its copy in the store."""
    from farm.cli.views.progress import progress_bar
    from farm.intake.photos.bytes import is_remote
    from farm.storage import Store
    from farm.training.cluster.jobs.uploads import upload_manifest

    if is_remote(manifest):
        return manifest
    with progress_bar("reading photos") as progress:
        upload = upload_manifest(
            manifest,
            Store(store_url),
            base=base,
            recipe=options.recipe,
            skip_faulty=options.skip_faulty,
            progress=progress,
        )
    for fault in upload.warnings[:10]:
        note(f"{fault.severity}: {fault}")
    note(
        f"copied to {upload.url}: {upload.num_subjects} subjects, {upload.num_photos} photos from "
        "this machine"
    )
    return upload.url
