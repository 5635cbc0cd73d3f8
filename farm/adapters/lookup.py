"""Adapters' names as people write them: found with a suggestion, refused where two would collide.

Owns the forms ``namespace/name``, with its default namespace, and ``name@key`` for one version, and
the rule for names that differ only in case. The registry itself takes names exactly as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from farm.adapters.names import NamedAdapter
from farm.adapters.registry import Registry, weights_digest
from farm.errors import UserError
from farm.intake.faults import similar_name
from farm.intake.subject import DEFAULT_NAMESPACE
from farm.text.safe_names import is_job_key, only_in_case

__all__ = [
    "MAX_CHECKED",
    "ONE_IS_KEPT",
    "check_case",
    "find_adapter",
    "same_but_case",
    "split_label",
]

ONE_IS_KEPT = "a disk that ignores case keeps only one of them"
MAX_CHECKED = 50_000
"""Names beyond which those that differ only in case are not looked for, which takes memory."""


def split_label(text: str) -> tuple[str, str]:
    """Namespace and name of ``namespace/name``, or of a name in the default namespace."""
    namespace, slash, name = text.rpartition("/")
    return (namespace if slash else DEFAULT_NAMESPACE), name


def find_adapter(registry: Registry, text: str) -> NamedAdapter:
    """What a name points to, or the version that it had by its key. Does not check revocation.

    Raises:
        UserError: if there is no such name or version; the remedy suggests a similar name, or
            lists the versions.
    """
    label, pinned, key = text.partition("@")
    namespace, name = split_label(label)
    named = registry.resolve(namespace, name)
    if named is None:
        close = similar_name(name, registry.listing(namespace))
        remedy = "list the names with `farm list`"
        raise UserError(
            f"no adapter is named {namespace}/{name} in {registry.store.url}",
            f"did you mean `{close}`? Names are case-sensitive" if close else remedy,
        )
    return _version(registry, named, key) if pinned else named


def _version(registry: Registry, named: NamedAdapter, key: str) -> NamedAdapter:
    """A version of a name by its key: only one that the name has had."""
    if (found := named.version(key)) is not None:
        return found
    if is_job_key(key) and registry.is_committed(key):
        record = registry.record(key)
        owner = record.namespace, record.name
        found = named.version_without_history(key, owner, weights_digest(record), record.created)
        if found is not None:
            return found
    versions = ", ".join(one.job_key for one in (named, *named.earlier))
    raise UserError(
        f"{named.namespace}/{named.name} has no version {key!r} in {registry.store.url}",
        f"its versions: {versions}",
    )


def check_case(registry: Registry, names: Iterable[tuple[str, str]]) -> None:
    """Refuse new names that differ only in case from names of the store.

    Args:
        names: pairs of namespace and name; those that the store has already are not new.

    Raises:
        UserError: naming the first pair.
    """
    wanted = {f"{namespace}/{name}" for namespace, name in names}
    if len(wanted) > MAX_CHECKED:
        return
    by_fold = {label.casefold(): label for label in wanted}
    spaces = {label.partition("/")[0] for label in by_fold}
    there = {
        f"{space}/{name}"
        for space in registry.store.list("names")
        if space.casefold() in spaces
        for name in registry.listing(space)
        if f"{space}/{name}".casefold() in by_fold
    }
    for label in sorted(there - wanted):
        mine = by_fold[label.casefold()]
        if mine not in there:
            raise UserError(
                f"the name {only_in_case(mine, label)}, which is in the store: {ONE_IS_KEPT}",
                "choose another name, or write it as in the store to replace that adapter",
            )


def same_but_case(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ only in case, the earlier one first."""
    seen: dict[str, str] = {}
    for label in labels:
        first = seen.setdefault(label.casefold(), label)
        if first != label:
            yield first, label
