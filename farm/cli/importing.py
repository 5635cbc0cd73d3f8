"""``farm import``: adapters of other tools, brought into a store."""

from __future__ import annotations

from pathlib import Path

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``import`` to the command line."""
    app.command("import")(import_)


def import_(
    file: Path = typer.Argument(
        help="A safetensors file of diffusers, PEFT, kohya or LyCORIS, or PEFT's folder."
    ),
    name: str = typer.Option(..., "--name", help="Name to serve the adapter under."),
    class_noun: str = typer.Option(..., "--class", help="What it shows, such as cat."),
    store: str = typer.Option("work", "--store", help="Folder or URL of the store."),
    base: str = typer.Option("embedded", "--base", help="Base model that it was trained on."),
    identifier: str = typer.Option(
        None, help="Trigger word, for which [V] stands; by default the file's own, else sks."
    ),
    prompt: str = typer.Option(None, help="Example prompt, with [V]."),
    namespace: str = typer.Option("default", help="Tenant or project of the name."),
    replace: bool = typer.Option(False, "--replace", help="Let a name that is taken point here."),
    json: bool = typer.Option(False, "--json", help="Print one JSON document on the last line."),
) -> None:
    """Bring an adapter of another tool into a store, to be listed, served and exported.

    LoHa and LoKr become plain LoRA of the same effect. What no plain LoRA can equal is refused.

    Example:

      farm import tom.safetensors --name tom --class cat --store work
    """
    from farm.adapters.files.importing import ImportRequest, import_adapter
    from farm.base.loading import load_base
    from farm.cli.output import print_json
    from farm.storage import Store

    request = ImportRequest(file, name, class_noun, namespace, identifier, prompt, replace)
    imported = import_adapter(Store(store), load_base(base), request)
    record, weights = imported.record, imported.weights
    if json:
        print_json(
            {
                "name": f"{record.namespace}/{record.name}",
                "job_key": record.job_key,
                "imported": record.imported.model_dump() if record.imported else None,
                "new": imported.is_new,
                "identifier": record.identifier,
                "identifier_assumed": imported.identifier_assumed,
                "layers": len(weights.layers),
                "rank": weights.rank,
            }
        )
        return
    how = "imported" if imported.is_new else "already in the store"
    typer.echo(
        f"{record.namespace}/{record.name}: {how}, {len(weights.layers)} layers, rank up to "
        f"{weights.rank}, key {record.job_key}"
    )
    if imported.identifier_assumed:
        typer.echo(
            f"[V] stands for `{record.identifier}`, because the file names no trigger word; "
            "set it with --identifier",
            err=True,
        )
    typer.echo(f'Prompt it with "{record.instance_prompt}".')
