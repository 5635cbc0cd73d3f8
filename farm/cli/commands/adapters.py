"""``farm list`` and ``farm revoke``: the adapters of a store by name, without Ray or a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.existing_store import existing_store
from farm.cli.options import JsonOption, StoreOption
from farm.cli.views.output import ask, note, note_verdicts, print_json, print_table, say
from farm.text.visible import visible

if TYPE_CHECKING:
    from farm.adapters.listing import ListedAdapter

__all__ = ["register"]

UNSCORED = ("", "not scored")
HEADERS = ("name", "class", "subject", "version", "origin", "verdict", "date", "state")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("list")(list_)
    app.command()(revoke)


def list_(
    store: StoreOption = "work",
    search: Annotated[
        str, typer.Option("--search", help="Only names that contain this text.")
    ] = "",
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Only this namespace (tenant or project).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Names on one page.")] = 100,
    after: Annotated[
        str, typer.Option("--after", help="Continue after this name of the page before.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """List the adapters of a store: class, version, origin, verdict and date of each name.

    Reads only the store. Revoked adapters are marked.

    Example:

      farm list --store work --search cat
    """
    from dataclasses import asdict

    from farm.adapters.listing import list_adapters
    from farm.adapters.lookup import ONE_IS_KEPT
    from farm.adapters.registry import Registry

    opened = existing_store(store)
    page = list_adapters(
        Registry(opened), namespace=namespace, search=search, after=after, limit=limit
    )
    if json:
        rows = [asdict(one) for one in page.adapters]
        print_json({"adapters": rows, "total": page.total, "next_after": page.next_after or None})
        return
    if not page.adapters:
        note(f"no adapters of {opened.url} match" if page.total or search else "no adapters yet")
        return
    print_table(HEADERS, [_cells(one) for one in page.adapters])
    note_verdicts(one.base for one in page.adapters if one.verdict not in UNSCORED)
    if page.same_but_case:
        first, second = page.same_but_case
        note(
            f"note: names differ only in case, such as {visible(first)} and {visible(second)}: "
            f"{ONE_IS_KEPT}"
        )
    if page.next_after:
        note(f"{len(page.adapters):,} of {page.total:,}; next page: --after {page.next_after}")


def _cells(one: ListedAdapter) -> tuple[str, ...]:
    cells = (one.class_noun, one.subject, one.version, one.origin, one.verdict or "not scored")
    if one.problem:
        cells = ("", "", one.version, "", "")
    mark = "revoked" if one.is_revoked else ""
    last = ": ".join(text for text in (mark, one.problem) if text) or "available"
    return tuple(visible(text) for text in (one.name, *cells, one.created[:10], last))


def revoke(
    name: Annotated[
        str, typer.Argument(help="Adapter: name or namespace/name; @ and a version's key after it.")
    ],
    store: StoreOption = "work",
    reason: Annotated[str, typer.Option("--reason", help="Reason to record.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip confirmation.")] = False,
    json: JsonOption = False,
) -> None:
    """Revoke an adapter for good: endpoints refuse it within seconds. Its files stay.

    It is revoked under all names of its namespace that point to the same version; other namespaces
    keep it. Endpoints serve the name again once it points to a newly trained or imported version.
    `NAME@KEY` revokes an earlier version.
    """
    from farm.adapters.lookup import find_adapter
    from farm.adapters.registry import Registry

    registry = Registry(existing_store(store))
    named = find_adapter(registry, name)
    was_revoked = registry.is_revoked(named.job_key, named.namespace)
    label = f"{named.namespace}/{named.name}"
    if not (was_revoked or yes or json) and sys.stdin.isatty():
        question = f"Revoke {visible(label)}, version {named.job_key}? This cannot be undone."
        if not ask(question, default=False):
            raise typer.Exit(0)
    if not was_revoked:
        registry.revoke(named.namespace, named.name, job_key=named.job_key, reason=reason)
    if json:
        print_json({"name": label, "version": named.job_key, "new": not was_revoked})
    else:
        say(f"{visible(label)} {'was already' if was_revoked else 'is'} revoked ({named.job_key})")
