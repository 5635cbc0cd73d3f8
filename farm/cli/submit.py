"""``farm submit``, and ``farm supervise`` that its jobs run.

Owns the options and what is checked before anything is sent.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from farm.cli.private_hosts import PrivateHostsOption
from farm.cli.run import DinoOption, JsonOption, ManifestArgument, ScorerOption, ShareOption

__all__ = ["register"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(submit)
    app.command(
        hidden=True,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )(supervise)


def submit(
    manifest: ManifestArgument,
    store: Annotated[str, typer.Option("--store", help="A store that the cluster can reach.")],
    address: Annotated[
        str, typer.Option(help="Of the cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS")
    ] = DEFAULT_ADDRESS,
    base: Annotated[str, typer.Option("--base")] = "embedded",
    scorer: ScorerOption = None,
    dino: DinoOption = None,
    scoring_share: ShareOption = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--with", help='Further options of `farm run`, such as "--nodes 4".'),
    ] = None,
    retries: Annotated[
        int,
        typer.Option("--retry", min=0, help="Start a driver that died again, so many times."),
    ] = 0,
    working_dir: Annotated[
        str | None, typer.Option(help="Folder that travels to the cluster with the job.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log until it ends.")] = False,
    json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
) -> None:
    """Send a run to a cluster as a Ray Job, which outlives this terminal.

    A manifest of this machine and its local photos are checked and copied into the store first.
    Sent again while it runs, it is the same job; sent again afterwards, it resumes with what is
    left.
    """
    from farm.cli.output import print_json, say
    from farm.intake.scoring import ScoringSettings
    from farm.storage import Store
    from farm.training.cluster.submit import connect, scoring_arguments, split_options, submit_run

    scoring = scoring_arguments(ScoringSettings(scorer, dino, scoring_share))
    private = ["--allow-private-hosts"] if allow_private_hosts else []
    words = [*scoring, *private, *split_options(options or ())]
    store_url = Store(store).url  # a relative path would mean another folder on the head
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
    found = "is running already" if sent.was_running else "was sent"
    say(f"{sent.job} {found}: {sent.entrypoint}")
    if sent.run is None:
        say(f"the job is {sent.status.lower()}; its run appears in the store once it begins")
    run = f"{sent.run} " if sent.run else ""
    say(f"watch it with:  farm status {run}--store {store_url} --watch")
    say(f"read its log:   ray job logs --follow --address {address} {sent.job}")
    say(f"stop it with:   ray job stop --address {address} {sent.job}")


def supervise(
    arguments: Annotated[list[str], typer.Argument(help="Of `farm`.")],
    retries: Annotated[int, typer.Option("--retries", min=0)] = 3,
) -> None:
    """Run a farm command, and start it again where it dies."""
    from farm.training.cluster.supervisor import driver_command, supervise

    code = supervise(
        driver_command(arguments),
        retries=retries,
        report=lambda text: print(f"farm: {text}", file=sys.stderr, flush=True),
    )
    raise typer.Exit(code)


def _parsed(manifest: str, words: list[str]) -> dict[str, Any]:
    """The options as `farm run` will understand them; hardware that is named is looked up.

    Raises:
        UserError: for an option that `farm run` does not have, or a value that it refuses.
    """
    from typer.main import get_command

    from farm.cli import app
    from farm.cli.run import hardware_of, recipe_fields
    from farm.errors import FarmError, UserError

    group = get_command(app)
    command = group.commands["run"]  # type: ignore[attr-defined]
    try:
        context = command.make_context("farm run", [manifest, *words])
    except Exception as error:  # click's, or those of the copy that newer typers carry
        if isinstance(error, FarmError) or not hasattr(error, "exit_code"):
            raise
        message = getattr(error, "message", "") or "it asks for help"
        raise UserError(f"--with: {message}", "see `farm run --help`") from error
    chosen: dict[str, Any] = context.params
    recipe_fields(chosen["recipe"])
    if chosen["gpu"] is not None or chosen["cpus"] is not None:
        names = ("gpu", "gpu_memory", "gpus", "nodes", "cpus", "price")
        hardware_of(*(chosen[name] for name in names))
    return chosen


def _reachable(manifest: str, store_url: str, base: str, chosen: dict[str, Any]) -> str:
    """The manifest's URL for the cluster: its own, or that of its copy in the store."""
    from farm.cli.check import progress_bar
    from farm.cli.run import recipe_fields
    from farm.intake.photos.bytes import is_remote
    from farm.storage import Store
    from farm.training.cluster.uploads import upload_manifest

    if is_remote(manifest):
        return manifest
    with progress_bar("reading photos") as progress:
        upload = upload_manifest(
            manifest,
            Store(store_url),
            base=base,
            recipe=recipe_fields(chosen["recipe"]),
            skip_faulty=chosen["skip_faulty"],
            progress=progress,
        )
    for fault in upload.warnings[:10]:
        print(f"{fault.severity}: {fault}", file=sys.stderr)
    print(
        f"copied to {upload.url}: {upload.num_subjects} subjects, {upload.num_photos} photos of "
        "this machine",
        file=sys.stderr,
    )
    return upload.url
