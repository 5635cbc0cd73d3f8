"""``farm keys``: create, list and revoke the API keys of the endpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from farm.cli.existing_store import existing_store
from farm.cli.options import JsonOption, StoreOption
from farm.cli.views.output import say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the ``keys`` group to the command line."""
    group = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def create(
    store: StoreOption = "work",
    namespace: Annotated[
        str, typer.Option("--namespace", help="Namespace whose adapters the key may use.")
    ] = "default",
    label: Annotated[
        str, typer.Option("--label", help="Note for people, such as the app that uses the key.")
    ] = "",
    rate: Annotated[
        int | None,
        typer.Option("--rate", min=1, help="Images per minute; the endpoint's limit by default."),
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="Allow /metrics, which covers all namespaces.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Create a key and print it.

    The key is shown only once: the store keeps its hash. From a store's first key on, its endpoints
    answer only requests with a key.
    """
    from farm.cli.views.output import note, print_json
    from farm.serving.access.api_keys import create_key
    from farm.storage import Store

    opened = Store(store)
    is_first = not opened.list("keys")
    token, record = create_key(
        opened, namespace, label=label, pictures_per_minute=rate, operator=operator
    )
    if is_first:
        note(
            f"warning: this is the first key of {opened.url}: its endpoints, running ones too, now "
            "answer 401 to requests without a key, also after all keys are revoked; give each "
            "caller a key"
        )
    if json:
        print_json({"key": token, "key_id": record.key_id, "namespace": record.namespace})
    else:
        say(token)


def list_(store: StoreOption = "work", json: JsonOption = False) -> None:
    """List every key: id, namespace, label, and whether it is valid."""
    from farm.cli.views.output import print_json, print_table
    from farm.serving.access.api_keys import list_keys

    rows = [
        (
            record.key_id,
            record.namespace,
            record.label,
            record.created,
            "valid" if is_valid else "revoked",
        )
        for record, is_valid in list_keys(existing_store(store))
    ]
    headers = ("key_id", "namespace", "label", "created", "status")
    if json:
        print_json([dict(zip(headers, row, strict=True)) for row in rows])
    else:
        print_table(headers, rows)


def revoke(
    key_id: Annotated[str, typer.Argument(help="Key id, as `farm keys list` shows it.")],
    store: StoreOption = "work",
    reason: Annotated[str, typer.Option("--reason", help="Reason to record.")] = "",
) -> None:
    """Revoke a key; endpoints refuse it within seconds."""
    from farm.serving.access.api_keys import revoke_key

    revoke_key(existing_store(store), key_id, reason)
    say(f"revoked {key_id}")
