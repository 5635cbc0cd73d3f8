"""What a run needs to know of a base before it trains: fingerprint, sizes, names of its modules.

Owns ``base_facts.json``, the facts of bases whose weights or shapes are part of the package:
reading them takes no model library, loading a base takes seconds. Facts of other bases are read
from the base itself, loaded without its weights. Kept facts are used only where the fingerprint is
that of the files.

    python -m farm.training.plan.base_facts

loads the bases and rewrites the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

from farm.base.loading import fingerprint_at_hand, refuse_revision
from farm.base.memory import MemoryFacts
from farm.base.names import EDITIONS, EMBEDDED, BuiltName, Fetched
from farm.intake.modules import BaseModules

__all__ = ["BaseFacts", "base_facts", "loaded_facts", "written"]

FILE = Path(__file__).parent / "base_facts.json"
KEPT = (EMBEDDED, *EDITIONS, "tiny")
"""The bases in the file."""


@dataclass(frozen=True)
class BaseFacts:
    """Facts about a base in float32; see ``Base``."""

    fingerprint: str
    resolution_px: int
    memory: MemoryFacts
    modules: BaseModules
    recipe: Mapping[str, object] = field(default_factory=dict)


def base_facts(name: str, revision: str | None = None, fetched: Fetched | None = None) -> BaseFacts:
    """The facts of a base, which is fetched if it is remote.

    Raises:
        BaseModelError: as ``load_base``.
    """
    kept = _kept().get(name)
    if kept is None:
        return loaded_facts(name, revision, fetched)
    refuse_revision(name, revision)
    fingerprint = fingerprint_at_hand(name)
    if name in get_args(BuiltName) or fingerprint == kept.fingerprint:
        return replace(kept, fingerprint=fingerprint)
    return loaded_facts(name, revision)  # of weights that were trained again in place


def loaded_facts(
    name: str, revision: str | None = None, fetched: Fetched | None = None
) -> BaseFacts:
    """The facts of a base from the base itself, loaded without its weights."""
    from farm.adapters.bank.layout import base_modules
    from farm.base.loading import load_base

    base = load_base(name, device="meta", revision=revision, fetched=fetched)
    memory = replace(base.memory, counts=base.denoiser_counts())
    return BaseFacts(
        base.fingerprint, base.resolution_px, memory, base_modules(base), dict(base.recipe)
    )


@cache
def _kept() -> Mapping[str, BaseFacts]:
    return {name: _read(value) for name, value in json.loads(FILE.read_text()).items()}


def _read(value: Mapping[str, Any]) -> BaseFacts:
    modules = value["modules"]
    texts = tuple((name, tuple(paths)) for name, paths in modules["text_encoders"])
    return BaseFacts(
        value["fingerprint"],
        value["resolution_px"],
        MemoryFacts(**value["memory"]),
        BaseModules(modules["base"], tuple(modules["denoiser"]), texts),
    )


def written(name: str) -> dict[str, Any]:
    """What the file holds of a base."""
    facts = asdict(loaded_facts(name))
    if name in get_args(BuiltName):  # depends on the libraries' versions, too
        facts["fingerprint"] = ""
    assert not facts.pop("recipe"), "recipes of families are not kept"
    return facts


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: written(name) for name in KEPT}, indent=1) + "\n")
