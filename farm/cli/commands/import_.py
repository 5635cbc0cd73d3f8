"""``farm import``: bring adapters of other tools into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli.options import BaseOption, JsonOption, StoreOption
from farm.cli.views.output import note, print_json, say
from farm.text.visible import visible

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``import`` to the command line."""
    app.command("import")(import_)


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A safetensors file of diffusers, PEFT, kohya or LyCORIS, or a PEFT folder."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name to serve the adapter under.")],
    class_noun: Annotated[str, typer.Option("--class", help="What it shows, such as cat.")],
    store: StoreOption = "work",
    base: BaseOption = "embedded",
    identifier: Annotated[
        str | None,
        typer.Option(
            "--identifier",
            help="Trigger word that replaces [V]; by default the one in the file, else sks.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Example prompt, with [V].")
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", help="Namespace (tenant or project) of the name.")
    ] = "default",
    replace: Annotated[
        bool, typer.Option("--replace", help="Reassign a name that is already in use.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring an adapter of another tool into a store, to be listed, served and exported.

    LoHa and LoKr are converted to plain LoRA of the same effect. Adapters that plain LoRA cannot
    represent are refused.

    Example:

      farm import tom.safetensors --name tom --class cat --store work
    """
    from farm.adapters.files.importing import ImportRequest, import_adapter
    from farm.base.loading import load_base
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
                "alpha_assumed": imported.alpha_assumed,
                "layers": len(weights.layers),
                "rank": weights.rank,
            }
        )
        return
    how = "imported" if imported.is_new else "already in the store"
    say(
        f"{record.namespace}/{record.name}: {how}, {len(weights.layers)} layers, rank up to "
        f"{weights.rank}, key {record.job_key}"
    )
    if imported.identifier_assumed:
        phrase = visible(imported.trigger_phrase[:80])
        why = "the file has no trigger word"
        if phrase:
            why = f"the file's trigger phrase, `{phrase}`, is not one word"
        note(f"[V] stands for `{record.identifier}`, because {why}; set it with --identifier")
    if imported.alpha_assumed:
        note(
            "the strength is a guess, alpha = rank: adapter_config.json is not beside the file; to "
            "use the true one, put it there and import the folder with --replace"
        )
    say(f'Prompt it with "{record.instance_prompt}".')
