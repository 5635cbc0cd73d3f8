"""Adapters' names as people write them: found with a suggestion, refused where two would collide.

Owns the form ``namespace/name`` with its default namespace, and the rule for names that differ only
in case. The registry itself takes names exactly as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from farm.adapters.names import NamedAdapter
from farm.adapters.registry import Registry
from farm.errors import UserError
from farm.intake.faults import similar_name
from farm.intake.subject import DEFAULT_NAMESPACE

__all__ = ["MAX_CHECKED", "check_case", "find_adapter", "same_but_case", "split_label"]

MAX_CHECKED = 50_000
"""Names beyond which those that differ only in case are not looked for, which takes memory."""


def split_label(text: str) -> tuple[str, str]:
    """Namespace and name of ``namespace/name``, or of a name in the default namespace."""
    namespace, slash, name = text.rpartition("/")
    return (namespace if slash else DEFAULT_NAMESPACE), name


def find_adapter(registry: Registry, text: str) -> NamedAdapter:
    """What a name points to. Does not check revocation.

    Raises:
        UserError: if there is no such name; the remedy suggests a similar one.
    """
    namespace, name = split_label(text)
    named = registry.resolve(namespace, name)
    if named is None:
        close = similar_name(name, registry.listing(namespace))
        remedy = "list the names with `farm list`"
        raise UserError(
            f"no adapter is named {namespace}/{name} in {registry.store.url}",
            f"did you mean `{close}`? Names are case-sensitive" if close else remedy,
        )
    return named


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
                f"the name {mine} differs only in case from {label}, which is in the store: a disk "
                "that ignores case keeps only one of them",
                "choose another name, or write it as in the store to replace that adapter",
            )


def same_but_case(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ only in case, the earlier one first."""
    seen: dict[str, str] = {}
    for label in labels:
        first = seen.setdefault(label.casefold(), label)
        if first != label:
            yield first, label
