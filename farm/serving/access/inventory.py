"""Inventory of the adapters that an endpoint serves, read from the store at startup.

Owns the operator's summary: the number of adapters, and which of them cannot be served and why. It
is informational only; each request is checked separately. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from farm.adapters.record import AdapterRecord
from farm.adapters.registry import Registry, is_revoked_among
from farm.base.names import trained_on
from farm.errors import FarmError
from farm.serving.config import EngineConfig

__all__ = ["Inventory", "Named", "read_inventory", "summary"]

MAX_RECORDS = 1000
"""Records read at startup; a store may hold many thousands."""
NUM_READERS = 16
NUM_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Named:
    """An adapter's name and its record; None for a record that cannot be read."""

    label: str
    record: AdapterRecord | None
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """The adapters of a store."""

    total: int
    read: tuple[Named, ...]
    """The first ``MAX_RECORDS`` adapters."""

    def refusals(self, config: EngineConfig, base_fingerprint: str) -> dict[str, list[str]]:
        """Names of adapters that cannot be served, by reason."""
        found = defaultdict(list)
        for named in self.read:
            reason = _reason(named, config, base_fingerprint)
            if reason:
                found[reason].append(named.label)
        return dict(found)


def read_inventory(registry: Registry, namespace: str | None = None) -> Inventory:
    """Read the names and the first records of a store, or of one namespace.

    Raises:
        StoreError: if the store does not answer.
    """
    spaces = registry.store.list("names") if namespace is None else [namespace]
    pairs = [
        (space, file.removesuffix(".json"))
        for space in sorted(spaces)
        for file in sorted(registry.store.list(f"names/{space}"))
        if file.endswith(".json")
    ]
    revoked = registry.revoked_keys()
    with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="inventory") as pool:
        read = pool.map(lambda pair: _read(registry, pair, revoked), pairs[:MAX_RECORDS])
        return Inventory(len(pairs), tuple(read))


def _read(registry: Registry, pair: tuple[str, str], revoked: set[str]) -> Named:
    label = pair[1] if pair[0] == "default" else "/".join(pair)
    try:
        named = registry.resolve(*pair)
        if named is None:
            return Named(label, None)
        is_revoked = is_revoked_among(revoked, named.job_key, named.namespace)
        return Named(label, registry.record(named.job_key), is_revoked)
    except (FarmError, ValueError):
        return Named(label, None)


def _reason(named: Named, config: EngineConfig, base_fingerprint: str) -> str:
    """Why an adapter cannot be served; empty if it can."""
    if named.is_revoked:
        return "revoked"
    record = named.record
    if record is None:
        return "the record cannot be read"
    if record.base_fingerprint != base_fingerprint:
        known_as = trained_on(record.base_id, record.base_fingerprint)
        return f"trained on another base ({known_as}, {record.base_family.title})"
    if not any(name.endswith(".safetensors") for name in record.files):
        return "no safetensors file"
    recipe = record.recipe
    if recipe is None:  # imported: its layers are known only when it is loaded
        return ""
    if recipe.rank > config.max_rank:
        return f"a rank above the limit of {config.max_rank} (--max-rank)"
    for option, modules in (
        ("target_modules", recipe.target_modules),
        ("text_encoder_modules", recipe.text_encoder_modules),
    ):
        limit: Sequence[str] | None = getattr(config, option)
        if limit is not None and not _are_inside(modules, limit):
            return f"layers outside the limit in the config file (engine.{option})"
    return ""


def _are_inside(modules: Iterable[str], limit: Sequence[str]) -> bool:
    return all(
        any(module == end or module.endswith(f".{end}") for end in limit) for module in modules
    )


def summary(inventory: Inventory, config: EngineConfig, base_fingerprint: str) -> list[str]:
    """The lines shown to the operator at startup."""
    refusals = inventory.refusals(config, base_fingerprint)
    num_refused = sum(len(names) for names in refusals.values())
    served = f"{inventory.total - num_refused} of " if num_refused else ""
    count = f"{served}{inventory.total} adapter{'' if inventory.total == 1 else 's'}"
    if inventory.total > len(inventory.read):
        count += f" (the first {len(inventory.read)} checked)"
    lines = [f"{count}, up to {config.num_slots - 1} of them in the model at once (--slots)"]
    if num_refused:
        lines.append(f"{num_refused} cannot be served:")
    for reason, names in sorted(refusals.items()):
        more = len(names) - NUM_NAMES_SHOWN
        shown = ", ".join(names[:NUM_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"  {shown}: {reason}")
    return lines
