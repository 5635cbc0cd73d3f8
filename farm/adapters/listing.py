"""The adapters of a store as rows of a table: names, classes, versions, origins, verdicts, dates.

Owns the selection and the order. Reads the listings of names, and the records of one page only.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from farm.adapters.lookup import MAX_CHECKED, same_but_case, split_label
from farm.adapters.record import AdapterRecord
from farm.adapters.registry import NamedAdapter, Registry, is_revoked_among
from farm.errors import AdapterFileError

__all__ = ["AdapterPage", "ListedAdapter", "count_adapters", "list_adapters"]

NUM_READERS = 16


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """A name and what its record says; most fields are empty where the record cannot be read."""

    name: str
    """``namespace/name``."""
    class_noun: str = ""
    subject: str = ""
    version: str = ""
    """Its job key; ``name@key`` requests this version."""
    origin: str = ""
    """``trained`` or ``imported``."""
    verdict: str = ""
    """The label of its quality card; empty if it has none."""
    created: str = ""
    """When the name was pointed to this version."""
    base: str = ""
    is_revoked: bool = False
    problem: str = ""
    """Why the name or its record cannot be read."""


@dataclass(frozen=True, slots=True)
class AdapterPage:
    """A page of names, in order."""

    adapters: tuple[ListedAdapter, ...]
    total: int
    """Number of all matching names."""
    next_after: str
    """Continues the listing; empty on the last page."""
    same_but_case: tuple[str, str] | None = None
    """The first two matching names, if any, that differ only in case."""


def count_adapters(registry: Registry, namespace: str | None = None) -> int:
    """The number of names, from listings alone."""
    return len(_labels(registry, namespace))


def list_adapters(
    registry: Registry,
    *,
    namespace: str | None = None,
    search: str = "",
    after: str = "",
    limit: int = 100,
) -> AdapterPage:
    """The names after ``after`` that contain ``search``, in order.

    Args:
        namespace: only this one; None lists all.
        search: part of ``namespace/name``, in any case.
        after: the last name of the page before.

    Raises:
        StoreError: if the store does not answer.
    """
    wanted = search.casefold()
    matching = [
        (space, name)
        for space, name in _labels(registry, namespace)
        if wanted in f"{space}/{name}".casefold()
    ]
    start: tuple[str, ...] = split_label(after) if after else ()
    left = [pair for pair in matching if pair > start]
    shown = left[:limit]
    revoked = registry.revoked_keys()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        rows = tuple(pool.map(lambda pair: _read(registry, pair, revoked), shown))
    more = "/".join(shown[-1]) if len(left) > limit else ""
    twins = next(same_but_case(map("/".join, matching[:MAX_CHECKED])), None)
    return AdapterPage(rows, len(matching), more, twins)


def _labels(registry: Registry, namespace: str | None) -> list[tuple[str, str]]:
    spaces = registry.store.list("names") if namespace is None else [namespace]
    return sorted((space, name) for space in spaces for name in registry.listing(space))


def _read(registry: Registry, pair: tuple[str, str], revoked: Collection[str]) -> ListedAdapter:
    label = "/".join(pair)
    try:
        named = registry.resolve(*pair)
        if named is None:
            return ListedAdapter(label, problem="removed meanwhile")
    except AdapterFileError as error:
        return ListedAdapter(label, problem=error.message)
    is_revoked = is_revoked_among(revoked, named.job_key, named.namespace)
    try:
        return _row(label, named, registry.record(named.job_key), is_revoked)
    except AdapterFileError as error:
        return ListedAdapter(
            label,
            version=named.job_key,
            created=named.created,
            is_revoked=is_revoked,
            problem=error.message,
        )


def _row(label: str, named: NamedAdapter, record: AdapterRecord, is_revoked: bool) -> ListedAdapter:
    verdict = (record.quality or {}).get("verdict")
    return ListedAdapter(
        label,
        class_noun=record.class_noun,
        subject=record.subject_id,
        version=named.job_key,
        origin="trained" if record.imported is None else "imported",
        verdict=str(verdict.get("label", "")) if isinstance(verdict, dict) else "",
        created=named.created or record.created,
        base=record.base_id,
        is_revoked=is_revoked,
    )
